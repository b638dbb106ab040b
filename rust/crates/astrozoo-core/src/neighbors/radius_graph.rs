//! All pairs of points that lie within a radius of each other, as edges of a graph.
//!
//! Distances are looked at twice: once to count, so that every point knows where its edges go, and once to write them.
//! That is faster than to keep what was found the first time, which is memory that has to be got, filled, read and
//! copied. Candidates come from `columns`; the loops over them are in `scan`. The points around one are found column by
//! column and written in order: the place of each is the number of those with a lower number, which vectors of sixteen
//! count faster than any sort would order so few.
//!
//! Edges are written by pieces of the list of targets, each of which is visited in the order of the columns, so that
//! threads have a part of the result of their own and still find their candidates in the cache.

use crate::error::Error;
use crate::float::Float;
use crate::neighbors::columns::{Column, Layout, Runs};
use crate::neighbors::scan::{self, Found};
use crate::parallel;
use multiversion::multiversion;
use std::ops::Range;

/// Coordinates up to this have squares that are finite, with room for sums.
const LARGEST: f64 = 1e150;
/// Columns that are counted in one task.
const COLUMNS: usize = 16;
/// Pieces of the list of targets: enough for threads to share them evenly, each still a good part of every column.
const PIECES: usize = 16;
/// Points that are worth a thread.
const GRAIN: usize = 2000;

/// Which pairs are edges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Largest distance of an edge, itself included.
    pub radius: f64,
    /// Whether every point is its own neighbour.
    pub loops: bool,
    /// Most neighbours of a point; the nearest are kept.
    pub most: usize,
}

/// Where the edges of every point go: counted, and ready to be written.
pub struct RadiusGraph {
    layout: Layout,
    options: Options,
    /// Where the edges of each point begin, and the number of all.
    offsets: Vec<usize>,
}

impl RadiusGraph {
    /// Count the edges of `positions[point, 3]`, which come in clouds of `sizes` points, without edges between them.
    ///
    /// # Errors
    ///
    /// Sizes that do not fit the positions, coordinates or a radius that are not finite or whose squares would not be,
    /// or more points than 32 bits count.
    pub fn new<T: Float>(positions: &[T], sizes: &[usize], options: Options, threads: usize) -> Result<Self, Error> {
        let (positions, rest) = positions.as_chunks::<3>();
        let total = sizes.iter().try_fold(0_usize, |sum, &size| sum.checked_add(size));
        Error::require(rest.is_empty() && total == Some(positions.len()), || {
            format!("{} positions of three coordinates do not fill clouds of {total:?} points", positions.len())
        })?;
        Error::require(positions.len() < (u32::MAX - 64) as usize, || {
            format!("{} points are more than 32 bits count", positions.len())
        })?;
        Error::require((0.0..=LARGEST).contains(&options.radius), || {
            format!("the radius is {}; expected a number from 0 to {LARGEST:e}", options.radius)
        })?;
        let fits = |position: &[T; 3]| position.iter().fold(true, |fits, at| fits & (at.to_f64().abs() <= LARGEST));
        Error::require(positions.iter().fold(true, |all, position| all & fits(position)), || {
            format!("a coordinate is not finite, or above {LARGEST:e}")
        })?;
        let clouds: Vec<Range<usize>> = sizes
            .iter()
            .scan(0, |end, &size| {
                *end += size;
                Some(*end - size..*end)
            })
            .collect();
        let threads = parallel::worth(threads, positions.len(), GRAIN);
        let layout = Layout::new(positions, &clouds, options.radius, threads);
        let square = options.radius * options.radius;
        let counted =
            parallel::map(threads, layout.columns.chunks(COLUMNS).collect(), |part| count(&layout, part, square));
        let mut graph = Self { layout, options, offsets: vec![0; positions.len() + 1] };
        for (slot, around) in counted.iter().flatten().enumerate() {
            let around = *around as usize;
            let neighbors = if options.loops { around } else { around - 1 };
            graph.offsets[graph.layout.point[slot] as usize + 1] = neighbors.min(options.most);
        }
        for point in 0..positions.len() {
            graph.offsets[point + 1] += graph.offsets[point];
        }
        Ok(graph)
    }

    /// How many edges there are.
    pub fn edges(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Write the edges, sorted by target, then source: `edges[2, edge]` has sources first, then targets.
    ///
    /// # Errors
    ///
    /// Results of other sizes.
    pub fn write<T: Float>(&self, edges: &mut [i64], distances: &mut [T], threads: usize) -> Result<(), Error> {
        let count = self.edges();
        Error::require(Some(edges.len()) == count.checked_mul(2) && distances.len() == count, || {
            format!("{} and {} places do not hold {count} edges", edges.len(), distances.len())
        })?;
        let points = self.offsets.len() - 1;
        let size = points.div_ceil(PIECES).max(1);
        let mut slots: Vec<Vec<(u32, u32)>> = vec![Vec::new(); points.div_ceil(size)];
        for (number, column) in (0..).zip(&self.layout.columns) {
            for slot in column.slots() {
                slots[self.layout.point[slot] as usize / size].push((slot as u32, number));
            }
        }
        let (mut sources, mut targets) = edges.split_at_mut(count);
        let mut distances = distances;
        let mut pieces = Vec::with_capacity(slots.len());
        for (first, slots) in (0..points).step_by(size).zip(slots) {
            let begin = self.offsets[first];
            let length = self.offsets[(first + size).min(points)] - begin;
            let (source, target, distance);
            (source, sources) = sources.split_at_mut(length);
            (target, targets) = targets.split_at_mut(length);
            (distance, distances) = distances.split_at_mut(length);
            pieces.push(Piece { begin, slots, source, target, distance });
        }
        parallel::map(parallel::worth(threads, points, GRAIN), pieces, |piece| write(self, piece));
        Ok(())
    }
}

/// Edges to consecutive points, and where these points are: slots with their columns, ascending.
struct Piece<'a, T> {
    begin: usize,
    slots: Vec<(u32, u32)>,
    source: &'a mut [i64],
    target: &'a mut [i64],
    distance: &'a mut [T],
}

/// Points within the radius of each point of some columns, itself included.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn count(layout: &Layout, columns: &[Column], square: f64) -> Vec<u32> {
    let mut counts = Vec::new();
    let mut runs = Runs::default();
    for column in columns {
        for slot in column.slots() {
            layout.find_runs(slot, column, &mut runs);
            counts.push(scan::count(layout, slot, &runs, square));
        }
    }
    counts
}

/// Write the edges of a piece.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn write<T: Float>(graph: &RadiusGraph, piece: Piece<T>) {
    let (layout, options) = (&graph.layout, graph.options);
    let square = options.radius * options.radius;
    let mut found = Found::default();
    let mut runs = Runs::default();
    for (slot, column) in piece.slots {
        let (slot, column) = (slot as usize, &layout.columns[column as usize]);
        layout.find_runs(slot, column, &mut runs);
        found.search(layout, slot, &runs, square, options.loops);
        let whole = found.len <= options.most;
        if !whole {
            found.keep_nearest(options.most);
        }
        let number = layout.point[slot] as usize;
        let edges = graph.offsets[number] - piece.begin..graph.offsets[number + 1] - piece.begin;
        piece.target[edges.clone()].fill(number as i64);
        let (source, distance) = (&mut piece.source[edges.clone()], &mut piece.distance[edges]);
        found.order(whole && column.is_whole_cloud());
        for square in &mut found.square[..found.len] {
            *square = square.sqrt();
        }
        for (i, &rank) in found.rank[..found.len].iter().enumerate() {
            source[rank as usize] = i64::from(found.point[i]);
            distance[rank as usize] = T::from_f64(found.square[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Edges and distances, by the definition.
    fn naive(positions: &[f64], sizes: &[usize], options: Options) -> (Vec<(i64, i64)>, Vec<f64>) {
        let cloud: Vec<usize> = (0..sizes.len()).flat_map(|cloud| vec![cloud; sizes[cloud]]).collect();
        let (mut edges, mut distances) = (Vec::new(), Vec::new());
        for target in 0..cloud.len() {
            let mut near: Vec<(f64, usize)> = Vec::new();
            for source in (0..cloud.len()).filter(|&source| cloud[source] == cloud[target]) {
                let apart = |axis: usize| positions[3 * source + axis] - positions[3 * target + axis];
                let square = apart(0) * apart(0) + apart(1) * apart(1) + apart(2) * apart(2);
                if square <= options.radius * options.radius && (options.loops || source != target) {
                    near.push((square, source));
                }
            }
            near.sort_by(|one, other| one.partial_cmp(other).unwrap());
            near.truncate(options.most);
            near.sort_by_key(|&(_, source)| source);
            edges.extend(near.iter().map(|&(_, source)| (source as i64, target as i64)));
            distances.extend(near.iter().map(|&(square, _)| square.sqrt()));
        }
        (edges, distances)
    }

    fn found<T: Float>(
        positions: &[T],
        sizes: &[usize],
        options: Options,
        threads: usize,
    ) -> (Vec<(i64, i64)>, Vec<T>) {
        let graph = RadiusGraph::new(positions, sizes, options, threads).unwrap();
        let (mut edges, mut distances) = (vec![-1; 2 * graph.edges()], vec![T::NAN; graph.edges()]);
        graph.write(&mut edges, &mut distances, threads).unwrap();
        let (sources, targets) = edges.split_at(graph.edges());
        (sources.iter().copied().zip(targets.iter().copied()).collect(), distances)
    }

    fn random(points: usize, extent: [f64; 3]) -> Vec<f64> {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        (0..points).flat_map(|_| extent.map(|extent| extent * next())).collect()
    }

    /// Coordinates on a coarse grid have many ties, equal points and distances of exactly the radius.
    fn coordinate() -> impl Strategy<Value = f64> {
        prop_oneof![3 => -4.0..4.0_f64, 3 => (-3_i8..4).prop_map(f64::from), 1 => Just(1e9), 1 => Just(-1e-160)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_the_definition(
            clouds in proptest::collection::vec(prop_oneof![0_usize..5, 81_usize..300], 0..4),
            positions in proptest::collection::vec(coordinate(), 3 * 1200),
            radius in prop_oneof![Just(0.0), Just(1.0), 0.01..3.0_f64, Just(1e-170), Just(1e12)],
            loops: bool,
            most in prop_oneof![Just(usize::MAX), 1_usize..20],
            threads in 1_usize..3,
        ) {
            let positions = &positions[..3 * clouds.iter().sum::<usize>()];
            let options = Options { radius, loops, most };
            prop_assert_eq!(found(positions, &clouds, options, threads), naive(positions, &clouds, options));
        }
    }

    #[test]
    fn clouds_of_any_shape_are_searched() {
        for extent in
            [[1.0, 1.0, 1.0], [30.0, 0.0, 0.0], [0.0, 0.0, 30.0], [0.0, 5.0, 5.0], [5.0, 5.0, 1e-9], [1e12, 1.0, 1e6]]
        {
            let positions = random(700, extent);
            let options = Options { radius: 0.3, loops: false, most: usize::MAX };
            assert_eq!(found(&positions, &[700], options, 2), naive(&positions, &[700], options), "{extent:?}");
        }
    }

    #[test]
    fn points_far_apart_take_no_more_memory() {
        let mut positions = random(500, [1e-3; 3]);
        positions.extend(random(500, [1e-3; 3]).iter().map(|at| at + 1e140));
        positions.extend(random(500, [1e100; 3]));
        let options = Options { radius: 1e-4, loops: true, most: usize::MAX };
        assert_eq!(found(&positions, &[1500], options, 1), naive(&positions, &[1500], options));
    }

    #[test]
    fn threads_change_no_bit() {
        let positions: Vec<f32> = random(30_000, [1.0; 3]).iter().map(|&at| at as f32).collect();
        let options = Options { radius: 0.05, loops: false, most: 20 };
        let one = found(&positions, &[20_000, 40, 9_960], options, 1);
        assert!(one.0.len() > 100_000);
        assert_eq!(one, found(&positions, &[20_000, 40, 9_960], options, 3));
    }

    #[test]
    fn no_points_have_no_edges() {
        let options = Options { radius: 1.0, loops: true, most: usize::MAX };
        assert_eq!(found::<f32>(&[], &[], options, 2), (vec![], vec![]));
        assert_eq!(found::<f32>(&[], &[0, 0], options, 2), (vec![], vec![]));
    }

    #[test]
    fn what_cannot_be_searched_is_an_error() {
        let options = Options { radius: 1.0, loops: true, most: usize::MAX };
        let refused = |positions: &[f64], sizes: &[usize], radius: f64| {
            RadiusGraph::new(positions, sizes, Options { radius, ..options }, 1).is_err()
        };
        assert!(refused(&[0.0; 4], &[1], 1.0));
        assert!(refused(&[0.0; 6], &[1], 1.0));
        assert!(refused(&[0.0; 6], &[usize::MAX, 3], 1.0));
        assert!(refused(&[0.0, f64::NAN, 0.0], &[1], 1.0));
        assert!(refused(&[0.0, f64::INFINITY, 0.0], &[1], 1.0));
        assert!(refused(&[0.0; 3], &[1], -1.0));
        assert!(refused(&[0.0; 3], &[1], f64::NAN));
        let graph = RadiusGraph::new(&[0.0_f64; 6], &[2], options, 1).unwrap();
        assert!(graph.write(&mut [0; 4], &mut [0.0_f64; 2], 1).is_err());
    }
}
