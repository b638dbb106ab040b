//! Order statistics of values that lie in memory together: selection of several ranks at once, on integer keys.

use crate::float::Float;

/// So many keys are spread over steps of their range first, where
const SPREAD: usize = 1 << 15;
/// so many ranks are wanted,
const MANY: usize = 24;
/// over so many steps: their counters fit the first cache level.
const STEPS: usize = 1 << 10;

/// A float with an integer key of the same order, negative zero below zero: integers compare in one instruction, and
/// the standard library's selection has no branches for them.
pub trait Ordered: Float {
    /// The integer.
    type Key: Key;

    /// The key of a value that is not NaN.
    fn key(self) -> Self::Key;

    /// The value of a key.
    fn of_key(key: Self::Key) -> Self;
}

/// A signed integer as wide as a float.
pub trait Key: Copy + Ord + Default + Send + Sync {
    /// Invert all bits but the sign of a negative number: the order of negative floats is that of their magnitudes
    /// reversed. Done twice it changes nothing.
    #[must_use]
    fn flip(self) -> Self;

    /// How far it lies above a smaller one.
    fn above(self, least: Self) -> u64;
}

macro_rules! implement {
    ($float:ty, $signed:ty, $unsigned:ty) => {
        impl Ordered for $float {
            type Key = $signed;

            #[inline(always)]
            fn key(self) -> $signed {
                (self.to_bits() as $signed).flip()
            }

            #[inline(always)]
            fn of_key(key: $signed) -> Self {
                Self::from_bits(key.flip() as $unsigned)
            }
        }

        impl Key for $signed {
            #[inline(always)]
            fn flip(self) -> Self {
                self ^ (((self >> (Self::BITS - 1)) as $unsigned) >> 1) as $signed
            }

            #[inline(always)]
            fn above(self, least: Self) -> u64 {
                u64::from(self.wrapping_sub(least) as $unsigned)
            }
        }
    };
}

implement!(f32, i32, u32);
implement!(f64, i64, u64);

/// Where quantiles lie among `count` sorted values: each between two neighbouring ranks.
pub struct Wanted {
    /// For each quantile its lower rank and how far it is on the way to the next one, from 0 to below 1.
    places: Vec<(usize, f64)>,
    /// All ranks that are needed, ascending, each once.
    pub ranks: Vec<usize>,
}

impl Wanted {
    /// Of ascending quantiles `q` from 0 to 1 among `count` values, at least one.
    pub fn new(q: &[f64], count: usize) -> Self {
        let last = count - 1;
        let places: Vec<(usize, f64)> = q
            .iter()
            .map(|&q| {
                let place = q * last as f64;
                ((place as usize).min(last), place.fract())
            })
            .collect();
        let mut ranks = Vec::with_capacity(2 * q.len());
        for &(rank, part) in &places {
            // Ascending quantiles: a rank that was noted before is one of the last two.
            let from = ranks.len().saturating_sub(2);
            for rank in if part > 0.0 { rank..=(rank + 1).min(last) } else { rank..=rank } {
                if !ranks[from..].contains(&rank) {
                    ranks.push(rank);
                }
            }
        }
        Self { places, ranks }
    }

    /// The quantiles, by linear interpolation between the values at `ranks`.
    pub fn interpolate(&self, values: &[f64]) -> Vec<f64> {
        let mut at = 0;
        self.places
            .iter()
            .map(|&(rank, part)| {
                while self.ranks[at] < rank {
                    at += 1;
                }
                between(values[at], values[(at + 1).min(values.len() - 1)], part)
            })
            .collect()
    }
}

/// The value at `part` of the way from `low` to `high`, in the arithmetic of NumPy.
fn between(low: f64, high: f64, part: f64) -> f64 {
    let step = high - low;
    if part == 0.0 || low == high {
        low
    } else if !step.is_finite() {
        low * (1.0 - part) + high * part // one of them is infinite, or the step is beyond the largest number
    } else if part < 0.5 {
        low + step * part
    } else {
        high - step * (1.0 - part)
    }
}

/// Move the keys of `ranks`, which are ascending, to their places, with no larger key before and no smaller one behind.
pub fn place<K: Key>(keys: &mut Vec<K>, ranks: &[usize]) {
    if keys.len() < SPREAD || ranks.len() < MANY {
        return place_from(keys, 0, ranks);
    }
    let mut start = 0;
    for end in spread(keys) {
        let within = ranks.partition_point(|&rank| rank < start)..ranks.partition_point(|&rank| rank < end);
        place_from(&mut keys[start..end], start, &ranks[within]);
        start = end;
    }
}

fn place_from<K: Key>(keys: &mut [K], first: usize, ranks: &[usize]) {
    if ranks.is_empty() {
        return;
    }
    let middle = ranks.len() / 2;
    let rank = ranks[middle];
    let (before, _, behind) = keys.select_nth_unstable(rank - first);
    place_from(before, first, &ranks[..middle]);
    place_from(behind, rank + 1, &ranks[middle + 1..]);
}

/// Order keys by equal steps of their range, and not within a step; gives where each step ends. Selection halves the
/// keys with each pass over them, and this divides them among hundreds with two.
fn spread<K: Key>(keys: &mut Vec<K>) -> Vec<usize> {
    let least = keys.iter().copied().min().unwrap_or_default();
    let range = keys.iter().copied().max().unwrap_or_default().above(least);
    let shift = (u64::BITS - range.leading_zeros()).saturating_sub(STEPS.ilog2());
    let step = |key: K| (key.above(least) >> shift) as usize % STEPS;
    let mut next = vec![0_usize; STEPS];
    for &key in &*keys {
        next[step(key)] += 1;
    }
    let mut start = 0;
    for next in &mut next {
        (start, *next) = (start + *next, start);
    }
    let mut ordered = vec![K::default(); keys.len()];
    for &key in &*keys {
        let next = &mut next[step(key)];
        ordered[*next] = key;
        *next += 1;
    }
    *keys = ordered;
    next
}

/// Quantiles `q`, which are ascending, of known values, whose keys are reordered; NaN where there are none.
pub fn quantiles_of_keys<T: Ordered>(keys: &mut Vec<T::Key>, q: &[f64]) -> Vec<f64> {
    if keys.is_empty() {
        return vec![f64::NAN; q.len()];
    }
    let wanted = Wanted::new(q, keys.len());
    place(keys, &wanted.ranks);
    let values: Vec<f64> = wanted.ranks.iter().map(|&rank| T::of_key(keys[rank]).to_f64()).collect();
    wanted.interpolate(&values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_have_the_order_of_their_floats() {
        let values = [f32::NEG_INFINITY, f32::MIN, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, f32::MAX, f32::INFINITY];
        for pair in values.windows(2) {
            assert!(pair[0].key() < pair[1].key());
            assert!(f64::from(pair[0]).key() < f64::from(pair[1]).key() || pair[0] == pair[1]);
        }
        for value in values {
            assert_eq!(f32::of_key(value.key()).to_bits(), value.to_bits());
            assert_eq!(f64::of_key(f64::from(value).key()), f64::from(value));
        }
    }

    #[test]
    fn infinite_neighbours_give_what_lies_between_them() {
        let inf = f64::INFINITY;
        assert_eq!(between(-inf, 1.0, 0.5), -inf);
        assert_eq!(between(1.0, inf, 0.7), inf);
        assert_eq!(between(1.0, inf, 0.0), 1.0);
        assert_eq!(between(inf, inf, 0.3), inf);
        assert!(between(-inf, inf, 0.3).is_nan());
        assert_eq!(between(-1.5e308, 1.5e308, 0.5), 0.0);
    }

    #[test]
    fn many_ranks_of_many_keys_hold_what_sorting_puts_there() {
        for spreading in [1_i64, 1 << 20, 1 << 40] {
            let mut keys: Vec<i64> = (0..SPREAD as i64).map(|i| (i * 48_271 % 65_537 - 30_000) * spreading).collect();
            keys.extend([i64::MIN, i64::MAX]);
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            let ranks: Vec<usize> = (0..=MANY).map(|i| i * (keys.len() - 1) / MANY).collect();
            place(&mut keys, &ranks);
            for rank in ranks {
                assert_eq!(keys[rank], sorted[rank]);
            }
            let mut equal = vec![7_i32; SPREAD];
            place(&mut equal, &(0..MANY).collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn placed_ranks_hold_what_sorting_puts_there(
            mut keys in proptest::collection::vec(-50_i32..50, 1..200),
            q in proptest::collection::vec(0.0..=1.0_f64, 0..8),
        ) {
            let mut q = q;
            q.sort_unstable_by(f64::total_cmp);
            let ranks = Wanted::new(&q, keys.len()).ranks;
            prop_assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]));
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            place(&mut keys, &ranks);
            for rank in ranks {
                prop_assert_eq!(keys[rank], sorted[rank]);
            }
        }
    }
}
