//! Tukey's biweight location in a sliding window.
//!
//! The window is kept sorted, so that the median is read off and the median deviation is found by moving two ends by
//! a place or two. With `u = (flux - median) / (cval MAD)`, the sums that the estimate needs are polynomials in the shift
//! of the centre, exact as long as no value crosses `|u| = 1`: one vectorised pass for the sums of `u` to `u^5` stands
//! for all iterations. They run on six numbers, and the window is read again only where a value did cross.

use super::median::median;
use super::sorted::Sorted;
use super::windows::{Estimator, LANES, Piece, Window, detrend};
use crate::error::Error;
use crate::float::Float;
use multiversion::multiversion;
use std::ops::Range;

/// The estimate is found when a step is shorter than this, in units of the MAD.
const TOLERANCE: f64 = 1e-6;
/// Steps after which a window is given up, with what it has reached.
const STEPS: usize = 200;
/// Least slope, relative to the sum of weights, with which Newton's step is taken.
const SLOPE: f64 = 0.25;

/// Biweight location in the window of each cadence of `flux[curve, time]`; NaN where the flux is not finite.
///
/// # Errors
///
/// The sizes do not fit, the time does not ascend, or the window or `cval` is not positive.
pub fn biweight_detrend<T: Float>(
    time: &[f64],
    flux: &[T],
    curves: usize,
    window: Window,
    cval: f64,
    threads: usize,
) -> Result<Vec<T>, Error> {
    Error::require(cval > 0.0 && cval.is_finite(), || format!("cval is {cval}; expected a positive number"))?;
    detrend(time, flux, curves, window, threads, |piece| fill(piece, cval))
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn fill<T: Float>(mut piece: Piece<'_, T>, cval: f64) {
    piece.fill(Biweight { cval, sorted: Sorted::default(), nearest: 0 });
}

struct Biweight {
    cval: f64,
    sorted: Sorted,
    /// Where among the sorted values the half that is nearest to the median begins.
    nearest: usize,
}

impl Estimator for Biweight {
    #[inline(always)]
    fn location(&mut self, flux: &[f64], from: Range<usize>, to: Range<usize>) -> f64 {
        self.sorted.slide(flux, from, to);
        let median = median(self.sorted.as_slice());
        let scale = self.cval * self.deviation(median);
        let inverse = 1.0 / scale;
        // Half of the values are the same; or so near, or far, that the quotient cannot be told.
        if !(scale.is_finite() && inverse.is_finite()) {
            return median;
        }
        self.centre(median, scale, inverse)
    }
}

impl Biweight {
    /// Median absolute deviation from the median.
    #[inline(always)]
    fn deviation(&mut self, median: f64) -> f64 {
        let sorted = self.sorted.as_slice();
        let size = sorted.len();
        let half = (size - 1) / 2 + 1;
        let mut first = self.nearest.min(size - half);
        while first > 0 && median - sorted[first - 1] < sorted[first + half - 1] - median {
            first -= 1;
        }
        while first + half < size && sorted[first + half] - median < median - sorted[first] {
            first += 1;
        }
        self.nearest = first;
        let farthest = (median - sorted[first]).max(sorted[first + half - 1] - median);
        if size % 2 == 1 {
            return farthest;
        }
        let below = if first > 0 { median - sorted[first - 1] } else { f64::INFINITY };
        let above = if first + half < size { sorted[first + half] - median } else { f64::INFINITY };
        (farthest + below.min(above)) / 2.0
    }

    /// Where the weighted deviations cancel, going there from the median.
    #[inline(always)]
    fn centre(&self, median: f64, scale: f64, inverse: f64) -> f64 {
        let enough = TOLERANCE / self.cval;
        let mut centre = median;
        let mut steps = 0;
        loop {
            let sums = Sums::about(&self.sorted, centre, inverse);
            let mut shift = 0.0_f64;
            loop {
                let step = sums.step(shift);
                shift += step;
                steps += 1;
                if step.abs() <= enough || steps >= STEPS {
                    return centre + shift * scale;
                }
                if shift <= sums.least || shift >= sums.most {
                    break; // a value may have crossed the cut-off
                }
            }
            centre += shift * scale;
        }
    }
}

/// What a pass over the window leaves: sums of the powers of `u`, as coefficients of polynomials in the shift.
struct Sums {
    /// Taylor coefficients of the sum of `u (1 - u^2)^2`.
    pull: [f64; 6],
    /// And of the sum of weights `(1 - u^2)^2`.
    weight: [f64; 5],
    /// Shifts between these leave the same values within the cut-off.
    least: f64,
    most: f64,
}

impl Sums {
    #[inline(always)]
    fn about(values: &Sorted, centre: f64, inverse: f64) -> Self {
        let (sorted, all) = (values.as_slice(), values.padded());
        let scaled = |value: f64| (value - centre) * inverse;
        // Few values are beyond the cut-off, all of them at the ends.
        let (mut first, mut end) = (0, sorted.len());
        while first < end && scaled(sorted[first]) <= -1.0 {
            first += 1;
        }
        while first < end && scaled(sorted[end - 1]) >= 1.0 {
            end -= 1;
        }
        let within = &sorted[first..end];
        let mut sum = [[0.0_f64; LANES]; 5];
        let (blocks, _) = all[first..].as_chunks::<LANES>();
        let (full, rest) = (within.len() / LANES, within.len() % LANES);
        for block in &blocks[..full] {
            add_powers(block, centre, inverse, &mut sum);
        }
        let mut last = blocks[full];
        for lane in 0..LANES {
            last[lane] = if lane < rest { last[lane] } else { centre }; // adds nothing
        }
        add_powers(&last, centre, inverse, &mut sum);
        let s0 = within.len() as f64;
        let [s1, s2, s3, s4, s5] = sum.map(|lanes| lanes.iter().sum::<f64>());
        let lowest = within.first().map_or(0.0, |&value| scaled(value));
        let highest = within.last().map_or(0.0, |&value| scaled(value));
        let below = if first > 0 { scaled(sorted[first - 1]) } else { f64::NEG_INFINITY };
        let above = scaled(all[end]);
        Self {
            pull: [
                s1 - 2.0 * s3 + s5,
                s0 - 6.0 * s2 + 5.0 * s4,
                10.0 * s3 - 6.0 * s1,
                10.0 * s2 - 2.0 * s0,
                5.0 * s1,
                s0,
            ],
            weight: [s0 - 2.0 * s2 + s4, 4.0 * (s3 - s1), 6.0 * s2 - 2.0 * s0, 4.0 * s1, s0],
            least: (below + 1.0).max(highest - 1.0),
            most: (above - 1.0).min(lowest + 1.0),
        }
    }

    /// The step from a centre that is shifted by `shift`: Newton's where the slope allows it, else to the weighted mean.
    #[inline(always)]
    fn step(&self, shift: f64) -> f64 {
        let x = -shift;
        let [a0, a1, a2, a3, a4, a5] = self.pull;
        let [b0, b1, b2, b3, b4] = self.weight;
        let pull = a0 + x * (a1 + x * (a2 + x * (a3 + x * (a4 + x * a5))));
        let slope = a1 + x * (2.0 * a2 + x * (3.0 * a3 + x * (4.0 * a4 + x * (5.0 * a5))));
        let weight = b0 + x * (b1 + x * (b2 + x * (b3 + x * b4)));
        let step = pull / if slope > SLOPE * weight { slope } else { weight };
        if weight > 0.0 { step } else { 0.0 }
    }
}

/// Add `u` to `u^5` of each value.
#[inline(always)]
fn add_powers(block: &[f64; LANES], centre: f64, inverse: f64, sum: &mut [[f64; LANES]; 5]) {
    for lane in 0..LANES {
        let u = (block[lane] - centre) * inverse;
        let square = u * u;
        sum[0][lane] += u;
        sum[1][lane] += square;
        sum[2][lane] += square * u;
        sum[3][lane] += square * square;
        sum[4][lane] += square * square * u;
    }
}
