//! The overlaps along one axis: for each target cell a run of neighbouring source cells with their weights.

use crate::error::Error;

/// For each target cell a run of source cells, around the end of the axis, and the weights of the run.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    /// Source cells.
    pub(super) size: usize,
    first: Vec<usize>,
    start: Vec<usize>,
    weights: &'a [f64],
    /// Sum of the weights of each run.
    pub(super) totals: Vec<f64>,
}

impl<'a> Runs<'a> {
    /// Runs over an axis of `size` cells: `first[target]`, and `weights` cut at `start[target + 1]`.
    ///
    /// # Errors
    ///
    /// A run begins outside the axis, is longer than two turns, or the cuts do not fit the weights.
    pub fn new(size: usize, first: &[i64], start: &[i64], weights: &'a [f64]) -> Result<Self, Error> {
        let whole = |values: &[i64]| values.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<Vec<_>>>();
        let refused = || Error::new(format!("the runs do not fit an axis of {size} cells"));
        let (first, start) = whole(first).zip(whole(start)).ok_or_else(refused)?;
        let ascending = start.is_sorted_by(|a, b| a <= b && b - a <= size.saturating_mul(2));
        let ends = start.first() == Some(&0) && start.last() == Some(&weights.len());
        if start.len() != first.len() + 1 || !ascending || !ends || first.iter().any(|&cell| cell >= size) {
            return Err(refused());
        }
        let totals = start.windows(2).map(|cut| weights[cut[0]..cut[1]].iter().sum()).collect();
        Ok(Self { size, first, start, weights, totals })
    }

    /// Target cells.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Whether there is no target cell.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// First cell and weights of the run of a target cell.
    #[inline(always)]
    pub(super) fn get(&self, target: usize) -> (usize, &'a [f64]) {
        (self.first[target], &self.weights[self.start[target]..self.start[target + 1]])
    }

    /// First cell and weights of all runs.
    #[inline(always)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &'a [f64])> {
        (0..self.len()).map(|target| self.get(target))
    }

    /// Cells of the longest run.
    pub(super) fn longest(&self) -> usize {
        self.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0)
    }

    /// Whether no run goes around the end of the axis.
    pub(super) fn is_straight(&self) -> bool {
        self.iter().all(|(first, weights)| first + weights.len() <= self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_do_not_fit_are_an_error() {
        assert!(Runs::new(4, &[0, 3], &[0, 2, 4], &[0.5; 4]).is_ok());
        for (first, start) in [
            (vec![0, 4], vec![0, 2, 4]),
            (vec![0, -1], vec![0, 2, 4]),
            (vec![0, 3], vec![0, 2, 3]),
            (vec![0, 3], vec![1, 2, 4]),
            (vec![0, 3], vec![0, 5, 4]),
            (vec![0], vec![0, 2, 4]),
            (vec![], vec![]),
        ] {
            assert!(Runs::new(4, &first, &start, &[0.5; 4]).is_err(), "{first:?} {start:?}");
        }
        assert!(Runs::new(1, &[0], &[0, 3], &[0.3; 3]).is_err());
    }
}
