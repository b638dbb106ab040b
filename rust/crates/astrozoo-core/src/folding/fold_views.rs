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
