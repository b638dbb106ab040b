//! Exact quantiles of every group of a cube.
//!
//! Values of a short group are gathered (known ones only, as integer keys), and the wanted ranks selected all at once.
//! That reads and moves each value several times. Of a long group a sample tells first in which narrow intervals the
//! quantiles lie, most likely; one pass over memory then counts the values below each interval, with vectors, and
//! collects the few per cent that lie within; the ranks are selected from those. The counts tell whether an interval
//! holds its ranks. Where one does not, the group is treated as a short one: the result is exact in any case. This is
//! the algorithm of Floyd and Rivest (1975), without recursion and for several ranks.

use super::brackets::{Brackets, Scan};
use super::groups::{Groups, TILE};
use super::select::{Ordered, Wanted, quantiles_of_keys};
use crate::error::Error;
use crate::parallel;

/// Groups with as many values are long.
const LONG: usize = 1 << 16;
/// Values that one task scans, or gathers from short groups.
const TASK: usize = 1 << 17;
/// Runs that are shorter do not fill vectors; long groups with such are copied first.
const SHORT_RUN: usize = 64;

/// Quantiles `q` of each of `kept` groups of `values[outer, kept, inner]`: an array `[q, kept]`.
///
/// # Errors
///
/// The sizes do not multiply to the number of values, or a quantile is not from 0 to 1.
pub fn quantiles<T: Ordered>(
    values: &[T],
    (outer, kept, inner): (usize, usize, usize),
    q: &[f64],
    threads: usize,
) -> Result<Vec<f64>, Error> {
    Error::require_fill(values.len(), &[outer, kept, inner])?;
    if let Some(wrong) = q.iter().find(|q| !(0.0..=1.0).contains(*q)) {
        return Err(Error::new(format!("quantile {wrong} is not from 0 to 1")));
    }
    let total = q.len().checked_mul(kept).ok_or_else(|| Error::new("the result is too large"))?;
    let mut result = vec![f64::NAN; total];
    if values.is_empty() || q.is_empty() {
        return Ok(result);
    }
    let mut order: Vec<usize> = (0..q.len()).collect();
    order.sort_by(|&a, &b| q[a].total_cmp(&q[b]));
    let ascending: Vec<f64> = order.iter().map(|&i| q[i]).collect();

    let threads = parallel::worth(threads, values.len(), 1 << 14);
    let groups = Groups::new(values, kept, inner);
    for (group, found) in of_groups(&groups, &ascending, threads).into_iter().enumerate() {
        for (&i, value) in order.iter().zip(found) {
            result[i * kept + group] = value;
        }
    }
    Ok(result)
}

fn of_groups<T: Ordered>(groups: &Groups<'_, T>, q: &[f64], threads: usize) -> Vec<Vec<f64>> {
    if groups.size < LONG {
        of_short(groups, q, threads)
    } else if groups.inner >= SHORT_RUN || groups.kept == 1 {
        of_long(groups, q, threads)
    } else {
        let tiles = groups.side_by_side(threads);
        tiles
            .flat_map(|copies| of_long(&Groups::new(&copies, copies.len() / groups.size, groups.size), q, threads))
            .collect()
    }
}

fn of_short<T: Ordered>(groups: &Groups<'_, T>, q: &[f64], threads: usize) -> Vec<Vec<f64>> {
    let at_once = (TASK / groups.size).max(if groups.inner < TILE { TILE } else { 1 });
    let starts: Vec<usize> = (0..groups.kept).step_by(at_once).collect();
    let found = parallel::map(threads, starts, |start| {
        let keys = groups.keys(start..groups.kept.min(start + at_once));
        keys.into_iter().map(|mut keys| quantiles_of_keys::<T>(&mut keys, q)).collect::<Vec<_>>()
    });
    found.into_iter().flatten().collect()
}

fn of_long<T: Ordered>(groups: &Groups<'_, T>, q: &[f64], threads: usize) -> Vec<Vec<f64>> {
    let brackets = parallel::map(threads, (0..groups.kept).collect(), |group| Brackets::around(groups, group, q));
    of_bracketed(groups, q, brackets, threads)
}

fn of_bracketed<T: Ordered>(
    groups: &Groups<'_, T>,
    q: &[f64],
    brackets: Vec<Brackets<T>>,
    threads: usize,
) -> Vec<Vec<f64>> {
    // Whole runs, so that their pieces are not short.
    let step = if groups.inner < TASK { TASK / groups.inner * groups.inner } else { TASK };
    let tasks: Vec<_> =
        (0..groups.kept).flat_map(|group| (0..groups.size).step_by(step).map(move |start| (group, start))).collect();
    let scans = parallel::map(threads, tasks, |(group, start)| {
        Scan::of(groups, group, start..groups.size.min(start + step), &brackets[group])
    });
    let mut scans = scans.into_iter();
    let per_group = groups.size.div_ceil(step);
    let whole: Vec<(usize, Scan<T>)> = (0..groups.kept)
        .filter_map(|group| {
            let mut first = scans.next()?;
            scans.by_ref().take(per_group - 1).for_each(|scan| first.merge(scan));
            Some((group, first))
        })
        .collect();
    parallel::map(threads, whole, |(group, scan)| {
        if scan.known == 0 {
            return vec![f64::NAN; q.len()];
        }
        let wanted = Wanted::new(q, scan.known);
        match scan.at(&brackets[group], &wanted.ranks) {
            Some(values) => wanted.interpolate(&values),
            None => groups.keys(group..group + 1).iter_mut().flat_map(|keys| quantiles_of_keys::<T>(keys, q)).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: sort what is known, and interpolate.
    fn naive(values: &[f64], q: f64) -> f64 {
        let mut known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        if known.is_empty() {
            return f64::NAN;
        }
        known.sort_by(f64::total_cmp);
        let place = q * (known.len() - 1) as f64;
        let low = known[place.floor() as usize];
        low + (known[place.ceil() as usize] - low) * place.fract()
    }

    fn check(values: &[f64], shape: (usize, usize, usize), q: &[f64], found: &[f64]) {
        let (outer, kept, inner) = shape;
        for group in 0..kept {
            let mine: Vec<f64> =
                (0..outer).flat_map(|o| values[(o * kept + group) * inner..][..inner].iter().copied()).collect();
            for (i, &q) in q.iter().enumerate() {
                let (found, expected) = (found[i * kept + group], naive(&mine, q));
                let close = (found - expected).abs() <= 1e-12 * (1.0 + expected.abs());
                assert!(close || found.is_nan() && expected.is_nan(), "{found} != {expected} at {q}");
            }
        }
    }

    proptest! {
        #[test]
        fn short_groups_agree_with_the_definition(
            (shape, values) in (1_usize..9, 1_usize..40, prop_oneof![1_usize..5, 20_usize..90]).prop_flat_map(|shape| {
                let value = prop_oneof![4 => -1e3..1e3_f64, 2 => (-3..3).prop_map(f64::from), 1 => Just(f64::NAN)];
                (Just(shape), proptest::collection::vec(value, shape.0 * shape.1 * shape.2))
            }),
            q in proptest::collection::vec(0.0..=1.0_f64, 1..7),
            threads in 1_usize..4,
        ) {
            check(&values, shape, &q, &quantiles(&values, shape, &q, threads).unwrap());
        }
    }

    /// Values of a kind that depends on `kind`: smooth, with many zeros, all equal, mostly missing.
    fn long(kind: u32, count: usize) -> Vec<f64> {
        let mut state = 7_u32;
        (0..count)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = f64::from(state >> 8) / 65536.0 - 100.0;
                match kind {
                    0 if i % 11 == 0 => f64::NAN,
                    0 => value + (i as f64 / 100.0).sin() * 50.0,
                    1 => value.max(0.0),
                    2 => 3.0,
                    _ if i % 5000 == 0 => value,
                    _ => f64::NAN,
                }
            })
            .collect()
    }

    #[test]
    fn long_groups_agree_with_the_definition() {
        for kind in 0..4 {
            for shape in [(1, 2, 1 << 16), (140_000, 2, 1), (700, 3, 100)] {
                let values = long(kind, shape.0 * shape.1 * shape.2);
                let q = [0.99, 0.0, 0.5, 0.01, 0.3331, 1.0, 0.5];
                check(&values, shape, &q, &quantiles(&values, shape, &q, 2).unwrap());
            }
        }
    }

    #[test]
    fn a_bracket_that_misses_its_quantile_costs_no_exactness() {
        let values = long(0, LONG);
        let groups = Groups::new(&values, 1, LONG);
        let misses = Brackets { intervals: vec![(-10.0, 0.0)], atoms: vec![] };
        let q = [0.1, 0.5, 0.9];
        check(&values, (1, 1, LONG), &q, &of_bracketed(&groups, &q, vec![misses], 1)[0]);
    }

    #[test]
    fn threads_change_no_bit() {
        let values: Vec<f32> = long(0, 600_000).into_iter().map(|value| value as f32).collect();
        for shape in [(1, 1, 600_000), (1, 4, 150_000), (100_000, 6, 1), (60, 10_000, 1), (60, 100, 100)] {
            let one = quantiles(&values, shape, &[0.1, 0.25, 0.9], 1).unwrap();
            assert_eq!(one, quantiles(&values, shape, &[0.1, 0.25, 0.9], 3).unwrap());
        }
    }

    #[test]
    fn nothing_known_gives_nan() {
        assert!(quantiles::<f32>(&[], (0, 2, 5), &[0.5], 2).unwrap().iter().all(|value| value.is_nan()));
        assert!(quantiles(&[f64::NAN; 10], (1, 2, 5), &[0.5], 2).unwrap().iter().all(|value| value.is_nan()));
        let missing = vec![f32::NAN; 2 * LONG];
        assert!(quantiles(&missing, (1, 1, 2 * LONG), &[0.5], 2).unwrap()[0].is_nan());
    }

    #[test]
    fn wrong_sizes_and_quantiles_are_an_error() {
        assert!(quantiles(&[1.0_f32; 10], (1, 3, 3), &[0.5], 1).is_err());
        assert!(quantiles(&[1.0_f32; 10], (usize::MAX, 3, 3), &[0.5], 1).is_err());
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert!(quantiles(&[1.0_f32; 10], (1, 2, 5), &[wrong], 1).is_err());
        }
    }
}
