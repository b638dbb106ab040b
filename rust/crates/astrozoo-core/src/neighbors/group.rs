//! One cloud cut into columns.

use crate::float::Float;
use crate::neighbors::columns::{Column, NONE};

/// Columns are wider than the radius, and distances to them are taken shorter, by this part of it: far more than
/// rounding can do to coordinates counted in columns.
const MARGIN: f64 = 1e-4;
/// Most columns along an axis; wider ones are used beyond.
const MOST: f64 = (1_u32 << 30) as f64;
/// Squares of smaller radii are zero, or nearly.
const LEAST_RADIUS: f64 = 1e-150;

/// How a cloud is cut into columns, and these into steps.
#[derive(Clone, Copy)]
pub struct Cloud {
    low: [f64; 3],
    width: f64,
    inverse: f64,
    /// The largest distance that matters.
    pub radius: f64,
    /// Steps per unit of length along the third axis.
    pub steps: f64,
    /// The logarithm of the steps in a bucket.
    pub shift: u32,
}

impl Cloud {
    /// Where a coordinate lies, in columns from the lowest one.
    #[inline(always)]
    fn place(&self, axis: usize, value: f64) -> f64 {
        (value - self.low[axis]) * self.inverse
    }

    /// Squared distances of a coordinate to the column before, its own one, and the one behind.
    #[inline(always)]
    pub fn beside(&self, axis: usize, value: f64, place: u32) -> [f64; 3] {
        let part = self.place(axis, value) - f64::from(place);
        let (before, behind) = ((part - MARGIN).max(0.0) * self.width, (1.0 - part - MARGIN).max(0.0) * self.width);
        [before * before, 0.0, behind * behind]
    }

    #[inline(always)]
    fn step(&self, z: f64) -> u32 {
        ((z - self.low[2]) * self.steps) as u32
    }
}

/// A cloud in columns.
pub struct Group {
    /// How it was cut.
    pub cloud: Cloud,
    /// In order; neighbors are numbered within the cloud.
    pub columns: Vec<Column>,
    /// By slot: the step in the upper half, the point in the lower one; not yet sorted within columns.
    pub keys: Vec<u64>,
}

/// Cut a cloud into columns; `first` is the number of its first point and of its first slot.
pub fn group<T: Float>(positions: &[[T; 3]], first: u32, radius: f64) -> Group {
    let (low, high) = positions.iter().fold(([f64::INFINITY; 3], [f64::NEG_INFINITY; 3]), |(low, high), position| {
        let at = position.map(T::to_f64);
        (std::array::from_fn(|i| at[i].min(low[i])), std::array::from_fn(|i| at[i].max(high[i])))
    });
    let radius = radius.max(LEAST_RADIUS);
    let extent = |axis: usize| high[axis] - low[axis];
    let width = (radius * (1.0 + MARGIN)).max(extent(0).max(extent(1)) / MOST);
    // 65,536 steps for a radius, in buckets of a quarter of it; larger ones where the cloud is too long for that.
    let steps = (65_536.0 / radius).min(f64::from(u32::MAX - 8) / extent(2).max(f64::MIN_POSITIVE));
    let shift = ((radius * steps / 4.0) as u32).checked_ilog2().unwrap_or(0);
    let cloud = Cloud { low, width, inverse: 1.0 / width, radius, steps, shift };
    let place = |position: &[T; 3]| {
        let at = |axis: usize| cloud.place(axis, position[axis].to_f64()) as u32;
        (at(0), at(1))
    };
    let key =
        |point: usize| u64::from(cloud.step(positions[point][2].to_f64())) << 32 | u64::from(first + point as u32);
    let rows = cloud.place(1, high[1]) as u64 + 1;
    let squares = (cloud.place(0, high[0]) as u64 + 1) * rows;
    let mut columns = Vec::new();
    let mut push = |place: (u32, u32), begin: usize, end: usize| {
        let (begin, end) = (first + begin as u32, first + end as u32);
        columns.push(Column { begin, end, place, near: [NONE; 9], cloud: 0, table: NONE, buckets: (0, 0) });
    };
    let mut keys = vec![0; positions.len()];
    if squares <= 4 * positions.len() as u64 {
        let square: Vec<u32> = positions.iter().map(place).map(|(i, j)| i * rows as u32 + j).collect();
        let mut ends = vec![0_u32; squares as usize + 1];
        square.iter().for_each(|&square| ends[square as usize + 1] += 1);
        let mut numbers = vec![NONE; squares as usize];
        let mut used = 0;
        for square in 0..squares as usize {
            let begin = ends[square];
            ends[square + 1] += begin;
            if ends[square + 1] > begin {
                push(
                    ((square as u64 / rows) as u32, (square as u64 % rows) as u32),
                    begin as usize,
                    ends[square + 1] as usize,
                );
                numbers[square] = used;
                used += 1;
            }
        }
        for (point, &square) in square.iter().enumerate() {
            keys[ends[square as usize] as usize] = key(point);
            ends[square as usize] += 1;
        }
        link(&mut columns, |(i, j)| {
            (u64::from(j) < rows).then(|| numbers.get(i as usize * rows as usize + j as usize).copied()).flatten()
        });
    } else {
        let mut order: Vec<((u32, u32), u32)> = positions.iter().map(place).zip(0..).collect();
        order.sort_unstable();
        let mut begin = 0;
        for same in order.chunk_by(|one, other| one.0 == other.0) {
            push(same[0].0, begin, begin + same.len());
            begin += same.len();
        }
        order.iter().zip(&mut keys).for_each(|(&(_, point), slot)| *slot = key(point as usize));
        let places: Vec<(u32, u32)> = columns.iter().map(|column| column.place).collect();
        link(&mut columns, |place| places.binary_search(&place).ok().map(|number| number as u32));
    }
    Group { cloud, columns, keys }
}

/// Tell each column the numbers of those around it.
fn link(columns: &mut [Column], number: impl Fn((u32, u32)) -> Option<u32>) {
    for column in columns {
        let (i, j) = column.place;
        for (near, (di, dj)) in column.near.iter_mut().zip((0..9).map(|n| (n / 3, n % 3))) {
            // One less than the column, itself, one more; below zero there is none.
            let place = (i + di).checked_sub(1).zip((j + dj).checked_sub(1));
            *near = place.and_then(&number).unwrap_or(NONE);
        }
    }
}
