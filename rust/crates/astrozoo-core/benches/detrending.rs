//! Trends of a light curve of four years at 29.4 minutes.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::detrending::{Window, biweight_detrend, median_filter_time};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn detrending(criterion: &mut Criterion) {
    let cadences = 65_000_u32;
    let time: Vec<f64> = (0..cadences).map(|i| f64::from(i) * 29.4 / 1440.0).collect();
    let noise = |i: u32| f64::from(i.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24);
    let flux: Vec<f64> = (0..cadences).map(|i| 1.0 + 1e-3 * noise(i)).collect();
    for length in [0.75, 2.0] {
        let window = Window { length, break_tolerance: length / 2.0, edge_cutoff: 0.0 };
        let mut group = criterion.benchmark_group(format!("window of {length} days"));
        group.sample_size(20).throughput(Throughput::Elements(u64::from(cadences)));
        for threads in [1, 2] {
            group.bench_function(format!("median_filter_time, {threads} threads"), |bencher| {
                bencher.iter(|| median_filter_time(black_box(&time), black_box(&flux), 1, window, threads));
            });
            group.bench_function(format!("biweight_detrend, {threads} threads"), |bencher| {
                bencher.iter(|| biweight_detrend(black_box(&time), black_box(&flux), 1, window, 5.0, threads));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, detrending);
criterion_main!(benches);
