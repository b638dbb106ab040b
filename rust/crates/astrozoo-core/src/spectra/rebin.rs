//! Flux-conserving resampling (Carnall 2017).
//!
//! Which old bins a new one overlaps, and by how much, depends on the grids alone: it is worked out once, in one walk
//! along both, and stored as a list of normalised weights. A spectrum is then read once, front to back, which for many
//! spectra is as fast as memory.

use super::bins::edges;
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// Independent sums within a new bin.
const LANES: usize = 4;
/// Old bins that one task reads, about.
const TASK: usize = 1 << 17;

/// Resampled spectra `[spectrum, new wavelength]`, one after the other, and their errors where errors were given.
#[derive(Clone, Debug, PartialEq)]
pub struct Rebinned<T> {
    /// Mean flux density within each new bin.
    pub flux: Vec<T>,
    /// Its error, for independent errors of the old bins.
    pub errors: Option<Vec<T>>,
}

/// Old bins that each new one overlaps.
struct Overlaps {
    /// First old bin of each new one.
    first: Vec<usize>,
    /// Where its weights start; one more than there are new bins. A bin that reaches outside has none.
    offsets: Vec<usize>,
    /// Overlaps divided by their sum.
    weights: Vec<f64>,
}

/// Mean of `flux[spectrum, wavelength]` over each bin of `new_wavelength`, weighted by overlap; `fill` where a new bin
/// reaches outside the old ones.
///
/// # Errors
///
/// A grid is not increasing or has fewer than two values, or the sizes do not fit.
pub fn rebin_flux<T: Float>(
    wavelength: &[f64],
    flux: &[T],
    new_wavelength: &[f64],
    errors: Option<&[T]>,
    fill: f64,
    threads: usize,
) -> Result<Rebinned<T>, Error> {
    let overlaps = overlaps(&edges("wavelength", wavelength)?, &edges("new_wavelength", new_wavelength)?);
    let (old, new) = (wavelength.len(), new_wavelength.len());
    Error::require(flux.len().is_multiple_of(old), || format!("{} fluxes do not fill spectra of {old}", flux.len()))?;
    Error::require(errors.is_none_or(|errors| errors.len() == flux.len()), || {
        format!("there are {} fluxes and {} errors", flux.len(), errors.map_or(0, <[T]>::len))
    })?;
    let spectra = flux.len() / old;
    let size = spectra.checked_mul(new).ok_or_else(|| Error::new(format!("{spectra} x {new} is too large")))?;
    let threads = parallel::worth(threads, flux.len(), 1 << 16);
    let fill = T::from_f64(fill);
    let resample = |values: &[T], quadratic: bool| {
        let mut result = vec![fill; size];
        let rows = (TASK / old).max(1);
        let tasks: Vec<_> = values.chunks(rows * old).zip(result.chunks_mut(rows * new)).collect();
        parallel::map(threads, tasks, |(values, result)| {
            for (values, result) in values.chunks(old).zip(result.chunks_mut(new)) {
                if quadratic {
                    add_in_quadrature(values, &overlaps, result);
                } else {
                    average(values, &overlaps, result);
                }
            }
        });
        result
    };
    Ok(Rebinned { flux: resample(flux, false), errors: errors.map(|errors| resample(errors, true)) })
}

fn overlaps(old: &[f64], new: &[f64]) -> Overlaps {
    let bins = new.len() - 1;
    let mut first = Vec::with_capacity(bins);
    let mut offsets = Vec::with_capacity(bins + 1);
    let mut weights = Vec::with_capacity(bins + old.len());
    let (mut start, mut stop) = (0, 0);
    offsets.push(0);
    for bin in new.windows(2) {
        let (low, high) = (bin[0], bin[1]);
        if low >= old[0] && high <= old[old.len() - 1] {
            while old[start + 1] <= low {
                start += 1;
            }
            stop = stop.max(start);
            while old[stop + 1] < high {
                stop += 1;
            }
            let begin = weights.len();
            weights.extend((start..=stop).map(|i| old[i + 1].min(high) - old[i].max(low)));
            let total: f64 = weights[begin..].iter().sum();
            for weight in &mut weights[begin..] {
                *weight /= total;
            }
        }
        first.push(start);
        offsets.push(weights.len());
    }
    Overlaps { first, offsets, weights }
}

/// Weighted means of one spectrum. NaN and infinities propagate.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn average<T: Float>(values: &[T], overlaps: &Overlaps, result: &mut [T]) {
    each_bin(values, overlaps, result, |weight, value| weight * value, |sum| sum);
}

/// Errors of the weighted means of one spectrum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_in_quadrature<T: Float>(values: &[T], overlaps: &Overlaps, result: &mut [T]) {
    each_bin(values, overlaps, result, |weight, error| (weight * error) * (weight * error), f64::sqrt);
}

#[inline(always)]
fn each_bin<T: Float>(
    values: &[T],
    overlaps: &Overlaps,
    result: &mut [T],
    term: impl Fn(f64, f64) -> f64,
    finish: impl Fn(f64) -> f64,
) {
    for ((result, &first), range) in result.iter_mut().zip(&overlaps.first).zip(overlaps.offsets.windows(2)) {
        let weights = &overlaps.weights[range[0]..range[1]];
        if weights.is_empty() {
            continue;
        }
        let (weights, more_weights) = weights.as_chunks::<LANES>();
        let (values, more_values) = values[first..first + (range[1] - range[0])].as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for (weights, values) in weights.iter().zip(values) {
            for lane in 0..LANES {
                sums[lane] += term(weights[lane], values[lane].to_f64());
            }
        }
        let mut sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (&weight, value) in more_weights.iter().zip(more_values) {
            sum += term(weight, value.to_f64());
        }
        *result = T::from_f64(finish(sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn grid(start: f64, steps: &[f64]) -> Vec<f64> {
        let mut at = start;
        steps
            .iter()
            .map(|step| {
                at += step;
                at
            })
            .collect()
    }

    /// The definition, pair by pair.
    fn naive(wavelength: &[f64], flux: &[f64], errors: &[f64], new_wavelength: &[f64], fill: f64) -> Rebinned<f64> {
        let (old, new) = (edges("old", wavelength).unwrap(), edges("new", new_wavelength).unwrap());
        let both = |low: f64, high: f64| {
            if low < old[0] || high > old[old.len() - 1] {
                return (fill, fill);
            }
            let weights: Vec<f64> = old.windows(2).map(|bin| (bin[1].min(high) - bin[0].max(low)).max(0.0)).collect();
            let total: f64 = weights.iter().sum();
            let sum: f64 = weights.iter().zip(flux).map(|(weight, flux)| weight * flux).sum();
            let square: f64 = weights.iter().zip(errors).map(|(weight, error)| (weight * error).powi(2)).sum();
            (sum / total, square.sqrt() / total)
        };
        let (flux, errors) = new.windows(2).map(|bin| both(bin[0], bin[1])).unzip();
        Rebinned { flux, errors: Some(errors) }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            old in proptest::collection::vec((0.1..2.0_f64, -5.0..5.0_f64, 0.0..2.0_f64), 2..40),
            new in proptest::collection::vec(0.05..8.0_f64, 2..30),
            start in -3.0..6.0_f64,
        ) {
            let wavelength = grid(0.0, &old.iter().map(|row| row.0).collect::<Vec<_>>());
            let flux: Vec<f64> = old.iter().map(|row| row.1).collect();
            let errors: Vec<f64> = old.iter().map(|row| row.2).collect();
            let new_wavelength = grid(start, &new);
            let found = rebin_flux(&wavelength, &flux, &new_wavelength, Some(&errors), -9.0, 2).unwrap();
            let expected = naive(&wavelength, &flux, &errors, &new_wavelength, -9.0);
            for (found, expected) in found.flux.iter().zip(&expected.flux) {
                prop_assert!((found - expected).abs() < 1e-11, "{} {}", found, expected);
            }
            for (found, expected) in found.errors.unwrap().iter().zip(&expected.errors.unwrap()) {
                prop_assert!((found - expected).abs() < 1e-11, "{} {}", found, expected);
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let wavelength: Vec<f64> = (0..3000).map(|i| 1.0 + f64::from(i).powf(1.1)).collect();
        let new: Vec<f64> = (1..300).map(|i| 3.0 + 9.7 * f64::from(i)).collect();
        let flux: Vec<f32> = (0..3000 * 200_u32).map(|i| (i % 8191) as f32).collect();
        let one = rebin_flux(&wavelength, &flux, &new, Some(&flux), 0.0, 1).unwrap();
        assert_eq!(one, rebin_flux(&wavelength, &flux, &new, Some(&flux), 0.0, 3).unwrap());
    }

    #[test]
    fn wrong_sizes_and_grids_are_an_error() {
        let grid = [1.0, 2.0, 3.0];
        assert!(rebin_flux(&grid, &[1.0; 4], &grid, None, 0.0, 1).is_err());
        assert!(rebin_flux(&grid, &[1.0; 3], &grid, Some(&[1.0; 6]), 0.0, 1).is_err());
        assert!(rebin_flux(&[1.0, 1.0, 2.0], &[1.0; 3], &grid, None, 0.0, 1).is_err());
        assert!(rebin_flux(&grid, &[1.0; 3], &[2.0], None, 0.0, 1).is_err());
        assert!(rebin_flux(&[1.0, f64::NAN, 2.0], &[1.0; 3], &grid, None, 0.0, 1).is_err());
        assert_eq!(rebin_flux::<f64>(&grid, &[], &grid, None, 0.0, 1).unwrap().flux, vec![]);
    }
}
