//! Groups of values in an array `[outer, kept, inner]`: a group of `kept` lies in `outer` runs of `inner` values.

use super::select::Ordered;
use crate::parallel;
use std::ops::Range;

/// Groups whose values are moved side by side together: a cache line of single-precision values.
pub const TILE: usize = 16;

/// An array `[outer, kept, inner]`, seen as `kept` groups of `size` values each.
#[derive(Clone, Copy)]
pub struct Groups<'a, T> {
    values: &'a [T],
    /// How many groups there are.
    pub kept: usize,
    /// Values of one that lie next to each other.
    pub inner: usize,
    /// Values of one group.
    pub size: usize,
}

impl<'a, T: Ordered> Groups<'a, T> {
    /// The groups of `values[outer, kept, inner]`, which are not empty.
    pub fn new(values: &'a [T], kept: usize, inner: usize) -> Self {
        Self { values, kept, inner, size: values.len() / kept }
    }

    /// The value at a position within a group.
    pub fn at(&self, group: usize, position: usize) -> T {
        let (run, offset) = (position / self.inner, position % self.inner);
        self.values[(run * self.kept + group) * self.inner + offset]
    }

    /// The slices in memory that hold the positions `range` of a group, in order.
    pub fn slices(&self, group: usize, range: Range<usize>) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let Self { values, kept, inner, .. } = *self;
        let runs = range.start / inner..range.end.div_ceil(inner);
        runs.map(move |run| {
            let start = range.start.max(run * inner) - run * inner;
            let end = range.end.min((run + 1) * inner) - run * inner;
            &values[(run * kept + group) * inner..][start..end]
        })
    }

    /// Keys of the known values of each of some groups.
    pub fn keys(&self, groups: Range<usize>) -> Vec<Vec<T::Key>> {
        if self.inner >= TILE || groups.len() == 1 {
            return groups.map(|group| self.keys_of(group)).collect();
        }
        let mut keys = vec![vec![T::Key::default(); self.size]; groups.len()];
        let mut known = vec![0; groups.len()];
        for row in self.values.chunks_exact(self.kept * self.inner) {
            let row = &row[groups.start * self.inner..groups.end * self.inner];
            for ((run, keys), known) in row.chunks_exact(self.inner).zip(&mut keys).zip(&mut known) {
                *known = append(run, keys, *known);
            }
        }
        for (keys, known) in keys.iter_mut().zip(known) {
            keys.truncate(known);
        }
        keys
    }

    fn keys_of(&self, group: usize) -> Vec<T::Key> {
        let mut keys = vec![T::Key::default(); self.size];
        let known = self.slices(group, 0..self.size).fold(0, |known, run| append(run, &mut keys, known));
        keys.truncate(known);
        keys
    }

    /// Copies `[group, size]` of at most `TILE` groups at a time, made on several threads.
    pub fn side_by_side(&self, threads: usize) -> impl Iterator<Item = Vec<T>> {
        let Self { values, kept, inner, size } = *self;
        (0..kept).step_by(TILE).map(move |first| {
            let groups = TILE.min(kept - first);
            let mut copies = vec![T::NAN; groups * size];
            let rows = ((1 << 16) / (TILE * inner)).max(1);
            let mut tasks: Vec<Vec<&mut [T]>> = (0..size.div_ceil(rows * inner)).map(|_| Vec::new()).collect();
            for copy in copies.chunks_exact_mut(size) {
                for (task, piece) in tasks.iter_mut().zip(copy.chunks_mut(rows * inner)) {
                    task.push(piece);
                }
            }
            parallel::map(threads, tasks.into_iter().enumerate().collect(), |(task, mut pieces)| {
                let rows = values.chunks_exact(kept * inner).skip(task * rows).take(rows);
                for (i, row) in rows.enumerate() {
                    let row = &row[first * inner..(first + groups) * inner];
                    for (run, piece) in row.chunks_exact(inner).zip(&mut pieces) {
                        piece[i * inner..][..inner].copy_from_slice(run);
                    }
                }
            });
            copies
        })
    }
}

/// Write the keys of the known values of `run` behind the first `known` of `keys`; gives how many there are now.
#[inline(always)]
fn append<T: Ordered>(run: &[T], keys: &mut [T::Key], mut known: usize) -> usize {
    for &value in run {
        // Written in any case and kept where known: NaN is scattered, and a branch would be mispredicted.
        keys[known] = value.key();
        known += usize::from(!value.is_nan());
    }
    known
}
