//! Statistics of a cube of 126 MB.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::statistics::{nan_stats, quantiles};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn statistics(criterion: &mut Criterion) {
    let (variables, cells) = (5, 6_300_000);
    let values: Vec<f32> =
        (0..variables * cells).map(|i| if i % 97 == 0 { f32::NAN } else { (i % 8191) as f32 }).collect();
    let mut group = criterion.benchmark_group("nan_stats");
    group.sample_size(20).throughput(Throughput::Bytes(4 * values.len() as u64));
    for threads in [1, 2] {
        group.bench_function(format!("float32, 126 MB, {threads} threads"), |bencher| {
            bencher.iter(|| nan_stats(black_box(&values), (1, variables, cells), threads));
        });
    }
    group.finish();
    let q = [0.01, 0.25, 0.5, 0.75, 0.99];
    let mut group = criterion.benchmark_group("quantiles");
    group.sample_size(20).throughput(Throughput::Bytes(4 * values.len() as u64));
    for (layout, shape) in
        [("long groups", (1, variables, cells)), ("short columns", (600, variables * cells / 600, 1))]
    {
        for threads in [1, 2] {
            group.bench_function(format!("float32, 126 MB, {layout}, {threads} threads"), |bencher| {
                bencher.iter(|| quantiles(black_box(&values), shape, &q, threads));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, statistics);
criterion_main!(benches);
