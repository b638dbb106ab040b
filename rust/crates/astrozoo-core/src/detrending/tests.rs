//! Both estimators against their definitions, value by value.

use super::*;
use proptest::prelude::*;

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Iterated weighted means, from the median until nothing moves.
fn biweight(values: &[f64], cval: f64) -> f64 {
    let mut centre = median(values);
    let scale = cval * median(&values.iter().map(|x| (x - centre).abs()).collect::<Vec<_>>());
    if scale == 0.0 {
        return centre;
    }
    for _ in 0..100 {
        let weight = |x: &f64| (1.0 - ((x - centre) / scale).powi(2)).max(0.0).powi(2);
        let total: f64 = values.iter().map(weight).sum();
        centre += values.iter().map(|x| weight(x) * (x - centre)).sum::<f64>() / total;
    }
    centre
}

/// `estimate` of each window, found by looking at every value.
fn naive(time: &[f64], flux: &[f64], window: Window, estimate: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let known: Vec<usize> = (0..time.len()).filter(|&i| flux[i].is_finite()).collect();
    let mut trend = vec![f64::NAN; time.len()];
    for segment in known.chunk_by(|&a, &b| time[b] - time[a] <= window.break_tolerance) {
        let half = window.length / 2.0;
        let edge = window.edge_cutoff.min(half);
        let (first, last) = (time[segment[0]], time[segment[segment.len() - 1]]);
        for &i in segment.iter().filter(|&&i| time[i] >= first + edge && time[i] <= last - edge) {
            let inside = |&&j: &&usize| time[j] >= time[i] - half && time[j] < time[i] + half;
            let values: Vec<f64> = segment.iter().filter(inside).map(|&j| flux[j]).collect();
            trend[i] = estimate(&values);
        }
    }
    trend
}

fn same(found: &[f64], expected: &[f64], tolerance: f64) -> bool {
    found.iter().zip(expected).all(|(a, b)| a == b || (a - b).abs() <= tolerance || (a.is_nan() && b.is_nan()))
}

/// Steps of time, and flux with ties and missing values.
fn curve() -> impl Strategy<Value = Vec<(f64, f64)>> {
    let step = prop_oneof![8 => 0.8..1.2_f64, 1 => Just(0.0), 1 => 2.0..30.0_f64];
    let flux = prop_oneof![8 => -1.0..1.0_f64, 2 => Just(0.25), 1 => Just(f64::NAN), 1 => 5.0..50.0_f64];
    proptest::collection::vec((step, flux), 1..200)
}

proptest! {
    #[test]
    fn trends_follow_their_definitions(
        curve in curve(),
        length in prop_oneof![0.5..8.0_f64, 8.0..90.0_f64],
        break_tolerance in prop_oneof![Just(f64::INFINITY), 1.0..20.0_f64],
        edge_cutoff in prop_oneof![Just(0.0), 0.0..9.0_f64],
    ) {
        let mut now = 0.0;
        let (time, flux): (Vec<f64>, Vec<f64>) = curve.into_iter().map(|(step, flux)| { now += step; (now, flux) }).unzip();
        let window = Window { length, break_tolerance, edge_cutoff };
        let found = median_filter_time(&time, &flux, 1, window, 1).unwrap();
        prop_assert!(same(&found, &naive(&time, &flux, window, median), 0.0));
    }

    #[test]
    fn the_biweight_is_the_limit_of_weighted_means(noise in proptest::collection::vec(-1.0..1.0_f64, 60..90)) {
        let time: Vec<f64> = (0..noise.len()).map(|i| i as f64).collect();
        // Flat noise with a few outliers: one centre only.
        let flux: Vec<f64> = noise.iter().enumerate().map(|(i, x)| if i % 11 == 3 { 40.0 + x } else { *x }).collect();
        let window = Window { length: 41.0, break_tolerance: 20.0, edge_cutoff: 0.0 };
        let found = biweight_detrend(&time, &flux, 1, window, 5.0, 1).unwrap();
        prop_assert!(same(&found, &naive(&time, &flux, window, |values| biweight(values, 5.0)), 1e-9));
    }
}

/// A light curve of noise, with gaps and missing values.
fn noise(cadences: usize) -> (Vec<f64>, Vec<f64>) {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let time = (0..cadences).map(|i| (i + 300 * (i / 1300)) as f64 + 0.2 * random()).collect();
    let flux = (0..cadences).map(|_| if random() < 0.03 { f64::NAN } else { random() + random() }).collect();
    (time, flux)
}

#[test]
fn windows_of_any_size_are_kept_sorted() {
    // Around the size from which on windows are searched, and far beyond it.
    let (time, flux) = noise(2400);
    for length in [520.0, 530.0, 545.0, 1100.0] {
        let window = Window { length, break_tolerance: 100.0, edge_cutoff: 0.0 };
        let found = median_filter_time(&time, &flux, 1, window, 1).unwrap();
        let expected = naive(&time, &flux, window, median);
        assert!(same(&found, &expected, 0.0), "{length}");
    }
}

#[test]
fn threads_change_no_bit() {
    let (time, flux) = noise(9000);
    for length in [0.1, 37.0, 600.0] {
        let window = Window { length, break_tolerance: length / 2.0, edge_cutoff: 3.0 };
        let bits = |trend: Vec<f64>| trend.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        let median = |threads| bits(median_filter_time(&time, &flux, 1, window, threads).unwrap());
        let biweight = |threads| bits(biweight_detrend(&time, &flux, 1, window, 5.0, threads).unwrap());
        assert_eq!(median(1), median(3));
        assert_eq!(biweight(1), biweight(3));
    }
}

#[test]
fn segments_are_found_across_pieces() {
    // Nothing is known for the length of a piece, within a segment that tolerates it; the edge lies far before.
    let time: Vec<f64> = (0..9000).map(f64::from).collect();
    let flux: Vec<f64> = (0..9000).map(|i| if (100..7000).contains(&i) { f64::NAN } else { 1.0 }).collect();
    for break_tolerance in [1e4, 10.0] {
        let window = Window { length: 40.0, break_tolerance, edge_cutoff: 20.0 };
        let found = median_filter_time(&time, &flux, 1, window, 2).unwrap();
        assert!(same(&found, &naive(&time, &flux, window, median), 0.0));
    }
}

#[test]
fn wrong_input_is_an_error() {
    let window = Window { length: 1.0, break_tolerance: 1.0, edge_cutoff: 0.0 };
    let run = |time: &[f64], curves, window| median_filter_time(time, &[1.0_f32; 4], curves, window, 1);
    assert!(run(&[0.0, 1.0], 2, window).is_ok());
    assert!(run(&[0.0, 1.0], 3, window).is_err());
    assert!(run(&[0.0, 1.0], usize::MAX, window).is_err());
    assert!(run(&[1.0, 0.0], 2, window).is_err());
    assert!(run(&[0.0, f64::NAN], 2, window).is_err());
    for length in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(run(&[0.0, 1.0], 2, Window { length, ..window }).is_err());
    }
    assert!(run(&[0.0, 1.0], 2, Window { break_tolerance: f64::NAN, ..window }).is_err());
    assert!(run(&[0.0, 1.0], 2, Window { edge_cutoff: -1.0, ..window }).is_err());
    assert!(biweight_detrend(&[0.0], &[1.0], 1, window, 0.0, 1).is_err());
}
