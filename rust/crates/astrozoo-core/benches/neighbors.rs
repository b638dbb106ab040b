//! Pairs within a radius: 50,000 points with 30 neighbours each, counted and written, and 256 small clouds.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::neighbors::{Options, RadiusGraph};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Points in the unit cube, from Marsaglia's xorshift.
fn cube(points: usize) -> Vec<f32> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32
    })
    .take(3 * points)
    .collect()
}

fn neighbors(criterion: &mut Criterion) {
    for (name, sizes, radius) in [("50,000 points", vec![50_000], 0.0523), ("256 clouds of 60", vec![60; 256], 0.4)] {
        let positions = cube(sizes.iter().sum());
        let options = Options { radius, loops: false, most: usize::MAX };
        let mut group = criterion.benchmark_group(format!("radius_graph, {name}"));
        group.sample_size(20);
        for threads in [1, 2] {
            group.bench_function(format!("count, {threads} threads"), |bencher| {
                bencher.iter(|| RadiusGraph::new(black_box(&positions), &sizes, options, threads));
            });
            let Ok(graph) = RadiusGraph::new(&positions, &sizes, options, threads) else { continue };
            let (mut edges, mut distances) = (vec![0; 2 * graph.edges()], vec![0.0_f32; graph.edges()]);
            group.throughput(Throughput::Elements(graph.edges() as u64));
            group.bench_function(format!("write, {threads} threads"), |bencher| {
                bencher.iter(|| graph.write(black_box(&mut edges), &mut distances, threads));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, neighbors);
criterion_main!(benches);
