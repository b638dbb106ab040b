//! Four years of long cadences: a search over 200 periods, and views of 32 candidates.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::folding::{Candidate, View, fold_views};
use astrozoo_core::transits::{Light, box_least_squares};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

const CADENCES: usize = 65_000;

/// Times in days, and noise from a multiplicative generator.
fn light_curve() -> (Vec<f64>, Vec<f64>) {
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 * 1e-11
    };
    ((0..CADENCES).map(|i| i as f64 * 0.020_434).collect(), (0..CADENCES).map(|_| noise()).collect())
}

fn transits(criterion: &mut Criterion) {
    let (time, flux) = light_curve();
    let weight = vec![1.0; CADENCES];
    let periods: Vec<f64> = (0..200).map(|i| 0.5 + f64::from(i) * 0.5).collect();
    let candidates: Vec<_> = (0..32).map(|i| Candidate { period: 0.7 * 1.2_f64.powi(i), epoch: 0.3 }).collect();
    let of = |part: fn(f64) -> f64| candidates.iter().map(|one| part(one.period)).collect::<Vec<f64>>();
    let global = (of(|period| period / 2.0), of(|period| period / 2001.0));
    let local = (of(|period| 0.32 * period.cbrt()), of(|period| 0.0128 * period.cbrt()));
    let views =
        [View { bins: 2001, half: &global.0, width: &global.1 }, View { bins: 201, half: &local.0, width: &local.1 }];
    let mut group = criterion.benchmark_group("light curve of 65,000 cadences");
    group.sample_size(20);
    for threads in [1, 2] {
        group.bench_function(format!("box_least_squares, 200 periods, {threads} threads"), |bencher| {
            let light = Light { time: &time, flux: &flux, weight: &weight };
            bencher.iter(|| box_least_squares(black_box(light), &periods, &[0.05, 0.1, 0.2, 0.4], 10, threads));
        });
        group.bench_function(format!("fold_views, 32 candidates, {threads} threads"), |bencher| {
            bencher.iter(|| fold_views(black_box(&time), &flux, &candidates, &views, true, threads));
        });
    }
    group.finish();
}

criterion_group!(benches, transits);
criterion_main!(benches);
