//! Line spread: convolution with a Gaussian whose width varies along the spectrum.
//!
//! The weights depend on the grid alone. Eight neighbouring output pixels form a vector: for each distance `k` in pixels
//! it holds the eight weights of the input pixels `i + k`, so that exponentials are computed eight at a time, and
//! applying them to a spectrum is a fused product with eight neighbouring fluxes. The weights of a tile of pixels stay
//! in the second cache level while they are applied to a group of spectra, eight spectra at a time, so that one load of
//! weights serves eight products. Fluxes are copied into a buffer first, with zeros for what is unknown and beyond the
//! ends; only where a window holds unknown pixels are the weights summed up again.

use super::bins::edges;
use crate::elementary::{exp, fused};
use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Output pixels of one vector.
const LANES: usize = 8;
/// Spectra that share a load of weights.
const ROWS: usize = 8;
/// Output pixels of one task.
const SEGMENT: usize = 2048;
/// Spectra of one task: the exponentials are computed once for them.
const GROUP: usize = 256;
/// Vectors of weights that are kept: 128 KB.
const TILE: usize = 2048;

/// The grid, its bins and the width of the line spread at every pixel.
struct Grid<'a> {
    wavelength: &'a [f64],
    bins: Vec<f64>,
    sigma: &'a [f64],
    truncate: f64,
}

/// A part of the output: some pixels of some spectra.
struct Task<'a, T> {
    first: usize,
    spectra: &'a [T],
    results: Vec<&'a mut [T]>,
}

/// Eight output pixels with their weights.
struct Chunk {
    /// First output pixel.
    at: usize,
    /// First input pixel of the first lane, counted from `LANES` before the grid starts, with the tile's padding.
    begin: isize,
    /// Its weights in the tile.
    weights: std::ops::Range<usize>,
    /// Their sum in each lane.
    total: [f64; LANES],
}

/// Weights of consecutive output pixels.
#[derive(Default)]
struct Tile {
    chunks: Vec<Chunk>,
    weights: Vec<[f64; LANES]>,
    /// Input pixels that the weights reach; may stand out at both ends of the grid.
    reach: (isize, isize),
}

/// Fluxes within the reach of a tile, for a few spectra.
#[derive(Default)]
struct Buffer {
    flux: Vec<f64>,
    /// 1 where the flux is known, else 0; filled only where something is unknown.
    known: Vec<f64>,
    /// Number of unknown pixels before each.
    unknown: Vec<u32>,
}

/// Write to `result` what an instrument with Gaussian line spread of `sigma[wavelength]` sees of
/// `flux[spectrum, wavelength]`.
///
/// # Errors
///
/// The grid is not increasing or has fewer than two values, a width is negative or not finite, or sizes do not fit.
pub fn convolve_lsf<T: Float>(
    wavelength: &[f64],
    flux: &[T],
    sigma: &[f64],
    truncate: f64,
    result: &mut [T],
    threads: usize,
) -> Result<(), Error> {
    let pixels = wavelength.len();
    let bins = edges("wavelength", wavelength)?.windows(2).map(|bin| bin[1] - bin[0]).collect();
    Error::require(sigma.len() == pixels, || format!("there are {pixels} wavelengths and {} widths", sigma.len()))?;
    Error::require(sigma.iter().all(|&sigma| sigma >= 0.0 && sigma.is_finite()), || {
        "a width is negative or not finite".into()
    })?;
    Error::require(truncate > 0.0 && truncate <= 30.0, || format!("truncate is {truncate}; expected up to 30"))?;
    Error::require(flux.len().is_multiple_of(pixels) && result.len() == flux.len(), || {
        format!("{} fluxes do not fill {} of spectra of {pixels}", flux.len(), result.len())
    })?;
    let mut tasks = Vec::new();
    for (spectra, result) in flux.chunks(GROUP * pixels).zip(result.chunks_mut(GROUP * pixels)) {
        let begin = tasks.len();
        tasks.extend((0..pixels).step_by(SEGMENT).map(|first| Task { first, spectra, results: Vec::new() }));
        for row in result.chunks_mut(pixels) {
            for (task, piece) in tasks[begin..].iter_mut().zip(row.chunks_mut(SEGMENT)) {
                task.results.push(piece);
            }
        }
    }
    let grid = Grid { wavelength, bins, sigma, truncate };
    let threads = parallel::worth(threads, flux.len(), 1 << 11);
    parallel::map(threads, tasks, |task| convolve(&grid, task));
    Ok(())
}

/// All pixels of a task, tile by tile.
fn convolve<T: Float>(grid: &Grid, mut task: Task<T>) {
    let pixels = grid.wavelength.len();
    let end = pixels.min(task.first + SEGMENT);
    let mut window = (task.first, task.first);
    let (mut tile, mut buffer) = (Tile::default(), Buffer::default());
    let mut at = task.first;
    while at < end {
        at = fill_tile(grid, &mut tile, &mut window, at..end);
        let spectra: Vec<&[T]> = task.spectra.chunks(pixels).collect();
        for (spectra, results) in spectra.chunks(ROWS).zip(task.results.chunks_mut(ROWS)) {
            if spectra.len() == ROWS {
                fill_buffer(&mut buffer, spectra, tile.reach);
                apply(&tile, &buffer, results, task.first);
            } else {
                for (spectrum, result) in spectra.iter().zip(results) {
                    fill_buffer(&mut buffer, &[spectrum], tile.reach);
                    apply(&tile, &buffer, std::slice::from_mut(result), task.first);
                }
            }
        }
    }
}

/// Weights of output pixels from the first of `range` on, until the tile is full; returns the first that is not in it.
fn fill_tile(grid: &Grid, tile: &mut Tile, (start, stop): &mut (usize, usize), range: std::ops::Range<usize>) -> usize {
    let wavelength = grid.wavelength;
    tile.chunks.clear();
    tile.weights.clear();
    tile.reach = (isize::MAX, isize::MIN);
    let mut at = range.start;
    while at < range.end && tile.weights.len() < TILE {
        // The widest window of the eight, relative to its pixel. The ends move as far as windows are long, at most.
        let (mut low, mut high) = (0, 0);
        for i in at..range.end.min(at + LANES) {
            let reach = grid.truncate * grid.sigma[i];
            let (from, to) = (wavelength[i] - reach, wavelength[i] + reach);
            *start = (*start).min(i);
            while *start > 0 && wavelength[*start - 1] >= from {
                *start -= 1;
            }
            while wavelength[*start] < from {
                *start += 1;
            }
            *stop = (*stop).max(i);
            while *stop < wavelength.len() && wavelength[*stop] <= to {
                *stop += 1;
            }
            while wavelength[*stop - 1] > to {
                *stop -= 1;
            }
            low = low.max(i - *start);
            high = high.max(*stop - 1 - i);
        }
        let begin = at as isize - low as isize;
        let count = low + high + 1;
        let from = tile.weights.len();
        tile.weights.resize(from + count, [0.0; LANES]);
        let total = weigh(grid, at, begin, &mut tile.weights[from..]);
        tile.chunks.push(Chunk { at, begin, weights: from..from + count, total });
        tile.reach.0 = tile.reach.0.min(begin);
        tile.reach.1 = tile.reach.1.max(begin + (count + LANES) as isize - 1);
        at += LANES;
    }
    at
}

/// Weights of the input pixels `begin + k + lane` for the output pixels `at + lane`, and their sums over `k`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn weigh(grid: &Grid, at: usize, begin: isize, weights: &mut [[f64; LANES]]) -> [f64; LANES] {
    if target_cfg_f!(any(target_feature = "avx512f", target_feature = "fma", target_arch = "aarch64")) {
        weigh_with::<true>(grid, at, begin, weights)
    } else {
        weigh_with::<false>(grid, at, begin, weights)
    }
}

#[inline(always)]
fn weigh_with<const FMA: bool>(grid: &Grid, at: usize, begin: isize, weights: &mut [[f64; LANES]]) -> [f64; LANES] {
    let pixels = grid.wavelength.len();
    let mut centre = [0.0; LANES];
    let mut inverse = [0.0; LANES];
    // No wavelength lies within the window of a lane beyond the end.
    let (mut from, mut to) = ([f64::INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
    for lane in 0..LANES.min(pixels - at) {
        let (wavelength, sigma) = (grid.wavelength[at + lane], grid.sigma[at + lane]);
        let reach = grid.truncate * sigma;
        centre[lane] = wavelength;
        // A width too small for a reciprocal sees its own pixel only, at distance 0.
        inverse[lane] = if sigma.recip().is_finite() { sigma.recip() } else { 0.0 };
        (from[lane], to[lane]) = (wavelength - reach, wavelength + reach);
    }
    let mut total = [0.0; LANES];
    for (k, weights) in weights.iter_mut().enumerate() {
        let first = begin + k as isize;
        let inside = usize::try_from(first).ok().filter(|first| first + LANES <= pixels);
        let whole = inside.and_then(|first| {
            Some((grid.wavelength[first..].first_chunk::<LANES>()?, grid.bins[first..].first_chunk::<LANES>()?))
        });
        // Beyond the ends there is nothing within any window.
        let (mut wavelength, mut bin) = ([f64::NAN; LANES], [0.0; LANES]);
        if let Some((whole_wavelength, whole_bin)) = whole {
            (wavelength, bin) = (*whole_wavelength, *whole_bin);
        } else {
            for lane in 0..LANES {
                if let Ok(j) = usize::try_from(first + lane as isize)
                    && j < pixels
                {
                    (wavelength[lane], bin[lane]) = (grid.wavelength[j], grid.bins[j]);
                }
            }
        }
        for lane in 0..LANES {
            let within = (wavelength[lane] >= from[lane]) & (wavelength[lane] <= to[lane]);
            let distance = (centre[lane] - wavelength[lane]) * inverse[lane];
            let weight = bin[lane] * exp::<FMA>(-0.5 * distance * distance);
            weights[lane] = if within { weight } else { 0.0 };
            total[lane] += weights[lane];
        }
    }
    total
}

/// Copy what the tile reaches, with zeros for what is unknown and for what lies beyond the ends.
fn fill_buffer<T: Float>(buffer: &mut Buffer, spectra: &[&[T]], (first, last): (isize, isize)) {
    let width = (last - first) as usize;
    let before = usize::try_from(-first).unwrap_or(0);
    let begin = usize::try_from(first).unwrap_or(0);
    let size = spectra.len() * width;
    buffer.flux.clear();
    buffer.flux.resize(size, 0.0);
    buffer.known.clear();
    buffer.unknown.clear();
    let mut complete = true;
    for (spectrum, row) in spectra.iter().zip(buffer.flux.chunks_mut(width)) {
        let end = spectrum.len().min(begin + width - before);
        complete &= copy_known(&spectrum[begin..end], &mut row[before..]);
    }
    if complete {
        return;
    }
    buffer.known.resize(size, 0.0);
    buffer.unknown.reserve(spectra.len() * (width + 1));
    for (spectrum, row) in spectra.iter().zip(buffer.known.chunks_mut(width)) {
        let end = spectrum.len().min(begin + width - before);
        for (known, value) in row[before..].iter_mut().zip(&spectrum[begin..end]) {
            *known = f64::from(u8::from(value.to_f64().is_finite()));
        }
        let mut count = 0;
        buffer.unknown.push(count);
        for (i, &known) in row.iter().enumerate() {
            let beyond = i < before || i - before >= end - begin;
            count += u32::from(known == 0.0 && !beyond);
            buffer.unknown.push(count);
        }
    }
}

/// Copy `values`, with 0 for what is unknown; returns whether all are known.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn copy_known<T: Float>(values: &[T], copy: &mut [f64]) -> bool {
    let mut complete = true;
    for (copy, value) in copy.iter_mut().zip(values) {
        let value = value.to_f64();
        let known = value.abs() < f64::INFINITY;
        complete &= known;
        *copy = if known { value } else { 0.0 };
    }
    complete
}

/// Weighted means of one spectrum, or of `ROWS`, at the pixels of the tile; `results` start at pixel `first`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn apply<T: Float>(tile: &Tile, buffer: &Buffer, results: &mut [&mut [T]], first: usize) {
    if target_cfg_f!(any(target_feature = "avx512f", target_feature = "fma", target_arch = "aarch64")) {
        apply_with::<true, T>(tile, buffer, results, first);
    } else {
        apply_with::<false, T>(tile, buffer, results, first);
    }
}

#[inline(always)]
fn apply_with<const FMA: bool, T: Float>(tile: &Tile, buffer: &Buffer, results: &mut [&mut [T]], first: usize) {
    let width = (tile.reach.1 - tile.reach.0) as usize;
    for chunk in &tile.chunks {
        let weights = &tile.weights[chunk.weights.clone()];
        let begin = (chunk.begin - tile.reach.0) as usize;
        let span = weights.len() + LANES - 1;
        let mut sums = [[0.0; LANES]; ROWS];
        if results.len() == ROWS {
            let rows = std::array::from_fn(|row| &buffer.flux[row * width + begin..][..span]);
            sums_of_rows::<FMA>(weights, rows, &mut sums);
        } else {
            for (weights, flux) in weights.iter().zip(buffer.flux[begin..][..span].windows(LANES)) {
                add::<FMA>(weights, flux, &mut sums[0]);
            }
        }
        for (row, (result, sums)) in results.iter_mut().zip(&sums).enumerate() {
            let mut total = chunk.total;
            if !buffer.unknown.is_empty() {
                let unknown = &buffer.unknown[row * (width + 1) + begin..];
                if unknown[span] > unknown[0] {
                    total = known_weights(weights, &buffer.known[row * width + begin..][..span]);
                }
            }
            let mut means = [T::NAN; LANES];
            for lane in 0..LANES {
                let mean = sums[lane] * total[lane].recip();
                means[lane] = T::from_f64(if total[lane] > 0.0 { mean } else { f64::NAN });
            }
            for (result, mean) in result[chunk.at - first..].iter_mut().zip(means) {
                *result = mean;
            }
        }
    }
}

/// Zipped windows, since indices would be checked for every spectrum and distance.
#[inline(always)]
fn sums_of_rows<const FMA: bool>(weights: &[[f64; LANES]], rows: [&[f64]; ROWS], sums: &mut [[f64; LANES]; ROWS]) {
    let [a, b, c, d, e, f, g, h] = rows.map(|row| row.windows(LANES));
    for (weights, (((a, b), (c, d)), ((e, f), (g, h)))) in
        weights.iter().zip(a.zip(b).zip(c.zip(d)).zip(e.zip(f).zip(g.zip(h))))
    {
        for (sums, flux) in sums.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            add::<FMA>(weights, flux, sums);
        }
    }
}

#[inline(always)]
fn add<const FMA: bool>(weights: &[f64; LANES], flux: &[f64], sums: &mut [f64; LANES]) {
    let flux = &flux[..LANES];
    for lane in 0..LANES {
        sums[lane] = fused::<FMA>(weights[lane], flux[lane], sums[lane]);
    }
}

/// Sum of the weights of known pixels, in each lane.
#[inline(always)]
fn known_weights(weights: &[[f64; LANES]], known: &[f64]) -> [f64; LANES] {
    let mut total = [0.0; LANES];
    for (weights, known) in weights.iter().zip(known.windows(LANES)) {
        let known = &known[..LANES];
        for lane in 0..LANES {
            total[lane] += weights[lane] * known[lane];
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn convolved<T: Float>(
        wavelength: &[f64],
        flux: &[T],
        sigma: &[f64],
        truncate: f64,
        threads: usize,
    ) -> Result<Vec<T>, Error> {
        let mut result = vec![T::INFINITY; flux.len()];
        convolve_lsf(wavelength, flux, sigma, truncate, &mut result, threads)?;
        Ok(result)
    }

    /// The definition, pixel by pixel.
    fn naive(wavelength: &[f64], flux: &[f64], sigma: &[f64], truncate: f64) -> Vec<f64> {
        let edges = edges("wavelength", wavelength).unwrap();
        let one = |i: usize| {
            let (mut sum, mut total) = (0.0, 0.0);
            for j in 0..flux.len() {
                let (from, to) = (wavelength[i] - truncate * sigma[i], wavelength[i] + truncate * sigma[i]);
                if flux[j].is_finite() && wavelength[j] >= from && wavelength[j] <= to {
                    let distance = if i == j { 0.0 } else { (wavelength[i] - wavelength[j]) / sigma[i] };
                    let weight = (edges[j + 1] - edges[j]) * (-0.5 * distance * distance).exp();
                    sum += weight * flux[j];
                    total += weight;
                }
            }
            sum / total
        };
        (0..flux.len()).map(one).collect()
    }

    fn pixel() -> impl Strategy<Value = (f64, f64, f64)> {
        let sigma = prop_oneof![1 => Just(0.0), 5 => 0.01..3.0_f64, 1 => 3.0..40.0_f64];
        let flux = prop_oneof![6 => -5.0..5.0_f64, 1 => Just(f64::NAN)];
        (0.1..2.0_f64, flux, sigma)
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            pixels in proptest::collection::vec(pixel(), 2..80),
            copies in prop_oneof![Just(1_usize), Just(3), Just(8), Just(11)],
            truncate in 0.5..6.0_f64,
        ) {
            let mut at = 100.0;
            let wavelength: Vec<f64> = pixels.iter().map(|row| { at += row.0; at }).collect();
            let flux: Vec<f64> = pixels.iter().map(|row| row.1).collect();
            let sigma: Vec<f64> = pixels.iter().map(|row| row.2).collect();
            let found = convolved(&wavelength, &flux.repeat(copies), &sigma, truncate, 2).unwrap();
            let expected = naive(&wavelength, &flux, &sigma, truncate);
            for spectrum in found.chunks(flux.len()) {
                for (found, expected) in spectrum.iter().zip(&expected) {
                    prop_assert!((found - expected).abs() < 1e-12 || found.is_nan() && expected.is_nan());
                }
            }
        }
    }

    #[test]
    fn a_spectrum_keeps_its_bits_whatever_stands_beside_it_and_with_any_threads() {
        let pixels = 5000_u32;
        let wavelength: Vec<f64> = (0..pixels).map(|i| (f64::from(i) * 1e-4).exp()).collect();
        let sigma: Vec<f64> = wavelength.iter().map(|wavelength| wavelength / 2355.0).collect();
        let flux: Vec<f32> = (0..pixels * 19).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32).collect();
        let with_gaps: Vec<f32> =
            flux.iter().enumerate().map(|(i, &flux)| if i % 977 == 0 && i > 5000 { f32::NAN } else { flux }).collect();
        let one = convolved(&wavelength, &flux, &sigma, 5.0, 1).unwrap();
        assert_eq!(one, convolved(&wavelength, &flux, &sigma, 5.0, 3).unwrap());
        let alone = convolved(&wavelength, &flux[..5000], &sigma, 5.0, 1).unwrap();
        assert_eq!(alone, one[..5000]);
        assert_eq!(alone, convolved(&wavelength, &with_gaps, &sigma, 5.0, 2).unwrap()[..5000]);
    }

    #[test]
    fn wrong_sizes_and_widths_are_an_error() {
        let grid = [1.0, 2.0, 3.0];
        assert!(convolved(&grid, &[1.0; 4], &[1.0; 3], 5.0, 1).is_err());
        assert!(convolved(&grid, &[1.0; 3], &[1.0; 2], 5.0, 1).is_err());
        assert!(convolved(&grid, &[1.0; 3], &[1.0, -1.0, 1.0], 5.0, 1).is_err());
        assert!(convolved(&grid, &[1.0; 3], &[1.0, f64::NAN, 1.0], 5.0, 1).is_err());
        assert!(convolved(&grid, &[1.0; 3], &[1.0; 3], f64::NAN, 1).is_err());
        assert!(convolved(&[3.0, 2.0, 1.0], &[1.0; 3], &[1.0; 3], 5.0, 1).is_err());
        assert!(convolved::<f64>(&grid, &[], &[1.0; 3], 5.0, 1).unwrap().is_empty());
    }
}
