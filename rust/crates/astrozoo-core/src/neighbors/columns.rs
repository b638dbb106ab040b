//! Points of clouds, laid out so that near ones lie together in memory.
//!
//! Space is cut along two axes into columns a little wider than the radius; within a column, points are sorted along the
//! third axis. A ball then meets nine columns, a run of consecutive points in each. Against a grid of cubes this halves
//! the candidates, because a run is as short as the ball is there, and it knows no empty cells along the third axis:
//! memory follows the number of points, however far they lie apart.
//!
//! Small clouds are one column each, in the order they came in, and every point is a candidate.

use crate::float::Float;
use crate::parallel;
use std::ops::Range;

/// Points of a cloud up to which everything is compared with everything.
pub const SMALL: usize = 80;
/// Points that may be read behind the last one.
pub const PADDING: usize = 8;
/// No column, or no cloud with columns.
const NONE: u32 = u32::MAX;
/// Columns are wider than the radius, and distances to them are taken shorter, by this part of it: far more than
/// rounding can do to coordinates counted in columns.
const MARGIN: f64 = 1e-4;
/// Most columns along an axis; wider ones are used beyond.
const MOST: f64 = (1_u32 << 30) as f64;
/// Squares of smaller radii are zero, or nearly.
const LEAST_RADIUS: f64 = 1e-150;
/// Points of one task when columns are sorted.
const TASK: usize = 4096;

/// Points in slots: the clouds one after the other, each in the order of its columns.
pub struct Layout {
    /// First coordinate of the point in each slot, and `PADDING` more.
    pub x: Vec<f64>,
    /// Second coordinate.
    pub y: Vec<f64>,
    /// Third coordinate.
    pub z: Vec<f64>,
    /// Number of the point in each slot.
    pub point: Vec<u32>,
    /// Third coordinate in steps from the lowest of the cloud, rounded down.
    step: Vec<u32>,
    /// In the order of their slots.
    pub columns: Vec<Column>,
    clouds: Vec<Cloud>,
    tables: Vec<u32>,
}

/// Points that lie together within a square of the first two axes.
#[derive(Clone, Copy)]
pub struct Column {
    begin: u32,
    end: u32,
    place: (u32, u32),
    /// The nine columns around this one.
    near: [u32; 9],
    /// Its cloud; none where the cloud is one column.
    cloud: u32,
    /// Where its table of buckets begins; none where runs are found by bisection.
    table: u32,
    /// First bucket, and the last one.
    buckets: (u32, u32),
}

impl Column {
    /// Slots of its points.
    pub fn slots(&self) -> Range<usize> {
        self.begin as usize..self.end as usize
    }

    /// Whether its slots hold its points in the order they came in, and no other column has candidates for them.
    pub fn is_whole_cloud(&self) -> bool {
        self.cloud == NONE
    }
}

/// Runs of slots, none of them empty.
#[derive(Default)]
pub struct Runs {
    /// First slot of each run, and the one behind its last; what is behind `len` is of no meaning.
    pub runs: [(usize, usize); 9],
    /// How many runs there are.
    pub len: usize,
    /// How many slots they have.
    pub candidates: usize,
}

#[derive(Clone, Copy)]
struct Cloud {
    low: [f64; 3],
    width: f64,
    inverse: f64,
    radius: f64,
    /// Steps per unit of length along the third axis, and the logarithm of the steps in a bucket.
    steps: f64,
    shift: u32,
}

impl Cloud {
    #[inline(always)]
    /// Where a coordinate lies, in columns from the lowest one.
    fn place(&self, axis: usize, value: f64) -> f64 {
        (value - self.low[axis]) * self.inverse
    }

    /// Squared distances of a coordinate to the column before, its own one, and the one behind.
    #[inline(always)]
    fn beside(&self, axis: usize, value: f64, place: u32) -> [f64; 3] {
        let part = self.place(axis, value) - f64::from(place);
        let (before, behind) = ((part - MARGIN).max(0.0) * self.width, (1.0 - part - MARGIN).max(0.0) * self.width);
        [before * before, 0.0, behind * behind]
    }

    #[inline(always)]
    fn step(&self, z: f64) -> u32 {
        ((z - self.low[2]) * self.steps) as u32
    }
}

impl Layout {
    /// Lay out finite `positions[point, 3]` of clouds whose points are consecutive.
    pub fn new<T: Float>(positions: &[[T; 3]], clouds: &[Range<usize>], radius: f64, threads: usize) -> Self {
        let points = positions.len();
        let mut layout = Self {
            x: vec![0.0; points + PADDING],
            y: vec![0.0; points + PADDING],
            z: vec![0.0; points + PADDING],
            point: (0..points as u32).chain([0; PADDING]).collect(),
            step: vec![0; points],
            columns: Vec::new(),
            clouds: Vec::new(),
            tables: Vec::new(),
        };
        let large: Vec<Range<usize>> = clouds.iter().filter(|cloud| cloud.len() > SMALL).cloned().collect();
        let grouped = parallel::map(threads, large, |cloud| {
            group(&positions[cloud.clone()], cloud.start as u32, radius)
        });
        let mut grouped = grouped.into_iter();
        let mut keys: Vec<u64> = (0..points as u64).collect();
        for cloud in clouds {
            let first = layout.columns.len() as u32;
            let (begin, end) = (cloud.start as u32, cloud.end as u32);
            if cloud.len() <= SMALL {
                if begin < end {
                    let near = [first, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE];
                    let (place, buckets) = ((0, 0), (0, 0));
                    layout.columns.push(Column { begin, end, place, near, cloud: NONE, table: NONE, buckets });
                }
            } else if let Some(group) = grouped.next() {
                keys[cloud.clone()].copy_from_slice(&group.keys);
                let number = layout.clouds.len() as u32;
                layout.clouds.push(group.cloud);
                layout.columns.extend(group.columns.into_iter().map(|mut column| {
                    column.cloud = number;
                    for near in column.near.iter_mut().filter(|near| **near != NONE) {
                        *near += first;
                    }
                    column
                }));
            }
        }
        layout.sort(&mut keys, threads);
        layout.gather(positions, &keys, threads);
        layout.tabulate();
        layout
    }

    /// Sort each column along the third axis; equal steps keep the order of the points.
    fn sort(&self, keys: &mut [u64], threads: usize) {
        let mut tasks = Vec::new();
        let mut columns = &self.columns[..];
        let mut rest = keys;
        while let Some(first) = columns.first() {
            let begin = first.begin as usize;
            let count = columns.iter().take_while(|column| column.end as usize <= begin + TASK).count().max(1);
            let (mine, others) = columns.split_at(count);
            let (keys, more) = rest.split_at_mut(mine[count - 1].end as usize - begin);
            tasks.push((mine, keys));
            (columns, rest) = (others, more);
        }
        parallel::map(threads, tasks, |(columns, keys)| {
            let mut rest = keys;
            for column in columns {
                let (keys, more) = rest.split_at_mut(column.slots().len());
                if !column.is_whole_cloud() {
                    keys.sort_unstable();
                }
                rest = more;
            }
        });
    }

    /// Bring coordinates into the order of the slots.
    fn gather<T: Float>(&mut self, positions: &[[T; 3]], keys: &[u64], threads: usize) {
        let slots = self.x.chunks_mut(TASK).zip(self.y.chunks_mut(TASK)).zip(self.z.chunks_mut(TASK));
        let slots = slots.zip(self.point.chunks_mut(TASK)).zip(self.step.chunks_mut(TASK)).zip(keys.chunks(TASK));
        parallel::map(threads, slots.collect(), |(((((x, y), z), point), step), keys)| {
            for (slot, &key) in keys.iter().enumerate() {
                point[slot] = key as u32;
                step[slot] = (key >> 32) as u32;
                [x[slot], y[slot], z[slot]] = positions[key as u32 as usize].map(T::to_f64);
            }
        });
    }

    /// Where the points of each bucket of a column begin, where buckets are not much more than points.
    fn tabulate(&mut self) {
        for column in self.columns.iter_mut().filter(|column| !column.is_whole_cloud()) {
            let shift = self.clouds[column.cloud as usize].shift;
            let steps = &self.step[column.begin as usize..column.end as usize];
            let [first, .., last] = steps else { continue };
            let (first, last) = (first >> shift, last >> shift);
            if u64::from(last - first) > 8 * steps.len() as u64 {
                continue;
            }
            column.table = self.tables.len() as u32;
            column.buckets = (first, last);
            let mut next = first;
            for (slot, step) in (column.begin..).zip(steps) {
                let bucket = step >> shift;
                while next <= bucket {
                    self.tables.push(slot);
                    next += 1;
                }
            }
            self.tables.push(column.end);
        }
    }

    /// Find the slots that may hold points within the radius of the point in `slot` of `column`.
    #[inline(always)]
    pub fn find_runs(&self, slot: usize, column: &Column, runs: &mut Runs) {
        if column.is_whole_cloud() {
            runs.runs[0] = (column.begin as usize, column.end as usize);
            (runs.len, runs.candidates) = (1, column.slots().len());
            return;
        }
        let cloud = &self.clouds[column.cloud as usize];
        let across = cloud.beside(0, self.x[slot], column.place.0);
        let along = cloud.beside(1, self.y[slot], column.place.1);
        let square = cloud.radius * cloud.radius;
        let mut reach = [0.0_f64; 9];
        for i in 0..9 {
            let left = square - (across[i / 3] + along[i % 3]);
            reach[i] = if left < 0.0 { -1.0 } else { left.sqrt() * cloud.steps + 3.0 };
        }
        let step = self.step[slot];
        (runs.len, runs.candidates) = (0, 0);
        for i in 0..9 {
            let near = column.near[i];
            if near == NONE || reach[i] < 0.0 {
                continue;
            }
            let reach = reach[i] as u32;
            let (low, high) = (step.saturating_sub(reach), step.saturating_add(reach));
            let run = self.run(&self.columns[near as usize], low, high, cloud.shift);
            runs.runs[runs.len] = run;
            runs.len += usize::from(run.0 < run.1);
            runs.candidates += run.1 - run.0;
        }
    }

    /// Slots of a column that hold the steps from `low` to `high`, and perhaps a few more around them.
    #[inline(always)]
    fn run(&self, column: &Column, low: u32, high: u32, shift: u32) -> (usize, usize) {
        if column.table == NONE {
            let steps = &self.step[column.begin as usize..column.end as usize];
            let begin = steps.partition_point(|&step| step < low);
            let end = steps.partition_point(|&step| step <= high);
            return (column.begin as usize + begin, column.begin as usize + end);
        }
        let (first, last) = column.buckets;
        let begin = (low >> shift).clamp(first, last + 1) - first;
        let end = ((high >> shift).min(last) + 1).max(first) - first;
        let table = column.table as usize;
        (self.tables[table + begin as usize] as usize, self.tables[table + end as usize] as usize)
    }
}

struct Group {
    cloud: Cloud,
    columns: Vec<Column>,
    /// By slot: the step in the upper half, the point in the lower one; not yet sorted within columns.
    keys: Vec<u64>,
}

/// Cut a cloud into columns; `first` is the number of its first point and of its first slot.
fn group<T: Float>(positions: &[[T; 3]], first: u32, radius: f64) -> Group {
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
    let key = |point: usize| u64::from(cloud.step(positions[point][2].to_f64())) << 32 | u64::from(first + point as u32);
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
                push(((square as u64 / rows) as u32, (square as u64 % rows) as u32), begin as usize, ends[square + 1] as usize);
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
