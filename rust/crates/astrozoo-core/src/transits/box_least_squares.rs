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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: every box of every length, its sums taken bin by bin.
    fn naive(light: Light<'_>, period: f64, durations: &[f64], oversample: usize) -> BestBox {
        let width = durations.iter().copied().fold(f64::INFINITY, f64::min) / oversample as f64;
        let whole = (period / width).ceil() as usize;
        let mut bins = vec![(0.0, 0.0, 0); whole + oversample + 1];
        for ((time, flux), weight) in light.time.iter().zip(light.flux).zip(light.weight) {
            let bin = &mut bins[((time - period * (time / period).floor()).max(0.0) / width) as usize];
            *bin = (bin.0 + flux * weight, bin.1 + weight, bin.2 + 1);
        }
        for i in 0..oversample {
            bins[whole - 1 + i] = bins[i];
        }
        let total_flux: f64 = light.flux.iter().zip(light.weight).map(|(flux, weight)| flux * weight).sum();
        let total_weight: f64 = light.weight.iter().sum();
        let mut best = BestBox {
            likelihood: f64::NEG_INFINITY,
            depth: f64::NAN,
            error: f64::NAN,
            duration: f64::NAN,
            time: f64::NAN,
        };
        for duration in durations {
            let length = (duration / width).round() as usize;
            for start in 0..=(whole + oversample - length) {
                let inside = &bins[start..(start + length).min(whole - 1 + oversample)];
                let flux: f64 = inside.iter().map(|bin| bin.0).sum();
                let weight: f64 = inside.iter().map(|bin| bin.1).sum();
                let cadences: usize = inside.iter().map(|bin| bin.2).sum();
                let depth = (total_flux - flux) / (total_weight - weight) - flux / weight;
                let likelihood = 0.5 * weight * depth * depth;
                if cadences > 0 && cadences < light.time.len() && depth >= 0.0 && likelihood > best.likelihood {
                    let error = (1.0 / weight + 1.0 / (total_weight - weight)).sqrt();
                    let duration = length as f64 * width;
                    best = BestBox {
                        likelihood,
                        depth,
                        error,
                        duration,
                        time: (start as f64 * width + 0.5 * duration) % period,
                    };
                }
            }
        }
        best
    }

    fn close(a: f64, b: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-9 * (1.0 + b.abs())
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            cadences in proptest::collection::vec((0.0..50.0_f64, -1.0..1.0_f64, 0.5..2.0_f64), 0..300),
            periods in proptest::collection::vec(1.5..20.0_f64, 1..4),
            durations in proptest::collection::vec(0.2..1.4_f64, 1..4),
            oversample in 1..12_usize,
            threads in 1..3_usize,
        ) {
            let time: Vec<f64> = cadences.iter().map(|cadence| cadence.0).collect();
            let flux: Vec<f64> = cadences.iter().map(|cadence| cadence.1).collect();
            let weight: Vec<f64> = cadences.iter().map(|cadence| cadence.2).collect();
            let light = Light { time: &time, flux: &flux, weight: &weight };
            let found = box_least_squares(light, &periods, &durations, oversample, threads).unwrap();
            for (best, &period) in found.iter().zip(&periods) {
                let expected = naive(light, period, &durations, oversample);
                prop_assert!(close(best.likelihood, expected.likelihood), "{best:?} {expected:?}");
                prop_assert!(close(best.depth, expected.depth), "{best:?} {expected:?}");
                prop_assert!(close(best.error, expected.error), "{best:?} {expected:?}");
            }
        }
    }

    fn transit() -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let time: Vec<f64> = (0..5000).map(|i| f64::from(i) * 0.02).collect();
        let noise = |i: usize| ((i * 7919) % 1000) as f64 * 1e-6;
        let dip = |time: f64| if (time - 1.0) % 7.3 < 0.25 && time > 1.0 { -0.01 } else { 0.0 };
        let flux = time.iter().enumerate().map(|(i, &time)| noise(i) + dip(time)).collect();
        (time, flux, vec![1.0; 5000])
    }

    #[test]
    fn a_transit_is_found_at_its_period_and_time() {
        let (time, flux, weight) = transit();
        let periods: Vec<f64> = (0..400).map(|i| 3.0 + 0.05 * f64::from(i)).collect();
        let light = Light { time: &time, flux: &flux, weight: &weight };
        let found = box_least_squares(light, &periods, &[0.25, 0.5], 10, 2).unwrap();
        let best = (0..400).max_by(|&a, &b| found[a].likelihood.total_cmp(&found[b].likelihood)).unwrap();
        assert!((periods[best] - 7.3).abs() < 1e-9);
        let best = found[best];
        assert!((best.time - 1.125).abs() < 0.03 && (best.depth - 0.01).abs() < 2e-4, "{best:?}");
    }

    #[test]
    fn threads_change_no_bit() {
        let (time, flux, weight) = transit();
        let periods: Vec<f64> = (0..300).map(|i| 3.0 + 0.05 * f64::from(i)).collect();
        let light = Light { time: &time, flux: &flux, weight: &weight };
        let one = box_least_squares(light, &periods, &[0.25, 0.5], 10, 1).unwrap();
        assert_eq!(one, box_least_squares(light, &periods, &[0.25, 0.5], 10, 3).unwrap());
    }

    #[test]
    fn wrong_input_is_an_error() {
        let light = Light { time: &[0.0, 1.0], flux: &[0.0, 1.0], weight: &[1.0, 1.0] };
        let search = |periods: &[f64], durations: &[f64], oversample| {
            box_least_squares(light, periods, durations, oversample, 1).is_err()
        };
        assert!(!search(&[2.0], &[0.5], 3));
        assert!(search(&[2.0], &[2.0], 3) && search(&[2.0], &[0.0], 3) && search(&[2.0], &[f64::NAN], 3));
        assert!(search(&[], &[0.5], 3) && search(&[2.0], &[], 3) && search(&[2.0], &[0.5], 0));
        assert!(search(&[f64::INFINITY], &[0.5], 3) && search(&[f64::NAN], &[0.5], 3) && search(&[1e12], &[0.5], 3));
        assert!(search(&[2.0], &[0.5], usize::MAX));
        let bad = |time: &[f64]| box_least_squares(Light { time, ..light }, &[2.0], &[0.5], 3, 1).is_err();
        assert!(bad(&[0.0]) && bad(&[-1.0, 0.0]) && bad(&[f64::NAN, 0.0]) && bad(&[f64::INFINITY, 0.0]));
    }
}
