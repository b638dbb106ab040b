//! First-order conservative regridding in two passes that stay in the first cache levels.
//!
//! Weights on the sphere are products of weights along latitude and along longitude, so a target row is made in two
//! steps: the weighted sum of its few source rows, a vector operation over neighbouring columns in double precision,
//! and then the weighted sums of short runs of that one row. A source value is read from memory once and takes about
//! one multiplication, where a sparse matrix over all pairs of cells takes as many as cells overlap, and reads
//! an index for each.
//!
//! Rows are summed as if nothing were missing. Only columns whose sum is not finite are summed again, while they are in
//! the cache, with the known weight beside; land and sea lie together, so these are few.

use super::runs::Runs;
use super::turns::Turns;
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;
use std::borrow::Borrow;

/// Columns whose sums are kept in registers.
const COLUMNS: usize = 32;
/// Values that one task reads and writes, about.
const TASK: usize = 1 << 16;
/// Values that are worth a thread.
const GRAIN: usize = 1 << 17;

/// Means `[field, target row, target column]` of `values[field, row, column]` over the known part of each target cell.
///
/// NaN is missing; a target cell of which less than `least` is known becomes NaN.
///
/// # Errors
///
/// The values are no whole fields, or a run of rows goes around the end.
pub fn regrid_conservative<T: Float>(
    values: &[T],
    fields: usize,
    rows: &Runs<'_>,
    columns: &Runs<'_>,
    least: f64,
    threads: usize,
) -> Result<Vec<T>, Error> {
    Error::require_fill(values.len(), &[fields, rows.size, columns.size])?;
    Error::require(rows.is_straight(), || "a run of rows goes around the end of the axis".into())?;
    let made = fields.checked_mul(rows.len()).and_then(|rows| rows.checked_mul(columns.len()));
    let made = made.ok_or_else(|| Error::new("the target grid is too large"))?;
    let mut result = vec![T::NAN; made];
    if result.is_empty() {
        return Ok(result);
    }
    let plan = Plan { rows, columns, turns: Turns::new(columns), least };
    let cost = (values.len() + result.len()).div_ceil(fields * rows.len());
    let rows_per_task = (TASK / cost.max(1)).max(1);
    let threads = parallel::worth(threads, values.len() + result.len(), GRAIN);
    let tasks: Vec<_> = result.chunks_mut(rows_per_task * columns.len()).enumerate().collect();
    parallel::map(threads, tasks, |(task, made)| target_rows(&plan, values, task * rows_per_task, made));
    Ok(result)
}

struct Plan<'a> {
    rows: &'a Runs<'a>,
    columns: &'a Runs<'a>,
    turns: Turns,
    least: f64,
}

/// Target rows from `row` on, counted through all fields.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn target_rows<T: Float>(plan: &Plan<'_>, values: &[T], row: usize, made: &mut [T]) {
    let (rows, columns) = (plan.rows, plan.columns);
    let width = columns.size;
    let mut sums = vec![0.0; plan.turns.width];
    let mut known = vec![0.0; plan.turns.width];
    let mut cells = vec![0.0; columns.len()];
    let mut shares = vec![0.0; columns.len()];
    for (row, made) in (row..).zip(made.chunks_exact_mut(columns.len())) {
        let (field, target) = (row / rows.len(), row % rows.len());
        let (first, weights) = rows.get(target);
        if weights.is_empty() {
            continue; // outside the source grid: it stays NaN
        }
        let source = &values[(field * rows.size + first) * width..][..weights.len() * width];
        let total = rows.totals[target];
        sum_rows(source, weights, &mut sums[..width]);
        match sum_known(source, weights, total, &mut sums[..width], &mut known[..width]) {
            Found::Whole => {
                plan.turns.sum(&mut sums, &mut cells);
                scale(&columns.totals, total, &mut shares);
            }
            Found::Gaps => {
                plan.turns.sum(&mut sums, &mut cells);
                plan.turns.sum(&mut known, &mut shares);
            }
            Found::Infinities => {
                plan.turns.sum_infinite(columns, &mut sums, &mut cells);
                plan.turns.sum(&mut known, &mut shares);
            }
        }
        for ((made, cell), &share) in made.iter_mut().zip(&cells).zip(&shares) {
            let mean = cell / share;
            *made = T::from_f64(if share >= plan.least { mean } else { f64::NAN });
        }
    }
}

/// What the source rows of a target row hold.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Found {
    Whole,
    Gaps,
    Infinities,
}

/// Weighted sum of rows.
///
/// Row by row, in the order of memory: the sums stay in the first cache level, and memory is read as one stream.
#[inline(always)]
fn sum_rows<T: Float>(source: &[T], weights: &[f64], sums: &mut [f64]) {
    sums.fill(0.0);
    for (&weight, row) in weights.iter().zip(source.chunks_exact(sums.len())) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += weight * value.to_f64();
        }
    }
}

/// Sum again, over what is known, the columns whose sums are not finite; `known` becomes the weight that each column
/// knows, out of `total`, unless all know all of it.
#[inline(always)]
fn sum_known<T: Float>(source: &[T], weights: &[f64], total: f64, sums: &mut [f64], known: &mut [f64]) -> Found {
    let width = sums.len();
    let mut found = Found::Whole;
    let mut done = 0;
    while done < width {
        let end = width.min(done + COLUMNS);
        if !all_finite(&sums[done..end]) {
            if found == Found::Whole {
                known[..done].fill(total);
                found = Found::Gaps;
            }
            // The last block reaches back over columns that are done, which come out the same again.
            let start = end.saturating_sub(COLUMNS).min(done);
            let (sums, known) = (&mut sums[start..end], &mut known[start..end]);
            if let (Some(sums), Some(known)) = (sums.first_chunk_mut::<COLUMNS>(), known.first_chunk_mut()) {
                let rows = source.chunks_exact(width).filter_map(|row| row[start..].first_chunk::<COLUMNS>());
                (*sums, *known) = sum_known_block::<T, _, COLUMNS>(rows, weights);
            } else {
                for (column, (sum, known)) in sums.iter_mut().zip(known).enumerate() {
                    let rows = source.chunks_exact(width).map(|row| [row[column]]);
                    ([*sum], [*known]) = sum_known_block::<T, _, 1>(rows, weights);
                }
            }
            if !all_finite(sums) {
                found = Found::Infinities;
            }
        } else if found != Found::Whole {
            known[done..end].fill(total);
        }
        done = end;
    }
    found
}

/// Weighted sums of known values, and of their weights, in registers.
#[inline(always)]
fn sum_known_block<T: Float, R: Borrow<[T; N]>, const N: usize>(
    rows: impl Iterator<Item = R>,
    weights: &[f64],
) -> ([f64; N], [f64; N]) {
    let mut sums = [0.0; N];
    let mut known = [0.0; N];
    for (row, &weight) in rows.zip(weights) {
        let row: &[T; N] = row.borrow();
        for i in 0..N {
            // Products with zero instead of skipped sums, which would become masked stores that the next row waits for.
            let (value, one) = if row[i].is_nan() { (0.0, 0.0) } else { (row[i].to_f64(), 1.0) };
            sums[i] += weight * value;
            known[i] += weight * one;
        }
    }
    (sums, known)
}

#[inline(always)]
fn all_finite(sums: &[f64]) -> bool {
    sums.iter().fold(true, |finite, sum| finite & sum.is_finite())
}

#[inline(always)]
fn scale(values: &[f64], factor: f64, scaled: &mut [f64]) {
    for (scaled, value) in scaled.iter_mut().zip(values) {
        *scaled = factor * value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Axis {
        size: usize,
        first: Vec<i64>,
        start: Vec<i64>,
        weights: Vec<f64>,
    }

    impl Axis {
        fn runs(&self) -> Runs<'_> {
            Runs::new(self.size, &self.first, &self.start, &self.weights).unwrap()
        }

        /// Weight of source cell `cell` in target cell `target`, with multiplicity.
        fn pairs(&self, target: usize) -> Vec<(usize, f64)> {
            let cut = self.start[target] as usize..self.start[target + 1] as usize;
            let first = self.first[target] as usize;
            cut.clone().map(|i| ((first + i - cut.start) % self.size, self.weights[i])).collect()
        }
    }

    fn axis(turns: bool, sizes: std::ops::Range<usize>) -> impl Strategy<Value = Axis> {
        (sizes, 1_usize..7)
            .prop_flat_map(move |(size, targets)| {
                let run =
                    (0..size, 0..=if turns { size + 1 } else { size }, prop::collection::vec(0.01..0.5, size + 1));
                (Just(size), prop::collection::vec(run, targets))
            })
            .prop_map(move |(size, runs)| {
                let mut axis = Axis { size, first: vec![], start: vec![0], weights: vec![] };
                for (first, length, weights) in runs {
                    let length = if turns { length } else { length.min(size - first) };
                    axis.first.push(first as i64);
                    axis.weights.extend(&weights[..length]);
                    axis.start.push(axis.weights.len() as i64);
                }
                axis
            })
    }

    fn naive(values: &[f64], fields: usize, rows: &Axis, columns: &Axis, least: f64) -> Vec<f64> {
        let mut result = vec![];
        for field in values.chunks(rows.size * columns.size).take(fields) {
            for row in 0..rows.first.len() {
                for column in 0..columns.first.len() {
                    let (mut sum, mut share) = (0.0, 0.0);
                    for (i, a) in rows.pairs(row) {
                        for (j, b) in columns.pairs(column) {
                            let value = field[i * columns.size + j];
                            if !value.is_nan() {
                                sum += a * b * value;
                                share += a * b;
                            }
                        }
                    }
                    result.push(if share >= least { sum / share } else { f64::NAN });
                }
            }
        }
        result
    }

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![40 => -1e3..1e3_f64, 4 => Just(f64::NAN), 1 => Just(f64::INFINITY)]
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            (rows, columns, fields, values) in (axis(false, 1..9), axis(true, 1..80), 0_usize..4)
                .prop_flat_map(|(rows, columns, fields)| {
                    let size = rows.size * columns.size * fields;
                    (Just(rows), Just(columns), Just(fields), prop::collection::vec(value(), size))
                }),
            keep_gaps in any::<bool>(),
            threads in 1_usize..4,
        ) {
            let values: Vec<f64> =
                values.into_iter().map(|value| if keep_gaps || value.is_finite() { value } else { 1.0 }).collect();
            let least = 0.031_25;
            let found = regrid_conservative(&values, fields, &rows.runs(), &columns.runs(), least, threads).unwrap();
            let expected = naive(&values, fields, &rows, &columns, least);
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                let near = (found - expected).abs() <= 1e-10 * (1.0 + expected.abs());
                prop_assert!(near || found == expected || (found.is_nan() && expected.is_nan()), "{found} {expected}");
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let (rows, columns, fields) = (97, 203, 30);
        let axis = |size: usize, length: usize| Axis {
            size,
            first: (0..(size - length) as i64).step_by(2).collect(),
            start: (0..=(size - length).div_ceil(2)).map(|i| (i * length) as i64).collect(),
            weights: (0..(size - length).div_ceil(2) * length).map(|i| 0.2 + (i % 7) as f64 / 50.0).collect(),
        };
        let values: Vec<f32> = (0..(rows * columns * fields) as u32)
            .map(|i| if i % 1009 == 0 { f32::NAN } else { i.wrapping_mul(2_654_435_761) as f32 })
            .collect();
        let (rows, columns) = (axis(rows, 3), axis(columns, 4));
        let made = |threads| regrid_conservative(&values, fields, &rows.runs(), &columns.runs(), 0.1, threads).unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(made(1)), bits(made(3)));
    }

    #[test]
    fn wrong_sizes_are_an_error() {
        let axis = Axis { size: 3, first: vec![2], start: vec![0, 2], weights: vec![0.5; 2] };
        let straight = Axis { first: vec![1], ..axis.clone() };
        let made = |values: &[f32], fields, rows: &Axis| {
            regrid_conservative(values, fields, &rows.runs(), &axis.runs(), 0.5, 1)
        };
        assert!(made(&[1.0; 9], 1, &straight).is_ok());
        assert!(made(&[1.0; 9], 1, &axis).is_err());
        assert!(made(&[1.0; 9], 2, &straight).is_err());
        assert!(made(&[1.0; 9], usize::MAX, &straight).is_err());
    }
}
