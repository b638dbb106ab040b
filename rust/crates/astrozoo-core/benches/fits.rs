//! Five columns of a catalogue of 172 MB, from the page cache and from memory.
#![allow(missing_docs)] // criterion's macros make undocumented functions
#![allow(clippy::expect_used)] // a benchmark ends where its file cannot be made

use astrozoo_core::fits::{Array, BLOCK, Source, Table, Wanted};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::fmt::Write;

const ROWS: usize = 1_000_000;
const COLUMNS: [(char, usize); 30] = {
    let mut columns = [('K', 8); 30];
    let mut i = 1;
    while i < 30 {
        columns[i] = if i < 13 {
            ('D', 8)
        } else if i < 25 {
            ('E', 4)
        } else {
            ('J', 4)
        };
        i += 1;
    }
    columns
};

fn file() -> Vec<u8> {
    let width: usize = COLUMNS.iter().map(|column| column.1).sum();
    let mut cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END"].map(|card| format!("{card:80}")).concat();
    cards = format!("{cards:BLOCK$}");
    let table = format!("BITPIX  = 8|NAXIS   = 2|NAXIS1  = {width}|NAXIS2  = {ROWS}|TFIELDS = {}", COLUMNS.len());
    let mut text = String::new();
    for card in std::iter::once("XTENSION= 'BINTABLE'").chain(table.split('|')) {
        let _ = write!(text, "{card:80}");
    }
    for (i, (code, _)) in COLUMNS.iter().enumerate() {
        let _ = write!(text, "{:80}", format!("{:8}= '{code}'", format!("TFORM{}", i + 1)));
    }
    let _ = write!(text, "{:80}", "END");
    let mut bytes = format!("{cards}{text:0$}", text.len().next_multiple_of(BLOCK)).into_bytes();
    bytes.extend((0..ROWS * width).map(|i| (i % 251) as u8));
    bytes
}

fn fits(criterion: &mut Criterion) {
    let bytes = file();
    let path = std::env::temp_dir().join(format!("astrozoo-bench-{}.fits", std::process::id()));
    std::fs::write(&path, &bytes).expect("the temporary folder takes a file");
    let names = ["col1", "col2", "col3", "col16", "col28"].map(str::to_owned);
    let mut group = criterion.benchmark_group("read_fits_columns");
    group.sample_size(20).throughput(Throughput::Bytes(bytes.len() as u64));
    for (from, source) in [("file", Source::open(&path).expect("it is there")), ("memory", Source::Memory(&bytes))] {
        for threads in [1, 2] {
            group.bench_function(format!("catalogue, 172 MB, {from}, {threads} threads"), |bencher| {
                bencher.iter(|| -> Vec<Array> {
                    let table = Table::open(&source, &Wanted::FirstTable).expect("it is a table");
                    let columns = table.select(Some(&names)).expect("it has these columns");
                    table.arrays(&source, &columns, threads).expect("it is whole")
                });
            });
        }
    }
    group.finish();
    let _ = std::fs::remove_file(path);
}

criterion_group!(benches, fits);
criterion_main!(benches);
