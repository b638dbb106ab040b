//! One training batch of crops from a cube, in one pass: crop, wrap, flip, normalise, fill, convert.
//!
//! Each value is read once where it lies in the cube and written once where it belongs in the batch; nothing between
//! the steps touches memory. Arithmetic is in double precision, which costs nothing beside the memory, so that fields
//! with a large mean and a small spread (geopotential, pressure) lose no digits before they are rounded once.

use crate::error::Error;
use crate::float::Float;
use crate::parallel;
use half::bf16;
use multiversion::multiversion;

/// Values that one task writes, about.
const TASK: usize = 1 << 15;

/// What a batch is made of: `f32`, or the bits of a bfloat16.
pub trait Stored: Copy + Send + Sync + 'static {
    /// One.
    const ONE: Self;
    /// Zero.
    const ZERO: Self;

    /// The nearest value, ties to even.
    fn nearest(value: f32) -> Self;
}

impl Stored for f32 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Stored for u16 {
    const ONE: Self = bf16::ONE.to_bits();
    const ZERO: Self = 0;

    /// As `bf16::from_f32`, without a branch.
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        (if value.is_nan() { quiet } else { rounded }) as u16
    }
}

/// A cube `[time, channel, lat, lon]`.
#[derive(Clone, Copy, Debug)]
pub struct Cube<'a, T> {
    /// Its values.
    pub values: &'a [T],
    /// Its sizes.
    pub shape: [usize; 4],
}

/// Where the crop of each sample begins, and whether it is mirrored.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// Time step.
    pub times: &'a [i64],
    /// First row.
    pub lats: &'a [i64],
    /// First column; the crop goes on around the end of the axis.
    pub lons: &'a [i64],
    /// Rows in reverse.
    pub flip_lat: &'a [bool],
    /// Columns in reverse.
    pub flip_lon: &'a [bool],
}

/// What is done to each value: `(value - mean) * scale` of its channel, and `fill` where it is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Normalisation<'a> {
    /// By channel.
    pub mean: &'a [f64],
    /// By channel: one over the standard deviation.
    pub scale: &'a [f64],
    /// What a missing value becomes.
    pub fill: f32,
}

/// Write `batch[sample, channel, row, column]`; with `mask`, as many channels again follow: 1 where a value is known.
///
/// # Errors
///
/// Sizes that do not fit each other, or a crop that begins outside the cube or leaves it northward or southward.
pub fn patch_batch<T: Float, O: Stored>(
    cube: Cube<'_, T>,
    places: Places<'_>,
    normalisation: Normalisation<'_>,
    mask: bool,
    size: (usize, usize),
    batch: &mut [O],
    threads: usize,
) -> Result<(), Error> {
    let origins = check(&cube, &places, &normalisation, mask, size, batch.len())?;
    if batch.is_empty() {
        return Ok(());
    }
    let channels = cube.shape[1];
    let area = size.0 * size.1;
    let mut planes = Vec::with_capacity(origins.len() * channels);
    for (origin, sample) in origins.into_iter().zip(batch.chunks_mut(area * channels * (1 + usize::from(mask)))) {
        let (values, known) = sample.split_at_mut(area * channels);
        let mut known = known.chunks_mut(area);
        for (channel, values) in values.chunks_mut(area).enumerate() {
            planes.push(Plane { origin, channel, values, known: known.next() });
        }
    }
    let threads = parallel::worth(threads, area * planes.len(), TASK);
    let together = (TASK / area).clamp(1, planes.len());
    let mut tasks = Vec::with_capacity(planes.len() / together + 1);
    while !planes.is_empty() {
        tasks.push(planes.split_off(planes.len().saturating_sub(together)));
    }
    parallel::map(threads, tasks, |planes| {
        for plane in planes {
            make_plane(&cube, &normalisation, size.1, plane);
        }
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Origin {
    time: usize,
    lat: usize,
    lon: usize,
    flip_lat: bool,
    flip_lon: bool,
}

/// One channel of one sample.
struct Plane<'a, O> {
    origin: Origin,
    channel: usize,
    values: &'a mut [O],
    known: Option<&'a mut [O]>,
}

fn check<T>(
    cube: &Cube<'_, T>,
    places: &Places<'_>,
    normalisation: &Normalisation<'_>,
    mask: bool,
    (height, width): (usize, usize),
    written: usize,
) -> Result<Vec<Origin>, Error> {
    let [times, channels, lats, lons] = cube.shape;
    let samples = places.times.len();
    Error::require_fill(cube.values.len(), &cube.shape)?;
    Error::require_fill(written, &[samples, 1 + usize::from(mask), channels, height, width])?;
    let Places { lats: firsts, lons: wests, flip_lat, flip_lon, .. } = places;
    let each = [firsts.len(), wests.len(), flip_lat.len(), flip_lon.len()];
    Error::require(each.iter().all(|&length| length == samples), || {
        format!("{each:?} first rows, first columns and flips do not fit {samples} samples")
    })?;
    Error::require(normalisation.mean.len() == channels && normalisation.scale.len() == channels, || {
        format!("means and scales do not fit {channels} channels")
    })?;
    Error::require(height <= lats && width <= lons, || {
        format!("a crop of {height} x {width} is larger than the grid of {lats} x {lons}")
    })?;
    let inside = |index: i64, size: usize| usize::try_from(index).ok().filter(|&index| index < size);
    (0..samples)
        .map(|i| {
            let place = inside(places.times[i], times)
                .zip(inside(firsts[i], lats - height + 1))
                .zip(inside(wests[i], lons.max(1)));
            place
                .map(|((time, lat), lon)| Origin { time, lat, lon, flip_lat: flip_lat[i], flip_lon: flip_lon[i] })
                .ok_or_else(|| Error::new(format!("the crop of sample {i} lies outside the cube")))
        })
        .collect()
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn make_plane<T: Float, O: Stored>(
    cube: &Cube<'_, T>,
    normalisation: &Normalisation<'_>,
    width: usize,
    plane: Plane<'_, O>,
) {
    let [_, channels, lats, lons] = cube.shape;
    let Plane { origin, channel, values, mut known } = plane;
    let (mean, scale) = (normalisation.mean[channel], normalisation.scale[channel]);
    let height = values.len() / width;
    let first = (origin.time * channels + channel) * lats + origin.lat;
    let east = width.min(lons - origin.lon); // columns before the crop goes around
    for (i, made) in values.chunks_exact_mut(width).enumerate() {
        let row = first + if origin.flip_lat { height - 1 - i } else { i };
        let row = &cube.values[row * lons..][..lons];
        let parts = (&row[origin.lon..origin.lon + east], &row[..width - east]);
        let normalised = |value: T| {
            let value = (value.to_f64() - mean) * scale;
            O::nearest(if value.is_nan() { normalisation.fill } else { value as f32 })
        };
        place(parts, made, origin.flip_lon, normalised);
        if let Some(known) = known.as_mut().and_then(|known| known.get_mut(i * width..(i + 1) * width)) {
            place(parts, known, origin.flip_lon, |value| if value.is_nan() { O::ZERO } else { O::ONE });
        }
    }
}

/// `make` of the values of both parts, one behind the other, or in reverse.
#[inline(always)]
fn place<T: Copy, O>(parts: (&[T], &[T]), made: &mut [O], reverse: bool, make: impl Fn(T) -> O) {
    if reverse {
        let (second, first) = made.split_at_mut(parts.1.len());
        for (part, made) in [(parts.0, first), (parts.1, second)] {
            for (&value, made) in part.iter().zip(made.iter_mut().rev()) {
                *made = make(value);
            }
        }
    } else {
        let (first, second) = made.split_at_mut(parts.0.len());
        for (part, made) in [(parts.0, first), (parts.1, second)] {
            for (&value, made) in part.iter().zip(made) {
                *made = make(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Drawn {
        shape: [usize; 4],
        times: Vec<i64>,
        lats: Vec<i64>,
        lons: Vec<i64>,
        flips: (Vec<bool>, Vec<bool>),
    }

    impl Drawn {
        fn new(shape: [usize; 4], (height, _): (usize, usize), seeds: &[u32]) -> Self {
            let draw =
                |shift: u32, size: usize| seeds.iter().map(move |s| i64::from(s >> shift) % size as i64).collect();
            Self {
                shape,
                times: draw(0, shape[0]),
                lats: draw(5, shape[2] - height + 1),
                lons: draw(10, shape[3]),
                flips: seeds.iter().map(|s| (s & 1 == 0, s & 2 == 0)).unzip(),
            }
        }

        fn places(&self) -> Places<'_> {
            let Self { times, lats, lons, flips: (flip_lat, flip_lon), .. } = self;
            Places { times, lats, lons, flip_lat, flip_lon }
        }
    }

    /// Value by value.
    fn naive(values: &[f32], drawn: &Drawn, mean: f64, mask: bool, (height, width): (usize, usize)) -> Vec<f32> {
        let [_, channels, lats, lons] = drawn.shape;
        let mut batch = vec![];
        for i in 0..drawn.times.len() {
            for part in 0..=usize::from(mask) {
                for channel in 0..channels {
                    for row in 0..height {
                        for column in 0..width {
                            let row = if drawn.flips.0[i] { height - 1 - row } else { row };
                            let column = if drawn.flips.1[i] { width - 1 - column } else { column };
                            let lat = drawn.lats[i] as usize + row;
                            let lon = (drawn.lons[i] as usize + column) % lons;
                            let value =
                                values[((drawn.times[i] as usize * channels + channel) * lats + lat) * lons + lon];
                            batch.push(match (part, value.is_nan()) {
                                (0, true) => -7.0,
                                (0, false) => ((f64::from(value) - mean) * 0.5) as f32,
                                (_, missing) => f32::from(u8::from(!missing)),
                            });
                        }
                    }
                }
            }
        }
        batch
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(
            shape in [1_usize..4, 1_usize..4, 1_usize..9, 1_usize..40],
            cut in (0_usize..9, 0_usize..40),
            seeds in prop::collection::vec(any::<u32>(), 0..6),
            mask in any::<bool>(),
            threads in 1_usize..4,
        ) {
            let size = (cut.0.min(shape[2]), cut.1.min(shape[3]));
            let values: Vec<f32> = (0..shape.iter().product::<usize>())
                .map(|i| if i % 5 == 0 { f32::NAN } else { i as f32 })
                .collect();
            let drawn = Drawn::new(shape, size, &seeds);
            let means = vec![2.5; shape[1]];
            let scale = vec![0.5; shape[1]];
            let normalisation = Normalisation { mean: &means, scale: &scale, fill: -7.0 };
            let expected = naive(&values, &drawn, 2.5, mask, size);
            let cube = Cube { values: &values, shape };
            let mut single = vec![0.0_f32; expected.len()];
            patch_batch(cube, drawn.places(), normalisation, mask, size, &mut single, threads).unwrap();
            prop_assert_eq!(&single, &expected);
            let mut bits = vec![0_u16; expected.len()];
            patch_batch(cube, drawn.places(), normalisation, mask, size, &mut bits, threads).unwrap();
            let expected: Vec<u16> = expected.into_iter().map(|value| bf16::from_f32(value).to_bits()).collect();
            prop_assert_eq!(bits, expected);
        }

        #[test]
        fn bfloat16_is_rounded_as_half_does(bits in any::<u32>()) {
            let value = f32::from_bits(bits);
            prop_assert_eq!(<u16 as Stored>::nearest(value), bf16::from_f32(value).to_bits());
        }
    }

    #[test]
    fn crops_outside_the_cube_are_an_error() {
        let values = [0.0_f32; 2 * 4 * 6];
        let normalisation = Normalisation { mean: &[0.0], scale: &[1.0], fill: 0.0 };
        let cut = |time, lat, lon, size: (usize, usize), length: usize| {
            let places = Places { times: &[time], lats: &[lat], lons: &[lon], flip_lat: &[false], flip_lon: &[false] };
            let cube = Cube { values: &values, shape: [2, 1, 4, 6] };
            patch_batch(cube, places, normalisation, false, size, &mut vec![0.0_f32; length], 1)
        };
        assert!(cut(1, 2, 5, (2, 6), 12).is_ok());
        for bad in [
            cut(2, 2, 5, (2, 6), 12),
            cut(1, 3, 5, (2, 6), 12),
            cut(1, 2, 6, (2, 6), 12),
            cut(-1, 2, 5, (2, 6), 12),
            cut(0, 0, 0, (5, 6), 30),
            cut(0, 0, 0, (2, 7), 14),
            cut(0, 0, 0, (2, 6), 13),
        ] {
            assert!(bad.is_err());
        }
    }
}
