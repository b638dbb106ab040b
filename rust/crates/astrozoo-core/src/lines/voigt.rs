//! Sum of Voigt profiles over a grid.
//!
//! Lines are sorted by their centres once. The grid is cut into blocks that stay in the first cache levels, and each
//! block adds the lines that reach it, in order. Nearly all points lie far from the centre in units of the Doppler
//! width, where the profile is a rational function of the squared distance: one division for eight points at a time.

use super::profile::{EIGHT, FAR, FOUR, LANES, LORENTZ, Nodes, Pair, core_radius, quadrature};
use crate::elementary::{exp, fused};
use crate::error::Error;
use crate::parallel;
use crate::spectra::increasing;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use std::f64::consts::{FRAC_1_PI, PI, SQRT_2};

/// Grid points of one block.
const BLOCK: usize = 4096;
/// Widths that are neither 0 nor within these bounds would overflow.
const WIDTHS: std::ops::RangeInclusive<f64> = 1e-100..=1e100;

/// Lines: centre, integrated strength, standard deviation of the Gaussian and half width at half maximum of the
/// Lorentzian, each as one array.
#[derive(Clone, Copy, Debug)]
pub struct Lines<'a> {
    /// Centres, in any order.
    pub centers: &'a [f64],
    /// Areas of the profiles.
    pub strengths: &'a [f64],
    /// Standard deviations of the Gaussian part; 0 for a Lorentzian.
    pub sigma: &'a [f64],
    /// Half widths at half maximum of the Lorentzian part; 0 for a Gaussian.
    pub gamma: &'a [f64],
}

/// One line, with the distances at which one region ends and the next begins.
struct Line {
    center: f64,
    /// `1 / (sigma sqrt(2))`: from distances to `x`.
    inverse: f64,
    /// Factor of `K`: strength / (sigma sqrt(2 pi)).
    height: f64,
    /// `gamma / (sigma sqrt(2))`
    y: f64,
    gamma: f64,
    strength: f64,
    /// Ends of core, near, far and Lorentzian; a line without a Gaussian is a Lorentzian from its centre on.
    radii: [f64; 4],
}

impl Line {
    fn new(lines: &Lines, index: usize, cutoff: f64) -> Self {
        let (sigma, gamma, strength) = (lines.sigma[index], lines.gamma[index], lines.strengths[index]);
        let scale = sigma * SQRT_2;
        let y = if sigma > 0.0 { gamma / scale } else { 0.0 };
        let outside = |radius: f64| scale * (radius * radius - y * y).max(0.0).sqrt();
        let core = match (sigma > 0.0, gamma > 0.0) {
            (true, true) => scale * core_radius(y),
            (true, false) => cutoff,
            _ => 0.0,
        };
        let near = outside(FAR).max(core);
        let far = outside(LORENTZ).max(near);
        let height = if sigma > 0.0 { strength / (sigma * (2.0 * PI).sqrt()) } else { 0.0 };
        Self {
            center: lines.centers[index],
            inverse: if sigma > 0.0 { scale.recip() } else { 0.0 },
            height,
            y,
            gamma,
            strength,
            radii: [core, near, far, cutoff].map(|radius| radius.min(cutoff)),
        }
    }
}

/// `sum_k strength_k V(wavenumber - center_k; sigma_k, gamma_k)`, each line within `cutoff` of its centre.
///
/// # Errors
///
/// The grid is not increasing, the arrays of the lines differ in length or hold what is not finite, a width is
/// negative or out of bounds, both widths of a line are 0, or the cutoff is not positive.
pub fn voigt_cross_section(wavenumber: &[f64], lines: Lines, cutoff: f64, threads: usize) -> Result<Vec<f64>, Error> {
    increasing("wavenumber", wavenumber)?;
    check(lines, cutoff)?;
    let mut order: Vec<usize> = (0..lines.centers.len()).collect();
    order.sort_by(|&a, &b| lines.centers[a].total_cmp(&lines.centers[b]));
    let sorted: Vec<Line> = order.into_iter().map(|index| Line::new(&lines, index, cutoff)).collect();
    let nodes = Nodes::new();
    let mut result = vec![0.0; wavenumber.len()];
    let threads = parallel::worth(threads, wavenumber.len().saturating_mul(sorted.len()), 1 << 17);
    let tasks: Vec<_> = wavenumber.chunks(BLOCK).zip(result.chunks_mut(BLOCK)).collect();
    parallel::map(threads, tasks, |(grid, result)| {
        let first = sorted.partition_point(|line| line.center + cutoff < grid[0]);
        let last = sorted.partition_point(|line| line.center - cutoff <= grid[grid.len() - 1]);
        for line in sorted.get(first..last).unwrap_or_default() {
            add_line(line, &nodes, grid, result);
        }
    });
    Ok(result)
}

fn check(lines: Lines, cutoff: f64) -> Result<(), Error> {
    let count = lines.centers.len();
    let same = [lines.strengths, lines.sigma, lines.gamma].iter().all(|values| values.len() == count);
    Error::require(same, || format!("{count} lines have another number of strengths or widths"))?;
    let finite = lines.centers.iter().chain(lines.strengths).all(|value| value.is_finite());
    Error::require(finite, || "a centre or strength is not finite".into())?;
    let valid = |width: f64| width == 0.0 || WIDTHS.contains(&width);
    let widths = lines.sigma.iter().zip(lines.gamma);
    Error::require(widths.clone().all(|(&sigma, &gamma)| valid(sigma) && valid(gamma)), || {
        "a width is neither 0 nor from 1e-100 to 1e100".into()
    })?;
    Error::require(widths.clone().all(|(sigma, gamma)| sigma + gamma > 0.0), || "a line has no width".into())?;
    Error::require(cutoff > 0.0 && cutoff <= 1e100, || format!("the cutoff is {cutoff}; expected up to 1e100"))
}

/// Add one line to a block.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_line(line: &Line, nodes: &Nodes, grid: &[f64], result: &mut [f64]) {
    if target_cfg_f!(any(target_feature = "avx512f", target_feature = "fma", target_arch = "aarch64")) {
        add_line_with::<true>(line, nodes, grid, result);
    } else {
        add_line_with::<false>(line, nodes, grid, result);
    }
}

#[inline(always)]
fn add_line_with<const FMA: bool>(line: &Line, nodes: &Nodes, grid: &[f64], result: &mut [f64]) {
    let below = line.radii.map(|radius| first_at_least(grid, line.center - radius));
    let above = line.radii.map(|radius| first_beyond(grid, line.center + radius));
    // A region of no width is empty, although a point may lie at its centre.
    let [core, near, far, all] =
        std::array::from_fn(|i| (below[i], if line.radii[i] > 0.0 { above[i] } else { below[i] }));
    let (height, inverse, y) = (line.height, line.inverse, line.y);
    if line.gamma == 0.0 {
        return add::<FMA, _>(line.center, grid, result, core, &Gaussian { height, inverse });
    }
    add::<FMA, _>(line.center, grid, result, core, &Core { height, inverse, y, nodes });
    let factor = height * 2.0 * y * FRAC_1_PI;
    for side in sides(core, near) {
        let wing = Wing { factor, inverse, pairs: EIGHT.map(|node| Pair::new(node, y)) };
        add::<FMA, _>(line.center, grid, result, side, &wing);
    }
    for side in sides(near, far) {
        let wing = Wing { factor, inverse, pairs: FOUR.map(|node| Pair::new(node, y)) };
        add::<FMA, _>(line.center, grid, result, side, &wing);
    }
    let lorentzian = Lorentzian { area: line.strength * line.gamma * FRAC_1_PI, square: line.gamma * line.gamma };
    for side in sides(far, all) {
        add::<FMA, _>(line.center, grid, result, side, &lorentzian);
    }
}

/// A profile, or a part of one, as a function of the distance from the centre. Types instead of closures, which the
/// compiler need not inline and then compiles for the baseline processor.
trait Shape {
    fn at<const FMA: bool>(&self, distance: &[f64; LANES]) -> [f64; LANES];
}

struct Gaussian {
    height: f64,
    inverse: f64,
}

struct Core<'a> {
    height: f64,
    inverse: f64,
    y: f64,
    nodes: &'a Nodes,
}

struct Wing<const N: usize> {
    factor: f64,
    inverse: f64,
    pairs: [Pair; N],
}

struct Lorentzian {
    area: f64,
    square: f64,
}

impl Shape for Gaussian {
    #[inline(always)]
    fn at<const FMA: bool>(&self, distance: &[f64; LANES]) -> [f64; LANES] {
        let mut values = scaled(distance, self.inverse);
        for value in &mut values {
            *value = self.height * exp::<FMA>(-*value * *value);
        }
        values
    }
}

impl Shape for Core<'_> {
    #[inline(always)]
    fn at<const FMA: bool>(&self, distance: &[f64; LANES]) -> [f64; LANES] {
        scaled(&self.nodes.core::<FMA>(&scaled(distance, self.inverse), self.y), self.height)
    }
}

impl<const N: usize> Shape for Wing<N> {
    #[inline(always)]
    fn at<const FMA: bool>(&self, distance: &[f64; LANES]) -> [f64; LANES] {
        scaled(&quadrature::<FMA, N>(&self.pairs, &scaled(distance, self.inverse)), self.factor)
    }
}

impl Shape for Lorentzian {
    #[inline(always)]
    fn at<const FMA: bool>(&self, distance: &[f64; LANES]) -> [f64; LANES] {
        let mut values = [0.0; LANES];
        for lane in 0..LANES {
            values[lane] = self.area / fused::<FMA>(distance[lane], distance[lane], self.square);
        }
        values
    }
}

#[inline(always)]
fn scaled(values: &[f64; LANES], factor: f64) -> [f64; LANES] {
    let mut result = *values;
    for value in &mut result {
        *value *= factor;
    }
    result
}

/// What `outer` holds on either side of `inner`.
fn sides(inner: (usize, usize), outer: (usize, usize)) -> [(usize, usize); 2] {
    [(outer.0, inner.0.max(outer.0)), (inner.1.min(outer.1), outer.1)]
}

/// Add a shape to the points from `first` to `last`, eight at a time; the last eight are filled up.
#[inline(always)]
fn add<const FMA: bool, S: Shape>(
    center: f64,
    grid: &[f64],
    result: &mut [f64],
    (first, last): (usize, usize),
    shape: &S,
) {
    if first >= last {
        return;
    }
    let (points, more_points) = grid[first..last].as_chunks::<LANES>();
    let (sums, more_sums) = result[first..last].as_chunks_mut::<LANES>();
    for (points, sums) in points.iter().zip(sums) {
        add_to::<FMA, S>(center, points, sums, shape);
    }
    if !more_points.is_empty() {
        let (mut points, mut sums) = ([center; LANES], [0.0; LANES]);
        points[..more_points.len()].copy_from_slice(more_points);
        points[more_points.len()..].fill(more_points[0]);
        add_to::<FMA, S>(center, &points, &mut sums, shape);
        for (sum, more) in more_sums.iter_mut().zip(sums) {
            *sum += more;
        }
    }
}

#[inline(always)]
fn add_to<const FMA: bool, S: Shape>(center: f64, points: &[f64; LANES], sums: &mut [f64; LANES], shape: &S) {
    let mut distance = *points;
    for distance in &mut distance {
        *distance -= center;
    }
    let values = shape.at::<FMA>(&distance);
    for lane in 0..LANES {
        sums[lane] += values[lane];
    }
}

/// How many points lie below `bound`; most bounds lie outside of the block.
#[inline(always)]
fn first_at_least(grid: &[f64], bound: f64) -> usize {
    if grid[0] >= bound {
        0
    } else if grid[grid.len() - 1] < bound {
        grid.len()
    } else {
        grid.partition_point(|&point| point < bound)
    }
}

/// How many points do not lie above `bound`.
#[inline(always)]
fn first_beyond(grid: &[f64], bound: f64) -> usize {
    if grid[0] > bound {
        0
    } else if grid[grid.len() - 1] <= bound {
        grid.len()
    } else {
        grid.partition_point(|&point| point <= bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(grid: &[f64], lines: &[(f64, f64, f64, f64)], cutoff: f64, threads: usize) -> Result<Vec<f64>, Error> {
        let column = |f: fn(&(f64, f64, f64, f64)) -> f64| lines.iter().map(f).collect::<Vec<_>>();
        let (centers, strengths) = (column(|line| line.0), column(|line| line.1));
        let (sigma, gamma) = (column(|line| line.2), column(|line| line.3));
        let lines = Lines { centers: &centers, strengths: &strengths, sigma: &sigma, gamma: &gamma };
        voigt_cross_section(grid, lines, cutoff, threads)
    }

    /// The convolution of a Gaussian with a Lorentzian, by the trapezoidal rule.
    fn convolved(distance: f64, sigma: f64, gamma: f64) -> f64 {
        let step = sigma.min(gamma) / 12.0;
        let nodes = (9.0 * sigma / step) as i64;
        let terms = (-nodes..=nodes).map(|n| {
            let t = n as f64 * step;
            (-0.5 * (t / sigma).powi(2)).exp() / ((distance - t).powi(2) + gamma * gamma)
        });
        terms.sum::<f64>() * step * gamma / PI / (sigma * (2.0 * PI).sqrt())
    }

    proptest! {
        #[test]
        fn lines_add_up_within_their_cutoff(
            lines in proptest::collection::vec((-5.0..25.0_f64, -2.0..2.0_f64, 0.05..0.5_f64, 0.05..0.5_f64), 0..6),
            steps in proptest::collection::vec(0.01..0.9_f64, 1..60),
            cutoff in 0.3..12.0_f64,
        ) {
            let mut at = 0.0;
            let grid: Vec<f64> = steps.iter().map(|step| { at += step; at }).collect();
            let found = sum(&grid, &lines, cutoff, 2).unwrap();
            for (&point, found) in grid.iter().zip(found) {
                let within = |line: &&(f64, f64, f64, f64)| point >= line.0 - cutoff && point <= line.0 + cutoff;
                let terms = lines.iter().filter(within).map(|line| line.1 * convolved(point - line.0, line.2, line.3));
                let expected: f64 = terms.clone().sum();
                let size: f64 = terms.map(f64::abs).sum();
                prop_assert!((found - expected).abs() <= 1e-9 * size, "{} {}", found, expected);
            }
        }
    }

    #[test]
    fn the_order_of_lines_and_the_threads_change_no_bit() {
        let grid: Vec<f64> = (0..30_000).map(|i| 1000.0 + 0.01 * f64::from(i)).collect();
        let mut lines: Vec<_> = (0..300_u32)
            .map(|i| (990.0 + f64::from(i.wrapping_mul(7919) % 31_991) * 0.01, 1.0, 0.01, 0.002 * f64::from(i % 50)))
            .collect();
        let one = sum(&grid, &lines, 25.0, 1).unwrap();
        assert_eq!(one, sum(&grid, &lines, 25.0, 3).unwrap());
        lines.reverse();
        assert_eq!(one, sum(&grid, &lines, 25.0, 2).unwrap());
    }

    #[test]
    fn pure_shapes_are_their_closed_forms() {
        let grid = [-3.0, -1.0, 0.0, 0.1, 2.0, 4.0];
        for ((&point, gaussian), lorentzian) in grid
            .iter()
            .zip(sum(&grid, &[(0.0, 2.0, 0.5, 0.0)], 3.5, 1).unwrap())
            .zip(sum(&grid, &[(0.0, 2.0, 0.0, 0.5)], 3.5, 1).unwrap())
        {
            let within = if point == 4.0 { 0.0 } else { 2.0 };
            let expected = within * (-2.0 * point * point).exp() / (0.5 * (2.0 * PI).sqrt());
            assert!((gaussian - expected).abs() <= 1e-14 * expected);
            let expected = within * 0.5 / PI / (point * point + 0.25);
            assert!((lorentzian - expected).abs() <= 1e-14 * expected);
        }
    }

    #[test]
    fn what_is_no_line_is_an_error() {
        assert!(sum(&[0.0, 0.0], &[(0.0, 1.0, 1.0, 1.0)], 1.0, 1).is_err());
        for line in [(0.0, 1.0, 0.0, 0.0), (0.0, 1.0, -1.0, 1.0), (f64::NAN, 1.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1e-200)] {
            assert!(sum(&[0.0, 1.0], &[line], 1.0, 1).is_err());
        }
        assert!(sum(&[0.0], &[(0.0, 1.0, 1.0, 1.0)], f64::NAN, 1).is_err());
        assert_eq!(sum(&[], &[(0.0, 1.0, 1.0, 1.0)], 1.0, 1).unwrap(), vec![]);
        assert_eq!(sum(&[1.0], &[], 1.0, 1).unwrap(), vec![0.0]);
    }
}
