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
    rows: Pieces,
}

/// Pieces that do not lie across two cache lines.
#[derive(Clone, Debug)]
struct Pieces {
    numbers: Vec<f64>,
    offset: usize,
    count: usize,
}

impl Pieces {
    fn zeros(count: usize) -> Self {
        let numbers = vec![0.0; (count + 1) * WIDTH];
        let offset = numbers.as_ptr().align_offset(size_of::<Piece>()).min(WIDTH);
        Self { numbers, offset, count }
    }

    #[inline(always)]
    fn get(&self) -> &[Piece] {
        self.numbers[self.offset..][..self.count * WIDTH].as_chunks().0
    }

    #[inline(always)]
    fn get_mut(&mut self) -> &mut [Piece] {
        self.numbers[self.offset..][..self.count * WIDTH].as_chunks_mut().0
    }
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
        Self { size, pieces, rows: Pieces::zeros(size * pieces) }
    }

    /// Numbers of a row, those of its padding too.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f64] {
        self.rows.get()[row * self.pieces..(row + 1) * self.pieces].as_flattened()
    }

    /// Numbers of a row, to be changed; the padding must stay zero.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f64] {
        self.rows.get_mut()[row * self.pieces..(row + 1) * self.pieces].as_flattened_mut()
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
/// part that is still to be reduced is thus the first rows and columns, whose pieces start where rows start. What a
/// reflection changes there is left pending until the next one needs the rows for its product, so that they are read
/// once for both.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn tridiagonalise(matrix: &mut Symmetric) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (size, pieces) = (matrix.size, matrix.pieces);
    let (mut diagonal, mut beside, mut scales) = (vec![0.0; size], vec![0.0; size], vec![0.0; size]);
    let zeros = || Pieces::zeros(pieces);
    let (mut along, mut product) = (zeros(), zeros()); // the vector of a reflection, and the matrix times it
    let mut pending = Pending { along: zeros(), change: zeros() };
    for row in (0..size).rev() {
        let (before, own) = matrix.rows.get_mut().split_at_mut(row * pieces);
        let own = &mut own[..pieces];
        pending.apply(row, own);
        let values = own.as_flattened_mut();
        diagonal[row] = values[row];
        values[row..].fill(0.0);
        if row == 0 {
            break;
        }
        let corner = values[row - 1];
        let tail: f64 = values[..row - 1].iter().map(|value| value * value).sum();
        if tail == 0.0 {
            beside[row - 1] = corner;
            continue;
        }
        let length = -(corner * corner + tail).sqrt().copysign(corner);
        let scale = (length - corner) / length;
        let shrink = 1.0 / (corner - length);
        values[..row - 1].iter_mut().for_each(|value| *value *= shrink);
        values[row - 1] = 1.0;
        (beside[row - 1], scales[row]) = (length, scale);

        let used = row.div_ceil(WIDTH);
        let (vector, change) = (along.get_mut(), product.get_mut());
        vector[..used].copy_from_slice(&own[..used]);
        vector[used..].fill([0.0; WIDTH]);
        pending.apply_and_multiply(before, vector, used, change);
        let dot: f64 = (0..used).map(|piece| inner(&vector[piece], &change[piece])).sum();
        let share = 0.5 * scale * dot;
        for (change, vector) in change.iter_mut().zip(&*vector) {
            for lane in 0..WIDTH {
                change[lane] = scale * (change[lane] - share * vector[lane]);
            }
        }
        change.as_flattened_mut()[row..].fill(0.0); // there the vector is zero, but not its product
        std::mem::swap(&mut pending.along, &mut along);
        std::mem::swap(&mut pending.change, &mut product);
    }
    (diagonal, beside, scales)
}

/// What the last reflection subtracts from the rows before its own: `along[i] change[j] + change[i] along[j]`.
struct Pending {
    along: Pieces,
    change: Pieces,
}

impl Pending {
    #[inline(always)]
    fn apply(&self, row: usize, values: &mut [Piece]) {
        let (along, change) = (self.along.get(), self.change.get());
        let (one, other) = (along.as_flattened()[row], change.as_flattened()[row]);
        for ((values, along), change) in values.iter_mut().zip(along).zip(change) {
            *values = less(*values, one, *change, other, *along);
        }
    }

    /// Apply it to all rows, in the pieces that are used, and multiply them with `vector`, which is zero beyond them.
    #[inline(always)]
    fn apply_and_multiply(&self, rows: &mut [Piece], vector: &[Piece], used: usize, product: &mut [Piece]) {
        const TOGETHER: usize = 4; // rows whose share of the product is added up before it is stored
        let pieces = vector.len();
        let (along, change) = (self.along.get(), self.change.get());
        let (one, other, weights) = (along.as_flattened(), change.as_flattened(), vector.as_flattened());
        product.fill([0.0; WIDTH]);
        for (block, rows) in rows.chunks_mut(TOGETHER * pieces).enumerate() {
            let first = block * TOGETHER;
            if rows.len() < TOGETHER * pieces {
                for (i, values) in rows.chunks_exact_mut(pieces).enumerate() {
                    self.apply(first + i, &mut values[..used]);
                    for (product, values) in product.iter_mut().zip(&values[..used]) {
                        for lane in 0..WIDTH {
                            product[lane] += weights[first + i] * values[lane];
                        }
                    }
                }
                continue;
            }
            let own = |numbers: &[f64]| -> [f64; TOGETHER] { std::array::from_fn(|i| numbers[first + i]) };
            let (one, other, weights) = (own(one), own(other), own(weights));
            let (a, rest) = rows.split_at_mut(pieces);
            let (b, rest) = rest.split_at_mut(pieces);
            let (c, d) = rest.split_at_mut(pieces);
            let columns = a[..used].iter_mut().zip(&mut b[..used]).zip(c[..used].iter_mut().zip(&mut d[..used]));
            let terms = product[..used].iter_mut().zip(along[..used].iter().zip(&change[..used]));
            for (((a, b), (c, d)), (product, (along, change))) in columns.zip(terms) {
                let mut sum = *product;
                for (i, values) in [a, b, c, d].into_iter().enumerate() {
                    *values = less(*values, one[i], *change, other[i], *along);
                    for lane in 0..WIDTH {
                        sum[lane] += weights[i] * values[lane];
                    }
                }
                *product = sum;
            }
        }
    }
}

/// `values - one change - other along`. Pieces by value: what may lie anywhere is not put into vectors.
#[inline(always)]
fn less(mut values: Piece, one: f64, change: Piece, other: f64, along: Piece) -> Piece {
    for lane in 0..WIDTH {
        values[lane] -= one * change[lane] + other * along[lane];
    }
    values
}

#[inline(always)]
fn inner(one: &Piece, other: &Piece) -> f64 {
    (0..WIDTH).map(|lane| one[lane] * other[lane]).sum()
}

/// The sum of the rows with these weights, times `scale`.
#[inline(always)]
fn weighted(rows: &[Piece], weights: &[f64], scale: f64) -> Piece {
    const APART: usize = 4; // sums that do not wait for each other
    let mut sums = [[0.0; WIDTH]; APART];
    let mut add = |apart: usize, weight: f64, values: &Piece| {
        for lane in 0..WIDTH {
            sums[apart][lane] += weight * values[lane];
        }
    };
    let (whole, rest) = rows[..weights.len()].as_chunks::<APART>();
    let (whole_weights, rest_weights) = weights.as_chunks::<APART>();
    for (rows, weights) in whole.iter().zip(whole_weights) {
        for apart in 0..APART {
            add(apart, weights[apart], &rows[apart]);
        }
    }
    for (values, &weight) in rest.iter().zip(rest_weights) {
        add(0, weight, values);
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
        let sum = weighted(rows, along, scale);
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
