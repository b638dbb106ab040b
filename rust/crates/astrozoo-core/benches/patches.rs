//! Batches of 64 crops from a cube of 260 MB.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::patches::{Cube, Normalisation, Places, Stored, patch_batch};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn batch<O: Stored>(criterion: &mut Criterion, name: &str) {
    let shape = [200, 5, 181, 360];
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i % 8191) as f32).collect();
    let drawn = |size: i64| (0..64).map(|i| i * 7919 % size).collect::<Vec<i64>>();
    let (times, lats, lons) = (drawn(200), drawn(118), drawn(360));
    let flips: Vec<bool> = (0..64).map(|i| i % 3 == 0).collect();
    let places = Places { times: &times, lats: &lats, lons: &lons, flip_lat: &flips, flip_lon: &flips };
    let normalisation = Normalisation { mean: &[1.0; 5], scale: &[0.1; 5], fill: 0.0 };
    let mut made = vec![O::ZERO; 64 * 5 * 64 * 64];
    let mut group = criterion.benchmark_group("patch_batch");
    group.throughput(Throughput::Elements(made.len() as u64));
    for threads in [1, 2] {
        group.bench_function(format!("64 x 5 x 64 x 64, {name}, {threads} threads"), |bencher| {
            let cube = Cube { values: black_box(&values), shape };
            bencher.iter(|| patch_batch(cube, places, normalisation, false, (64, 64), &mut made, threads));
        });
    }
    group.finish();
}

fn patches(criterion: &mut Criterion) {
    batch::<f32>(criterion, "float32");
    batch::<u16>(criterion, "bfloat16");
}

criterion_group!(benches, patches);
criterion_main!(benches);
