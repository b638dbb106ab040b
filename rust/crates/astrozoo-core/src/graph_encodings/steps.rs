//! The arcs of one graph in the order in which a breadth-first search from all nodes follows them.

use super::arcs::Graph;

/// The arcs of a graph, each once (an edge that is listed both ways gives every arc twice).
#[derive(Default)]
pub struct Steps {
    /// The nodes, those with most arcs first; what follows numbers them by their place here.
    pub order: Vec<u32>,
    /// Ends of the first arc of each node that has one, of the second of each that has two, and so on.
    pub ends: Vec<u32>,
    /// Where those of each arc start in `ends`, and how many there are.
    pub starts: Vec<u32>,
    // Room for the work.
    distinct: Vec<u32>,
    first: Vec<u32>,
    marks: Vec<u32>,
    places: Vec<u32>,
}

impl Steps {
    /// Take the arcs of a graph.
    pub fn enter(&mut self, graph: Graph<'_>) {
        let nodes = graph.len();
        self.clear();
        self.marks.resize(nodes, 0); // the last node that has an arc to this one, plus one
        for node in 0..nodes {
            for &end in graph.ends(node) {
                let mark = &mut self.marks[end as usize];
                if *mark != node as u32 + 1 {
                    *mark = node as u32 + 1;
                    self.distinct.push(end);
                }
            }
            self.first.push(self.distinct.len() as u32);
        }
        self.lay_out();
    }

    /// Take the arcs of a graph of up to 64 nodes, given as the targets of each node.
    pub fn enter_words(&mut self, targets: &[u64]) {
        self.clear();
        for &word in targets {
            let mut word = word;
            while word != 0 {
                self.distinct.push(word.trailing_zeros());
                word &= word - 1;
            }
            self.first.push(self.distinct.len() as u32);
        }
        self.lay_out();
    }

    fn clear(&mut self) {
        self.distinct.clear();
        self.first.clear();
        self.first.push(0);
        self.marks.clear();
    }

    /// Sort the nodes by their number of arcs, and the arcs by their number within the node.
    fn lay_out(&mut self) {
        let nodes = self.first.len() - 1;
        self.starts.clear();
        self.starts.push(0); // for now: how many nodes have more arcs than this
        for bounds in self.first.windows(2) {
            let count = (bounds[1] - bounds[0]) as usize;
            if count >= self.starts.len() {
                self.starts.resize(count + 1, 0);
            }
            self.starts[count] += 1;
        }
        let most = self.starts.len() - 1;
        for count in (0..most).rev() {
            self.starts[count] += self.starts[count + 1]; // nodes with at least as many arcs
        }
        // A node with `count` arcs comes after those with more: counting sort, from the last node to the first.
        self.order.resize(nodes, 0);
        self.places.resize(nodes, 0);
        self.marks.clear();
        self.marks.extend_from_slice(&self.starts);
        for node in (0..nodes).rev() {
            let count = (self.first[node + 1] - self.first[node]) as usize;
            self.marks[count] -= 1;
            self.places[node] = self.marks[count];
            self.order[self.marks[count] as usize] = node as u32;
        }
        self.starts.remove(0);
        let mut sum = 0;
        for start in &mut self.starts {
            sum += *start;
            *start = sum - *start;
        }
        self.starts.push(sum);
        self.ends.resize(sum as usize, 0);
        for node in 0..nodes {
            let own = &self.distinct[self.first[node] as usize..self.first[node + 1] as usize];
            for (start, &end) in self.starts.iter().zip(own) {
                self.ends[(start + self.places[node]) as usize] = self.places[end as usize];
            }
        }
    }
}
