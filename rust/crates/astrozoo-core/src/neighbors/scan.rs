//! The loops over candidates: eight distances at a time, without a branch for each.
//!
//! These functions are inlined into ones that are compiled for several instruction sets. A closure that they gave to the
//! standard library would keep its instruction set and not be inlined, so there is none.

use crate::neighbors::columns::{Layout, PADDING, Runs};

/// Candidates that are looked at together.
const LANES: usize = PADDING;
/// Neighbours up to which the place of each is found by comparing it with all others.
const RANKED: usize = 128;
/// Neighbours that are compared at a time.
const RANKS: usize = 16;

/// Values of the eight slots from `begin` on; by value, so that no store can come between the loads.
#[inline(always)]
fn eight<T: Copy + Default>(values: &[T], begin: usize) -> [T; LANES] {
    let mut lanes = [T::default(); LANES];
    lanes.copy_from_slice(&values[begin..][..LANES]);
    lanes
}

/// Squared distances of the eight points from slot `begin` on from the one at `(x, y, z)`.
#[inline(always)]
fn squares(layout: &Layout, begin: usize, (x, y, z): (f64, f64, f64)) -> [f64; LANES] {
    let (xs, ys, zs) = (eight(&layout.x, begin), eight(&layout.y, begin), eight(&layout.z, begin));
    let mut squares = [0.0; LANES];
    for lane in 0..LANES {
        let (dx, dy, dz) = (xs[lane] - x, ys[lane] - y, zs[lane] - z);
        squares[lane] = dx * dx + dy * dy + dz * dz;
    }
    squares
}

/// Points within the radius of the one in `slot`, itself included.
#[inline(always)]
pub fn count(layout: &Layout, slot: usize, runs: &Runs, square: f64) -> u32 {
    let at = (layout.x[slot], layout.y[slot], layout.z[slot]);
    // Sums of floats keep their order, so the compiler adds lane by lane rather than candidate by candidate.
    let mut hits = [0.0_f64; LANES];
    for &(mut begin, end) in &runs.runs[..runs.len] {
        while begin < end {
            let squares = squares(layout, begin, at);
            for lane in 0..LANES {
                hits[lane] += if (squares[lane] <= square) & (lane < end - begin) { 1.0 } else { 0.0 };
            }
            begin += LANES;
        }
    }
    hits.iter().sum::<f64>() as u32
}

/// The neighbours of one point: their numbers and squared distances.
#[derive(Default)]
pub struct Found {
    /// Numbers of points; what is behind `len` is of no meaning.
    pub point: Vec<u32>,
    /// Squared distances.
    pub square: Vec<f64>,
    /// How many were found.
    pub len: usize,
    /// The place of each among all, after `order`.
    pub rank: Vec<u32>,
    candidates: Vec<u32>,
    squares: Vec<f64>,
    ordered: Vec<(u64, u32)>,
}

impl Found {
    /// Find the points within the radius of the one in `slot`, itself only with `myself`.
    #[inline(always)]
    pub fn search(&mut self, layout: &Layout, slot: usize, runs: &Runs, square: f64, myself: bool) {
        self.make_room(runs.candidates);
        let at = (layout.x[slot], layout.y[slot], layout.z[slot]);
        // All candidates first: eight at a time, the next run over what the last vector of one has too much.
        let (mut candidates, mut own) = (0, usize::MAX);
        for &(begin, end) in &runs.runs[..runs.len] {
            let (mut from, mut to) = (begin, candidates);
            while from < end {
                let (points, squares) = (eight(&layout.point, from), squares(layout, from, at));
                self.candidates[to..][..LANES].copy_from_slice(&points);
                self.squares[to..][..LANES].copy_from_slice(&squares);
                (from, to) = (from + LANES, to + LANES);
            }
            if (begin..end).contains(&slot) {
                own = candidates + slot - begin;
            }
            candidates += end - begin;
        }
        if let Some(square) = self.squares.get_mut(own).filter(|_| !myself) {
            *square = f64::INFINITY;
        }
        // Then those within the radius: written always, kept only where the place moves on, so that no branch has to
        // be guessed.
        let kept = &mut self.rank[..candidates];
        let mut hits = 0;
        for (i, &candidate) in (0..).zip(&self.squares[..candidates]) {
            kept[hits] = i;
            hits += usize::from(candidate <= square);
        }
        self.len = hits;
        for (i, &candidate) in kept[..hits].iter().enumerate() {
            self.point[i] = self.candidates[candidate as usize];
            self.square[i] = self.squares[candidate as usize];
        }
    }

    #[inline(always)]
    fn make_room(&mut self, candidates: usize) {
        let room = candidates + RANKS.max(LANES);
        if self.point.len() < room {
            for numbers in [&mut self.point, &mut self.rank, &mut self.candidates] {
                numbers.resize(room, 0);
            }
            self.square.resize(room, 0.0);
            self.squares.resize(room, 0.0);
        }
    }

    /// Keep the `most` nearest; of equally near ones those with the lowest numbers.
    pub fn keep_nearest(&mut self, most: usize) {
        // Bits of floats that are not negative are ordered as the floats are.
        let pairs = self.square[..self.len].iter().map(|square| square.to_bits()).zip(self.point.iter().copied());
        self.ordered.clear();
        self.ordered.extend(pairs);
        self.ordered.select_nth_unstable(most);
        self.len = most;
        for (i, &(square, point)) in self.ordered[..most].iter().enumerate() {
            (self.square[i], self.point[i]) = (f64::from_bits(square), point);
        }
    }

    /// Find the place of each neighbour among all, by number; `in_order` says that they lie so already.
    #[inline(always)]
    pub fn order(&mut self, in_order: bool) {
        if in_order {
            (0..).zip(&mut self.rank[..self.len]).for_each(|(place, rank)| *rank = place);
        } else if self.len <= RANKED {
            for begin in (0..self.len).step_by(RANKS) {
                let mine = &self.point[begin..][..RANKS];
                let mut ranks = [0.0_f32; RANKS]; // floats for the reason that `count` has them
                for &other in &self.point[..self.len] {
                    for lane in 0..RANKS {
                        ranks[lane] += if other < mine[lane] { 1.0 } else { 0.0 };
                    }
                }
                let rank = &mut self.rank[begin..][..RANKS];
                for lane in 0..RANKS {
                    rank[lane] = ranks[lane] as u32;
                }
            }
        } else {
            self.ordered.clear();
            self.ordered.extend(self.point[..self.len].iter().map(|&point| u64::from(point)).zip(0..));
            self.ordered.sort_unstable();
            for (place, &(_, i)) in (0..).zip(&self.ordered) {
                self.rank[i as usize] = place;
            }
        }
    }
}
