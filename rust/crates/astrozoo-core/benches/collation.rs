//! Edges of a batch of 2,048 graphs of 40 nodes.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::collation::{owners, shift_edges};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn collation(criterion: &mut Criterion) {
    let (nodes, ends) = (vec![40; 2048], vec![160; 2048]);
    let edges: Vec<i64> = (0..2048 * 320).map(|i| i % 40).collect();
    let mut group = criterion.benchmark_group("collate_graphs");
    group.throughput(Throughput::Bytes(8 * edges.len() as u64));
    for threads in [1, 2] {
        group.bench_function(format!("edges, {threads} threads"), |bencher| {
            bencher.iter(|| shift_edges(black_box(&nodes), &edges, &ends, threads));
        });
    }
    group.bench_function("graph of each node", |bencher| bencher.iter(|| owners(black_box(&nodes))));
    group.finish();
}

criterion_group!(benches, collation);
criterion_main!(benches);
