//! Statistics of a cube of 126 MB.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::statistics::nan_stats;
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
}

criterion_group!(benches, statistics);
criterion_main!(benches);
