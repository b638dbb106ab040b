//! Two thousand lines on a grid of a hundred thousand points.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::lines::{Lines, voigt_cross_section};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

fn lines(criterion: &mut Criterion) {
    let grid: Vec<f64> = (0..100_000).map(|i| 4000.0 + 0.01 * f64::from(i)).collect();
    let centers: Vec<f64> = (0..2000).map(|i| 4000.0 + 0.5 * f64::from(i)).collect();
    let (strengths, sigma) = (vec![1.0; centers.len()], vec![0.01; centers.len()]);
    let gamma: Vec<f64> = (0..2000).map(|i| 0.01 + 4.5e-5 * f64::from(i)).collect();
    let lines = Lines { centers: &centers, strengths: &strengths, sigma: &sigma, gamma: &gamma };
    let mut group = criterion.benchmark_group("voigt_cross_section");
    group.sample_size(20);
    for threads in [1, 2] {
        group.bench_function(format!("2,000 lines on 100,000 points, {threads} threads"), |bencher| {
            bencher.iter(|| voigt_cross_section(black_box(&grid), lines, 25.0, threads));
        });
    }
    group.finish();
}

criterion_group!(benches, lines);
criterion_main!(benches);
