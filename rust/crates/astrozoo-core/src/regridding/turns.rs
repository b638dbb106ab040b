//! Weighted sums of runs along a row, as vector operations where the runs follow each other in equal steps.
//!
//! All runs are made as long as the longest with weights of zero, so that the loop over a run has a fixed length. Grids
//! that fit each other (a quarter of a degree and one degree) have runs in equal steps; there the loop over target
//! cells becomes a vector loop, with the weights stored by their place in the run.

use super::runs::Runs;
use std::ops::Range;

/// Runs in equal steps that are worth a vector loop.
const LONG: usize = 16;
/// Steps and lengths of runs that have one.
const VECTORS: [(usize, usize); 10] = [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4), (4, 5), (8, 8), (8, 9)];

/// Runs of columns, ready to be summed over many rows.
pub(super) struct Turns {
    /// Source cells.
    size: usize,
    /// Columns that a row must hold so that no run reaches beyond it: those from the beginning follow those at the end.
    pub(super) width: usize,
    length: usize,
    first: Vec<usize>,
    /// `[target, place in the run]`.
    weights: Vec<f64>,
    pieces: Vec<Piece>,
}

/// Neighbouring target cells whose runs begin `step` after each other; a step of 0 stands for any runs.
struct Piece {
    targets: Range<usize>,
    step: usize,
    /// `[place in the run, target]` of runs in equal steps.
    weights: Vec<f64>,
}

impl Turns {
    pub(super) fn new(columns: &Runs<'_>) -> Self {
        let length = columns.longest();
        let mut weights = Vec::with_capacity(length * columns.len());
        for (_, run) in columns.iter() {
            weights.extend_from_slice(run);
            weights.extend(std::iter::repeat_n(0.0, length - run.len()));
        }
        let first: Vec<usize> = columns.iter().map(|(first, _)| first).collect();
        let pieces = pieces(&first, length, &weights);
        // A vector loop reads whole steps, two of them for each run.
        let ends = pieces.iter().map(|piece| first[piece.targets.start] + piece.step * (piece.targets.len() + 1));
        let width = first.iter().map(|first| first + length).chain(ends).fold(columns.size, usize::max);
        Self { size: columns.size, width, length, first, weights, pieces }
    }

    /// Weighted sums of the runs of a finite row, whose first `size` columns are given.
    #[inline(always)]
    pub(super) fn sum(&self, row: &mut [f64], sums: &mut [f64]) {
        self.go_around(row);
        for piece in &self.pieces {
            let made = &mut sums[piece.targets.clone()];
            let ahead = &row[self.first[piece.targets.start]..];
            match (piece.step, self.length) {
                (1, 1) => in_steps::<1, 1>(&piece.weights, ahead, made),
                (1, 2) => in_steps::<1, 2>(&piece.weights, ahead, made),
                (2, 2) => in_steps::<2, 2>(&piece.weights, ahead, made),
                (2, 3) => in_steps::<2, 3>(&piece.weights, ahead, made),
                (3, 3) => in_steps::<3, 3>(&piece.weights, ahead, made),
                (3, 4) => in_steps::<3, 4>(&piece.weights, ahead, made),
                (4, 4) => in_steps::<4, 4>(&piece.weights, ahead, made),
                (4, 5) => in_steps::<4, 5>(&piece.weights, ahead, made),
                (8, 8) => in_steps::<8, 8>(&piece.weights, ahead, made),
                (8, 9) => in_steps::<8, 9>(&piece.weights, ahead, made),
                _ => self.one_by_one(piece.targets.clone(), row, made),
            }
        }
    }

    #[inline(always)]
    fn one_by_one(&self, targets: Range<usize>, row: &[f64], made: &mut [f64]) {
        let weights = &self.weights[targets.start * self.length..];
        let first = &self.first[targets];
        match self.length {
            1 => unrolled::<1>(weights, first, row, made),
            2 => unrolled::<2>(weights, first, row, made),
            3 => unrolled::<3>(weights, first, row, made),
            4 => unrolled::<4>(weights, first, row, made),
            5 => unrolled::<5>(weights, first, row, made),
            6 => unrolled::<6>(weights, first, row, made),
            length => {
                for (i, (made, &first)) in made.iter_mut().zip(first).enumerate() {
                    *made = dot(&weights[i * length..][..length], &row[first..]);
                }
            }
        }
    }

    /// The same for any row: no infinity meets a weight of zero.
    #[inline(always)]
    pub(super) fn sum_infinite(&self, columns: &Runs<'_>, row: &mut [f64], sums: &mut [f64]) {
        self.go_around(row);
        for (sum, (first, weights)) in sums.iter_mut().zip(columns.iter()) {
            *sum = dot(weights, &row[first..]);
        }
    }

    /// Columns from the beginning once more behind the last.
    #[inline(always)]
    fn go_around(&self, row: &mut [f64]) {
        for i in self.size..row.len() {
            row[i] = row[i - self.size];
        }
    }
}

/// Pieces that cover all targets.
fn pieces(first: &[usize], length: usize, weights: &[f64]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut start = 0;
    while start < first.len() {
        let step = first.get(start + 1).map_or(0, |next| next.saturating_sub(first[start]));
        let equal = first[start..].windows(2).take_while(|pair| step > 0 && pair[1] == pair[0] + step).count();
        let end = start + 1 + equal;
        if equal >= LONG && VECTORS.contains(&(step, length)) {
            let place = |k: usize| (start..end).map(move |target| weights[target * length + k]);
            pieces.push(Piece { targets: start..end, step, weights: (0..length).flat_map(place).collect() });
        } else if let Some(last) = pieces.last_mut().filter(|last| last.step == 0) {
            last.targets.end = end;
        } else {
            pieces.push(Piece { targets: start..end, step: 0, weights: Vec::new() });
        }
        start = end;
    }
    pieces
}

/// Sums of runs of `N` columns that begin `S` after each other, `N` being at most twice `S`.
#[inline(always)]
fn in_steps<const S: usize, const N: usize>(weights: &[f64], row: &[f64], made: &mut [f64]) {
    let count = made.len();
    let (blocks, _) = row.as_chunks::<S>();
    let (here, next) = (&blocks[..count], &blocks[1..=count]);
    let weights: [&[f64]; N] = std::array::from_fn(|k| &weights[k * count..][..count]);
    for i in 0..count {
        let mut sum = 0.0;
        for k in 0..N {
            sum += weights[k][i] * if k < S { here[i][k] } else { next[i][k - S] };
        }
        made[i] = sum;
    }
}

#[inline(always)]
fn unrolled<const N: usize>(weights: &[f64], first: &[usize], row: &[f64], made: &mut [f64]) {
    let (weights, _) = weights.as_chunks::<N>();
    for ((made, weights), &first) in made.iter_mut().zip(weights).zip(first) {
        if let Some(run) = row[first..].first_chunk::<N>() {
            let mut sum = 0.0;
            for k in 0..N {
                sum += weights[k] * run[k];
            }
            *made = sum;
        }
    }
}

#[inline(always)]
fn dot(weights: &[f64], row: &[f64]) -> f64 {
    weights.iter().zip(row).map(|(weight, value)| weight * value).sum()
}
