//! Global and local views of transits as in AstroNet (Shallue and Vanderburg 2018): medians of overlapping bins of phase.
//!
//! A light curve is folded once for all views of a candidate (`phase_order`); the cadences of a bin then lie next to
//! each other, and the rest is medians (`median`). Threads share the candidates.

use super::median::median;
use super::phase_order::PhaseOrder;
use crate::error::Error;
use crate::float::Float;
use crate::parallel;

/// A transit to fold at.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Period, more than 0.
    pub period: f64,
    /// Middle of any transit, which gets phase 0.
    pub epoch: f64,
}

/// One view of every candidate.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Bins, at least 2: the first starts at minus `half`, the last ends at `half`.
    pub bins: usize,
    /// Of each candidate, how far the view reaches to both sides.
    pub half: &'a [f64],
    /// Of each candidate, how wide a bin is.
    pub width: &'a [f64],
}

/// For each of `views`, the medians `[candidate, bin]` of the light curve folded at each candidate.
///
/// With `normalise`, the median of each view becomes 0 and its minimum -1; a view whose minimum is its median becomes
/// 0 where it is at the minimum, and is not scaled.
///
/// # Errors
///
/// Arrays of different lengths; no cadences, or 2^32 of them; times, fluxes or candidates that are not numbers; views
/// that do not fit.
pub fn fold_views<T: Float>(
    time: &[f64],
    flux: &[T],
    candidates: &[Candidate],
    views: &[View<'_>],
    normalise: bool,
    threads: usize,
) -> Result<Vec<Vec<T>>, Error> {
    check(time, flux, candidates, views)?;
    let everything = median(&mut flux.to_vec());
    let tasks: Vec<usize> = (0..candidates.len()).collect();
    let threads = parallel::worth(threads, time.len().saturating_mul(candidates.len()), 1 << 15);
    // Whatever they are cut into, candidates do not depend on each other; several to a task share its memory.
    let per_task = candidates.len().div_ceil(4 * threads).max(1);
    let found = parallel::map(threads, tasks.chunks(per_task).collect(), |places| {
        let mut order = PhaseOrder::new(time.len());
        let mut scratch = Vec::new();
        let mut views_of = |place: usize| {
            order.fold(time, flux, candidates[place].period, candidates[place].epoch);
            let mut one = |view: &View<'_>| {
                let mut medians = bin(&mut order, view, place, everything, &mut scratch);
                if normalise {
                    scale(&mut medians);
                }
                medians.into_iter().map(T::from_f64).collect::<Vec<T>>()
            };
            views.iter().map(&mut one).collect::<Vec<_>>()
        };
        places.iter().map(|&place| views_of(place)).collect::<Vec<_>>()
    });
    let mut result: Vec<Vec<T>> = views.iter().map(|view| Vec::with_capacity(view.bins * candidates.len())).collect();
    for medians in found.into_iter().flatten() {
        for (all, one) in result.iter_mut().zip(medians) {
            all.extend(one);
        }
    }
    Ok(result)
}

/// The median of each bin, in the precision of the fluxes; `otherwise` where a bin has no cadence.
fn bin<T: Float>(
    order: &mut PhaseOrder<T>,
    view: &View<'_>,
    place: usize,
    otherwise: f64,
    scratch: &mut Vec<T>,
) -> Vec<f64> {
    let (half, width) = (view.half[place], view.width[place]);
    let spacing = (2.0 * half - width) / (view.bins - 1) as f64;
    let of_bin = |i: usize| {
        let low = i as f64 * spacing - half;
        scratch.clear();
        scratch.extend(order.between(low, low + width).iter().map(|entry| entry.flux));
        let value = if scratch.is_empty() { otherwise } else { median(scratch) };
        T::from_f64(value).to_f64()
    };
    (0..view.bins).map(of_bin).collect()
}

fn scale(view: &mut [f64]) {
    let center = median(&mut view.to_vec());
    let depth = (view.iter().copied().fold(f64::INFINITY, f64::min) - center).abs();
    let depth = if depth > 0.0 { depth } else { 1.0 };
    for value in view {
        *value = (*value - center) / depth;
    }
}

fn check<T: Float>(time: &[f64], flux: &[T], candidates: &[Candidate], views: &[View<'_>]) -> Result<(), Error> {
    Error::require(time.len() == flux.len(), || format!("{} times and {} fluxes", time.len(), flux.len()))?;
    Error::require(!time.is_empty() && u32::try_from(time.len()).is_ok(), || {
        format!("{} cadences; expected at least 1 and fewer than 2^32", time.len())
    })?;
    Error::require(time.iter().all(|time| time.is_finite()) && !flux.iter().any(|flux| flux.is_nan()), || {
        "a time that is not finite, or a flux that is NaN".to_owned()
    })?;
    for candidate in candidates {
        let sound = candidate.period > 0.0 && candidate.period.is_finite() && candidate.epoch.is_finite();
        Error::require(sound, || format!("{candidate:?}; expected finite numbers and a positive period"))?;
    }
    for view in views {
        let sizes = (view.half.len(), view.width.len());
        Error::require(view.bins >= 2 && sizes == (candidates.len(), candidates.len()), || {
            format!("a view of {} bins and of {sizes:?} candidates, for {}", view.bins, candidates.len())
        })?;
        for (&half, &width) in view.half.iter().zip(view.width) {
            Error::require(width > 0.0 && width < 2.0 * half && half.is_finite(), || {
                format!("bins as wide as {width} in a view of {} to both sides", half)
            })?;
        }
        let size = view.bins.checked_mul(candidates.len());
        Error::require(size.is_some_and(|size| size <= isize::MAX as usize / 8), || {
            format!("{} bins for {} candidates do not fit into memory", view.bins, candidates.len())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: every bin looks at every cadence.
    fn naive(time: &[f64], flux: &[f64], candidate: Candidate, view: (usize, f64, f64)) -> Vec<f64> {
        let Candidate { period, epoch } = candidate;
        let (bins, half, width) = view;
        let of = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            (values[(values.len() - 1) / 2] + values[values.len() / 2]) / 2.0
        };
        let phase = |time: f64| {
            let shifted = time + (0.5 * period - epoch);
            let folded = shifted - period * (shifted / period).floor();
            if folded > 0.0 && folded < period { folded - 0.5 * period } else { -0.5 * period }
        };
        let spacing = (2.0 * half - width) / (bins - 1) as f64;
        let median = |i: usize| {
            let low = i as f64 * spacing - half;
            let inside = |time: f64| phase(time) >= low && phase(time) < low + width;
            let pairs = time.iter().zip(flux);
            let members: Vec<f64> = pairs.filter(|&(&time, _)| inside(time)).map(|(_, &flux)| flux).collect();
            if members.is_empty() { of(flux.to_vec()) } else { of(members) }
        };
        (0..bins).map(median).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            cadences in proptest::collection::vec((-100..400_i32, -50..50_i32), 1..400),
            period in 0.3..40.0_f64,
            epoch in -5.0..5.0_f64,
            (bins, half, width) in (2..40_usize, 0.1..0.5_f64, 0.01..1.0_f64),
            threads in 1..3_usize,
        ) {
            // Times on a grid, so that phases coincide.
            let time: Vec<f64> = cadences.iter().map(|cadence| f64::from(cadence.0) * 0.25).collect();
            let flux: Vec<f64> = cadences.iter().map(|cadence| f64::from(cadence.1)).collect();
            let candidate = Candidate { period, epoch };
            let (half, width) = (half * period, width * half * period);
            let view = View { bins, half: &[half; 3], width: &[width; 3] };
            let found = fold_views(&time, &flux, &[candidate; 3], &[view], false, threads).unwrap();
            let expected = naive(&time, &flux, candidate, (bins, half, width));
            prop_assert_eq!(&found[0], &[&expected[..], &expected[..], &expected[..]].concat());
        }
    }

    fn light() -> (Vec<f64>, Vec<f32>) {
        let time: Vec<f64> = (0..20_000).map(|i| f64::from(i) * 0.02).collect();
        let flux = time.iter().map(|time| if (time - 3.0) % 5.0 < 0.2 { 0.99 } else { 1.0 }).collect();
        (time, flux)
    }

    #[test]
    fn threads_change_no_bit() {
        let (time, flux) = light();
        let candidates: Vec<_> = (1..12).map(|i| Candidate { period: f64::from(i) + 0.3, epoch: 3.1 }).collect();
        let half: Vec<f64> = candidates.iter().map(|candidate| candidate.period / 2.0).collect();
        let view = View { bins: 101, half: &half, width: &[0.1; 11] };
        let one = fold_views(&time, &flux, &candidates, &[view, view], true, 1).unwrap();
        assert_eq!(one, fold_views(&time, &flux, &candidates, &[view, view], true, 3).unwrap());
    }

    #[test]
    fn a_normalised_view_reaches_from_minus_one_and_a_constant_one_is_zero() {
        let (time, flux) = light();
        let candidate = [Candidate { period: 5.0, epoch: 3.1 }];
        let view = View { bins: 51, half: &[2.5], width: &[0.1] };
        let found = fold_views(&time, &flux, &candidate, &[view], true, 1).unwrap();
        assert_eq!((found[0][25], found[0][0]), (-1.0, 0.0));
        let found = fold_views(&time, &vec![0.7_f32; time.len()], &candidate, &[view], true, 1).unwrap();
        assert_eq!(found[0], vec![0.0; 51]);
    }

    #[test]
    fn wrong_input_is_an_error() {
        let one = [Candidate { period: 2.0, epoch: 0.0 }];
        let view = View { bins: 4, half: &[1.0], width: &[0.5] };
        fn refused(time: &[f64], flux: &[f64], candidates: &[Candidate], view: View<'_>) -> bool {
            fold_views(time, flux, candidates, &[view], true, 1).is_err()
        }
        assert!(!refused(&[0.0], &[1.0], &one, view));
        assert!(
            refused(&[], &[], &one, view) && refused(&[0.0], &[], &one, view) && refused(&[0.0], &[1.0], &[], view)
        );
        assert!(refused(&[f64::NAN], &[1.0], &one, view) && refused(&[0.0], &[f64::NAN], &one, view));
        for (bins, half, width) in
            [(1, 1.0, 0.5), (4, 1.0, 2.0), (4, 1.0, 0.0), (4, f64::NAN, 0.5), (usize::MAX, 1.0, 0.5)]
        {
            assert!(refused(&[0.0], &[1.0], &one, View { bins, half: &[half], width: &[width] }));
        }
        for (period, epoch) in [(0.0, 0.0), (f64::INFINITY, 0.0), (2.0, f64::NAN)] {
            assert!(refused(&[0.0], &[1.0], &[Candidate { period, epoch }], view));
        }
    }

    #[test]
    fn extreme_numbers_do_not_panic() {
        let candidates = [Candidate { period: 1e-300, epoch: 1e300 }, Candidate { period: 1e300, epoch: -1e300 }];
        let view = View { bins: 4, half: &[1e-301, 1e299], width: &[1e-302, 1e298] };
        let found = fold_views(&[1e300, -1e300, 0.0], &[f64::INFINITY, 1.0, -1.0], &candidates, &[view], true, 1);
        assert_eq!(found.unwrap()[0].len(), 8);
    }
}
