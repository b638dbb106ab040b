//! Stamps the extension with a digest of the sources it was built from, so that Python can tell when it is stale.
//!
//! `python/astrozoo_rust/provider.py` computes the same digest where the sources lie beside it.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let crates = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?)
        .parent()
        .ok_or_else(|| io::Error::other("the crate has no parent folder"))?
        .to_path_buf();
    let mut files = Vec::new();
    for name in ["astrozoo-core", "astrozoo-py"] {
        let folder = crates.join(name);
        files.push(folder.join("Cargo.toml"));
        rust_files(&folder.join("src"), &mut files)?;
        println!("cargo:rerun-if-changed={}", folder.join("src").display());
        println!("cargo:rerun-if-changed={}", folder.join("Cargo.toml").display());
    }
    let mut named: Vec<(String, PathBuf)> = files
        .into_iter()
        .map(|file| {
            let relative = file.strip_prefix(&crates).unwrap_or(&file);
            (relative.to_string_lossy().replace('\\', "/"), file)
        })
        .collect();
    named.sort();
    let mut digest = Sha256::new();
    for (name, file) in named {
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(fs::read(file)?);
        digest.update([0]);
    }
    let text: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo:rustc-env=ASTROZOO_SOURCES={text}");
    Ok(())
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}
