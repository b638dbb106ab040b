//! Points of clouds, laid out so that near ones lie together in memory.
//!
//! Space is cut along two axes into columns a little wider than the radius; within a column, points are sorted along the
//! third axis. A ball then meets nine columns, a run of consecutive points in each. Against a grid of cubes this halves
//! the candidates, because a run is as short as the ball is there, and it knows no empty cells along the third axis:
//! memory follows the number of points, however far they lie apart.
//!
//! Small clouds are one column each, in the order they came in, and every point is a candidate.

use crate::float::Float;
use crate::neighbors::group::{Cloud, group};
use crate::parallel;
use std::ops::Range;

/// Points of a cloud up to which everything is compared with everything.
pub const SMALL: usize = 80;
/// Points that may be read behind the last one.
pub const PADDING: usize = 8;
/// No column, no table, or no cloud with columns.
pub const NONE: u32 = u32::MAX;
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
    /// Its first slot.
    pub begin: u32,
    /// The slot behind its last one.
    pub end: u32,
    /// Where it lies along the first two axes of its cloud.
    pub place: (u32, u32),
    /// The nine columns around this one.
    pub near: [u32; 9],
    /// Its cloud; none where the cloud is one column.
    pub cloud: u32,
    /// Where its table of buckets begins; none where runs are found by bisection.
    pub table: u32,
    /// First bucket, and the last one.
    pub buckets: (u32, u32),
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
        let grouped =
            parallel::map(threads, large, |cloud| group(&positions[cloud.clone()], cloud.start as u32, radius));
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
