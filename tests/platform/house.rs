//! Rules of the house that a reader relies on, and documents that have to agree with the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use app::platform::config::sources::{KEYS, variable};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Modules that a file of `src/` uses.
fn imports(path: &str) -> BTreeSet<String> {
    let source = read(path);
    let code = source.split("#[cfg(test)]").next().unwrap();
    let mut modules = BTreeSet::new();
    for statement in code.split("use crate::").skip(1) {
        let tree = statement.split(';').next().unwrap();
        let tree = tree.trim_start_matches('{').trim_end_matches('}');
        let first = |path: &str| path.trim().split("::").next().unwrap().to_owned();
        match statement.starts_with('{') {
            true => modules.extend(tree.split(',').map(first)),
            false => modules.extend([first(tree)]),
        }
    }
    modules
}

/// The folders of `src/`, each a domain.
fn domains() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("src")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn imports_point_one_way() {
    let allowed = |list: &str| list.split(' ').map(ToOwned::to_owned).collect::<BTreeSet<_>>();
    let domain = allowed("state error extract postgres cache shutdown");
    let domains: BTreeSet<_> =
        domains().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "default" {
            continue;
        }
        if path.is_dir() {
            for file in fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                let used = imports(file.strip_prefix(root()).unwrap().to_str().unwrap());
                assert!(used.is_subset(&domain), "{file:?} uses {used:?}");
            }
            continue;
        }
        let used = imports(&format!("src/{name}.rs"));
        let uses = |module: &str| used.contains(module);
        assert!(used.is_disjoint(&domains) || name == "router", "{name} uses a domain");
        assert!(!uses("router") || name == "server", "{name} uses the router");
        assert!(!uses("server") || name == "cli", "{name} uses the server");
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut lines = Vec::new();
    for folder in [domains(), vec![root().join("src")]].concat() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                let source = fs::read_to_string(&path).unwrap();
                assert!(source.lines().count() <= 300, "{path:?} has {} lines", source.lines().count());
                lines.push(source.split("#[cfg(test)]").next().unwrap().lines().count());
            }
        }
    }
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    println!("without tests: {} files, median {median} lines", lines.len());
    assert!(median <= 135, "{median}");
}

/// The table of docs/settings.md, made from the comments of `default.toml`.
fn settings_table() -> String {
    let mut table = "| variable | default | meaning |\n|---|---|---|\n".to_owned();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in read("src/platform/config/default.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            comment.clear();
        } else if let Some(text) = line.strip_prefix("# ") {
            comment = format!("{comment} {text}").trim().to_owned();
        } else if let Some((key, _)) = line.split_once(" = ") {
            let key = format!("{section}.{key}");
            let default = match KEYS[&key].as_str() {
                "" => "not set".to_owned(),
                default => format!("`{default}`"),
            };
            table += &format!("| `{}` | {default} | {comment} |\n", variable(&key));
            comment.clear();
        }
    }
    table
}

#[test]
fn the_page_of_settings_lists_each_of_them() {
    let page = read("docs/settings.md");
    let expected = settings_table();
    let start = page.find("| variable | default |").expect("docs/settings.md has a table");
    let actual = &page[start..];
    let end = actual.find("\n\n").map_or(actual.len(), |end| end + 1);

    if actual[..end] != expected && std::env::var_os("UPDATE_DOCS").is_some() {
        let updated = page.replace(&actual[..end], &expected);
        fs::write(root().join("docs/settings.md"), updated).unwrap();
    } else {
        assert_eq!(&actual[..end], expected, "UPDATE_DOCS=1 cargo test --test api house renews it");
    }
}

#[test]
fn the_guarantees_name_tests_that_exist() {
    let page = read("docs/guarantees.md");
    let names = page.split('`').skip(1).step_by(2).filter(|name| !name.contains(' ') && name.contains("::"));
    let names: Vec<_> = names.filter(|name| !name.starts_with("axum::")).collect();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let (module, test) = name.split_once("::").unwrap();
        let files =
            ["api", "process", "stack"].map(|binary| root().join(format!("tests/{binary}/{module}.rs")));
        let test = format!("fn {}", test.trim_end_matches('…'));
        let exists = files.iter().any(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&test)));
        assert!(exists, "{name}");
    }
}

#[test]
fn direct_dependencies_stay_few() {
    let manifest = read("Cargo.toml");
    let section = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let (optional, always): (Vec<_>, Vec<_>) = section
        .lines()
        .filter(|line| line.contains(" = "))
        .partition(|line| line.contains("optional = true"));
    let count = always.len();
    println!("{count} direct dependencies, {} more of features", optional.len());
    assert!(count <= 25, "{count}");
}
