//! A light curve summed in narrow bins of phase, and the sums from the first bin up to each.
//!
//! Which bin a cadence falls into is computed for many cadences in vectors, with the divisions that define it, so that
//! a cadence on the edge of a bin falls into the same one whatever processor computes it. Adding a cadence to its bin
//! is one load, addition and store of the pair (weighted flux, weight). In order of time, neighbours fall into the same
//! bin and every addition would wait for the one before; so cadences are taken from several parts of the light curve
//! in turn.

use multiversion::multiversion;

/// Parts of the light curve that cadences are taken from in turn.
const STREAMS: usize = 8;
/// Cadences whose bins are computed together.
const BLOCK: usize = 512;
/// 2^52: added to a whole number below, it leaves that number in the lowest bits.
const WHOLE: f64 = 4_503_599_627_370_496.0;

/// Cadences in the order in which they are binned.
pub struct Cadences {
    time: Vec<f64>,
    /// Weighted flux and weight.
    sums: Vec<[f64; 2]>,
}

impl Cadences {
    /// Of a light curve whose times count from its first cadence.
    pub fn new(time: &[f64], flux: &[f64], weight: &[f64]) -> Self {
        let part = time.len().div_ceil(STREAMS);
        let order = || (0..part).flat_map(|i| (0..STREAMS).map(move |stream| stream * part + i));
        let cadences = || order().filter(|&i| i < time.len());
        Self {
            time: cadences().map(|i| time[i]).collect(),
            sums: cadences().map(|i| [weight[i] * flux[i], weight[i]]).collect(),
        }
    }
}

/// Working memory of one thread.
pub struct PhaseBins {
    bins: Vec<[f64; 2]>,
    /// Sums of weighted flux over all bins before the one with this index.
    pub flux: Vec<f64>,
    /// Sums of weights, likewise.
    pub weight: Vec<f64>,
}

impl PhaseBins {
    /// For up to `capacity` bins, the repeated ones included.
    pub fn new(capacity: usize) -> Self {
        Self { bins: vec![[0.0; 2]; capacity + 1], flux: vec![0.0; capacity + 1], weight: vec![0.0; capacity + 1] }
    }

    /// Fold at `period` into bins as wide as `width`, repeat the first `repeated` behind the last, and sum them up.
    ///
    /// The first of the repeated bins takes the place of the last one, which the period fills in part; so does astropy,
    /// whose numbers these are to be. Returns how many bins there are.
    pub fn fold(&mut self, cadences: &Cadences, period: f64, width: f64, repeated: usize) -> usize {
        let whole = (period / width).ceil() as usize;
        let count = whole + repeated;
        let bins = &mut self.bins[..=count];
        let mut places = [0_u32; BLOCK];
        for (time, sums) in cadences.time.chunks(BLOCK).zip(cadences.sums.chunks(BLOCK)) {
            let places = &mut places[..time.len()];
            find_bins(time, period, width, places);
            add(bins, places, sums);
        }
        bins.copy_within(1..=repeated, whole);
        bins[count] = [0.0; 2];
        sum_up(bins, &mut self.flux[..=count], &mut self.weight[..=count]);
        count
    }
}

/// The bin of each cadence, counted from 1.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn find_bins(time: &[f64], period: f64, width: f64, bins: &mut [u32]) {
    for (&time, bin) in time.iter().zip(bins) {
        let phase = time - period * (time / period).floor();
        let phase = if phase > 0.0 { phase } else { 0.0 }; // rounding may leave it below
        *bin = ((phase / width).floor() + WHOLE).to_bits() as u32 + 1;
    }
}

fn add(bins: &mut [[f64; 2]], places: &[u32], sums: &[[f64; 2]]) {
    let last = bins.len() - 1;
    for (&place, sum) in places.iter().zip(sums) {
        let bin = &mut bins[(place as usize).min(last)];
        *bin = [bin[0] + sum[0], bin[1] + sum[1]];
    }
}

/// Sums over the bins up to each, the bin itself included; leaves the bins empty for the next period.
fn sum_up(bins: &mut [[f64; 2]], flux: &mut [f64], weight: &mut [f64]) {
    let mut sum = [0.0; 2];
    for ((bin, flux), weight) in bins.iter_mut().zip(flux).zip(weight) {
        sum = [sum[0] + bin[0], sum[1] + bin[1]];
        *bin = [0.0; 2];
        *flux = sum[0];
        *weight = sum[1];
    }
}
