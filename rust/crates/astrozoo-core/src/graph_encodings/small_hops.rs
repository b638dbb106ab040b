//! Hops within a graph of up to 64 nodes: one word for each node, in arrays of fixed size that stay in registers and the
//! first cache level, without a bound to check.

use super::hops::spread;
use super::steps::Steps;
use multiversion::multiversion;

/// Nodes that a word has bits for.
pub const NODES: usize = 64;
/// Enough bits for any number of hops between them.
const PLANES: usize = 6;

/// As `hops::search`, for a graph whose targets fit one word: the first `most` columns of each of its rows of `out`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn search(steps: &Steps, most: usize, limit: u32, out: &mut [i32]) {
    let all = u64::MAX >> (NODES - steps.order.len().clamp(1, NODES));
    // What is no node has seen all there is, so that it is never waited for.
    let mut seen = [all; NODES];
    for (seen, &node) in seen.iter_mut().zip(&steps.order) {
        *seen = 1 << (node % 64);
    }
    let mut frontier = seen;
    let mut planes = [[0_u64; NODES]; PLANES];
    let mut used = 0;
    for level in 1..=limit.min(NODES as u32 - 1) {
        let mut new = [0; NODES];
        for arc in steps.starts.windows(2) {
            for (new, &end) in new.iter_mut().zip(&steps.ends[arc[0] as usize..arc[1] as usize]) {
                *new |= frontier[end as usize % NODES];
            }
        }
        let (mut any, mut lacking) = (0, 0);
        for (new, seen) in new.iter_mut().zip(&mut seen) {
            *new &= !*seen;
            *seen |= *new;
            any |= *new;
            lacking |= all & !*seen;
        }
        if any == 0 {
            break;
        }
        used = PLANES.min(32 - level.leading_zeros() as usize);
        for (bit, plane) in planes.iter_mut().enumerate() {
            if level >> bit & 1 == 1 {
                plane.iter_mut().zip(&new).for_each(|(sum, new)| *sum |= new);
            }
        }
        if lacking == 0 {
            break;
        }
        frontier = new;
    }
    for (place, &node) in steps.order.iter().enumerate() {
        let row = &mut out[node as usize * most..][..most];
        let place = place % NODES;
        let numbers = spread(seen[place], planes[..used].iter().map(|plane| plane[place]));
        let (columns, rest) = row.split_at_mut(most.min(NODES));
        columns.copy_from_slice(&numbers[..columns.len()]);
        rest.fill(-1);
    }
}
