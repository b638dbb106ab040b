//! Linear infill of missing values along time.
//!
//! Nearly all values are known and are only copied, so a task copies a block of columns row by row and looks for what
//! changes: a bitmap of missing values is compared, eight columns at a time, with the one of the row before. Only where
//! a column goes from known to missing, or back, is anything computed; the rows of a gap are still in the cache then.

use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// Columns of a block: its rows of the last few hundred times fit the second cache level.
const COLUMNS: usize = 256;
/// Fewer columns are taken one by one: their rows lie in a few cache lines, and a block would be mostly empty.
const NARROW: usize = 16;
/// Marks a column without a known value so far.
const NEVER: usize = usize::MAX;

/// A row of values, and the row they are copied to.
type Row<'a, T> = (&'a [T], &'a mut [T]);

/// `values[outer, time, inner]` with each gap between two known values filled on the straight line between them.
///
/// Gaps longer than `max_gap`, measured in `times` from the known value before to the one after, stay as they are, and
/// so does what comes before the first known value and after the last.
///
/// # Errors
///
/// The sizes do not fit each other.
pub fn fill_gaps<T: Float>(
    values: &[T],
    filled: &mut [T],
    (outer, inner): (usize, usize),
    times: &[f64],
    max_gap: f64,
    threads: usize,
) -> Result<(), Error> {
    for length in [values.len(), filled.len()] {
        Error::require_fill(length, &[outer, times.len(), inner])?;
    }
    if values.is_empty() {
        return Ok(());
    }
    let threads = parallel::worth(threads, values.len(), 1 << 15);
    let plane = times.len() * inner;
    if inner < NARROW {
        let many = (COLUMNS * 64 / plane).max(1) * plane;
        let tasks: Vec<_> = values.chunks(many).zip(filled.chunks_mut(many)).collect();
        parallel::map(threads, tasks, |(values, filled)| {
            for (values, filled) in values.chunks(plane).zip(filled.chunks_mut(plane)) {
                filled.copy_from_slice(values);
                (0..inner)
                    .for_each(|column| fill_series(&values[column..], &mut filled[column..], inner, times, max_gap));
            }
        });
        return Ok(());
    }
    let mut tasks: Vec<Vec<Row<'_, T>>> = Vec::new();
    for (values, filled) in values.chunks(plane).zip(filled.chunks_mut(plane)) {
        let first = tasks.len();
        tasks.extend((0..inner.div_ceil(COLUMNS)).map(|_| Vec::with_capacity(times.len())));
        for (row, into) in values.chunks(inner).zip(filled.chunks_mut(inner)) {
            for (task, piece) in tasks[first..].iter_mut().zip(row.chunks(COLUMNS).zip(into.chunks_mut(COLUMNS))) {
                task.push(piece);
            }
        }
    }
    parallel::map(threads, tasks, |mut rows| fill_block(&mut rows, times, max_gap));
    Ok(())
}

/// The value at `time` on the line through two known ones.
#[inline(always)]
fn on_line<T: Float>((t0, y0): (f64, f64), slope: f64, time: f64) -> T {
    T::from_f64(y0 + slope * (time - t0))
}

/// One series whose values lie `stride` apart, which are copied already.
fn fill_series<T: Float>(values: &[T], filled: &mut [T], stride: usize, times: &[f64], max_gap: f64) {
    let mut last = NEVER;
    for (now, &value) in values.iter().step_by(stride).enumerate() {
        if value.is_nan() {
            continue;
        }
        if last != NEVER && now > last + 1 && times[now] - times[last] <= max_gap {
            let (t0, y0) = (times[last], values[last * stride].to_f64());
            let slope = (value.to_f64() - y0) / (times[now] - t0);
            for row in last + 1..now {
                filled[row * stride] = on_line((t0, y0), slope, times[row]);
            }
        }
        last = now;
    }
}

/// A block of columns, one row for each time.
fn fill_block<T: Float>(rows: &mut [Row<'_, T>], times: &[f64], max_gap: f64) {
    let mut missing = [[0_u8; 8]; COLUMNS / 8];
    let mut before = [[0_u8; 8]; COLUMNS / 8];
    let mut last = [NEVER; COLUMNS]; // the time of the last known value of a column that is missing now
    for now in 0..rows.len() {
        let (values, filled) = &mut rows[now];
        filled.copy_from_slice(values);
        let values = *values;
        mark_missing(values, &mut missing);
        for word in 0..COLUMNS / 8 {
            let mut changed = u64::from_le_bytes(missing[word]) ^ u64::from_le_bytes(before[word]);
            while changed != 0 {
                let column = word * 8 + changed.trailing_zeros() as usize / 8;
                changed &= changed - 1;
                if missing[word][column % 8] != 0 {
                    last[column] = now.checked_sub(1).unwrap_or(NEVER);
                    continue;
                }
                let start = last[column];
                if start != NEVER && times[now] - times[start] <= max_gap {
                    let (t0, y0) = (times[start], rows[start].0[column].to_f64());
                    let slope = (values[column].to_f64() - y0) / (times[now] - t0);
                    for row in start + 1..now {
                        rows[row].1[column] = on_line((t0, y0), slope, times[row]);
                    }
                }
            }
        }
        before = missing;
    }
}

/// 1 for each missing value of a row, 0 for the others; columns beyond the row stay as they are.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn mark_missing<T: Float>(values: &[T], missing: &mut [[u8; 8]; COLUMNS / 8]) {
    for (value, flag) in values.iter().zip(missing.as_flattened_mut()) {
        *flag = u8::from(value.is_nan());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(values: &[f64], shape: (usize, usize), times: &[f64], max_gap: f64, threads: usize) -> Vec<f64> {
        let mut result = vec![0.0; values.len()];
        fill_gaps(values, &mut result, shape, times, max_gap, threads).unwrap();
        result
    }

    #[test]
    fn gaps_between_known_values_are_filled_and_ends_stay() {
        let nan = f64::NAN;
        let found = filled(&[nan, 1.0, nan, nan, 4.0, nan], (1, 1), &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], f64::INFINITY, 1);
        assert_eq!(format!("{found:?}"), "[NaN, 1.0, 2.0, 3.0, 4.0, NaN]");
        let found = filled(&[0.0, nan, 8.0], (1, 1), &[0.0, 1.0, 4.0], f64::INFINITY, 1);
        assert_eq!(found, [0.0, 2.0, 8.0]);
        let found = filled(&[0.0, nan, 8.0], (1, 1), &[0.0, 1.0, 4.0], 3.9, 1);
        assert!(found[1].is_nan());
    }

    proptest! {
        #[test]
        fn blocks_agree_with_series(
            (shape, values, times) in (1_usize..3, 1_usize..20, prop_oneof![2_usize..20, 250_usize..530])
                .prop_flat_map(|(outer, time, inner)| (
                    Just((outer, time, inner)),
                    proptest::collection::vec(prop_oneof![2 => -9.0..9.0_f64, 1 => Just(f64::NAN)], outer * time * inner),
                    proptest::collection::vec(0.1..3.0_f64, time),
                )),
            max_gap in prop_oneof![Just(f64::INFINITY), 0.0..6.0_f64],
        ) {
            let (outer, time, inner) = shape;
            let times: Vec<f64> = times.iter().scan(0.0, |sum, step| { *sum += step; Some(*sum) }).collect();
            let found = filled(&values, (outer, inner), &times, max_gap, 1);
            prop_assert_eq!(format!("{:?}", found), format!("{:?}", filled(&values, (outer, inner), &times, max_gap, 3)));
            for o in 0..outer {
                for column in 0..inner {
                    let at = |row: usize| (o * time + row) * inner + column;
                    let series: Vec<f64> = (0..time).map(|row| values[at(row)]).collect();
                    let expected = filled(&series, (1, 1), &times, max_gap, 1);
                    for (row, expected) in expected.into_iter().enumerate() {
                        prop_assert_eq!(found[at(row)].to_bits(), expected.to_bits());
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_sizes_are_an_error() {
        assert!(fill_gaps(&[1.0; 6], &mut [0.0; 6], (1, 2), &[0.0, 1.0], 1.0, 1).is_err());
        assert!(fill_gaps(&[1.0; 4], &mut [0.0; 3], (1, 2), &[0.0, 1.0], 1.0, 1).is_err());
        assert!(fill_gaps::<f32>(&[], &mut [], (0, 2), &[0.0, 1.0], 1.0, 2).is_ok());
    }
}
