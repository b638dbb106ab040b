//! Box least squares of Kovács, Zucker and Mazeh (2002), with the statistics of astropy's `BoxLeastSquares`.
//!
//! At each period the light curve is summed in narrow bins of phase (`phase_bins`), and the best box is found from
//! sums of neighbouring bins (`boxes`). Periods are independent of each other and are what threads share.

use super::boxes::{BestBox, Totals, best_box};
use super::phase_bins::{Cadences, PhaseBins};
use crate::error::Error;
use crate::parallel;

/// Periods that one task takes.
const PERIODS_PER_TASK: usize = 8;
/// Bins that a period may have: beyond, memory for them is refused.
const MOST_BINS: f64 = (1_u64 << 27) as f64;

/// A light curve without gaps in its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Light<'a> {
    /// Times after the first cadence, in any order.
    pub time: &'a [f64],
    /// Fluxes; best less their median, which costs the sums fewest digits.
    pub flux: &'a [f64],
    /// Weights: inverse variances.
    pub weight: &'a [f64],
}

/// The best box at each of `periods`, of the lengths in `durations`, on bins of the shortest over `oversample`.
///
/// # Errors
///
/// Arrays of different lengths; times or durations that are negative, zero or not finite; a duration not shorter than the
/// shortest period; an `oversample` of 0; periods of more than 2^27 bins.
pub fn box_least_squares(
    light: Light<'_>,
    periods: &[f64],
    durations: &[f64],
    oversample: usize,
    threads: usize,
) -> Result<Vec<BestBox>, Error> {
    let cadences = light.time.len();
    Error::require(cadences == light.flux.len() && cadences == light.weight.len(), || {
        format!("{cadences} times, {} fluxes and {} weights", light.flux.len(), light.weight.len())
    })?;
    Error::require(light.time.iter().all(|&time| time >= 0.0 && time.is_finite()), || {
        "times must be finite and count from the first".to_owned()
    })?;
    Error::require(oversample > 0, || "oversample must be at least 1".to_owned())?;
    let shortest = durations.iter().copied().fold(f64::INFINITY, f64::min);
    let longest = durations.iter().copied().fold(0.0, f64::max);
    let least = periods.iter().copied().fold(f64::INFINITY, f64::min);
    let most = periods.iter().copied().fold(0.0, f64::max);
    let width = shortest / oversample as f64;
    Error::require(durations.iter().all(|&duration| duration > 0.0) && width > 0.0 && longest < least, || {
        format!("durations from {shortest} to {longest} do not lie between 0 and the shortest period, {least}")
    })?;
    if periods.is_empty() || durations.is_empty() {
        return Err(Error::new("no periods or no durations"));
    }
    let bins = (most / width).ceil() + oversample as f64;
    Error::require(periods.iter().all(|period| period.is_finite()) && bins <= MOST_BINS, || {
        format!("a period of {most} has {bins} bins of {width}, more than {MOST_BINS}")
    })?;

    let lengths: Vec<usize> = durations.iter().map(|duration| (duration / width).round() as usize).collect();
    let totals = totals(light);
    let cadences = Cadences::new(light.time, light.flux, light.weight);
    let work = periods.len().saturating_mul(light.time.len() + bins as usize);
    let threads = parallel::worth(threads, work, 1 << 17);
    let found = parallel::map(threads, periods.chunks(PERIODS_PER_TASK).collect(), |periods| {
        let mut memory = PhaseBins::new(bins as usize);
        let best = |&period: &f64| {
            let count = memory.fold(&cadences, period, width, oversample);
            best_box(&memory, count, totals, &lengths, (period, width))
        };
        periods.iter().map(best).collect::<Vec<_>>()
    });
    Ok(found.concat())
}

fn totals(light: Light<'_>) -> Totals {
    let flux = light.flux.iter().zip(light.weight).map(|(flux, weight)| flux * weight).sum();
    let weight: f64 = light.weight.iter().sum();
    Totals { flux, weight, least: f64::EPSILON * light.time.len() as f64 * weight }
}
