//! Batches out of a data set of 20,000 graphs of 40 nodes.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::collation::{gather_edges, gather_rows, owners, pick, run, total};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

fn collation(criterion: &mut Criterion) {
    let (graphs, nodes, edges) = (20_000_i64, 40, 176);
    let starts = |size: i64| -> Vec<i64> { (0..=graphs).map(|graph| graph * size).collect() };
    let (node_starts, edge_starts) = (starts(nodes), starts(edges));
    let x = vec![1.0_f32; (graphs * nodes * 16) as usize];
    let links: Vec<i64> = (0..2 * graphs * edges).map(|i| i % nodes).collect();
    let mut group = criterion.benchmark_group("collate_graphs");
    for count in [256, 2048] {
        let indices: Vec<i64> = (0..count).map(|i| i * 7919 % graphs).collect();
        let bytes = count * (nodes * 64 + edges * 16);
        group.throughput(Throughput::Bytes(bytes as u64));
        for threads in [1, 2] {
            group.bench_function(format!("{count} graphs, {threads} threads"), |bencher| {
                bencher.iter(|| {
                    let rows = pick(black_box(&node_starts), &indices, x.len() / 16).unwrap_or_default();
                    let columns = pick(&edge_starts, &indices, links.len() / 2).unwrap_or_default();
                    let mut features = vec![0.0; 16 * total(&rows)];
                    let (mut joined, mut owner) = (vec![0; 2 * total(&columns)], vec![0; total(&rows)]);
                    let mut tasks = Vec::new();
                    let parts = [
                        gather_rows(&x, 16, &rows, &mut features, &mut tasks),
                        gather_edges(&links, &rows, &columns, &mut joined, &mut tasks),
                        owners(&rows, &mut owner, &mut tasks),
                    ];
                    assert!(parts.iter().all(Result::is_ok));
                    run(tasks, 1 << 20, threads);
                    (features, joined, owner)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, collation);
criterion_main!(benches);
