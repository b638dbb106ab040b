//! Eight fields of a quarter of a degree to one degree, with and without land.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::regridding::{Runs, regrid_conservative};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Cells four times as wide whose centres lie on those of the source: runs of five.
fn axis(size: usize) -> (Vec<i64>, Vec<i64>, Vec<f64>) {
    let targets = (size - 5) / 4;
    let weights = [0.125, 0.25, 0.25, 0.25, 0.125];
    let first = (0..targets as i64).map(|i| 4 * i).collect();
    let start = (0..=targets as i64).map(|i| 5 * i).collect();
    (first, start, weights.repeat(targets))
}

fn regridding(criterion: &mut Criterion) {
    let (fields, lats, lons) = (8, 721, 1440);
    let (rows, columns) = (axis(lats), axis(lons));
    let (Ok(rows), Ok(columns)) =
        (Runs::new(lats, &rows.0, &rows.1, &rows.2), Runs::new(lons, &columns.0, &columns.1, &columns.2))
    else {
        unreachable!("the runs fit their axes")
    };
    let whole: Vec<f32> = (0..fields * lats * lons).map(|i| (i % 8191) as f32).collect();
    let land = |i: usize| (i / 200).is_multiple_of(3);
    let gaps: Vec<f32> = whole.iter().enumerate().map(|(i, &v)| if land(i) { f32::NAN } else { v }).collect();
    let mut group = criterion.benchmark_group("regrid_conservative");
    group.sample_size(20).throughput(Throughput::Bytes(4 * whole.len() as u64));
    for (name, values) in [("whole", &whole), ("with land", &gaps)] {
        for threads in [1, 2] {
            group.bench_function(format!("float32, 33 MB, {name}, {threads} threads"), |bencher| {
                bencher.iter(|| regrid_conservative(black_box(values), fields, &rows, &columns, 0.5, threads));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, regridding);
criterion_main!(benches);
