//! Medians of many small groups.
//!
//! Up to a few dozen values, counting for every value how many are less, all against all in vectors, takes less time
//! than any order of branches: nothing is moved and nothing mispredicted. Larger groups are partitioned.

use crate::float::Float;
use multiversion::multiversion;
use std::cmp::Ordering;

/// Values that are ranked against each other.
const RANKED: usize = 64;
/// Values of which the ranks are counted together.
const LANES: usize = 16;

/// The median, the mean of the middle two where their number is even; `values` are reordered, and not NaN.
pub fn median<T: Float>(values: &mut [T]) -> f64 {
    let (low, high) = match values.len() {
        0 => return f64::NAN,
        1..=RANKED => ranked(values),
        _ => partitioned(values),
    };
    (low.to_f64() + high.to_f64()) / 2.0
}

/// The middle two, or twice the middle one: the largest values with no more than so many below them.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn ranked<T: Float>(values: &[T]) -> (T, T) {
    let count = values.len().min(RANKED);
    let mut padded = [T::INFINITY; RANKED];
    padded[..count].copy_from_slice(&values[..count]);
    let (low_rank, high_rank) = ((count as u32 - 1) / 2, count as u32 / 2);
    let (mut low, mut high) = ([T::NEG_INFINITY; LANES], [T::NEG_INFINITY; LANES]);
    let (blocks, _) = padded.as_chunks::<LANES>();
    for block in &blocks[..count.div_ceil(LANES)] {
        let mut less = [0_u32; LANES];
        for &other in &padded[..count] {
            for lane in 0..LANES {
                less[lane] += u32::from(other < block[lane]);
            }
        }
        for lane in 0..LANES {
            let value = block[lane];
            low[lane] = if less[lane] <= low_rank && value > low[lane] { value } else { low[lane] };
            high[lane] = if less[lane] <= high_rank && value > high[lane] { value } else { high[lane] };
        }
    }
    let largest = |lanes: [T; LANES]| lanes.into_iter().fold(T::NEG_INFINITY, |a, b| if b > a { b } else { a });
    (largest(low), largest(high))
}

fn partitioned<T: Float>(values: &mut [T]) -> (T, T) {
    let middle = values.len() / 2;
    let even = values.len().is_multiple_of(2);
    let order = |a: &T, b: &T| a.partial_cmp(b).unwrap_or(Ordering::Equal);
    let (below, &mut high, _) = values.select_nth_unstable_by(middle, order);
    let low = below.iter().copied().fold(T::NEG_INFINITY, |a, b| if b > a { b } else { a });
    if even { (low, high) } else { (high, high) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_the_middle_of_the_sorted_values(
            values in proptest::collection::vec(prop_oneof![-5..5_i32, -1000..1000_i32], 1..200),
        ) {
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let count = sorted.len();
            let expected = f64::from(sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
            let mut single: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            let mut double: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
            prop_assert_eq!(median(&mut single), expected);
            prop_assert_eq!(median(&mut double), expected);
        }
    }

    #[test]
    fn infinities_are_values() {
        assert_eq!(median(&mut [f32::INFINITY, 1.0, f32::INFINITY]), f64::INFINITY);
        assert_eq!(median(&mut [f64::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert!(median::<f64>(&mut []).is_nan());
    }
}
