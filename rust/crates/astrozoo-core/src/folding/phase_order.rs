//! The cadences of a folded light curve in the order of their phases, as far as that is asked for.
//!
//! Cadences are sorted into narrow buckets of phase by counting. Within a bucket they are put in order only where an
//! edge of a bin lies in it; all others lie on one side of every edge, and the median of a bin asks for no more.

use crate::float::Float;
use multiversion::multiversion;

/// Cadences in a bucket, on average.
const PER_BUCKET: usize = 4;

/// Flux and place in the light curve of one cadence.
#[derive(Clone, Copy, Debug)]
pub struct Entry<T> {
    /// Its flux.
    pub flux: T,
    cadence: u32,
}

/// Working memory of one thread: a light curve folded at one period after the other.
pub struct PhaseOrder<T> {
    phase: Vec<f64>,
    bucket: Vec<u32>,
    /// Where each bucket ends in `entries`.
    ends: Vec<u32>,
    in_order: Vec<bool>,
    entries: Vec<Entry<T>>,
    period: f64,
}

impl<T: Float> PhaseOrder<T> {
    /// For light curves of `cadences`.
    pub fn new(cadences: usize) -> Self {
        let buckets = (cadences / PER_BUCKET).max(1);
        Self {
            phase: vec![0.0; cadences],
            bucket: vec![0; cadences],
            ends: vec![0; buckets],
            in_order: vec![false; buckets],
            entries: vec![Entry { flux: T::NAN, cadence: 0 }; cadences],
            period: 1.0,
        }
    }

    /// Fold at `period`, so that `epoch` has phase 0 and phases reach from `-period / 2` to `period / 2`.
    pub fn fold(&mut self, time: &[f64], flux: &[T], period: f64, epoch: f64) {
        self.period = period;
        let scale = self.scale();
        find_phases(time, (period, epoch), scale, self.ends.len(), &mut self.phase, &mut self.bucket);
        self.ends.fill(0);
        self.in_order.fill(false);
        for &bucket in &self.bucket {
            self.ends[bucket as usize] += 1;
        }
        let mut start = 0;
        for end in &mut self.ends {
            start += std::mem::replace(end, start);
        }
        for (cadence, (&bucket, &flux)) in self.bucket.iter().zip(flux).enumerate() {
            let place = &mut self.ends[bucket as usize];
            self.entries[*place as usize] = Entry { flux, cadence: cadence as u32 };
            *place += 1;
        }
    }

    /// The cadences with phases from `low` to below `high`.
    pub fn between(&mut self, low: f64, high: f64) -> &[Entry<T>] {
        let (start, end) = (self.before(low), self.before(high));
        &self.entries[start..end.max(start)]
    }

    /// How many cadences have a phase below `edge`; that many lead `entries`, if the bucket of the edge is in order.
    fn before(&mut self, edge: f64) -> usize {
        let bucket = bucket_of(edge, 0.5 * self.period, self.scale(), self.ends.len()) as usize;
        let start = if bucket == 0 { 0 } else { self.ends[bucket - 1] as usize };
        let entries = &mut self.entries[start..self.ends[bucket] as usize];
        let phase = |entry: &Entry<T>| self.phase[entry.cadence as usize];
        if !self.in_order[bucket] {
            entries.sort_unstable_by(|a, b| phase(a).total_cmp(&phase(b)));
            self.in_order[bucket] = true;
        }
        start + entries.partition_point(|entry| phase(entry) < edge)
    }

    fn scale(&self) -> f64 {
        self.ends.len() as f64 / self.period
    }
}

/// The bucket of a phase: never a lower one for a higher phase.
#[inline(always)]
fn bucket_of(phase: f64, half: f64, scale: f64, buckets: usize) -> u32 {
    let place = (phase + half) * scale;
    let place = if place > 0.0 { place } else { 0.0 };
    place.min(buckets as f64 - 1.0) as i32 as u32
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn find_phases(
    time: &[f64],
    (period, epoch): (f64, f64),
    scale: f64,
    buckets: usize,
    phases: &mut [f64],
    bucket: &mut [u32],
) {
    let half = 0.5 * period;
    for ((&time, phase), bucket) in time.iter().zip(phases).zip(bucket) {
        let shifted = time + (half - epoch);
        let folded = shifted - period * (shifted / period).floor();
        let folded = if folded > 0.0 && folded < period { folded } else { 0.0 }; // rounding may leave it outside
        *phase = folded - half;
        *bucket = bucket_of(*phase, half, scale, buckets);
    }
}
