//! Count, mean, standard deviation, minimum and maximum of every group of a cube, in one pass over memory.
//!
//! Values are taken in blocks that fit the first cache level. A block is read twice there: once for count, sum and
//! extremes, once for the squared deviations from its own mean, which loses no digits however large the mean is. Blocks
//! are merged in order with the update of Chan, Golub and LeVeque (1979).

use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// Values of a group that are looked at twice while they are in the cache.
const BLOCK: usize = 4096;
/// Groups side by side that are looked at together when a group's values do not lie next to each other.
const COLUMNS: usize = 512;
/// Rows of such a block.
const ROWS: usize = 16;
/// Independent sums within a block: enough for two vectors of eight doubles.
const LANES: usize = 16;
/// Blocks that one task takes.
const BLOCKS_PER_TASK: usize = 64;

/// Moments and extremes of one group of values; NaN counts as missing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments<T> {
    /// How many values are not missing.
    pub count: u64,
    /// Their mean; meaningless where `count` is 0.
    pub mean: f64,
    /// Sum of their squared deviations from the mean.
    pub m2: f64,
    /// The smallest.
    pub min: T,
    /// The largest.
    pub max: T,
}

impl<T: Float> Moments<T> {
    /// Moments of no values.
    pub const EMPTY: Self = Self { count: 0, mean: 0.0, m2: 0.0, min: T::INFINITY, max: T::NEG_INFINITY };

    /// Moments of both groups of values together.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if other.count == 0 {
            return self;
        }
        if self.count == 0 {
            return other;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let (ours, theirs, total) = (self.count as f64, other.count as f64, count as f64);
        Self {
            count,
            mean: self.mean + delta * (theirs / total),
            m2: self.m2 + other.m2 + delta * delta * (ours * theirs / total),
            min: if other.min < self.min { other.min } else { self.min },
            max: if other.max > self.max { other.max } else { self.max },
        }
    }

    /// Population standard deviation; NaN where nothing is known.
    pub fn std(&self) -> f64 {
        let count = self.count as f64;
        (self.m2 / count).sqrt()
    }
}

/// Moments of each of `kept` groups of `values[outer, kept, inner]`, over `outer` and `inner`.
///
/// # Errors
///
/// The sizes do not multiply to the number of values.
pub fn nan_stats<T: Float>(
    values: &[T],
    (outer, kept, inner): (usize, usize, usize),
    threads: usize,
) -> Result<Vec<Moments<T>>, Error> {
    Error::require_fill(values.len(), &[outer, kept, inner])?;
    if values.is_empty() {
        return Ok(vec![Moments::EMPTY; kept]);
    }
    let threads = parallel::worth(threads, values.len(), 1 << 16);
    if inner >= 64 || kept == 1 {
        Ok(by_rows(values, kept, inner, threads))
    } else {
        Ok(by_columns(values, kept * inner, threads, inner))
    }
}

/// Groups whose values lie in runs of `inner`.
fn by_rows<T: Float>(values: &[T], kept: usize, inner: usize, threads: usize) -> Vec<Moments<T>> {
    let run = BLOCK * BLOCKS_PER_TASK;
    let (run, rows_per_task) = if inner >= run { (run, 1) } else { (inner, (run / inner).max(1)) };
    // A task: one long piece of a run, or several short runs.
    let tasks: Vec<(usize, &[T])> = if rows_per_task == 1 {
        values
            .chunks(inner)
            .enumerate()
            .flat_map(|(row, values)| values.chunks(run).map(move |piece| (row, piece)))
            .collect()
    } else {
        values.chunks(inner * rows_per_task).enumerate().map(|(i, rows)| (i * rows_per_task, rows)).collect()
    };
    let partial = parallel::map(threads, tasks, |(row, values)| {
        let found: Vec<_> = values.chunks(inner.min(values.len())).map(of_run).collect();
        (row, found)
    });
    let mut result = vec![Moments::EMPTY; kept];
    for (first, found) in partial {
        for (i, moments) in found.into_iter().enumerate() {
            let group = &mut result[(first + i) % kept];
            *group = group.merge(moments);
        }
    }
    result
}

fn of_run<T: Float>(values: &[T]) -> Moments<T> {
    values.chunks(BLOCK).map(|block| of_block(block)).fold(Moments::EMPTY, Moments::merge)
}

fn of_block<T: Float>(block: &[T]) -> Moments<T> {
    let (count, sum, min, max) = first_pass(block);
    if count == 0 {
        return Moments::EMPTY;
    }
    let mean = sum / count as f64;
    Moments { count, mean, m2: second_pass(block, mean), min, max }
}

/// Count, sum and extremes of a block.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn first_pass<T: Float>(block: &[T]) -> (u64, f64, T, T) {
    let mut count = [0_u32; LANES];
    let mut sum = [0.0_f64; LANES];
    let mut min = [T::INFINITY; LANES];
    let mut max = [T::NEG_INFINITY; LANES];
    let mut take = |lane: usize, value: T| {
        let known = !value.is_nan();
        count[lane] += u32::from(known);
        sum[lane] += if known { value.to_f64() } else { 0.0 };
        min[lane] = if value < min[lane] { value } else { min[lane] };
        max[lane] = if value > max[lane] { value } else { max[lane] };
    };
    let (lanes, rest) = block.as_chunks::<LANES>();
    for values in lanes {
        for (lane, &value) in values.iter().enumerate() {
            take(lane, value);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        take(lane, value);
    }
    (
        count.iter().map(|&n| u64::from(n)).sum(),
        sum.iter().sum(),
        min.into_iter().fold(T::INFINITY, |a, b| if b < a { b } else { a }),
        max.into_iter().fold(T::NEG_INFINITY, |a, b| if b > a { b } else { a }),
    )
}

/// Sum of squared deviations of a block from its mean.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn second_pass<T: Float>(block: &[T], mean: f64) -> f64 {
    let mut sum = [0.0_f64; LANES];
    let mut take = |lane: usize, value: T| {
        let deviation = if value.is_nan() { 0.0 } else { value.to_f64() - mean };
        sum[lane] += deviation * deviation;
    };
    let (lanes, rest) = block.as_chunks::<LANES>();
    for values in lanes {
        for (lane, &value) in values.iter().enumerate() {
            take(lane, value);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        take(lane, value);
    }
    sum.iter().sum()
}

/// Groups whose values lie `width` apart: statistics of each column of `values[row, width]`, then of runs of `inner`
/// columns, which belong to one group.
fn by_columns<T: Float>(values: &[T], width: usize, threads: usize, inner: usize) -> Vec<Moments<T>> {
    let starts: Vec<usize> = (0..width).step_by(COLUMNS).collect();
    let columns = parallel::map(threads, starts, |start| {
        let mut total = vec![Moments::EMPTY; COLUMNS.min(width - start)];
        let rows: Vec<&[T]> = values.chunks(width).map(|row| &row[start..start + total.len()]).collect();
        for block in rows.chunks(ROWS) {
            add_rows(block, &mut total);
        }
        total
    });
    columns.concat().chunks(inner).map(|run| run.iter().copied().fold(Moments::EMPTY, Moments::merge)).collect()
}

/// Merge the columns of a few rows into their moments.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_rows<T: Float>(rows: &[&[T]], total: &mut [Moments<T>]) {
    let width = total.len();
    let mut count = [0_u32; COLUMNS];
    let mut mean = [0.0_f64; COLUMNS];
    let mut m2 = [0.0_f64; COLUMNS];
    let mut min = [T::INFINITY; COLUMNS];
    let mut max = [T::NEG_INFINITY; COLUMNS];
    for row in rows {
        let row = &row[..width];
        for i in 0..width {
            let value = row[i];
            let known = !value.is_nan();
            count[i] += u32::from(known);
            mean[i] += if known { value.to_f64() } else { 0.0 };
            min[i] = if value < min[i] { value } else { min[i] };
            max[i] = if value > max[i] { value } else { max[i] };
        }
    }
    for i in 0..width {
        mean[i] /= f64::from(count[i].max(1));
    }
    for row in rows {
        let row = &row[..width];
        for i in 0..width {
            let deviation = if row[i].is_nan() { 0.0 } else { row[i].to_f64() - mean[i] };
            m2[i] += deviation * deviation;
        }
    }
    for (i, total) in total.iter_mut().enumerate() {
        let block = Moments { count: u64::from(count[i]), mean: mean[i], m2: m2[i], min: min[i], max: max[i] };
        *total = total.merge(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, value by value, in the order of the group.
    fn naive(values: &[f64]) -> Moments<f64> {
        let known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        if known.is_empty() {
            return Moments::EMPTY;
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        Moments {
            count: known.len() as u64,
            mean,
            m2: known.iter().map(|value| (value - mean).powi(2)).sum(),
            min: known.iter().copied().fold(f64::INFINITY, f64::min),
            max: known.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![4 => -1e3..1e3_f64, 1 => Just(f64::NAN)]
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            (shape, values) in (1_usize..5, 1_usize..6, prop_oneof![1_usize..9, 60_usize..140])
                .prop_flat_map(|(a, b, c)| (Just((a, b, c)), proptest::collection::vec(value(), a * b * c))),
            offset in prop_oneof![Just(0.0), Just(1e8)],
            threads in 1_usize..4,
        ) {
            let (outer, kept, inner) = shape;
            let values: Vec<f64> = values.into_iter().map(|value| value + offset).collect();
            let found = nan_stats(&values, shape, threads).unwrap();
            for (group, moments) in found.iter().enumerate() {
                let mine: Vec<f64> = (0..outer)
                    .flat_map(|o| values[(o * kept + group) * inner..][..inner].iter().copied())
                    .collect();
                let expected = naive(&mine);
                prop_assert_eq!(moments.count, expected.count);
                prop_assert_eq!((moments.min, moments.max), (expected.min, expected.max));
                prop_assert!((moments.mean - expected.mean).abs() <= 1e-12 * (1.0 + expected.mean.abs()));
                prop_assert!((moments.m2 - expected.m2).abs() <= 1e-6 + 1e-9 * expected.m2);
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let values: Vec<f32> = (0..400_000_u32)
            .map(|i| if i % 7 == 0 { f32::NAN } else { i.wrapping_mul(2_654_435_761) as f32 })
            .collect();
        for shape in [(1, 1, 400_000), (1, 4, 100_000), (40, 100, 100), (400, 1000, 1)] {
            let one = nan_stats(&values, shape, 1).unwrap();
            assert_eq!(one, nan_stats(&values, shape, 3).unwrap());
        }
    }

    #[test]
    fn no_values_have_no_moments() {
        assert_eq!(nan_stats::<f32>(&[], (0, 2, 5), 2).unwrap(), vec![Moments::EMPTY; 2]);
        assert!(nan_stats(&[f32::NAN; 10], (1, 2, 5), 2).unwrap()[0].std().is_nan());
    }

    #[test]
    fn wrong_sizes_are_an_error() {
        assert!(nan_stats(&[1.0_f32; 10], (1, 3, 3), 1).is_err());
        assert!(nan_stats(&[1.0_f32; 10], (usize::MAX, 3, 3), 1).is_err());
    }
}
