//! Eigenvectors of the smallest eigenvalues of a small dense symmetric matrix.
//!
//! Householder reflections make it tridiagonal, the implicit QL method finds all eigenvalues of that (Wilkinson and
//! Reinsch 1971: `tred2`, `tql2`). The rotations of QL are not multiplied into a matrix of all eigenvectors, which would
//! cost most of the time, but kept; rotations and reflections are then applied, last first, to the unit vectors of the
//! eigenvalues that are wanted, eight side by side. Unlike inverse iteration this needs no care for eigenvalues that are
//! equal, which graphs have many of: what orthogonal transformations make of unit vectors is orthonormal.

use crate::error::Error;
use multiversion::multiversion;

/// Numbers in a piece of a row, and eigenvectors that are made together: one vector of eight doubles.
const WIDTH: usize = 8;
/// QL sweeps that one eigenvalue may take; two are usual.
const SWEEPS: usize = 60;

type Piece = [f64; WIDTH];

/// A symmetric matrix; its rows are filled up with zeros to whole pieces.
#[derive(Clone, Debug)]
pub struct Symmetric {
    size: usize,
    pieces: usize,
    rows: Vec<Piece>,
}

/// Eigenvalues in ascending order, and a column `vectors[row, count]` for each.
#[derive(Clone, Debug)]
pub struct Eigen {
    /// Eigenvalues.
    pub values: Vec<f64>,
    /// Orthonormal eigenvectors.
    pub vectors: Vec<f64>,
}

impl Symmetric {
    /// A matrix of zeros.
    pub fn zeros(size: usize) -> Self {
        let pieces = size.div_ceil(WIDTH);
        Self { size, pieces, rows: vec![[0.0; WIDTH]; size * pieces] }
    }

    /// Numbers of a row, those of its padding too.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f64] {
        self.rows[row * self.pieces..(row + 1) * self.pieces].as_flattened()
    }

    /// Numbers of a row, to be changed; the padding must stay zero.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        self.rows[row * self.pieces..(row + 1) * self.pieces].as_flattened_mut()
    }
}

/// Eigenvectors of the eigenvalues number `skip` to `skip + count`, in ascending order.
///
/// # Errors
///
/// The matrix has fewer eigenvalues, or holds what is not finite.
pub fn smallest(mut matrix: Symmetric, skip: usize, count: usize) -> Result<Eigen, Error> {
    let size = matrix.size;
    Error::require(skip.checked_add(count).is_some_and(|last| last <= size), || {
        format!("eigenvalues {skip} to {skip} + {count} of {size}")
    })?;
    let (mut diagonal, mut beside, scales) = tridiagonalise(&mut matrix);
    let Some(rotations) = implicit_ql(&mut diagonal, &mut beside) else {
        return Err(Error::new("a matrix whose eigenvalues are not finite"));
    };
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&one, &other| diagonal[one].total_cmp(&diagonal[other]));
    let wanted = &order[skip..skip + count];
    let mut vectors = vec![0.0; size * count];
    for (block, wanted) in wanted.chunks(WIDTH).enumerate() {
        let mut columns = vec![[0.0; WIDTH]; size];
        for (lane, &place) in wanted.iter().enumerate() {
            columns[place][lane] = 1.0;
        }
        rotate(&rotations, &mut columns);
        reflect(&matrix, &scales, &mut columns);
        for (row, column) in vectors.chunks_mut(count).zip(&columns) {
            row[block * WIDTH..][..wanted.len()].copy_from_slice(&column[..wanted.len()]);
        }
    }
    Ok(Eigen { values: wanted.iter().map(|&place| diagonal[place]).collect(), vectors })
}

/// Diagonal, what stands beside it, and the scale of the reflection whose vector replaces each row of the matrix.
///
/// From the last row to the first, a reflection of the rows before it leaves but one number beside the diagonal. The
/// part that is still to be reduced is thus the first rows and columns, whose pieces start where rows start.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn tridiagonalise(matrix: &mut Symmetric) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (size, pieces) = (matrix.size, matrix.pieces);
    let (mut diagonal, mut beside, mut scales) = (vec![0.0; size], vec![0.0; size], vec![0.0; size]);
    let mut along = vec![[0.0; WIDTH]; pieces]; // the vector of the reflection
    let mut change = vec![[0.0; WIDTH]; pieces];
    for row in (0..size).rev() {
        let values = matrix.row_mut(row);
        diagonal[row] = values[row];
        values[row..].fill(0.0);
        if row == 0 {
            break;
        }
        let corner = values[row - 1];
        let tail: f64 = values[..row - 1].iter().map(|value| value * value).sum();
        if tail == 0.0 {
            beside[row - 1] = corner;
            values.fill(0.0);
            continue;
        }
        let length = -(corner * corner + tail).sqrt().copysign(corner);
        let scale = (length - corner) / length;
        let shrink = 1.0 / (corner - length);
        values[..row - 1].iter_mut().for_each(|value| *value *= shrink);
        values[row - 1] = 1.0;
        (beside[row - 1], scales[row]) = (length, scale);

        let used = row.div_ceil(WIDTH);
        let (before, own) = matrix.rows.split_at_mut(row * pieces);
        let along = &mut along[..used];
        along.copy_from_slice(&own[..used]);
        let change = &mut change[..used];
        for (piece, change) in change.iter_mut().enumerate() {
            *change = product(before, pieces, piece, &along.as_flattened()[..row], scale);
        }
        let dot: f64 = (0..row).map(|i| along.as_flattened()[i] * change.as_flattened()[i]).sum();
        let share = 0.5 * scale * dot;
        for (change, along) in change.iter_mut().zip(&*along) {
            for lane in 0..WIDTH {
                change[lane] -= share * along[lane];
            }
        }
        // Beyond `row` the vector is zero, but not the product.
        change.as_flattened_mut()[row..].fill(0.0);
        for (i, values) in before.chunks_exact_mut(pieces).enumerate() {
            let (one, other) = (along.as_flattened()[i], change.as_flattened()[i]);
            for ((values, along), change) in values.iter_mut().zip(&*along).zip(&*change) {
                for lane in 0..WIDTH {
                    values[lane] -= one * change[lane] + other * along[lane];
                }
            }
        }
    }
    (diagonal, beside, scales)
}

/// One piece of `scale` times the matrix times a vector; by symmetry, of the sum of its rows with the vector as weights.
#[inline(always)]
fn product(rows: &[Piece], pieces: usize, piece: usize, vector: &[f64], scale: f64) -> Piece {
    const APART: usize = 4; // sums that do not wait for each other
    let mut sums = [[0.0; WIDTH]; APART];
    let mut column = rows[piece..].iter().step_by(pieces);
    let (whole, rest) = vector.as_chunks::<APART>();
    for weights in whole {
        for apart in 0..APART {
            if let Some(values) = column.next() {
                for lane in 0..WIDTH {
                    sums[apart][lane] += weights[apart] * values[lane];
                }
            }
        }
    }
    for (&weight, values) in rest.iter().zip(column) {
        for lane in 0..WIDTH {
            sums[0][lane] += weight * values[lane];
        }
    }
    let mut sum = [0.0; WIDTH];
    for lane in 0..WIDTH {
        sum[lane] = scale * ((sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]));
    }
    sum
}

/// The rotations of all sweeps.
struct Rotations {
    /// Of each sweep: the last row that it reached, and how many rotations it took.
    sweeps: Vec<(usize, usize)>,
    /// Cosine and sine of each.
    angles: Vec<(f64, f64)>,
}

/// Eigenvalues of a tridiagonal matrix in place of its diagonal; None if a value takes too many sweeps.
fn implicit_ql(diagonal: &mut [f64], beside: &mut [f64]) -> Option<Rotations> {
    let size = diagonal.len();
    let norm = diagonal.iter().zip(&*beside).map(|(d, e)| d.abs() + e.abs()).fold(0.0, f64::max);
    let small = f64::EPSILON * norm;
    let mut rotations = Rotations { sweeps: Vec::new(), angles: Vec::with_capacity(size * size) };
    for low in 0..size {
        for sweep in 0.. {
            let high = (low..size - 1).find(|&i| beside[i].abs() <= small).unwrap_or(size - 1);
            if high == low {
                break;
            }
            if sweep == SWEEPS {
                return None;
            }
            let half = (diagonal[low + 1] - diagonal[low]) / (2.0 * beside[low]);
            let root = (half * half + 1.0).sqrt();
            let mut g = diagonal[high] - diagonal[low] + beside[low] / (half + root.copysign(half));
            let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
            let mut count = 0;
            let mut split = false;
            for i in (low..high).rev() {
                let (f, b) = (sine * beside[i], cosine * beside[i]);
                let r = (f * f + g * g).sqrt();
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= shift;
                    split = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = diagonal[i + 1] - shift;
                let turned = (diagonal[i] - g) * sine + 2.0 * cosine * b;
                shift = sine * turned;
                diagonal[i + 1] = g + shift;
                g = cosine * turned - b;
                rotations.angles.push((cosine, sine));
                count += 1;
            }
            if !split {
                diagonal[low] -= shift;
                beside[low] = g;
            }
            beside[high] = 0.0;
            rotations.sweeps.push((high, count));
        }
    }
    diagonal.iter().all(|value| value.is_finite()).then_some(rotations)
}

/// Apply all rotations to the rows, the last first.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn rotate(rotations: &Rotations, rows: &mut [Piece]) {
    let mut angles: &[(f64, f64)] = &rotations.angles;
    for &(high, count) in rotations.sweeps.iter().rev() {
        let own;
        (angles, own) = angles.split_at(angles.len() - count);
        let rows = &mut rows[high - count..=high];
        let mut carried = rows[0];
        for (i, &(cosine, sine)) in own.iter().rev().enumerate() {
            let next = rows[i + 1];
            for lane in 0..WIDTH {
                rows[i][lane] = cosine * carried[lane] + sine * next[lane];
                carried[lane] = cosine * next[lane] - sine * carried[lane];
            }
        }
        rows[count] = carried;
    }
}

/// Apply all reflections to the rows, the last first.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn reflect(matrix: &Symmetric, scales: &[f64], rows: &mut [Piece]) {
    for (row, &scale) in scales.iter().enumerate().filter(|&(_, &scale)| scale != 0.0) {
        let along = &matrix.row(row)[..row];
        let sum = product(rows, 1, 0, along, scale);
        for (values, &along) in rows.iter_mut().zip(along) {
            for lane in 0..WIDTH {
                values[lane] -= along * sum[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn symmetric(size: usize, entry: impl Fn(usize, usize) -> f64) -> Symmetric {
        let mut matrix = Symmetric::zeros(size);
        for i in 0..size {
            for j in 0..size {
                matrix.row_mut(i)[j] = entry(i.max(j), i.min(j));
            }
        }
        matrix
    }

    /// Largest error of `A v = lambda v` and of `V' V = 1`.
    fn error(matrix: &Symmetric, found: &Eigen) -> f64 {
        let (size, count) = (matrix.size, found.values.len());
        let column = |c: usize| (0..size).map(move |i| found.vectors[i * count + c]);
        let mut worst = 0.0_f64;
        for c in 0..count {
            for (i, own) in column(c).enumerate() {
                let product: f64 = matrix.row(i).iter().zip(column(c)).map(|(a, v)| a * v).sum();
                worst = worst.max((product - found.values[c] * own).abs());
            }
            for other in 0..count {
                let dot: f64 = column(c).zip(column(other)).map(|(a, b)| a * b).sum();
                worst = worst.max((dot - f64::from(u8::from(c == other))).abs());
            }
        }
        worst
    }

    proptest! {
        #[test]
        fn vectors_are_orthonormal_and_belong_to_their_values(
            (size, entries) in (1_usize..40).prop_flat_map(|n| (Just(n), proptest::collection::vec(
                prop_oneof![2 => Just(0.0), 1 => -2.0..2.0_f64, 1 => Just(1.0)], n * n))),
            skip in 0_usize..3,
        ) {
            let matrix = symmetric(size, |i, j| entries[i * size + j]);
            let skip = skip.min(size);
            let found = smallest(matrix.clone(), skip, size - skip).unwrap();
            prop_assert!(error(&matrix, &found) < 1e-12 * (10.0 + size as f64));
            prop_assert!(found.values.is_sorted());
            let all = smallest(matrix.clone(), 0, size).unwrap();
            prop_assert_eq!(&all.values[skip..], &found.values[..]);
            let trace: f64 = (0..size).map(|i| matrix.row(i)[i]).sum();
            prop_assert!((trace - all.values.iter().sum::<f64>()).abs() < 1e-11 * (1.0 + size as f64));
        }
    }

    #[test]
    fn equal_eigenvalues_have_orthonormal_vectors() {
        for size in [3, 8, 33, 100] {
            let complete = symmetric(size, |i, j| if i == j { size as f64 - 1.0 } else { -1.0 });
            assert!(error(&complete, &smallest(complete.clone(), 0, size).unwrap()) < 1e-11);
            let zero = Symmetric::zeros(size);
            assert!(error(&zero, &smallest(zero.clone(), 0, size).unwrap()) == 0.0);
        }
    }

    #[test]
    fn a_path_has_the_eigenvalues_of_a_path() {
        let size = 150;
        let path = symmetric(size, |i, j| f64::from(u8::from(i == j + 1)));
        let found = smallest(path, 0, size).unwrap();
        for (i, value) in found.values.iter().enumerate() {
            let exact = -2.0 * (std::f64::consts::PI * (i + 1) as f64 / (size + 1) as f64).cos();
            assert!((value - exact).abs() < 1e-13);
        }
    }

    #[test]
    fn what_has_no_eigenvectors_is_an_error() {
        assert!(smallest(Symmetric::zeros(3), 1, 3).is_err());
        assert!(smallest(symmetric(3, |_, _| f64::NAN), 0, 3).is_err());
        assert!(smallest(Symmetric::zeros(0), 0, 0).unwrap().values.is_empty());
    }
}
