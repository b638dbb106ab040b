//! The values of a window, kept in order while it slides.
//!
//! One value leaves and another enters in a single pass: whether an element stays, moves up or moves down follows from
//! comparing it and its neighbours with the two, so whole vectors are computed without a search and without a branch,
//! which light curves with their noise would mispredict every time. Long windows, where a pass costs more than that, are
//! searched, and what lies between the two places is moved.

use super::windows::LANES;
use std::ops::Range;

/// Longest window that is passed over as a whole.
const SHORT: usize = 512;

/// Values in ascending order, between negative and positive infinities.
#[derive(Default)]
pub struct Sorted {
    values: Vec<f64>,
    /// Where the next pass writes.
    spare: Vec<f64>,
    len: usize,
    /// Blocks that a pass writes; behind them, both lists hold infinities only.
    blocks: usize,
}

impl Sorted {
    /// The values in ascending order.
    #[inline(always)]
    pub fn as_slice(&self) -> &[f64] {
        &self.values[LANES..LANES + self.len]
    }

    /// The same, followed by at least a block of infinities.
    #[inline(always)]
    pub fn padded(&self) -> &[f64] {
        &self.values[LANES..]
    }

    /// Hold the values of `flux[to]`, after those of `flux[from]`. Both ends of `to` lie at or behind those of `from`.
    #[inline(always)]
    pub fn slide(&mut self, flux: &[f64], from: Range<usize>, to: Range<usize>) {
        let old = &flux[from.start..to.start.clamp(from.start, from.end)];
        let new = &flux[from.end.max(to.start)..to.end];
        let steps = old.len().max(new.len());
        if 2 * steps > to.len() {
            self.restart(&flux[to]);
            return;
        }
        for i in 0..steps {
            let old = old.get(i).copied().unwrap_or(f64::INFINITY);
            let new = new.get(i).copied().unwrap_or(f64::INFINITY);
            if old < f64::INFINITY {
                self.len -= 1;
            }
            if new < f64::INFINITY {
                self.len += 1;
                self.reserve();
            }
            if self.len <= SHORT { self.pass(old, new) } else { self.shift(old, new) }
        }
    }

    #[inline(never)]
    fn restart(&mut self, window: &[f64]) {
        self.len = window.len();
        self.blocks = 0;
        self.values.clear();
        self.spare.clear();
        self.values.resize(LANES, f64::NEG_INFINITY);
        self.spare.resize(LANES, f64::NEG_INFINITY);
        self.values.extend_from_slice(window);
        self.values[LANES..].sort_unstable_by(f64::total_cmp);
        self.reserve();
    }

    /// Make room for one value more than there are, and for the neighbour of the last one that a pass looks at.
    #[inline(always)]
    fn reserve(&mut self) {
        let blocks = self.len / LANES + 1;
        if blocks > self.blocks {
            self.blocks = blocks;
            self.values.resize((blocks + 2) * LANES, f64::INFINITY);
            self.spare.resize((blocks + 2) * LANES, f64::INFINITY);
        }
    }

    /// Exchange `old` for `new`; infinity stands for no value.
    #[inline(always)]
    fn pass(&mut self, old: f64, new: f64) {
        let size = self.blocks * LANES;
        let before = &self.values[LANES - 1..][..size];
        let here = &self.values[LANES..][..size];
        let behind = &self.values[LANES + 1..][..size];
        let written = &mut self.spare[LANES..][..size];
        for i in 0..size {
            // First without `old`: its followers move down by one.
            let previous = if before[i] < old { before[i] } else { here[i] };
            let current = if here[i] < old { here[i] } else { behind[i] };
            // Then with `new`: its followers move up by one.
            let entered = if new > previous { new } else { previous };
            written[i] = if entered < current { entered } else { current };
        }
        std::mem::swap(&mut self.values, &mut self.spare);
    }

    /// As `pass`, in place.
    #[inline(never)]
    fn shift(&mut self, old: f64, new: f64) {
        let place = |value: f64| LANES + self.values[LANES..].partition_point(|&other| other < value);
        let (from, to) = (place(old), place(new));
        if from < to {
            self.values.copy_within(from + 1..to, from);
            self.values[to - 1] = new;
        } else {
            self.values.copy_within(to..from, to + 1);
            self.values[to] = new;
        }
    }
}
