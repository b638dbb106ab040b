//! Headers: cards of 80 bytes in blocks of 2880, each a keyword and its value (FITS standard 4.0, section 4.4).

use super::error::{FitsError, require};
use super::source::Source;
use super::value::{Value, latin, quoted, trim, trim_end, unquoted};
use std::collections::HashMap;

/// Files consist of blocks of this many bytes.
pub const BLOCK: usize = 2880;
/// Bytes of a card.
pub const CARD: usize = 80;
/// Blocks that the first read takes: enough for the headers of light curves.
const FIRST: usize = 5;
/// Bytes within which a header must end; the longest known have a few million.
const LIMIT: usize = 1 << 26;

/// A keyword with its value, and the byte of the file where its card begins.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The keyword.
    pub key: String,
    /// Its value.
    pub value: Value,
    at: u64,
    text: String,
}

/// The keywords of an HDU that have a value indicator, in their order; of a repeated one the first.
#[derive(Clone, Debug)]
pub struct Header {
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    hdu: usize,
    /// Byte of the file where it begins.
    pub start: u64,
    /// Byte of the file behind its last block.
    pub end: u64,
}

impl Header {
    /// The header of HDU number `hdu`, which begins at byte `start`.
    ///
    /// # Errors
    ///
    /// It has no END card.
    pub fn read(source: &Source<'_>, hdu: usize, start: u64) -> Result<Self, FitsError> {
        let mut buffer = Vec::new();
        let mut length = 0;
        let mut bytes: &[u8] = &[];
        loop {
            let searched = bytes.len() / CARD;
            let available = usize::try_from(source.length().saturating_sub(start)).unwrap_or(LIMIT).min(LIMIT);
            require(length < available, || {
                format!("the header of HDU {hdu} (from byte {start}) has no END card within {available} bytes.")
            })?;
            length = available.min((2 * length).max(FIRST * BLOCK));
            bytes = source.read(start, length, &mut buffer)?;
            let cards = bytes.as_chunks::<CARD>().0;
            if let Some(place) = cards[searched..].iter().position(|card| card.starts_with(b"END     ")) {
                let cards = searched + place;
                let blocks = ((cards + 1) * CARD).div_ceil(BLOCK);
                return Ok(Self::parse(&bytes[..cards * CARD], hdu, start, start + (blocks * BLOCK) as u64));
            }
        }
    }

    fn parse(bytes: &[u8], hdu: usize, start: u64, end: u64) -> Self {
        let mut header = Self { entries: Vec::new(), index: HashMap::new(), hdu, start, end };
        let mut open = None; // the entry whose string the next card may go on with
        for (number, card) in bytes.as_chunks::<CARD>().0.iter().enumerate() {
            let key = trim_end(&card[..8]);
            let field = &card[10..];
            if key == b"CONTINUE" {
                open = header.go_on(open, trim(&card[8..]));
            } else if !key.is_empty() && card[8..10] == *b"= " && !header.index.contains_key(latin(key).as_str()) {
                let string = quoted(trim(field));
                let place = header.entries.len();
                open = string.as_ref().filter(|text| text.ends_with('&')).map(|_| place);
                let entry = Entry {
                    key: latin(key),
                    value: string.map_or_else(|| unquoted(field), Value::Text),
                    at: start + (number * CARD) as u64,
                    text: latin(trim(field)),
                };
                header.index.insert(entry.key.clone(), place);
                header.entries.push(entry);
            } else {
                open = None;
            }
        }
        header
    }

    /// Append the string of a CONTINUE card to the entry `open`; gives the entry if it may go on further.
    fn go_on(&mut self, open: Option<usize>, field: &[u8]) -> Option<usize> {
        let more = quoted(field)?;
        let Value::Text(text) = &mut self.entries[open?].value else { return None };
        text.pop();
        text.push_str(&more);
        if more.ends_with('&') { open } else { None }
    }

    /// All keywords.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        self.index.get(key).map(|&place| &self.entries[place])
    }

    /// Whether the keyword is there.
    pub fn has(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// A string; None where the keyword is missing or holds something else.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.entry(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether the keyword is true.
    pub fn is_true(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| entry.value == Value::Logical(true))
    }

    /// A whole number from `least` to `most`; `default` where the keyword is missing.
    ///
    /// # Errors
    ///
    /// It is missing without a default, no whole number, or outside.
    pub fn integer(&self, key: &str, least: i64, most: i64, default: Option<i64>) -> Result<i64, FitsError> {
        let expected = || {
            if most == i64::MAX {
                format!("a whole number of at least {least}")
            } else {
                format!("a whole number from {least} to {most}")
            }
        };
        match (self.entry(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.lacks(key, &expected())),
            (Some(entry), _) => match entry.value {
                Value::Integer(value) if i128::from(least) <= value && value <= i128::from(most) => {
                    i64::try_from(value).map_err(|_| self.wrong(entry, &expected()))
                }
                _ => Err(self.wrong(entry, &expected())),
            },
        }
    }

    /// A number; None where the keyword is missing.
    ///
    /// # Errors
    ///
    /// It is no number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, FitsError> {
        match self.entry(key) {
            None => Ok(None),
            Some(Entry { value: Value::Integer(value), .. }) => Ok(Some(*value as f64)),
            Some(Entry { value: Value::Real(value), .. }) => Ok(Some(*value)),
            Some(entry) => Err(self.wrong(entry, "a number")),
        }
    }

    /// That a keyword that must be there is not.
    pub fn lacks(&self, key: &str, expected: &str) -> FitsError {
        let (hdu, start) = (self.hdu, self.start);
        FitsError::Format(format!("the header of HDU {hdu} (from byte {start}) lacks {key}; expected {expected}."))
    }

    /// That a keyword has a value it must not have.
    pub fn invalid(&self, key: &str, expected: &str) -> FitsError {
        self.entry(key).map_or_else(|| self.lacks(key, expected), |entry| self.wrong(entry, expected))
    }

    fn wrong(&self, entry: &Entry, expected: &str) -> FitsError {
        let Entry { key, text, at, .. } = entry;
        FitsError::Format(format!("{key} of HDU {} (byte {at}) is `{text}`; expected {expected}.", self.hdu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cards: &[&str]) -> Header {
        let text: String = cards.iter().map(|card| format!("{card:80}")).collect();
        Header::read(&Source::Memory(text.as_bytes()), 0, 0).unwrap()
    }

    #[test]
    fn long_strings_go_on_over_cards() {
        let header =
            parse(&["A       = 'one &'", "CONTINUE  'two&'", "CONTINUE  'three' / end", "CONTINUE  'x'", "END"]);
        assert_eq!(header.text("A"), Some("one twothree"));
        let header = parse(&["A       = 'one&'", "B       = 2", "CONTINUE  'two'", "END"]);
        assert_eq!(header.text("A"), Some("one&"));
    }

    #[test]
    fn the_first_of_a_repeated_keyword_counts_and_comments_do_not() {
        let header = parse(&["A       = 1", "COMMENT = 'x'", "HISTORY none", "A       = 2", "", "END"]);
        assert_eq!(header.integer("A", 0, 9, None).unwrap(), 1);
        assert_eq!(header.entries().len(), 2);
        assert_eq!(header.end, 2880);
    }

    #[test]
    fn a_header_without_end_is_an_error() {
        for length in [0, 1, 79, 80, 2880, 5 * BLOCK, 40_000] {
            let bytes = vec![b' '; length];
            assert!(Header::read(&Source::Memory(&bytes), 0, 0).is_err(), "{length}");
        }
    }

    #[test]
    fn a_long_header_is_read_to_its_end() {
        let mut cards = vec!["COMMENT"; 3000];
        cards.extend(["B       = 3", "END"]);
        let header = parse(&cards);
        assert_eq!((header.integer("B", 0, 9, None).unwrap(), header.end), (3, 84 * 2880));
    }
}
