//! The rows of a table, in blocks, on several threads.
//!
//! Reading costs most here: the bytes of whole rows are copied out of the page cache, in blocks that stay in the second
//! cache level until every column was taken from them. Where a row is so wide that a call for each field copies less,
//! fields are read one by one.

use super::column::Column;
use super::decode::{Array, Slots, decode};
use super::error::FitsError;
use super::source::Source;
use super::table::Table;
use crate::parallel;
use std::sync::{Mutex, PoisonError};

/// Bytes that are read at once.
const BLOCK: usize = 1 << 17;
/// Bytes of rows that one task takes.
const TASK: usize = 1 << 20;
/// Bytes that cost as much to copy as one more call of the operating system.
const CALL: usize = 4096;

impl Table {
    /// Read columns of [`Table::select`] into arrays of `rows * per_row` elements.
    ///
    /// # Errors
    ///
    /// The file was cut short since it was opened, or cannot be read; the arrays do not fit the columns.
    pub fn read(
        &self,
        source: &Source<'_>,
        columns: &[Column],
        slots: Vec<Slots<'_>>,
        threads: usize,
    ) -> Result<(), FitsError> {
        let fits = |(column, slots): (&Column, &Slots<'_>)| column.per_row.checked_mul(self.rows) == Some(slots.len());
        if columns.len() != slots.len() || !columns.iter().zip(&slots).all(fits) {
            return Err(misfit());
        }
        // Empty fields have nothing to read.
        let (columns, mut rest): (Vec<&Column>, Vec<Slots<'_>>) =
            columns.iter().zip(slots).filter(|(column, _)| column.per_row > 0).unzip();
        if columns.is_empty() || self.rows == 0 {
            return Ok(());
        }
        let by_field = self.width > BLOCK || columns.len().saturating_mul(CALL) < self.width;
        let needed: usize = columns.iter().map(|column| column.width).sum();
        let row_bytes = if by_field { needed } else { self.width };
        let per_task = (TASK / row_bytes.max(1)).max(1);
        let mut tasks = Vec::new();
        for first in (0..self.rows).step_by(per_task) {
            let rows = per_task.min(self.rows - first);
            let (heads, tails) = cut(rest, &columns, rows);
            tasks.push((first, rows, heads));
            rest = tails;
        }
        let threads = parallel::worth(threads, row_bytes.saturating_mul(self.rows), TASK);
        let buffers = Mutex::new(Vec::<Vec<u8>>::new());
        let work = |(first, rows, slots)| {
            let mut buffer = buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let piece = Piece { source, table: self, columns: &columns, first, rows };
            let done = if by_field { piece.by_field(slots, &mut buffer) } else { piece.by_block(slots, &mut buffer) };
            buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
            done
        };
        parallel::map(threads, tasks, work).into_iter().collect()
    }

    /// [`Table::read`] into arrays of its own.
    ///
    /// # Errors
    ///
    /// See there.
    pub fn arrays(&self, source: &Source<'_>, columns: &[Column], threads: usize) -> Result<Vec<Array>, FitsError> {
        let mut arrays: Vec<Array> = Vec::new();
        for column in columns {
            let elements = column.per_row.checked_mul(self.rows).ok_or_else(misfit)?;
            arrays.push(Array::zeros(column.kind, elements));
        }
        self.read(source, columns, arrays.iter_mut().map(Array::slots).collect(), threads)?;
        Ok(arrays)
    }
}

fn misfit() -> FitsError {
    FitsError::Arguments("the arrays do not fit the columns.".into())
}

fn cut<'a>(slots: Vec<Slots<'a>>, columns: &[&Column], rows: usize) -> (Vec<Slots<'a>>, Vec<Slots<'a>>) {
    slots.into_iter().zip(columns).map(|(slots, column)| slots.split_at(rows * column.per_row)).unzip()
}

/// Consecutive rows that one task reads.
struct Piece<'a> {
    source: &'a Source<'a>,
    table: &'a Table,
    columns: &'a [&'a Column],
    first: usize,
    rows: usize,
}

impl Piece<'_> {
    fn place(&self, row: usize, offset: usize) -> u64 {
        self.table.header.end + (row * self.table.width + offset) as u64
    }

    fn by_block(&self, mut rest: Vec<Slots<'_>>, buffer: &mut Vec<u8>) -> Result<(), FitsError> {
        let width = self.table.width;
        let begin = self.columns.iter().map(|column| column.offset).min().unwrap_or(0);
        let end = self.columns.iter().map(|column| column.offset + column.width).max().unwrap_or(0);
        let per_block = (BLOCK / width).max(1);
        for done in (0..self.rows).step_by(per_block) {
            let rows = per_block.min(self.rows - done);
            let length = (rows - 1) * width + (end - begin);
            let bytes = self.source.read(self.place(self.first + done, begin), length, buffer)?;
            let (heads, tails) = cut(rest, self.columns, rows);
            for (slots, column) in heads.into_iter().zip(self.columns) {
                if !decode(column, &bytes[column.offset - begin..], width, slots) {
                    return Err(misfit());
                }
            }
            rest = tails;
        }
        Ok(())
    }

    fn by_field(&self, mut rest: Vec<Slots<'_>>, buffer: &mut Vec<u8>) -> Result<(), FitsError> {
        for row in self.first..self.first + self.rows {
            let (heads, tails) = cut(rest, self.columns, 1);
            for (slots, column) in heads.into_iter().zip(self.columns) {
                let bytes = self.source.read(self.place(row, column.offset), column.width, buffer)?;
                if !decode(column, bytes, column.width, slots) {
                    return Err(misfit());
                }
            }
            rest = tails;
        }
        Ok(())
    }
}
