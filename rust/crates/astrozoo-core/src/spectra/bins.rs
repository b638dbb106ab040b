//! Bins of a grid that is given by its centres.

use crate::error::Error;

/// An error unless `grid` is finite and strictly increasing.
pub(crate) fn increasing(name: &str, grid: &[f64]) -> Result<(), Error> {
    let ends = [grid.first(), grid.last()].into_iter().flatten().all(|value| value.is_finite());
    Error::require(ends && grid.windows(2).all(|pair| pair[0] < pair[1]), || {
        format!("{name} is not finite and strictly increasing")
    })
}

/// Edges half way between neighbouring centres, one more than there are centres; the outer bins are symmetric.
pub(crate) fn edges(name: &str, centres: &[f64]) -> Result<Vec<f64>, Error> {
    increasing(name, centres)?;
    let &[first, second, ..] = centres else {
        return Err(Error::new(format!("{name} has {} values; a bin's width needs a neighbour", centres.len())));
    };
    let (before, last) = (centres[centres.len() - 2], centres[centres.len() - 1]);
    let mut edges = Vec::with_capacity(centres.len() + 1);
    edges.push(first - (second - first) / 2.0);
    edges.extend(centres.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0));
    edges.push(last + (last - before) / 2.0);
    Ok(edges)
}
