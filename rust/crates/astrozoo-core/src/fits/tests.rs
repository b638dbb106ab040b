//! Tables made here, read whole, damaged, and cut short.

use super::*;
use crate::parallel;
use proptest::prelude::*;

/// A header block by block, padded.
fn header(cards: &[String]) -> Vec<u8> {
    let mut bytes: Vec<u8> = cards.iter().flat_map(|card| format!("{card:80}").into_bytes()).collect();
    bytes.extend(format!("{:80}", "END").into_bytes());
    bytes.resize(bytes.len().next_multiple_of(BLOCK), b' ');
    bytes
}

fn primary() -> Vec<u8> {
    header(&["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "EXTEND  = T"].map(str::to_owned))
}

/// A file with one table; `columns`: TFORM, further cards with `#` for the number, bytes in a row.
fn file(columns: &[(&str, &[&str])], rows: &[Vec<u8>]) -> Vec<u8> {
    let width = rows.first().map_or(0, Vec::len);
    let mut cards = vec![
        "XTENSION= 'BINTABLE'".to_owned(),
        "BITPIX  = 8".to_owned(),
        "NAXIS   = 2".to_owned(),
        format!("NAXIS1  = {width}"),
        format!("NAXIS2  = {}", rows.len()),
        "PCOUNT  = 0".to_owned(),
        "GCOUNT  = 1".to_owned(),
        format!("TFIELDS = {}", columns.len()),
        "EXTNAME = 'Table'".to_owned(),
    ];
    for (i, (form, more)) in columns.iter().enumerate() {
        cards.push(format!("{:8}= '{form}'", format!("TFORM{}", i + 1)));
        cards.extend(more.iter().map(|card| {
            let (key, value) = card.split_once('=').unwrap();
            format!("{:8}= {value}", format!("{key}{}", i + 1))
        }));
    }
    let mut bytes = [primary(), header(&cards), rows.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn read(bytes: &[u8], names: Option<&[&str]>, wanted: Wanted) -> Result<(Vec<Column>, Vec<Array>), FitsError> {
    let source = Source::Memory(bytes);
    let table = Table::open(&source, &wanted)?;
    let names: Option<Vec<String>> = names.map(|names| names.iter().map(|&name| name.to_owned()).collect());
    let columns = table.select(names.as_deref())?;
    let arrays = table.arrays(&source, &columns, 2)?;
    Ok((columns, arrays))
}

/// Three rows of every kind of column.
fn sample() -> Vec<u8> {
    let rows: Vec<Vec<u8>> = (0..3_u8)
        .map(|i| {
            let n = i16::from(i);
            let mut row = vec![if i == 1 { b'F' } else { b'T' }, 0b1010_0000 >> i, 0x40, i];
            row.extend(n.to_be_bytes());
            row.extend((n - 2).to_be_bytes());
            row.extend((i32::from(n) - 1).to_be_bytes());
            row.extend(i64::from(n).to_be_bytes());
            row.extend([[b'a' + i, b' ', 0, b'x'], [b'b', b' ', b'c', b' ']].concat());
            row.extend((0..6).flat_map(|k| (f32::from(n) + k as f32).to_be_bytes()));
            row.extend(f64::from(n).to_be_bytes());
            row.extend([f64::from(n), 1.0].map(f64::to_be_bytes).concat());
            row
        })
        .collect();
    file(
        &[
            ("L", &["TTYPE='flag'"]),
            ("10X", &["TTYPE='bits'"]),
            ("B", &["TTYPE='byte'", "TZERO=-128"]),
            ("I", &["TTYPE='U'", "TZERO=32768"]),
            ("1I", &["TTYPE='scaled'", "TSCAL=0.5", "TZERO=1", "TNULL=-2", "TUNIT='m'"]),
            ("J", &["TTYPE=''", "TNULL=0"]),
            ("K", &["TTYPE='U'", "TZERO=9223372036854775808"]),
            ("8A", &["TTYPE='text'", "TDIM='(4,2)'"]),
            ("6E", &["TTYPE='cube'", "TDIM='(3,2)'"]),
            ("D", &["TTYPE='time'"]),
            ("M", &["TTYPE='wave'", "TZERO=2", "TSCAL=2.0"]),
        ],
        &rows,
    )
}

#[test]
fn every_kind_of_column_is_decoded() {
    let (columns, arrays) = read(&sample(), None, Wanted::FirstTable).unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["flag", "bits", "byte", "U", "scaled", "col6", "col7", "text", "cube", "time", "wave"]);
    assert_eq!(arrays[0], Array::Bool(vec![true, false, true]));
    let bits = |text: &str| text.bytes().map(|byte| byte == b'1').collect::<Vec<_>>();
    assert_eq!(arrays[1], Array::Bool(bits(&["1010000001", "0101000001", "0010100001"].concat())));
    assert_eq!(arrays[2], Array::I8(vec![-128, -127, -126]));
    assert_eq!(arrays[3], Array::U16(vec![32_768, 32_769, 32_770]));
    let Array::F64(scaled) = &arrays[4] else { panic!() };
    assert!(scaled[0].is_nan() && scaled[1..] == [0.5, 1.0]);
    assert_eq!(columns[4].unit.as_deref(), Some("m"));
    let Array::F64(nulled) = &arrays[5] else { panic!() };
    assert!(nulled[0] == -1.0 && nulled[1].is_nan() && nulled[2] == 1.0);
    assert_eq!(arrays[6], Array::U64(vec![1 << 63, (1 << 63) + 1, (1 << 63) + 2]));
    let Array::U32(text) = &arrays[7] else { panic!() };
    assert_eq!(text[..8], [u32::from('a'), 0, 0, 0, u32::from('b'), u32::from(' '), u32::from('c'), 0]);
    assert_eq!((columns[7].shape.clone(), columns[7].kind), (vec![2], Kind::Text(4)));
    assert_eq!(columns[8].shape, [2, 3]);
    let Array::F32(cube) = &arrays[8] else { panic!() };
    assert_eq!(cube[6..12], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(arrays[9], Array::F64(vec![0.0, 1.0, 2.0]));
    assert_eq!(arrays[10], Array::F64(vec![2.0, 2.0, 4.0, 2.0, 6.0, 2.0]));
}

#[test]
fn columns_and_hdus_are_found_without_regard_to_case() {
    let (columns, _) = read(&sample(), Some(&["TIME", "u", "time"]), Wanted::Named("TABLE".into())).unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["time", "U"]);
    assert!(matches!(
        read(&sample(), Some(&["none"]), Wanted::Number(1)),
        Err(FitsError::MissingColumn { present, .. }) if present.len() == 11
    ));
    for wanted in [Wanted::Number(0), Wanted::Number(2), Wanted::Named("x".into())] {
        assert!(matches!(read(&sample(), None, wanted), Err(FitsError::MissingHdu(_))));
    }
}

#[test]
fn sizes_beyond_the_file_are_refused_before_anything_is_allocated() {
    for (key, value) in [("NAXIS2", "1000000000000000000"), ("NAXIS2", "9223372036854775807"), ("NAXIS1", "4000000000")]
    {
        let bytes = replaced(key, value);
        let error = read(&bytes, None, Wanted::FirstTable).unwrap_err();
        assert!(matches!(error, FitsError::Format(_) | FitsError::Truncated(_)), "{error}");
    }
}

#[test]
fn wrong_keywords_are_named_with_their_byte() {
    for (key, value) in [
        ("NAXIS2", "-1"),
        ("NAXIS1", "3.0"),
        ("NAXIS", "3"),
        ("NAXIS", "'two'"),
        ("BITPIX", "7"),
        ("BITPIX", "16"),
        ("PCOUNT", "-5"),
        ("GCOUNT", "2"),
        ("TFIELDS", "1000"),
        ("TFORM1", "'1Z'"),
        ("TFORM1", "'99999999999999999999L'"),
        ("TDIM9", "'(4,2)'"),
        ("TDIM9", "'(0,2)'"),
        ("TDIM9", "'3,2'"),
        ("TSCAL5", "'x'"),
        ("TNULL6", "1.5"),
    ] {
        let error = read(&replaced(key, value), None, Wanted::FirstTable).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("byte"), "{key} {value}: {error}");
    }
    let error = read(&replaced("TFORM1", "'2L'"), None, Wanted::FirstTable).unwrap_err().to_string();
    assert!(error.contains("fill"), "{error}");
}

/// The sample with the last card of a keyword, the table's, changed.
fn replaced(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = sample();
    let start = format!("{key:8}=");
    let card = bytes.chunks(CARD).rposition(|card| card.starts_with(start.as_bytes())).unwrap();
    bytes[card * CARD..(card + 1) * CARD].copy_from_slice(format!("{:80}", format!("{start} {value}")).as_bytes());
    bytes
}

#[test]
fn variable_length_arrays_are_refused_by_name() {
    let bytes = file(&[("1PE(3)", &["TTYPE='spectrum'"]), ("D", &["TTYPE='time'"])], &[vec![0; 16]]);
    let error = read(&bytes, None, Wanted::FirstTable).unwrap_err();
    assert!(matches!(&error, FitsError::Unsupported(message) if message.contains("'spectrum'")));
    assert!(read(&bytes, Some(&["time"]), Wanted::FirstTable).is_ok());
}

#[test]
fn tables_without_rows_or_columns_are_empty() {
    let rows: &[Vec<u8>] = &[];
    let (columns, arrays) = read(&file(&[], rows), None, Wanted::FirstTable).unwrap();
    assert!(columns.is_empty() && arrays.is_empty());
    let bytes = file(&[("0A", &["TTYPE='none'"]), ("B", &[])], &[vec![7]]);
    let (columns, arrays) = read(&bytes, None, Wanted::FirstTable).unwrap();
    assert_eq!((columns[0].shape.clone(), arrays[0].bytes()), (vec![0], 0));
    assert_eq!(arrays[1], Array::U8(vec![7]));
}

#[test]
fn wide_rows_are_read_field_by_field() {
    let rows: Vec<Vec<u8>> =
        (0..5_u8).map(|i| [vec![0; 20_000], f64::from(i).to_be_bytes().to_vec(), vec![i; 300_000]].concat()).collect();
    let bytes = file(&[("20000B", &[]), ("D", &["TTYPE='x'"]), ("300000B", &[])], &rows);
    let (_, arrays) = read(&bytes, Some(&["x"]), Wanted::FirstTable).unwrap();
    assert_eq!(arrays[0], Array::F64(vec![0.0, 1.0, 2.0, 3.0, 4.0]));
    let (_, arrays) = read(&bytes, None, Wanted::FirstTable).unwrap();
    assert_eq!(arrays[2], Array::U8((0..5).flat_map(|i| [i; 300_000]).collect()));
}

#[test]
fn many_rows_are_the_same_from_memory_and_file_with_any_threads() {
    let rows: Vec<Vec<u8>> = (0..300_000_u32).map(|i| [i.to_be_bytes(), (2 * i).to_be_bytes()].concat()).collect();
    let bytes = file(&[("J", &["TTYPE='a'"]), ("J", &["TTYPE='b'"])], &rows);
    let path = std::env::temp_dir().join(format!("astrozoo-{}.fits", std::process::id()));
    std::fs::write(&path, &bytes).unwrap();
    let sources = [Source::Memory(&bytes), Source::open(&path).unwrap()];
    parallel::map(1, sources.iter().collect(), |source| {
        let table = Table::open(source, &Wanted::FirstTable).unwrap();
        let columns = table.select(Some(&["b".to_owned()])).unwrap();
        for threads in [1, 3] {
            let arrays = table.arrays(source, &columns, threads).unwrap();
            assert_eq!(arrays[0], Array::I32((0..300_000).map(|i| 2 * i).collect()));
        }
    });
    // Cut short between opening and reading.
    let table = Table::open(&sources[1], &Wanted::FirstTable).unwrap();
    std::fs::write(&path, &bytes[..500_000]).unwrap();
    let columns = table.select(None).unwrap();
    assert!(matches!(table.arrays(&sources[1], &columns, 2), Err(FitsError::Truncated(_))));
    std::fs::remove_file(path).unwrap();
}

/// Read whatever can be read; gives the bytes of all arrays.
fn survive(bytes: &[u8]) -> usize {
    let wanted = [Wanted::FirstTable, Wanted::Number(1), Wanted::Named("table".into())];
    let names: [Option<&[&str]>; 2] = [None, Some(&["time", "cube"])];
    let sizes = wanted.into_iter().flat_map(|wanted| names.map(|names| read(bytes, names, wanted.clone())));
    sizes.flatten().map(|(_, arrays)| arrays.iter().map(Array::bytes).sum()).max().unwrap_or(0)
}

proptest! {
    #[test]
    fn damaged_files_end_in_an_error_or_a_table_of_their_size(
        changes in proptest::collection::vec((0_usize..8640, prop_oneof![any::<u8>(), b' '..=b'Z']), 0..8),
        length in prop_oneof![3 => Just(usize::MAX), 1 => 0_usize..9000],
    ) {
        let mut bytes = sample();
        for (place, byte) in changes {
            bytes[place] = byte;
        }
        bytes.truncate(length);
        prop_assert!(survive(&bytes) <= 8 * bytes.len());
    }

    #[test]
    fn damaged_values_end_in_an_error_or_a_table_of_their_size(
        key in "NAXIS[12]?|TFORM(1|2|9|10)|TDIM[89]|TZERO[34]|TFIELDS|[PG]COUNT|TNULL5|EXTNAME",
        value in prop_oneof!["-?[0-9]{0,25}", "'[0-9]{0,20}[LXBIJKAEDCMPQ]'", "'\\([0-9,]{0,40}\\)'", "[ -~]{0,60}"],
    ) {
        let bytes = replaced(&key, &value);
        prop_assert!(survive(&bytes) <= 8 * bytes.len());
    }
}
