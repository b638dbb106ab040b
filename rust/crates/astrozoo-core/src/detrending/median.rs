//! Sliding median: the middle of the sorted window.

use super::sorted::Sorted;
use super::windows::{Estimator, Piece, Window, detrend};
use crate::error::Error;
use crate::float::Float;
use multiversion::multiversion;
use std::ops::Range;

/// Median in the window of each cadence of `flux[curve, time]`; NaN where the flux is not finite.
///
/// # Errors
///
/// The sizes do not fit, the time does not ascend, or the window is not positive.
pub fn median_filter_time<T: Float>(
    time: &[f64],
    flux: &[T],
    curves: usize,
    window: Window,
    threads: usize,
) -> Result<Vec<T>, Error> {
    detrend(time, flux, curves, window, threads, fill)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn fill<T: Float>(mut piece: Piece<'_, T>) {
    piece.fill(Median::default());
}

#[derive(Default)]
struct Median {
    sorted: Sorted,
}

impl Estimator for Median {
    #[inline(always)]
    fn location(&mut self, flux: &[f64], from: Range<usize>, to: Range<usize>) -> f64 {
        self.sorted.slide(flux, from, to);
        median(self.sorted.as_slice())
    }
}

/// Median of some sorted values.
#[inline(always)]
pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
