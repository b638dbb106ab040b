//! Which values lie in the window of each cadence, and what of that one task needs.
//!
//! Both ends of the window only move forward, so one sweep finds them all. A task takes some thousand cadences of one
//! curve and copies, without missing values, what their windows can reach; it shares nothing with other tasks and
//! writes its own piece of the trend.

use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use std::ops::Range;

/// Values that are looked at together: two vectors of eight doubles.
pub const LANES: usize = 16;
/// Fewest cadences that one task takes.
const CADENCES: usize = 2048;
/// A task takes this many windows at least: its first one is sorted from nothing, and its surroundings are copied.
const WINDOWS: f64 = 0.5;

/// Where windows begin and end, in the unit of the time.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The window of a cadence at `t` is `t - length / 2 <= time < t + length / 2`.
    pub length: f64,
    /// No window reaches across a longer time without values.
    pub break_tolerance: f64,
    /// No trend nearer than this, or than half the window, to the ends of what lies between two such breaks.
    pub edge_cutoff: f64,
}

/// A location of the values in a window.
pub trait Estimator {
    /// The location of `flux[to]`, after that of `flux[from]` was asked for. Both ends of `to` lie at or behind those
    /// of `from`; `from` is empty where there was no such window.
    fn location(&mut self, flux: &[f64], from: Range<usize>, to: Range<usize>) -> f64;
}

/// Cadences of one curve, for one task.
pub struct Piece<'a, T> {
    time: &'a [f64],
    flux: &'a [T],
    first: usize,
    trend: &'a mut [T],
    window: Window,
}

/// What the windows of a piece can reach, without missing values, and one value on either side of it.
struct Near {
    time: Vec<f64>,
    flux: Vec<f64>,
    /// Where the first cadence of the piece is.
    first: usize,
    /// Whether there are values before, and behind, what the windows reach.
    before: bool,
    behind: bool,
}

/// The trend of each row of `flux[curve, time]`: `fill` computes that of one piece.
pub fn detrend<T: Float>(
    time: &[f64],
    flux: &[T],
    curves: usize,
    window: Window,
    threads: usize,
    fill: impl Fn(Piece<'_, T>) + Sync,
) -> Result<Vec<T>, Error> {
    let cadences = time.len();
    Error::require_fill(flux.len(), &[curves, cadences])?;
    Error::require(time.iter().all(|t| t.is_finite()) && time.is_sorted(), || {
        "time has to be finite and ascend".into()
    })?;
    Error::require(window.length > 0.0 && window.length.is_finite(), || {
        format!("the window is {}; expected a positive number", window.length)
    })?;
    Error::require(window.break_tolerance > 0.0 && window.edge_cutoff >= 0.0, || {
        format!("break tolerance {} or edge cutoff {} is negative", window.break_tolerance, window.edge_cutoff)
    })?;
    let mut trend = vec![T::NAN; flux.len()];
    let (Some(start), Some(end)) = (time.first(), time.last()) else { return Ok(trend) };
    let in_window = cadences as f64 * (window.length / (end - start)).min(1.0);
    let step = CADENCES.max((WINDOWS * in_window) as usize);
    let pieces: Vec<_> = trend
        .chunks_mut(cadences)
        .zip(flux.chunks(cadences))
        .flat_map(|(trend, flux)| {
            let pieces = trend.chunks_mut(step).enumerate();
            pieces.map(move |(i, trend)| Piece { time, flux, first: i * step, trend, window })
        })
        .collect();
    parallel::map(parallel::worth(threads, flux.len(), CADENCES), pieces, fill);
    Ok(trend)
}

impl<T: Float> Piece<'_, T> {
    /// Write the trend: what `estimator` finds in the window of each cadence that has a value.
    #[inline(always)]
    pub fn fill(&mut self, mut estimator: impl Estimator) {
        let Some(near) = self.near() else { return };
        let half = self.window.length / 2.0;
        let edge = self.window.edge_cutoff.min(half);
        let time = &near.time[..];
        let (mut cadence, mut segment, mut inside) = (near.first, 0..0, f64::INFINITY..=f64::NEG_INFINITY);
        let (mut reach, mut last) = (0..0, 0..0);
        for (flux, trend) in self.flux[self.first..].iter().zip(self.trend.iter_mut()) {
            if !flux.to_f64().is_finite() {
                continue;
            }
            while cadence >= segment.end {
                segment = segment.end..next_break(time, segment.end, self.window.break_tolerance);
                // The segment goes on outside where there are more values; its end is then farther than any window.
                let begins = segment.start > 0 || !near.before;
                let ends = segment.end < time.len() || !near.behind;
                let low = if begins { time[segment.start] + edge } else { f64::NEG_INFINITY };
                let high = if ends { time[segment.end - 1] - edge } else { f64::INFINITY };
                inside = low..=high;
                reach = segment.start..segment.start;
                last = 0..0;
            }
            let now = time[cadence];
            cadence += 1;
            if !inside.contains(&now) {
                continue;
            }
            while reach.start < segment.end && time[reach.start] < now - half {
                reach.start += 1;
            }
            reach.end = reach.end.max(reach.start);
            while reach.end < segment.end && time[reach.end] < now + half {
                reach.end += 1;
            }
            // A window that is shorter than the time's precision holds nothing.
            if !reach.is_empty() {
                *trend = T::from_f64(estimator.location(&near.flux, last, reach.clone()));
            }
            last = reach.clone();
        }
    }

    /// None where the piece has no value at all.
    fn near(&self) -> Option<Near> {
        let known = |value: &T| value.to_f64().is_finite();
        let piece = self.first..self.first + self.trend.len();
        if !self.flux[piece.clone()].iter().any(known) {
            return None;
        }
        let half = self.window.length / 2.0;
        let (low, high) = (self.time[piece.start] - half, self.time[piece.end - 1] + half);
        let start = self.time[..piece.start].partition_point(|&t| t < low);
        let end = piece.end + self.time[piece.end..].partition_point(|&t| t < high);
        let before = self.flux[..start].iter().rposition(known);
        let behind = self.flux[end..].iter().position(known).map(|i| end + i);
        let mut near = Near {
            time: Vec::with_capacity(end - start + 2),
            flux: Vec::with_capacity(end - start + 2),
            first: 0,
            before: before.is_some(),
            behind: behind.is_some(),
        };
        let mut add = |part: Range<usize>| {
            near.add(&self.time[part.clone()], &self.flux[part]);
            near.time.len()
        };
        if let Some(i) = before {
            add(i..i + 1);
        }
        let first = add(start..piece.start);
        add(piece.start..end);
        if let Some(i) = behind {
            add(i..i + 1);
        }
        near.first = first;
        Some(near)
    }
}

impl Near {
    fn add<T: Float>(&mut self, time: &[f64], flux: &[T]) {
        for (&time, &flux) in time.iter().zip(flux) {
            let flux = flux.to_f64();
            if flux.is_finite() {
                self.time.push(time);
                self.flux.push(flux + 0.0); // makes a negative zero positive, so that equal values are the same bits
            }
        }
    }
}

/// The end of the segment that starts at `start`.
fn next_break(time: &[f64], start: usize, tolerance: f64) -> usize {
    let gap = time[start..].windows(2).position(|pair| pair[1] - pair[0] > tolerance);
    gap.map_or(time.len(), |i| start + i + 1)
}
