//! Flux-conserving resampling (Carnall 2017).
//!
//! Which old bins a new one overlaps, and by how much, depends on the grids alone: it is worked out once, in one walk
//! along both, and stored as a list of normalised weights. The list of a new bin is filled up with zeros to whole vectors,
//! since a typical bin overlaps about ten old ones and would spend most of its time on the rest of a vector. A spectrum is
//! copied piece by piece into a buffer in the first cache level, in which bins are then summed up: a copy keeps many loads
//! from memory under way, which the sums of short runs do not.

use super::bins::edges;
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;

/// Old bins that are weighted together.
const LANES: usize = 4;
/// Old bins that are copied at a time.
const PIECE: usize = 4096;
/// Old bins that one task reads, about.
const TASK: usize = 1 << 17;

/// Values of spectra, one spectrum after the other, and where those on the new grid go.
pub type FromTo<'a, T> = (&'a [T], &'a mut [T]);

/// Old bins that each new one overlaps.
#[derive(Default)]
struct Overlaps {
    bins: Vec<Bin>,
    weights: Vec<[f64; LANES]>,
}

/// One new bin.
struct Bin {
    /// First old bin that it overlaps.
    first: usize,
    /// How many it overlaps; 0 where it reaches outside.
    count: usize,
    /// Overlaps divided by their sum, as a range of `Overlaps::weights`.
    weights: std::ops::Range<usize>,
}

/// Mean of `flux[spectrum, wavelength]` over each bin of `new_wavelength`, weighted by overlap, and its error for
/// independent errors of the old bins; `fill` where a new bin reaches outside the old ones.
///
/// # Errors
///
/// A grid is not increasing or has fewer than two values, or the sizes do not fit.
pub fn rebin_flux<T: Float>(
    wavelength: &[f64],
    new_wavelength: &[f64],
    flux: FromTo<T>,
    errors: Option<FromTo<T>>,
    fill: f64,
    threads: usize,
) -> Result<(), Error> {
    let overlaps = overlaps(&edges("wavelength", wavelength)?, &edges("new_wavelength", new_wavelength)?);
    let (old, new) = (wavelength.len(), new_wavelength.len());
    for (values, result) in [Some(&flux), errors.as_ref()].into_iter().flatten() {
        let spectra = values.len() / old;
        let fits = spectra * old == values.len() && spectra.checked_mul(new) == Some(result.len());
        Error::require(fits, || {
            format!("{} values of spectra of {old} do not give {} of {new}", values.len(), result.len())
        })?;
    }
    let threads = parallel::worth(threads, flux.0.len(), 1 << 16);
    let rows = (TASK / old).max(1);
    let fill = T::from_f64(fill);
    let mut tasks = Vec::new();
    for (is_error, spectra) in [(false, Some(flux)), (true, errors)] {
        let Some((values, result)) = spectra else { continue };
        let pieces = values.chunks(rows * old).zip(result.chunks_mut(rows * new));
        tasks.extend(pieces.map(|(values, result)| (values, result, is_error)));
    }
    parallel::map(threads, tasks, |(values, result, is_error)| {
        let mut buffer = Vec::new();
        for (values, result) in values.chunks(old).zip(result.chunks_mut(new)) {
            if is_error {
                add_in_quadrature(values, &overlaps, fill, &mut buffer, result);
            } else {
                average(values, &overlaps, fill, &mut buffer, result);
            }
        }
    });
    Ok(())
}

fn overlaps(old: &[f64], new: &[f64]) -> Overlaps {
    let mut overlaps = Overlaps::default();
    let (mut start, mut stop) = (0, 0);
    for bin in new.windows(2) {
        let (low, high) = (bin[0], bin[1]);
        let begin = overlaps.weights.len();
        let mut count = 0;
        if low >= old[0] && high <= old[old.len() - 1] {
            while old[start + 1] <= low {
                start += 1;
            }
            stop = stop.max(start);
            while old[stop + 1] < high {
                stop += 1;
            }
            count = stop + 1 - start;
            overlaps.weights.resize(begin + count.div_ceil(LANES), [0.0; LANES]);
            let weights = overlaps.weights[begin..].as_flattened_mut();
            let scale = (high - low).recip();
            for (weight, edges) in weights.iter_mut().zip(old[start..=stop + 1].windows(2)) {
                *weight = (edges[1] - edges[0]) * scale;
            }
            weights[0] = if count == 1 { 1.0 } else { (old[start + 1] - low) * scale };
            weights[count - 1] = if count == 1 { 1.0 } else { (high - old[stop]) * scale };
        }
        overlaps.bins.push(Bin { first: start, count, weights: begin..overlaps.weights.len() });
    }
    overlaps
}

/// Weighted means of one spectrum. NaN and infinities propagate.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn average<T: Float>(values: &[T], overlaps: &Overlaps, fill: T, buffer: &mut Vec<f64>, result: &mut [T]) {
    each_bin::<T, false>(values, overlaps, fill, buffer, result);
}

/// Errors of the weighted means of one spectrum.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_in_quadrature<T: Float>(values: &[T], overlaps: &Overlaps, fill: T, buffer: &mut Vec<f64>, result: &mut [T]) {
    each_bin::<T, true>(values, overlaps, fill, buffer, result);
}

#[inline(always)]
fn each_bin<T: Float, const QUADRATIC: bool>(
    values: &[T],
    overlaps: &Overlaps,
    fill: T,
    buffer: &mut Vec<f64>,
    result: &mut [T],
) {
    let (mut from, mut until) = (0, 0);
    for (result, bin) in result.iter_mut().zip(&overlaps.bins) {
        if bin.count == 0 {
            *result = fill;
            continue;
        }
        if bin.first + bin.count > until {
            from = bin.first;
            until = values.len().min(from + PIECE.max(bin.count));
            // The zeros after the weights of the last bin reach beyond the copy.
            buffer.resize(buffer.len().max(until - from + LANES), 0.0);
            for (copy, value) in buffer.iter_mut().zip(&values[from..until]) {
                *copy = value.to_f64();
            }
        }
        let weights = &overlaps.weights[bin.weights.clone()];
        let values = &buffer[bin.first - from..][..weights.len() * LANES];
        let mut sums = [0.0; LANES];
        for (weights, values) in weights.iter().zip(values.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let term = weights[lane] * values[lane];
                let term = if QUADRATIC { term * term } else { term };
                // What has no weight does not count, even if it is NaN.
                sums[lane] += if weights[lane] == 0.0 { 0.0 } else { term };
            }
        }
        let sum = (sums[0] + sums[2]) + (sums[1] + sums[3]);
        *result = T::from_f64(if QUADRATIC { sum.sqrt() } else { sum });
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

    fn rebinned<T: Float>(
        wavelength: &[f64],
        flux: &[T],
        errors: &[T],
        new_wavelength: &[f64],
        threads: usize,
    ) -> Result<(Vec<T>, Vec<T>), Error> {
        let size = flux.len() / wavelength.len() * new_wavelength.len();
        let (mut new_flux, mut new_errors) = (vec![T::NAN; size], vec![T::NAN; size]);
        let to = (flux, &mut new_flux[..]);
        rebin_flux(wavelength, new_wavelength, to, Some((errors, &mut new_errors)), -9.0, threads)?;
        Ok((new_flux, new_errors))
    }

    /// The definition, pair by pair.
    fn naive(
        wavelength: &[f64],
        flux: &[f64],
        errors: &[f64],
        new_wavelength: &[f64],
        fill: f64,
    ) -> (Vec<f64>, Vec<f64>) {
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
        new.windows(2).map(|bin| both(bin[0], bin[1])).unzip()
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
            let found = rebinned(&wavelength, &flux, &errors, &new_wavelength, 2).unwrap();
            let expected = naive(&wavelength, &flux, &errors, &new_wavelength, -9.0);
            for (found, expected) in found.0.iter().zip(&expected.0) {
                prop_assert!((found - expected).abs() < 1e-11, "{} {}", found, expected);
            }
            for (found, expected) in found.1.iter().zip(&expected.1) {
                prop_assert!((found - expected).abs() < 1e-11, "{} {}", found, expected);
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let wavelength: Vec<f64> = (0..3000).map(|i| 1.0 + f64::from(i).powf(1.1)).collect();
        let new: Vec<f64> = (1..300).map(|i| 3.0 + 9.7 * f64::from(i)).collect();
        let flux: Vec<f32> = (0..3000 * 200_u32).map(|i| (i % 8191) as f32).collect();
        let one = rebinned(&wavelength, &flux, &flux, &new, 1).unwrap();
        assert_eq!(one, rebinned(&wavelength, &flux, &flux, &new, 3).unwrap());
    }

    #[test]
    fn wrong_sizes_and_grids_are_an_error() {
        let grid = [1.0, 2.0, 3.0];
        assert!(rebinned(&grid, &[1.0; 4], &[1.0; 4], &grid, 1).is_err());
        assert!(rebinned(&grid, &[1.0; 3], &[1.0; 6], &grid, 1).is_err());
        assert!(rebinned(&[1.0, 1.0, 2.0], &[1.0; 3], &[1.0; 3], &grid, 1).is_err());
        assert!(rebinned(&[1.0, f64::NAN, 2.0], &[1.0; 3], &[1.0; 3], &grid, 1).is_err());
        assert!(rebinned(&grid, &[1.0; 3], &[1.0; 3], &[2.0], 1).is_err());
        assert_eq!(rebinned::<f64>(&grid, &[], &[], &grid, 1).unwrap(), (vec![], vec![]));
    }
}
