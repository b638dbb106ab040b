//! The real part of the Faddeeva function, `K(x, y) = Re w(x + iy)`, in three regions, to 1e-9 relative.
//!
//! Everywhere it is a sum of positive terms, so that the real part keeps its digits even where it is far smaller than
//! the imaginary one.
//!
//! - far (`|z| >= 25`) and near (`|z| >= 7.5`): Gauss-Hermite quadrature of the convolution integral with 4 and 8 nodes,
//!   which is the Laplace continued fraction of that length: errors below `13.5 / |z|^8` and `2700 / |z|^16`;
//! - core: the trapezoidal rule with the residue of its pole (Matta and Reichel 1971, Math. Comp. 25, 339), with nodes
//!   at a distance of at least a quarter step from `x` (as Al Azah and Chandler-Wilde 2021, arXiv:2003.11312, choose
//!   them): step 1/2, error about 1e-16.
//!
//! Eight values of `x` are worked on at a time.

use crate::elementary::{exp, fused, sin_cos_of_quarters};
use std::f64::consts::{FRAC_1_PI, FRAC_2_PI, PI};

/// Values of `x` that are worked on together.
pub(crate) const LANES: usize = 8;
/// From here on 8 nodes suffice.
pub(crate) const NEAR: f64 = 7.5;
/// From here on 4 nodes suffice.
pub(crate) const FAR: f64 = 25.0;
/// From here on the profile is a Lorentzian.
pub(crate) const LORENTZ: f64 = 1e6;

/// Squared positive nodes and weights of Gauss-Hermite quadrature.
pub(crate) const FOUR: [(f64, f64); 2] =
    [(0.275_255_128_608_410_95, 0.804_914_090_005_512_8), (2.724_744_871_391_589, 0.081_312_835_447_245_18)];
/// The same for 8 nodes.
pub(crate) const EIGHT: [(f64, f64); 4] = [
    (0.145_303_521_503_317_1, 0.661_147_012_558_241_3),
    (1.339_097_288_126_361_4, 0.207_802_325_814_891_9),
    (3.926_963_501_358_207, 0.017_077_983_007_413_475),
    (8.588_635_689_012_034, 0.000_199_604_072_211_367_62),
];

/// One pair of nodes `+-t` as seen from one line: `(x^2 + sum) / ((x^2 - difference)^2 + product)`, times the weight, is
/// half of its two terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    difference: f64,
    product: f64,
    weight: f64,
    weighted_sum: f64,
}

impl Pair {
    pub(crate) fn new((square, weight): (f64, f64), y: f64) -> Self {
        let y2 = y * y;
        Self { difference: square - y2, product: 4.0 * square * y2, weight, weighted_sum: weight * (square + y2) }
    }

    /// Numerator and denominator.
    #[inline(always)]
    fn at<const FMA: bool>(&self, x2: f64) -> (f64, f64) {
        let u = x2 - self.difference;
        (fused::<FMA>(self.weight, x2, self.weighted_sum), fused::<FMA>(u, u, self.product))
    }
}

/// `K pi / (2 y)` from `N` pairs, with one division for two of them.
#[inline(always)]
pub(crate) fn quadrature<const FMA: bool, const N: usize>(pairs: &[Pair; N], x: &[f64; LANES]) -> [f64; LANES] {
    let mut result = [0.0; LANES];
    for two in pairs.as_chunks::<2>().0 {
        for lane in 0..LANES {
            let x2 = x[lane] * x[lane];
            let (a, p) = two[0].at::<FMA>(x2);
            let (b, q) = two[1].at::<FMA>(x2);
            result[lane] += fused::<FMA>(a, q, b * p) / (p * q);
        }
    }
    result
}

/// Step of the trapezoidal rule.
const STEP: f64 = 0.5;
/// Pairs of its nodes: beyond the last `exp(-t^2)` is below 1e-16.
const PAIRS: usize = 14;

/// Nodes of the trapezoidal rule on multiples of its step, and half way between.
pub(crate) struct Nodes([[Node; 2]; PAIRS]);

/// A pair of nodes: its square, and `2 STEP / pi exp(-t^2)`.
#[derive(Clone, Copy)]
struct Node {
    square: f64,
    weight: f64,
}

impl Nodes {
    pub(crate) fn new() -> Self {
        let node = |m: usize, shift: f64| {
            let t = (m as f64 + shift) * STEP;
            let count = if t == 0.0 { 1.0 } else { 2.0 }; // zero has no partner
            Node { square: t * t, weight: count * STEP * FRAC_1_PI * (-t * t).exp() }
        };
        Self(std::array::from_fn(|m| [node(m, 0.0), node(m, 0.5)]))
    }

    /// `K(x, y)` for `y < NEAR`.
    #[inline(always)]
    pub(crate) fn core<const FMA: bool>(&self, x: &[f64; LANES], y: f64) -> [f64; LANES] {
        let y2 = y * y;
        let growth = exp::<FMA>(2.0 * PI / STEP * y);
        let mut halfway = [false; LANES];
        let mut residue = [0.0; LANES];
        for lane in 0..LANES {
            let (sin, cos) = sin_cos_of_quarters::<FMA>(x[lane] * (4.0 / STEP));
            // Near a multiple of the step the nodes between the multiples are taken, and the sign in the residue's
            // denominator 1 -+ exp(-2 pi i z / STEP) turns with them.
            halfway[lane] = cos >= 0.0;
            let (sin, cos) = if halfway[lane] { (sin, cos) } else { (-sin, -cos) };
            let (sin2, cos2) = sin_cos_of_quarters::<FMA>(x[lane] * (2.0 * FRAC_2_PI * y));
            let above = fused::<FMA>(cos2, fused::<FMA>(growth, cos, 1.0), sin2 * growth * sin);
            let below = fused::<FMA>(growth, fused::<FMA>(2.0, cos, growth), 1.0);
            residue[lane] = 2.0 * exp::<FMA>(y2 - x[lane] * x[lane]) * above / below;
        }
        let mut sum = [0.0; LANES];
        for two in self.0.as_chunks::<2>().0 {
            for lane in 0..LANES {
                let x2 = x[lane] * x[lane];
                let (a, p) = part::<FMA>(&two[0], halfway[lane], x2, y2);
                let (b, q) = part::<FMA>(&two[1], halfway[lane], x2, y2);
                sum[lane] += fused::<FMA>(a, q, b * p) / (p * q);
            }
        }
        for lane in 0..LANES {
            sum[lane] = fused::<FMA>(y, sum[lane], residue[lane]);
        }
        sum
    }
}

/// Numerator and denominator of the two terms of a pair of nodes.
#[inline(always)]
fn part<const FMA: bool>(nodes: &[Node; 2], halfway: bool, x2: f64, y2: f64) -> (f64, f64) {
    let square = if halfway { nodes[1].square } else { nodes[0].square };
    let weight = if halfway { nodes[1].weight } else { nodes[0].weight };
    let u = x2 - square + y2;
    (weight * (x2 + square + y2), fused::<FMA>(u, u, 4.0 * square * y2))
}

/// Distance `|x|` from which on `K` is that of the quadratures: `|z| >= NEAR`, and `exp(-x^2)`, which they lack, is below
/// 1e-11 of what remains.
pub(crate) fn core_radius(y: f64) -> f64 {
    // y / (sqrt(pi) x^2) > 1e11 exp(-x^2), with x^2 < 900
    let gone = 33.0 - y.ln();
    let outside = NEAR * NEAR - y * y;
    if outside <= 0.0 { 0.0 } else { outside.max(gone).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `K` from the convolution integral, by the trapezoidal rule with steps far smaller than `y` and 1.
    fn integral(x: f64, y: f64) -> f64 {
        let step = y.min(1.0) / 16.0;
        let nodes = (7.0 / step) as i64;
        let sum: f64 = (-nodes..=nodes)
            .map(|n| {
                let t = n as f64 * step;
                (-t * t).exp() / ((x - t) * (x - t) + y * y)
            })
            .sum();
        step * y * FRAC_1_PI * sum
    }

    #[test]
    fn every_region_agrees_with_the_integral() {
        for y in [0.02, 0.1, 0.5, 1.0, 3.0, 7.4, 7.6, 20.0, 24.9, 25.1, 300.0] {
            for i in 0..200 {
                let x = f64::from(i).powi(2) * 1e-3 + 0.003 * f64::from(i);
                let z = (x * x + y * y).sqrt();
                let expected = integral(x, y);
                let twice = 2.0 * y * FRAC_1_PI;
                let mut found = Vec::new();
                if x < NEAR && y < NEAR {
                    found.push(Nodes::new().core::<true>(&[x; LANES], y)[3]);
                    found.push(Nodes::new().core::<false>(&[x; LANES], y)[0]);
                }
                if z >= NEAR {
                    found.push(twice * quadrature::<true, 4>(&EIGHT.map(|node| Pair::new(node, y)), &[x; LANES])[7]);
                }
                if z >= FAR {
                    found.push(twice * quadrature::<false, 2>(&FOUR.map(|node| Pair::new(node, y)), &[x; LANES])[1]);
                }
                assert!(!found.is_empty());
                for found in found {
                    assert!((found / expected - 1.0).abs() < 1e-9, "K({x}, {y}) = {expected}, found {found}");
                }
            }
        }
    }

    #[test]
    fn a_vanishing_y_leaves_the_gaussian() {
        for y in [0.0, 1e-300, 1e-30] {
            for x in [0.0, 0.124, 0.125, 0.25, 0.3, 1.0, 2.5, 5.0] {
                let found = Nodes::new().core::<true>(&[x; LANES], y)[0];
                assert!((found / (-x * x).exp() - 1.0).abs() < 1e-14, "{x} {y} {found}");
            }
        }
    }
}
