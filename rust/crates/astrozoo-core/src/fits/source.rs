//! Where the bytes come from: a file, read at given places into a buffer, or memory.
//!
//! A file is not mapped into memory: one that is cut short while it is read would then end the process. Positioned reads
//! need no shared cursor, so that several threads read one file.

use super::error::FitsError;
use std::fs::File;
use std::io;
use std::path::Path;

/// The bytes of a FITS file.
#[derive(Debug)]
pub enum Source<'a> {
    /// A file, and its length when it was opened.
    File(File, u64),
    /// The whole file in memory.
    Memory(&'a [u8]),
}

impl Source<'_> {
    /// Open a file.
    ///
    /// # Errors
    ///
    /// The operating system refuses.
    pub fn open(path: &Path) -> Result<Self, FitsError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::File(file, length))
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// `length` bytes from `at`: of memory as they lie there, of a file through `buffer`.
    ///
    /// The caller has checked `length` against the length of the source, which bounds the buffer.
    ///
    /// # Errors
    ///
    /// The file ends before, or cannot be read.
    pub fn read<'b>(&'b self, at: u64, length: usize, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], FitsError> {
        match self {
            Self::File(file, _) => {
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                let target = &mut buffer[..length];
                read_at(file, target, at).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => ends_before(at, length),
                    _ => FitsError::Io(error),
                })?;
                Ok(target)
            }
            Self::Memory(bytes) => usize::try_from(at)
                .ok()
                .and_then(|at| bytes.get(at..at.checked_add(length)?))
                .ok_or_else(|| ends_before(at, length)),
        }
    }
}

fn ends_before(at: u64, length: usize) -> FitsError {
    FitsError::Truncated(format!("the file ends within the {length} bytes from byte {at}; it was cut short."))
}

#[cfg(unix)]
fn read_at(file: &File, target: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, target, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut target: &mut [u8], mut at: u64) -> io::Result<()> {
    while !target.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, target, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                target = &mut target[count..];
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
