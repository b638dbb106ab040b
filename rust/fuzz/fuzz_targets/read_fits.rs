//! Any bytes are a table or an error, and what is allocated for it is bounded by the bytes.
#![no_main]

use astrozoo_core::fits::{Array, FitsError, Source, Table, Wanted};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8], names: Option<&[String]>, wanted: &Wanted) -> Result<usize, FitsError> {
    let source = Source::Memory(bytes);
    let table = Table::open(&source, wanted)?;
    let columns = table.select(names)?;
    Ok(table.arrays(&source, &columns, 1)?.iter().map(Array::bytes).sum())
}

fuzz_target!(|bytes: &[u8]| {
    let names = ["TIME", "flux", "SAP_QUALITY"].map(str::to_owned);
    for wanted in [Wanted::FirstTable, Wanted::Number(2), Wanted::Named("LIGHTCURVE".into())] {
        for names in [None, Some(&names[..1]), Some(&names[..])] {
            if let Ok(size) = read(bytes, names, &wanted) {
                assert!(size <= 8 * bytes.len(), "{size} bytes out of {}", bytes.len());
            }
        }
    }
});
