//! The best box at one period: that of the highest likelihood among all phases and durations.
//!
//! Of a box only the sum of weighted fluxes `f` and of weights `w` inside is needed, which are differences of two sums
//! up to a bin. With those of the whole light curve, `F` and `W`, the depth is `(wF - fW) / (w(W - w))` and the
//! likelihood `w / 2` times its square. Nearly all boxes are worse than the best so far, and to see that takes no
//! division: many boxes are tested together in vectors, and only a block that may hold a better one is looked at
//! box by box.

use super::phase_bins::PhaseBins;
use multiversion::multiversion;

/// Boxes that are tested together.
const BLOCK: usize = 64;
/// A box is looked at unless it is worse than the best so far by more than this: rounding may not hide a better one.
const SLACK: f64 = 1.0 - 1e-13;

/// The sums of a whole light curve.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Of weighted fluxes.
    pub flux: f64,
    /// Of weights.
    pub weight: f64,
    /// A box with no more weight inside, or outside, holds, or leaves, no cadence: all there is, is rounding.
    pub least: f64,
}

/// The box of highest likelihood at one period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestBox {
    /// Log likelihood over that of a constant light curve; negative infinity where no box has cadences inside and
    /// outside and a flux inside that is not higher. The other numbers are NaN there.
    pub likelihood: f64,
    /// Flux outside less flux inside.
    pub depth: f64,
    /// Standard error of the depth.
    pub error: f64,
    /// Length of the box, a whole number of bins.
    pub duration: f64,
    /// Time of its middle after the first cadence.
    pub time: f64,
}

impl BestBox {
    const NONE: Self =
        Self { likelihood: f64::NEG_INFINITY, depth: f64::NAN, error: f64::NAN, duration: f64::NAN, time: f64::NAN };
}

/// The first of the best boxes with `lengths` in bins of `width`, among `count` bins.
pub fn best_box(
    sums: &PhaseBins,
    count: usize,
    totals: Totals,
    lengths: &[usize],
    (period, width): (f64, f64),
) -> BestBox {
    let (flux, weight) = (&sums.flux[..=count], &sums.weight[..=count]);
    let mut best = BestBox::NONE;
    for &length in lengths.iter().filter(|&&length| length <= count) {
        let boxes = count - length + 1;
        for start in (0..boxes).step_by(BLOCK) {
            let end = (start + BLOCK).min(boxes);
            let inside = Inside {
                flux: (&flux[start..end], &flux[start + length..end + length]),
                weight: (&weight[start..end], &weight[start + length..end + length]),
            };
            if !may_be_better(&inside, totals, best.likelihood) {
                continue;
            }
            for i in 0..end - start {
                let (depth, error, likelihood) = inside.fit(i, totals);
                if likelihood > best.likelihood {
                    let duration = length as f64 * width;
                    let time = ((start + i) as f64 * width + 0.5 * duration) % period;
                    best = BestBox { likelihood, depth, error, duration, time };
                }
            }
        }
    }
    best
}

/// Sums before the first bin of each box, and up to its last.
struct Inside<'a> {
    flux: (&'a [f64], &'a [f64]),
    weight: (&'a [f64], &'a [f64]),
}

impl Inside<'_> {
    /// Depth, its error, and the likelihood of one box; the likelihood is NaN where there is none.
    fn fit(&self, i: usize, totals: Totals) -> (f64, f64, f64) {
        let flux = self.flux.1[i] - self.flux.0[i];
        let weight = self.weight.1[i] - self.weight.0[i];
        let outside = totals.weight - weight;
        let depth = (totals.flux - flux) / outside - flux / weight;
        if !(weight > totals.least && outside > totals.least && depth >= 0.0) {
            return (f64::NAN, f64::NAN, f64::NAN);
        }
        (depth, (1.0 / weight + 1.0 / outside).sqrt(), 0.5 * weight * depth * depth)
    }
}

/// Whether one of the boxes may have a higher likelihood than `best`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn may_be_better(inside: &Inside<'_>, totals: Totals, best: f64) -> bool {
    let bound = if best < 0.0 { -1.0 } else { 2.0 * SLACK * best };
    let (flux_before, flux_within) = inside.flux;
    let (weight_before, weight_within) = inside.weight;
    let count = flux_before.len();
    let (flux_within, weight_before, weight_within) =
        (&flux_within[..count], &weight_before[..count], &weight_within[..count]);
    let mut found = false;
    for i in 0..count {
        let flux = flux_within[i] - flux_before[i];
        let weight = weight_within[i] - weight_before[i];
        let outside = totals.weight - weight;
        let dip = weight * totals.flux - flux * totals.weight;
        // Its sign stays, since brightenings are not what is looked for.
        found |= (dip * dip.abs() > bound * (weight * outside * outside)) & (weight > totals.least);
    }
    found
}
