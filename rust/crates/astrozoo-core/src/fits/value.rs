//! Values of keywords, by their form (FITS standard 4.0, section 4.2).

/// The value of a keyword.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A keyword without a value.
    Undefined,
    /// `T` or `F`.
    Logical(bool),
    /// A whole number between the least of `i64` and the largest of `u64`; others are real.
    Integer(i128),
    /// A number with a point or an exponent.
    Real(f64),
    /// A string without its quotes and trailing blanks; also the text of a value that is none of these, such as a
    /// complex number.
    Text(String),
}

/// Text of one byte per character; the standard allows ASCII, files in the wild hold more.
pub(super) fn latin(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

pub(super) fn trim(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|&byte| byte != b' ').unwrap_or(bytes.len());
    trim_end(&bytes[start..])
}

pub(super) fn trim_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte != b' ').map_or(0, |place| place + 1);
    &bytes[..end]
}

/// The string that `field` begins with; quotes within are doubled. None if there is none, or it does not end.
pub(super) fn quoted(field: &[u8]) -> Option<String> {
    let mut rest = field.strip_prefix(b"'")?;
    let mut text = Vec::new();
    loop {
        match rest {
            [b'\'', b'\'', behind @ ..] => {
                text.push(b'\'');
                rest = behind;
            }
            [b'\'', ..] => return Some(latin(trim_end(&text))),
            [byte, behind @ ..] => {
                text.push(*byte);
                rest = behind;
            }
            [] => return None,
        }
    }
}

/// A value that is no string, up to its comment.
pub(super) fn unquoted(field: &[u8]) -> Value {
    let end = field.iter().position(|&byte| byte == b'/').unwrap_or(field.len());
    match trim(if trim(field).starts_with(b"'") { field } else { &field[..end] }) {
        b"" => Value::Undefined,
        b"T" => Value::Logical(true),
        b"F" => Value::Logical(false),
        text => number(text).unwrap_or_else(|| Value::Text(latin(text))),
    }
}

fn number(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).ok()?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let range = i128::from(i64::MIN)..=i128::from(u64::MAX);
        return Some(match text.parse::<i128>() {
            Ok(value) if range.contains(&value) => Value::Integer(value),
            _ => Value::Real(text.parse().ok()?),
        });
    }
    // What `parse` would also take, such as `inf`, is no number here.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || b".EeDd+-".contains(&byte));
    let text = text.replace(['D', 'd'], "E");
    if plain { text.parse().ok().map(Value::Real) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(field: &str) -> Value {
        let field = format!("{field:70}");
        quoted(trim(field.as_bytes())).map_or_else(|| unquoted(field.as_bytes()), Value::Text)
    }

    #[test]
    fn values_are_parsed_by_their_form() {
        let text = |text: &str| Value::Text(text.into());
        for (field, expected) in [
            ("                   T / yes", Value::Logical(true)),
            ("F", Value::Logical(false)),
            ("-12 / cold", Value::Integer(-12)),
            ("+7", Value::Integer(7)),
            ("9223372036854775808", Value::Integer(1 << 63)),
            ("18446744073709551616", Value::Real(18_446_744_073_709_551_616.0)),
            ("1.5D3", Value::Real(1500.0)),
            (".5e-1", Value::Real(0.05)),
            ("5.", Value::Real(5.0)),
            ("'it''s / a  '  / comment", text("it's / a")),
            ("'  ahead'", text("  ahead")),
            ("''", text("")),
            ("'no end / x", text("'no end / x")),
            ("'it''s no end", text("'it''s no end")),
            ("(1.0, 2.0) / complex", text("(1.0, 2.0)")),
            ("inf", text("inf")),
            ("1e", text("1e")),
            ("-", text("-")),
            ("+-1.0", text("+-1.0")),
            ("", Value::Undefined),
            ("/ nothing", Value::Undefined),
        ] {
            assert_eq!(value(field), expected, "{field}");
        }
    }
}
