//! Style rules for the template's own code, which do not apply to generated projects.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they measured")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut folders = vec![root().join("src")];
    let mut lines = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        // platform/ has more files than other folders.
        assert!(entries.len() <= 19, "{folder:?} has {} entries", entries.len());
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                assert!(source.lines().count() <= 300, "{path:?} has {} lines", source.lines().count());
                lines.push(source.split("#[cfg(test)]").next().unwrap().lines().count());
            }
        }
    }
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    println!("excluding tests: {} files, median {median} lines", lines.len());
    assert!(median <= 135, "{median}");
}

#[test]
fn direct_dependencies_stay_few() {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let (optional, always): (Vec<_>, Vec<_>) = section
        .lines()
        .filter(|line| line.contains(" = "))
        .partition(|line| line.contains("optional = true"));
    println!("{} direct dependencies, {} more with features", always.len(), optional.len());
    assert!(always.len() <= 26, "{}", always.len());
}
