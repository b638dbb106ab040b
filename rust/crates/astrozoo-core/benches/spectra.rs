//! A thousand spectra resampled and spread, and one at high resolution.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use astrozoo_core::spectra::{convolve_lsf, rebin_flux};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Wavelengths with a constant resolving power.
fn grid(pixels: usize, sampling: f64) -> Vec<f64> {
    (0..pixels).map(|i| (i as f64 / sampling).exp()).collect()
}

fn fluxes(count: usize) -> Vec<f64> {
    (0..count).map(|i| 1.0 + (i % 8191) as f64 * 1e-4).collect()
}

fn resampling(criterion: &mut Criterion) {
    let (old, new) = (grid(10_000, 10_000.0), grid(990, 1_000.0));
    let flux = fluxes(1000 * old.len());
    let mut result = vec![0.0; 1000 * new.len()];
    let mut group = criterion.benchmark_group("rebin_flux");
    group.sample_size(20).throughput(Throughput::Bytes(8 * flux.len() as u64));
    for threads in [1, 2] {
        group.bench_function(format!("1,000 spectra of 10,000 bins to 990, {threads} threads"), |bencher| {
            bencher.iter(|| rebin_flux(&old, &new, (black_box(&flux), &mut result), None, 0.0, threads));
        });
    }
    group.finish();
}

fn spreading(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("convolve_lsf");
    group.sample_size(20);
    for (spectra, pixels, sampling, power) in [(1000, 4000, 1e4, 1e3), (1, 100_000, 47e3, 2.7e3)] {
        let wavelength = grid(pixels, sampling);
        let sigma: Vec<f64> = wavelength.iter().map(|wavelength| wavelength / (2.3548 * power)).collect();
        let flux = fluxes(spectra * pixels);
        let mut result = vec![0.0; flux.len()];
        group.throughput(Throughput::Elements(flux.len() as u64));
        for threads in [1, 2] {
            group.bench_function(format!("{spectra} spectra of {pixels} pixels, {threads} threads"), |bencher| {
                bencher.iter(|| convolve_lsf(&wavelength, black_box(&flux), &sigma, 5.0, &mut result, threads));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, resampling, spreading);
criterion_main!(benches);
