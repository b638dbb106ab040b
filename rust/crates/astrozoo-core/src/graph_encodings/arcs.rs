//! A list of edges over the nodes of all graphs of a batch, checked, and sorted by source.

use crate::error::Error;
use std::ops::Range;

/// Which arcs an edge stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// One, from its source to its target.
    Forward,
    /// One each way.
    Both,
}

/// Arcs of a batch of graphs by their source. Ends are numbered within their graph.
#[derive(Debug)]
pub struct Arcs {
    /// First node of each graph, and the number of nodes.
    nodes: Vec<usize>,
    /// First arc of each node, and the number of arcs.
    first: Vec<u32>,
    ends: Vec<u32>,
    /// By arc; empty where there are none.
    weights: Vec<f64>,
}

/// Arcs of one graph.
#[derive(Clone, Copy, Debug)]
pub struct Graph<'a> {
    first: &'a [u32],
    ends: &'a [u32],
    weights: &'a [f64],
}

impl Arcs {
    /// Arcs of `edges[2, edge]`, source and target by the number of the node in the batch, with `sizes[graph]` nodes.
    ///
    /// # Errors
    ///
    /// A size below 0, a node that does not exist, an edge between two graphs, weights that are not one for each edge
    /// or not finite, at least 0 (infinity is allowed), or more than 2^31 nodes or edges.
    pub fn new(edges: &[i64], sizes: &[i64], weights: Option<&[f64]>, direction: Direction) -> Result<Self, Error> {
        let nodes = nodes(sizes)?;
        let total = nodes[sizes.len()];
        Error::require(edges.len().is_multiple_of(2) && edges.len() < 1 << 32 && total < 1 << 31, || {
            format!("{} nodes of edges and {total} nodes are not a batch of up to 2^31 edges and nodes", edges.len())
        })?;
        let (sources, targets) = edges.split_at(edges.len() / 2);
        if let Some(weights) = weights {
            Error::require(weights.len() == sources.len(), || {
                format!("{} weights; expected one for each of {} edges", weights.len(), sources.len())
            })?;
            Error::require(weights.iter().all(|&weight| weight >= 0.0), || "weights below 0, or NaN".to_owned())?;
        }
        let mut start = vec![0_u32; total]; // of the graph of each node
        for graph in nodes.windows(2) {
            start[graph[0]..graph[1]].fill(graph[0] as u32);
        }
        let both = direction == Direction::Both;
        let mut first = vec![0_u32; total + 1];
        for (&source, &target) in sources.iter().zip(targets) {
            let ends = (start.get(source as usize), start.get(target as usize));
            let (Some(one), Some(other)) = ends else {
                return Err(Error::new(format!("an edge from {source} to {target}; there are {total} nodes")));
            };
            if one != other {
                return Err(Error::new(format!("an edge from {source} to {target}, which are of two graphs")));
            }
            first[source as usize] += 1;
            if both {
                first[target as usize] += 1;
            }
        }
        let mut sum = 0;
        for count in &mut first {
            sum += *count;
            *count = sum; // where the arcs of the node end: each arc that is put there moves it down by one
        }
        let mut arcs = Self {
            nodes,
            ends: vec![0; sum as usize],
            weights: vec![0.0; if weights.is_some() { sum as usize } else { 0 }],
            first,
        };
        // From the last edge to the first, so that the arcs of a node keep the order of the edges.
        for edge in (0..sources.len()).rev() {
            let (source, target) = (sources[edge] as usize, targets[edge] as usize);
            let weight = weights.map(|weights| weights[edge]);
            if both {
                arcs.put(target, source, &start, weight);
            }
            arcs.put(source, target, &start, weight);
        }
        Ok(arcs)
    }

    #[inline(always)]
    fn put(&mut self, source: usize, target: usize, start: &[u32], weight: Option<f64>) {
        self.first[source] -= 1;
        let place = self.first[source] as usize;
        self.ends[place] = target as u32 - start[target];
        if let Some(weight) = weight {
            self.weights[place] = weight;
        }
    }

    /// How many graphs there are.
    pub fn graphs(&self) -> usize {
        self.nodes.len() - 1
    }

    /// How many nodes there are in all graphs.
    pub fn total(&self) -> usize {
        self.nodes[self.graphs()]
    }

    /// How many nodes a graph has.
    pub fn size(&self, graph: usize) -> usize {
        self.nodes[graph + 1] - self.nodes[graph]
    }

    /// How many nodes the largest graph has.
    pub fn most(&self) -> usize {
        (0..self.graphs()).map(|graph| self.size(graph)).max().unwrap_or(0)
    }

    /// The arcs of one graph.
    pub fn graph(&self, graph: usize) -> Graph<'_> {
        let first = &self.first[self.nodes[graph]..=self.nodes[graph + 1]];
        Graph { first, ends: &self.ends, weights: &self.weights }
    }

    /// Runs of graphs with about equal work, `work(nodes, arcs)` each, in units of which one task takes `grain`.
    pub fn tasks(&self, grain: usize, work: impl Fn(usize, usize) -> usize) -> Vec<Range<usize>> {
        let (mut tasks, mut from, mut sum) = (Vec::new(), 0, 0_usize);
        for graph in 0..self.graphs() {
            let arcs = self.first[self.nodes[graph + 1]] - self.first[self.nodes[graph]];
            sum = sum.saturating_add(work(self.size(graph), arcs as usize).max(1));
            if sum >= grain || graph + 1 == self.graphs() {
                tasks.push(from..graph + 1);
                (from, sum) = (graph + 1, 0);
            }
        }
        tasks
    }

    /// Each task with its part of an array that has `rows(graph)` rows of `width` for each graph.
    pub fn parts<'a, T>(
        &self,
        tasks: &[Range<usize>],
        mut array: &'a mut [T],
        rows: impl Fn(usize) -> usize,
        width: usize,
    ) -> Vec<(Range<usize>, &'a mut [T])> {
        let mut parts = Vec::with_capacity(tasks.len());
        for task in tasks {
            let count: usize = task.clone().map(|graph| rows(graph) * width).sum();
            let (part, rest) = array.split_at_mut(count);
            parts.push((task.clone(), part));
            array = rest;
        }
        parts
    }
}

impl<'a> Graph<'a> {
    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.first.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Targets of the arcs of a node.
    #[inline(always)]
    pub fn ends(&self, node: usize) -> &'a [u32] {
        &self.ends[self.first[node] as usize..self.first[node + 1] as usize]
    }

    /// Weights of the arcs of a node, in the order of `ends`; none where the batch has none.
    #[inline(always)]
    pub fn weights(&self, node: usize) -> &'a [f64] {
        if self.weights.is_empty() {
            return &[];
        }
        &self.weights[self.first[node] as usize..self.first[node + 1] as usize]
    }
}

/// First node of each graph, and the number of nodes.
pub fn nodes(sizes: &[i64]) -> Result<Vec<usize>, Error> {
    let mut nodes = Vec::with_capacity(sizes.len() + 1);
    let mut sum = 0_usize;
    nodes.push(0);
    for &size in sizes {
        let next = usize::try_from(size).ok().and_then(|size| sum.checked_add(size));
        let Some(next) = next else {
            return Err(Error::new(format!("a graph of {size} nodes")));
        };
        sum = next;
        nodes.push(sum);
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arcs_are_sorted_by_source_in_the_order_of_the_edges() {
        let edges = [4, 0, 0, 1, 3, 1, 2, 0];
        let arcs = Arcs::new(&edges, &[3, 0, 2], Some(&[9.0, 1.0, 2.0, 3.0]), Direction::Forward).unwrap();
        assert_eq!((arcs.graphs(), arcs.most(), arcs.size(1)), (3, 3, 0));
        assert_eq!(arcs.graph(0).ends(0), [1, 2]);
        assert_eq!(arcs.graph(0).weights(0), [1.0, 2.0]);
        assert_eq!(arcs.graph(0).ends(2), [0_u32; 0]);
        assert_eq!(arcs.graph(2).ends(1), [0]);
        let both = Arcs::new(&edges, &[3, 0, 2], None, Direction::Both).unwrap();
        assert_eq!(both.graph(0).ends(0), [1, 2, 1]);
        assert_eq!(both.graph(2).ends(0), [1]);
    }

    #[test]
    fn what_is_no_batch_is_an_error() {
        let make = |edges: &[i64], sizes: &[i64]| Arcs::new(edges, sizes, None, Direction::Both);
        assert!(make(&[0, 1, 2], &[3]).is_err());
        assert!(make(&[0, 3], &[3]).is_err());
        assert!(make(&[-1, 0], &[3]).is_err());
        assert!(make(&[0, 1], &[1, 1]).is_err());
        assert!(make(&[], &[-1]).is_err());
        assert!(make(&[], &[i64::MAX, i64::MAX, i64::MAX]).is_err());
        for weight in [-1.0, f64::NAN] {
            assert!(Arcs::new(&[0, 1], &[2], Some(&[weight]), Direction::Both).is_err());
        }
    }

    #[test]
    fn tasks_hold_every_graph_once() {
        let arcs = Arcs::new(&[], &[5, 1, 0, 7, 2], None, Direction::Both).unwrap();
        assert_eq!(arcs.tasks(6, |nodes, _| nodes), vec![0..2, 2..4, 4..5]);
        let mut rows = [0; 30];
        let parts = arcs.parts(&arcs.tasks(6, |nodes, _| nodes), &mut rows, |graph| arcs.size(graph), 2);
        assert_eq!(parts.iter().map(|part| part.1.len()).collect::<Vec<_>>(), [12, 14, 4]);
    }
}
