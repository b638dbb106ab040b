//! Infill of a cube of 126 MB along time, and of series that lie one after the other.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::gaps::fill_gaps;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn gaps(criterion: &mut Criterion) {
    let times: Vec<f64> = (0..608).map(f64::from).collect();
    let series = 51_840;
    let values: Vec<f32> = (0..608 * series as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) >> 8)
        .map(|i| if i % 10 == 0 { f32::NAN } else { i as f32 })
        .collect();
    let mut filled = vec![0.0_f32; values.len()];
    let mut group = criterion.benchmark_group("fill_gaps");
    group.sample_size(20).throughput(Throughput::Bytes(8 * values.len() as u64));
    for inner in [10_368, 2, 1] {
        for threads in [1, 2] {
            group.bench_function(format!("float32, 126 MB, {inner} columns, {threads} threads"), |bencher| {
                let sizes = (series / inner, inner);
                bencher.iter(|| fill_gaps(black_box(&values), &mut filled, sizes, &times, f64::INFINITY, threads));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, gaps);
criterion_main!(benches);
