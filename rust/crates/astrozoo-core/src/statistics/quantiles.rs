//! Exact quantiles of every group of a cube, without sorting it.
//!
//! The bits of a float, suitably flipped, order like the number. A large group is counted by the upper 16 bits of that
//! key; the bins that hold the wanted ranks are then counted by the next 16, which leaves one `f32`, or a handful of
//! `f64` that are sorted. All ranks are found in the same passes, and counts add up to the same whatever the number of
//! threads. A small group is copied and sorted.

use crate::error::Error;
use crate::float::Float;
use crate::parallel;

/// Values of a group up to which sorting is faster than counting.
const SMALL: usize = 1 << 15;
/// Bins of one level.
const BINS: usize = 1 << 16;
/// Groups that are gathered together when their values do not lie next to each other: a cache line of floats.
const TOGETHER: usize = 16;

/// A float whose bits order like its value.
pub trait Ordered: Float {
    /// Bits of the type.
    const BITS: u32;

    /// The key of a number; larger for larger numbers.
    fn key(self) -> u64;

    /// The number of a key.
    fn from_key(key: u64) -> Self;
}

impl Ordered for f32 {
    const BITS: u32 = 32;

    #[inline(always)]
    fn key(self) -> u64 {
        let bits = self.to_bits();
        u64::from(if bits >> 31 == 0 { bits | 1 << 31 } else { !bits })
    }

    #[inline(always)]
    fn from_key(key: u64) -> Self {
        let key = key as u32;
        Self::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
    }
}

impl Ordered for f64 {
    const BITS: u32 = 64;

    #[inline(always)]
    fn key(self) -> u64 {
        let bits = self.to_bits();
        if bits >> 63 == 0 { bits | 1 << 63 } else { !bits }
    }

    #[inline(always)]
    fn from_key(key: u64) -> Self {
        Self::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
    }
}

/// Quantiles `[q, kept]` of each of `kept` groups of `values[outer, kept, inner]`, over `outer` and `inner`.
///
/// NaN is missing; a group without known values has NaN quantiles. Between two ranks the quantile is linear.
///
/// # Errors
///
/// The sizes do not multiply to the number of values, or a `q` lies outside 0 to 1.
pub fn quantiles<T: Ordered>(
    values: &[T],
    (outer, kept, inner): (usize, usize, usize),
    q: &[f64],
    threads: usize,
) -> Result<Vec<f64>, Error> {
    let size = outer.checked_mul(kept).and_then(|size| size.checked_mul(inner));
    Error::require(size == Some(values.len()), || {
        format!("{} values do not fill {outer} x {kept} x {inner}", values.len())
    })?;
    Error::require(q.iter().all(|q| (0.0..=1.0).contains(q)), || "quantiles lie between 0 and 1".into())?;
    if values.is_empty() || q.is_empty() {
        return Ok(vec![f64::NAN; q.len() * kept]);
    }
    let runs = |group: usize| (0..outer).map(move |o| &values[(o * kept + group) * inner..][..inner]);
    let group_size = outer * inner;
    let threads = parallel::worth(threads, values.len(), 1 << 15);
    let found: Vec<Vec<f64>> = if group_size <= SMALL {
        let firsts: Vec<usize> = (0..kept).step_by(TOGETHER).collect();
        let found = parallel::map(threads, firsts, |first| sorted_groups(values, (kept, inner), first, q));
        found.into_iter().flatten().collect()
    } else if kept >= 2 * threads {
        parallel::map(threads, (0..kept).collect(), |group| counted(&runs(group).collect::<Vec<_>>(), q, 1))
    } else {
        (0..kept).map(|group| counted(&runs(group).collect::<Vec<_>>(), q, threads)).collect()
    };
    Ok((0..q.len()).flat_map(|i| found.iter().map(move |group| group[i])).collect())
}

/// The two ranks next to a quantile of `count` values, and how far it lies between them.
fn ranks(q: f64, count: usize) -> (usize, usize, f64) {
    let place = q * (count - 1) as f64;
    let low = place.floor() as usize;
    (low, (low + 1).min(count - 1), place - low as f64)
}

/// Linear between two neighbours, from the nearer one, as NumPy does it. An infinite one wins, and opposite ones give NaN.
fn between(low: f64, high: f64, share: f64) -> f64 {
    let step = high - low;
    if low == high || share == 0.0 {
        low
    } else if step.is_infinite() {
        low + high
    } else if share >= 0.5 {
        high - step * (1.0 - share)
    } else {
        low + step * share
    }
}

/// Quantiles of up to `TOGETHER` small groups from `first` on.
fn sorted_groups<T: Ordered>(values: &[T], (kept, inner): (usize, usize), first: usize, q: &[f64]) -> Vec<Vec<f64>> {
    let groups = TOGETHER.min(kept - first);
    let mut known = vec![Vec::with_capacity(values.len() / kept); groups];
    for row in values.chunks(kept * inner) {
        for (run, known) in row[first * inner..].chunks(inner).zip(&mut known) {
            known.extend(run.iter().filter(|value| !value.is_nan()).map(|value| value.key()));
        }
    }
    let of_group = |mut keys: Vec<u64>| {
        keys.sort_unstable();
        let at = |rank: usize| T::from_key(keys[rank]).to_f64();
        let one = |&q: &f64| {
            let (low, high, share) = ranks(q, keys.len());
            between(at(low), at(high), share)
        };
        q.iter().map(|q| if keys.is_empty() { f64::NAN } else { one(q) }).collect()
    };
    known.into_iter().map(of_group).collect()
}

/// Quantiles of one large group that lies in `runs`.
fn counted<T: Ordered>(runs: &[&[T]], q: &[f64], threads: usize) -> Vec<f64> {
    let pieces = cut(runs, threads);
    let bins = sum_of(parallel::map(threads, pieces.clone(), |piece| first_level(&piece)));
    let count: usize = bins[..BINS].iter().sum();
    if count == 0 {
        return vec![f64::NAN; q.len()];
    }
    let mut wanted: Vec<usize> =
        q.iter().flat_map(|&q| <[usize; 2]>::from((ranks(q, count).0, ranks(q, count).1))).collect();
    wanted.sort_unstable();
    wanted.dedup();

    // The bins that hold a wanted rank, by number, with how many values lie below.
    let mut chosen: Vec<(usize, usize)> = Vec::new();
    let (mut bin, mut below) = (0, 0);
    for &rank in &wanted {
        while below + bins[bin] <= rank {
            below += bins[bin];
            bin += 1;
        }
        if chosen.last() != Some(&(bin, below)) {
            chosen.push((bin, below));
        }
    }
    let mut slots = vec![u16::MAX; BINS];
    for (slot, &(bin, _)) in chosen.iter().enumerate() {
        slots[bin] = slot as u16;
    }
    let seconds = sum_of(parallel::map(threads, pieces.clone(), |piece| second_level(&piece, &slots, chosen.len())));

    // Prefixes of 32 bits that hold a wanted rank, with how many values lie below; in the order of the ranks.
    let mut prefixes = Vec::with_capacity(wanted.len());
    for &rank in &wanted {
        let slot = chosen.partition_point(|&(_, below)| below <= rank) - 1;
        let (bin, mut below) = chosen[slot];
        let mut next = 0;
        while below + seconds[slot * BINS + next] <= rank {
            below += seconds[slot * BINS + next];
            next += 1;
        }
        prefixes.push(((bin as u64) << 16 | next as u64, below));
    }
    let at: Vec<f64> = if T::BITS == 32 {
        prefixes.iter().map(|&(key, _)| T::from_key(key).to_f64()).collect()
    } else {
        let distinct: Vec<u64> = prefixes.iter().map(|&(prefix, _)| prefix).collect();
        let mut keys = parallel::map(threads, pieces, |piece| with_prefix(&piece, &slots, &distinct)).concat();
        keys.sort_unstable();
        let rank_of = |(&rank, &(prefix, below)): (&usize, &(u64, usize))| {
            keys[keys.partition_point(|&key| key >> 32 < prefix) + rank - below]
        };
        wanted.iter().zip(&prefixes).map(rank_of).map(|key| T::from_key(key).to_f64()).collect()
    };
    let value = |rank: usize| at[wanted.partition_point(|&other| other < rank)];
    let one = |&q: &f64| {
        let (low, high, share) = ranks(q, count);
        between(value(low), value(high), share)
    };
    q.iter().map(one).collect()
}

/// The runs in `parts` shares of about equal length.
fn cut<'a, T>(runs: &[&'a [T]], parts: usize) -> Vec<Vec<&'a [T]>> {
    let total: usize = runs.iter().map(|run| run.len()).sum();
    let share = total.div_ceil(parts).max(1);
    let mut shares = vec![Vec::new(); parts];
    let mut taken = 0;
    for &run in runs {
        let mut run = run;
        while !run.is_empty() {
            let part = (taken / share).min(parts - 1);
            let (head, tail) = run.split_at(run.len().min((part + 1) * share - taken).max(1));
            shares[part].push(head);
            taken += head.len();
            run = tail;
        }
    }
    shares
}

fn sum_of(parts: Vec<Vec<u32>>) -> Vec<usize> {
    let mut sum = vec![0; parts[0].len()];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, count)| *sum += count as usize);
    }
    sum
}

/// How many values have which upper 16 bits; NaN is counted beyond.
fn first_level<T: Ordered>(runs: &[&[T]]) -> Vec<u32> {
    // Neighbours tend to fall into one bin, and an addition has to wait for the one before it: so four take turns.
    let mut bins = vec![0_u32; 4 * (BINS + 1)];
    let (one, rest) = bins.split_at_mut(BINS + 1);
    let (two, rest) = rest.split_at_mut(BINS + 1);
    let (three, four) = rest.split_at_mut(BINS + 1);
    let bin = |value: T| if value.is_nan() { BINS } else { (value.key() >> (T::BITS - 16)) as usize };
    for run in runs {
        let (fours, rest) = run.as_chunks::<4>();
        for &[a, b, c, d] in fours {
            one[bin(a)] += 1;
            two[bin(b)] += 1;
            three[bin(c)] += 1;
            four[bin(d)] += 1;
        }
        for &value in rest {
            one[bin(value)] += 1;
        }
    }
    for i in 0..=BINS {
        one[i] += two[i] + three[i] + four[i];
    }
    bins.truncate(BINS + 1);
    bins
}

/// How many values of the chosen bins have which next 16 bits: `[slot, bin]`.
fn second_level<T: Ordered>(runs: &[&[T]], slots: &[u16], chosen: usize) -> Vec<u32> {
    let mut bins = vec![0_u32; chosen * BINS];
    for value in runs.iter().copied().flatten().filter(|value| !value.is_nan()) {
        let key = value.key();
        let slot = slots[(key >> (T::BITS - 16)) as usize];
        if slot != u16::MAX {
            bins[usize::from(slot) * BINS + (key >> (T::BITS - 32)) as usize % BINS] += 1;
        }
    }
    bins
}

/// Keys whose upper 32 bits are one of `prefixes`, which are in order.
fn with_prefix<T: Ordered>(runs: &[&[T]], slots: &[u16], prefixes: &[u64]) -> Vec<u64> {
    let known = runs.iter().copied().flatten().filter(|value| !value.is_nan()).map(|value| value.key());
    known
        .filter(|key| slots[(key >> 48) as usize] != u16::MAX && prefixes.binary_search(&(key >> 32)).is_ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: sort, and go between the neighbours.
    fn naive(values: &[f64], q: f64) -> f64 {
        let mut known: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
        if known.is_empty() {
            return f64::NAN;
        }
        known.sort_by(f64::total_cmp);
        let place = q * (known.len() - 1) as f64;
        let (low, high) = (known[place.floor() as usize], known[place.ceil() as usize]);
        let step = (high - low) * (place - place.floor());
        if low == high { low } else { if step.is_infinite() { low + high } else { low + step } }
    }

    fn close(found: f64, expected: f64) -> bool {
        found == expected
            || (found.is_nan() && expected.is_nan())
            || (found - expected).abs() <= 1e-9 * (1.0 + expected.abs())
    }

    #[test]
    fn keys_order_like_numbers_and_come_back() {
        let numbers = [f32::NEG_INFINITY, -2.5, -1e-40, -0.0, 0.0, 1e-40, 3.0, f32::INFINITY];
        for pair in numbers.windows(2) {
            assert!(pair[0].key() <= pair[1].key() && f64::from(pair[0]).key() <= f64::from(pair[1]).key());
        }
        for number in numbers {
            assert_eq!(f32::from_key(number.key()).to_bits(), number.to_bits());
            assert_eq!(f64::from_key(f64::from(number).key()), f64::from(number));
        }
    }

    proptest! {
        #[test]
        fn small_groups_agree_with_sorting(
            (shape, values) in (1_usize..4, 1_usize..40, 1_usize..9).prop_flat_map(|(a, b, c)| {
                let value = prop_oneof![6 => -1e3..1e3_f64, 2 => Just(f64::NAN), 1 => Just(f64::INFINITY), 1 => Just(7.0)];
                (Just((a, b, c)), proptest::collection::vec(value, a * b * c))
            }),
            q in proptest::collection::vec(0.0..=1.0_f64, 1..4),
        ) {
            let (outer, kept, inner) = shape;
            let found = quantiles(&values, shape, &q, 2).unwrap();
            for (i, &q) in q.iter().enumerate() {
                for group in 0..kept {
                    let mine: Vec<f64> = (0..outer)
                        .flat_map(|o| values[(o * kept + group) * inner..][..inner].iter().copied()).collect();
                    prop_assert!(close(found[i * kept + group], naive(&mine, q)));
                }
            }
        }
    }

    #[test]
    fn large_groups_agree_with_sorting_for_any_number_of_threads() {
        let n = SMALL + 4321;
        let noise = |i: usize| ((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1 << 24) as f64;
        let q = [0.0, 0.01, 0.25, 0.5, 0.9999, 1.0];
        let shapes: [&dyn Fn(usize) -> f64; 4] = [
            &|i| 280.0 + 15.0 * (noise(i) - 0.5),
            &|i| if i % 7 == 0 { f64::NAN } else { -1e-3 / (noise(i) + 1e-9) },
            &|_| -4.0,
            &|i| if i % 1000 == 0 { f64::NEG_INFINITY } else { (noise(i) * 5.0).floor() },
        ];
        for value in shapes {
            let double: Vec<f64> = (0..2 * n).map(value).collect();
            let single: Vec<f32> = double.iter().map(|&value| value as f32).collect();
            for (kept, outer, inner) in [(1, 1, 2 * n), (2, 1, n), (2, n, 1)] {
                let one = quantiles(&double, (outer, kept, inner), &q, 1).unwrap();
                assert_eq!(
                    format!("{one:?}"),
                    format!("{:?}", quantiles(&double, (outer, kept, inner), &q, 3).unwrap())
                );
                let of_single = quantiles(&single, (outer, kept, inner), &q, 2).unwrap();
                for group in 0..kept {
                    let mine: Vec<f64> = (0..outer)
                        .flat_map(|o| double[(o * kept + group) * inner..][..inner].iter().copied())
                        .collect();
                    let rounded: Vec<f64> = mine.iter().map(|&value| f64::from(value as f32)).collect();
                    for (i, &q) in q.iter().enumerate() {
                        assert!(close(one[i * kept + group], naive(&mine, q)));
                        assert!(close(of_single[i * kept + group], naive(&rounded, q)));
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_known_is_nan_and_nonsense_is_an_error() {
        assert!(quantiles(&[f32::NAN; 6], (1, 2, 3), &[0.5], 1).unwrap().iter().all(|value| value.is_nan()));
        assert!(quantiles(&vec![f32::NAN; 2 * SMALL], (1, 1, 2 * SMALL), &[0.5], 2).unwrap()[0].is_nan());
        assert_eq!(quantiles::<f32>(&[], (0, 2, 5), &[0.5], 2).unwrap().len(), 2);
        assert!(quantiles(&[1.0_f32], (1, 1, 1), &[1.5], 1).is_err());
        assert!(quantiles(&[1.0_f32], (1, 1, 2), &[0.5], 1).is_err());
    }
}
