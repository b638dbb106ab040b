//! Where the quantiles of a long group lie, from a sample of it; and one pass over the group that counts what lies
//! below and collects what lies there.

use super::groups::Groups;
use super::select::{Ordered, place};
use multiversion::multiversion;
use std::ops::Range;

/// Half the width of a bracket, in standard deviations of the rank that a sampled quantile has in the group: of 30000
/// brackets about one misses.
const DEVIATIONS: f64 = 4.0;
/// What is added to it, in ranks of the sample: the ends of a distribution are far from normal.
const RANKS: f64 = 8.0;
/// A sample with fewer known values says nothing.
const LEAST: usize = 100;
/// Values that are compared side by side.
const LANES: usize = 16;

/// Intervals of values that hold certain quantiles, most likely.
#[derive(Debug, PartialEq)]
pub struct Brackets<T> {
    /// Intervals, ascending and disjoint, whose values are collected; both ends belong to them.
    pub intervals: Vec<(T, T)>,
    /// Single values that fill a bracket, such as 0 in precipitation: they are only counted.
    pub atoms: Vec<T>,
}

impl<T: Ordered> Brackets<T> {
    /// One interval with all values.
    pub fn everything() -> Self {
        Self { intervals: vec![(T::NEG_INFINITY, T::INFINITY)], atoms: Vec::new() }
    }

    /// Brackets around ascending quantiles of a group, from a sample of (size of the group) to the power of 2/3: then
    /// sampling takes about as long as selecting from what is collected.
    pub fn around(groups: &Groups<'_, T>, group: usize, q: &[f64]) -> Self {
        let size = groups.size as f64;
        let sample = size.cbrt().powi(2).ceil();
        // One place in each of equal parts of the group, at random: a regular one would meet a period of the data.
        let mut keys: Vec<T::Key> = (0..sample as u64)
            .map(|i| (((i as f64 + uniform(i)) * (size / sample)) as usize).min(groups.size - 1))
            .map(|position| groups.at(group, position))
            .filter(|value| !value.is_nan())
            .map(T::key)
            .collect();
        if keys.len() < LEAST { Self::everything() } else { Self::of_sample(&mut keys, q) }
    }

    fn of_sample(keys: &mut Vec<T::Key>, q: &[f64]) -> Self {
        let last = (keys.len() - 1) as f64;
        let ends: Vec<(f64, f64)> = q
            .iter()
            .map(|&q| {
                let half = DEVIATIONS * (keys.len() as f64 * q * (1.0 - q)).sqrt() + RANKS;
                ((q * last - half).floor(), (q * last + half).ceil())
            })
            .collect();
        let within = |rank: &f64| (0.0..=last).contains(rank);
        let mut ranks: Vec<usize> =
            ends.iter().flat_map(|&(low, high)| [low, high]).filter(within).map(|rank| rank as usize).collect();
        ranks.sort_unstable();
        ranks.dedup();
        place(keys, &ranks);
        let at = |rank: f64, beyond: T| if within(&rank) { T::of_key(keys[rank as usize]) } else { beyond };
        Self::of_ends(ends.iter().map(|&(low, high)| (at(low, T::NEG_INFINITY), at(high, T::INFINITY))).collect())
    }

    /// Sort, tell atoms from intervals, and join intervals that overlap.
    fn of_ends(mut ends: Vec<(T, T)>) -> Self {
        ends.sort_unstable_by_key(|&(low, _)| low.key());
        let mut found = Self { intervals: Vec::with_capacity(ends.len()), atoms: Vec::new() };
        for (low, high) in ends {
            if low == high {
                if found.atoms.last() != Some(&low) {
                    found.atoms.push(low);
                }
            } else if let Some((_, end)) = found.intervals.last_mut().filter(|(_, end)| low <= *end) {
                *end = if high > *end { high } else { *end };
            } else {
                found.intervals.push((low, high));
            }
        }
        found
    }
}

/// What one pass over some values finds out about brackets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan<T> {
    /// How many values are known.
    pub known: usize,
    /// For each interval, then each atom: how many values are below it, and how many below or in it.
    pub counts: Vec<(usize, usize)>,
    /// The values in the intervals, piece by piece.
    pub inside: Vec<Vec<T>>,
}

impl<T: Ordered> Scan<T> {
    /// Look at positions of a group.
    pub fn of(groups: &Groups<'_, T>, group: usize, positions: Range<usize>, brackets: &Brackets<T>) -> Self {
        let all = brackets.intervals.len() + brackets.atoms.len();
        let mut lanes = Counts { known: [0; LANES], brackets: vec![[[0; LANES]; 2]; all] };
        let mut inside = Vec::new();
        for slice in groups.slices(group, positions) {
            look(slice, brackets, &mut lanes, &mut inside);
        }
        let total = |lanes: &[u32; LANES]| lanes.iter().map(|&count| count as usize).sum();
        let counts = lanes.brackets.iter().map(|[below, upto]| (total(below), total(upto))).collect();
        Self { known: total(&lanes.known), counts, inside: vec![inside] }
    }

    /// What both passes found together.
    pub fn merge(&mut self, other: Self) {
        self.known += other.known;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = (count.0 + more.0, count.1 + more.1);
        }
        self.inside.extend(other.inside);
    }

    /// The values at ascending `ranks` of all known values; None where a bracket missed one.
    pub fn at(&self, brackets: &Brackets<T>, ranks: &[usize]) -> Option<Vec<f64>> {
        let (intervals, atoms) = self.counts.split_at(brackets.intervals.len());
        // Intervals are disjoint, so their values follow one another in what was collected, once it is in order.
        let mut starts = vec![0; intervals.len()];
        for i in 1..intervals.len() {
            starts[i] = starts[i - 1] + intervals[i - 1].1 - intervals[i - 1].0;
        }
        let holds = |rank: usize| move |&(below, upto): &(usize, usize)| below <= rank && rank < upto;
        let mut values = Vec::with_capacity(ranks.len());
        let mut selected = Vec::new();
        for &rank in ranks {
            if let Some(i) = atoms.iter().position(holds(rank)) {
                values.push(brackets.atoms[i].to_f64());
            } else {
                let i = intervals.iter().position(holds(rank))?;
                selected.push((values.len(), starts[i] + rank - intervals[i].0));
                values.push(f64::NAN);
            }
        }
        let mut keys = Vec::with_capacity(self.inside.iter().map(Vec::len).sum());
        self.inside.iter().for_each(|piece| keys.extend(piece.iter().map(|value| value.key())));
        place(&mut keys, &selected.iter().map(|&(_, rank)| rank).collect::<Vec<_>>());
        for (i, rank) in selected {
            values[i] = T::of_key(keys[rank]).to_f64();
        }
        Some(values)
    }
}

/// Counts by lane: of known values, and of those below and up to each bracket.
struct Counts {
    known: [u32; LANES],
    brackets: Vec<[[u32; LANES]; 2]>,
}

/// Count and collect `values`, a fixed number side by side.
fn look<T: Ordered>(values: &[T], brackets: &Brackets<T>, counts: &mut Counts, inside: &mut Vec<T>) {
    let (lanes, rest) = values.as_chunks::<LANES>();
    look_at_lanes(lanes, brackets, counts, inside);
    if !rest.is_empty() {
        let mut last = [T::NAN; LANES]; // NaN is counted and collected nowhere
        last[..rest.len()].copy_from_slice(rest);
        look_at_lanes(&[last], brackets, counts, inside);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn look_at_lanes<T: Ordered>(
    lanes: &[[T; LANES]],
    brackets: &Brackets<T>,
    counts: &mut Counts,
    collected: &mut Vec<T>,
) {
    let (intervals, atoms) = counts.brackets.split_at_mut(brackets.intervals.len());
    for values in lanes {
        for i in 0..LANES {
            counts.known[i] += u32::from(!values[i].is_nan());
        }
        let mut inside = [0_u32; LANES];
        for ([below, upto], &(low, high)) in intervals.iter_mut().zip(&brackets.intervals) {
            for i in 0..LANES {
                let (under, within) = (u32::from(values[i] < low), u32::from(values[i] <= high));
                below[i] += under;
                upto[i] += within;
                inside[i] |= under ^ within;
            }
        }
        for ([below, upto], &atom) in atoms.iter_mut().zip(&brackets.atoms) {
            for i in 0..LANES {
                below[i] += u32::from(values[i] < atom);
                upto[i] += u32::from(values[i] <= atom);
            }
        }
        if inside.iter().fold(0, |any, &flag| any | flag) != 0 {
            // Every value is written, and the end moves on only for those that stay: no branch to mispredict.
            let mut kept = [T::NAN; LANES];
            let mut end = 0;
            for i in 0..LANES {
                kept[end % LANES] = values[i];
                end += inside[i] as usize;
            }
            collected.extend_from_slice(&kept[..end]);
        }
    }
}

/// Number from 0 to below 1 that looks random (the finaliser of SplitMix64, Steele, Lea and Flood 2014).
fn uniform(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ends_join_and_single_values_are_atoms() {
        let ends = vec![(3.0, 5.0), (1.0, 2.0), (5.0, 6.0), (0.0, 0.0), (2.5, 2.5), (0.0, -0.0), (1.5, 1.7)];
        let found = Brackets::of_ends(ends);
        assert_eq!(found.intervals, vec![(1.0, 2.0), (3.0, 6.0)]);
        assert_eq!(found.atoms, vec![0.0, 2.5]);
    }

    #[test]
    fn a_scan_counts_and_collects() {
        let values: Vec<f32> = (0..37).map(|i| if i % 5 == 4 { f32::NAN } else { (i % 10) as f32 }).collect();
        let groups = Groups::new(&values, 1, 37);
        let brackets = Brackets { intervals: vec![(1.0, 3.0), (7.0, f32::INFINITY)], atoms: vec![6.0] };
        let mut scan = Scan::of(&groups, 0, 0..20, &brackets);
        scan.merge(Scan::of(&groups, 0, 20..37, &brackets));
        assert_eq!(scan.known, 30);
        assert_eq!(scan.counts, vec![(4, 16), (24, 30), (20, 24)]);
        let mut sorted: Vec<f32> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        sorted.sort_by(f32::total_cmp);
        for rank in 0..30 {
            let value = sorted[rank];
            let missed = !((1.0..=3.0).contains(&value) || value >= 6.0);
            let expected = if missed { None } else { Some(vec![f64::from(value)]) };
            assert_eq!(scan.at(&brackets, &[rank]), expected, "rank {rank}");
        }
    }

    #[test]
    fn places_look_random() {
        let mean = (0..1000).map(uniform).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05 && (0..1000).all(|i| (0.0..1.0).contains(&uniform(i))));
    }
}
