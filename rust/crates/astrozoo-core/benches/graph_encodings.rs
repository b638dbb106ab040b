//! Encodings of 256 graphs that look like molecules.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::graph_encodings::{Arcs, Direction, distances, hops, laplacian, random_walk};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

/// Edges both ways, sizes, and weights: trees with a ring for ten nodes.
fn molecules(least: i64, most: i64) -> (Vec<i64>, Vec<i64>, Vec<f64>) {
    let sizes: Vec<i64> = (0..256).map(|i| least + i * 37 % (most - least + 1)).collect();
    let (mut sources, mut targets, mut first) = (vec![], vec![], 0);
    for &size in &sizes {
        for node in 1..size {
            let back = 1 + (node * 7919 % 4).min(node - 1);
            sources.push(first + node);
            targets.push(first + node - back);
            if node % 10 == 6 {
                sources.push(first + node);
                targets.push(first + node - 5);
            }
        }
        first += size;
    }
    let edges = [sources.as_slice(), &targets, &targets, &sources].concat();
    let weights = (0..edges.len() / 2).map(|i| (i % 17) as f64 * 0.1).collect();
    (edges, sizes, weights)
}

fn graph_encodings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("graph_encodings");
    group.sample_size(20);
    for (least, most) in [(20, 60), (100, 200)] {
        let (edges, sizes, weights) = molecules(least, most);
        for threads in [1, 2] {
            let pairs = 256 * (most * most) as usize;
            group.bench_function(format!("hops, {least} to {most} nodes, {threads} threads"), |bencher| {
                let mut out = vec![0; pairs];
                bencher.iter(|| hops(black_box(&edges), &sizes, Direction::Both, u32::MAX, &mut out, threads));
            });
            let mut bench = |name: &str, weights: Option<&[f64]>, work: &dyn Fn(&Arcs)| {
                group.bench_function(format!("{name}, {least} to {most} nodes, {threads} threads"), |bencher| {
                    bencher.iter(|| match Arcs::new(black_box(&edges), &sizes, weights, Direction::Forward) {
                        Ok(arcs) => work(&arcs),
                        Err(error) => panic!("{error}"),
                    });
                });
            };
            bench("distances", Some(&weights), &|arcs| {
                let mut out = vec![0.0; pairs];
                let _ = black_box(distances(arcs, f64::INFINITY, &mut out, threads));
            });
            bench("random walk, 16 steps", None, &|arcs| {
                let _ = black_box(random_walk::<f32>(arcs, 16, threads));
            });
            bench("laplacian, 8 vectors", None, &|arcs| {
                let _ = black_box(laplacian::<f32>(arcs, 8, threads));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, graph_encodings);
criterion_main!(benches);
