//! The import rules of docs/architecture.md and the table of settings. A project may delete this file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use app::platform::config::definitions::{KEYS, variable};
use syn::visit::{self, Visit};

/// Handles that only `server` constructs; other modules receive them.
const HANDLES: [&str; 8] =
    ["Cache", "Connections", "Database", "Health", "LoadShed", "Metrics", "Rotation", "Tasks"];

/// The modules of the platform that a domain may import.
const OPEN_TO_DOMAINS: [&str; 9] = [
    "config::secret",
    "error",
    "http::conditional",
    "http::extract",
    "postgres",
    "redis",
    "service",
    "state",
    "tasks",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// A file of `src/` as a module: its path in the crate, the modules it declares in order, and the paths it names.
struct Module {
    path: Vec<String>,
    children: Vec<String>,
    imports: Vec<Vec<String>>,
    /// Paths of at least two parts, as written.
    paths: Vec<String>,
}

/// Collects every path outside of tests that begins with `crate`, `super`, `self` or a child module.
struct Imports {
    module: Vec<String>,
    children: Vec<String>,
    found: Vec<Vec<String>>,
    paths: Vec<String>,
}

impl Imports {
    fn add(&mut self, path: &[String]) {
        let mut absolute = self.module.clone();
        let mut rest = path.iter().peekable();
        match path[0].as_str() {
            "crate" => {
                absolute.clear();
                rest.next();
            }
            "self" => _ = rest.next(),
            "super" => {
                while rest.next_if(|part| *part == "super").is_some() {
                    absolute.pop();
                }
            }
            first if self.children.iter().any(|child| child == first) => {}
            _ => return,
        }
        absolute.extend(rest.cloned());
        self.found.push(absolute);
    }

    fn add_tree(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.add_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.add_tree(item, prefix)),
            syn::UseTree::Name(name) if name.ident == "self" => self.add(prefix),
            syn::UseTree::Name(name) => self.add(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.add(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.add(prefix),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if parts.len() > 1 {
            self.add(&parts);
            self.paths.push(parts.join("::"));
        }
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let is_test = item.attrs.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
        });
        if !is_test {
            visit::visit_item_mod(self, item);
        }
    }
}

/// Returns every file of `src/` except `main.rs`, which no rule restricts.
fn modules() -> Vec<Module> {
    let mut folders = vec![root().join("src")];
    let mut modules = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            let inside = file.strip_prefix(root().join("src")).unwrap().with_extension("");
            if file.is_dir() {
                folders.push(file);
            } else if file.extension().is_some_and(|extension| extension == "rs")
                && inside != Path::new("main")
            {
                let parts = inside.iter().map(|part| part.to_str().unwrap().to_owned());
                let path: Vec<_> = parts.filter(|part| part != "mod" && part != "lib").collect();
                modules.push(module(path, &fs::read_to_string(&file).unwrap()));
            }
        }
    }
    modules
}

fn module(path: Vec<String>, source: &str) -> Module {
    let source = syn::parse_file(source).unwrap();
    let declared = source.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() => Some(item.ident.to_string()),
        _ => None,
    });
    let children: Vec<_> = declared.collect();
    let mut imports =
        Imports { module: path.clone(), children: children.clone(), found: Vec::new(), paths: Vec::new() };
    imports.visit_file(&source);
    Module { path, children, imports: imports.found, paths: imports.paths }
}

fn is_platform(path: &[String]) -> bool {
    path.first().is_some_and(|first| first == "platform")
}

/// Returns whether a module at `from` may import `to`: at the first difference of their paths, `to` has to be declared
/// first. A module and its children may import each other.
fn points_up(from: &[String], to: &[String], declared: &BTreeMap<Vec<String>, Vec<String>>) -> bool {
    let common = from.iter().zip(to).take_while(|(one, other)| one == other).count();
    let (Some(own), Some(other)) = (from.get(common), to.get(common)) else { return true };
    let Some(siblings) = declared.get(&to[..common]) else { return true };
    let position = |name: &String| siblings.iter().position(|sibling| sibling == name);
    // An undeclared name is an item of the parent.
    position(other).is_none_or(|other| position(own).is_some_and(|own| other < own))
}

#[test]
fn imports_follow_the_order_of_the_mod_lines() {
    let modules = modules();
    let declared: BTreeMap<_, _> =
        modules.iter().map(|module| (module.path.clone(), module.children.clone())).collect();
    let mut checked = 0;
    for module in modules.iter().filter(|module| is_platform(&module.path)) {
        for import in &module.imports {
            let from = module.path.join("::");
            assert!(
                is_platform(import),
                "{from} imports {}, which is not part of the platform",
                import.join("::")
            );
            assert!(
                points_up(&module.path, import, &declared),
                "{from} imports {}, which is declared below it",
                import.join("::")
            );
            checked += 1;
        }
    }
    println!("{checked} imports");
    assert!(checked > 150, "{checked}");
}

#[test]
fn domains_import_what_the_platform_offers_them() {
    for module in modules().iter().filter(|module| !module.path.is_empty() && !is_platform(&module.path)) {
        let from = module.path.join("::");
        let own = &module.path[0];
        for import in module.imports.iter().filter(|import| import.first() != Some(own)) {
            let name = import.join("::");
            let offered = |open: &&str| {
                name.strip_prefix("platform::")
                    .and_then(|rest| rest.strip_prefix(*open))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            // The compiler checks the exports of other domains.
            assert!(!is_platform(import) || OPEN_TO_DOMAINS.iter().any(offered), "{from} imports {name}");
        }
    }
}

#[test]
fn only_the_server_constructs_handles() {
    let constructors = HANDLES.map(|handle| format!("{handle}::new"));
    let mut constructed = Vec::new();
    for module in modules() {
        let calls = module.paths.iter().filter(|path| constructors.contains(path));
        for call in calls.clone() {
            assert_eq!(module.path, ["platform", "server"], "{call}");
        }
        constructed.extend(calls.cloned());
    }
    constructed.sort_unstable();
    constructed.dedup();
    assert_eq!(constructed, constructors);
}

#[test]
fn in_a_domain_handlers_use_the_store_and_both_the_model() {
    for module in modules().iter().filter(|module| module.path.len() == 2 && !is_platform(&module.path)) {
        let (own, layer) = (&module.path[0], module.path[1].as_str());
        let siblings: Vec<_> = module
            .imports
            .iter()
            .filter(|import| import.first() == Some(own) && import.len() > 1)
            .map(|import| import[1].as_str())
            .collect();
        let allowed: &[&str] = match layer {
            "handlers" => &["model", "store"],
            "store" => &["model"],
            "model" => &[],
            _ => continue,
        };
        for sibling in siblings {
            assert!(
                !["handlers", "store", "model"].contains(&sibling) || allowed.contains(&sibling),
                "{own}::{layer} imports {sibling}"
            );
        }
        if layer == "model" {
            let source = read(format!("src/{own}/model.rs"));
            for input_or_output in ["sqlx", "redis", "tokio", "platform::postgres", "platform::redis"] {
                assert!(
                    !source.contains(&format!("{input_or_output}::")),
                    "{own}::model uses {input_or_output}"
                );
            }
        }
    }
}

#[test]
fn a_break_of_the_layering_is_found() {
    let names = |path: &str| path.split("::").map(ToOwned::to_owned).collect::<Vec<_>>();
    let declared = BTreeMap::from([
        (names("platform"), names("config::health::http::server")),
        (names("platform::http"), names("head::router")),
    ]);
    for (from, to, allowed) in [
        ("platform::http::router", "platform::health::Health", true),
        ("platform::http::router", "platform::http::head::HeadLimits", true),
        ("platform::http::head", "platform::http::router::public", false),
        ("platform::health", "platform::http::head", false),
        ("platform::health::monitor", "platform::health::Health", true),
        ("platform::health", "platform::health::monitor::State", true),
        ("platform::config", "platform::server", false),
    ] {
        assert_eq!(points_up(&names(from), &names(to), &declared), allowed, "{from} imports {to}");
    }

    let source =
        "use crate::{a::{b, c as d}, e}; use child::X; mod child; fn f() { super::g::h(); std::fs::read(); }
        #[cfg(test)] mod tests { use crate::hidden; }";
    let found = module(names("platform::here"), source).imports;
    let found: Vec<_> = found.iter().map(|import| import.join("::")).collect();
    assert_eq!(found, ["a::b", "a::c", "e", "platform::here::child::X", "platform::g::h"]);
}

/// Generates the table of docs/settings.md from the comments of `default.toml`.
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
            let default = match KEYS[&key].default.as_str() {
                _ if KEYS[&key].secret => "not set, secret".to_owned(),
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
        assert_eq!(&actual[..end], expected, "UPDATE_DOCS=1 cargo test --test platform house updates it");
    }
}
