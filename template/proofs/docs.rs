//! What the documents say has to be so: links, paths, settings, metrics, targets of make, and commands, which
//! `scripts/test-docs` runs. The rules hold as well for what remains of a document without the example domain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use app::platform::config::sources::{KEYS, variable};

/// What keeps `scripts/test-docs` from running a block of commands; CONTRIBUTING.md explains each.
const NEEDS: [&str; 5] = ["docker", "registry", "cluster", "root", "time"];
const LANGUAGES: [&str; 9] = ["console", "diff", "ini", "json", "rust", "sql", "text", "toml", "yaml"];
/// Where paths of the repository begin. What is made by commands (`secrets/`, `backups/`, `target/`) is not here.
const FOLDERS: [&str; 9] =
    ["src/", "tests/", "migrations/", "docs/", "scripts/", "deploy/", "fuzz/", "benches/", "docker-compose"];
/// What a table row or a marked section has to be about to go with the example domain.
const EXAMPLE: [&str; 3] = ["/v1/links", "/r/{slug}", "src/links"];

/// What differs in a project that is made from this template.
const RENDERED: &str = "template/files";

struct Document {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
}

struct Block<'a> {
    language: &'a str,
    attributes: Vec<&'a str>,
    text: &'a str,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Not so in a project that was made from it.
fn is_template() -> bool {
    root().join(RENDERED).exists()
}

/// Every document, each as it is and as it is without the example domain.
fn documents() -> Vec<Document> {
    let mut paths: Vec<_> =
        ["README.md", "CONTRIBUTING.md", "migrations/README.md"].map(PathBuf::from).into();
    // Becomes README.md in a project that is made from this template.
    paths.extend(is_template().then(|| Path::new(RENDERED).join("README.md.liquid")));
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            paths.push(Path::new("docs").join(name));
        }
    }
    let both = |path: PathBuf| {
        let text = read(&path);
        let reduced = without_example(&text);
        [Document { path: path.clone(), text }, Document { path, text: reduced }]
    };
    paths.into_iter().flat_map(both).collect()
}

/// What remains when the example domain is removed.
fn without_example(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "<!-- example -->" => {
                assert!(!inside, "a marked section in another");
                inside = true;
            }
            "<!-- /example -->" => {
                assert!(inside, "a marked section ends that has not begun");
                inside = false;
            }
            _ if inside => {}
            _ if line.starts_with('|') && EXAMPLE.iter().any(|mark| line.contains(mark)) => {}
            _ => kept += &format!("{line}\n"),
        }
    }
    assert!(!inside, "a marked section has no end");
    kept
}

/// Fenced blocks, and the text around them.
fn parts(text: &str) -> (Vec<Block<'_>>, Vec<&str>) {
    let (mut blocks, mut prose) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some(start) = rest.find("```") {
        let (before, fence) = rest.split_at(start);
        assert!(before.is_empty() || before.ends_with('\n'), "a fence that does not begin its line");
        let (info, body) = fence[3..].split_once('\n').unwrap();
        let (body, after) = body.split_once("```").expect("a fence that is closed");
        let mut words = info.split(' ');
        blocks.push(Block { language: words.next().unwrap(), attributes: words.collect(), text: body });
        prose.push(before);
        rest = after;
    }
    prose.push(rest);
    (blocks, prose)
}

/// What stands between backticks in `prose`.
fn code(prose: &str) -> Vec<&str> {
    assert!(prose.matches('`').count().is_multiple_of(2), "a backtick too many in: {prose}");
    prose.split('`').skip(1).step_by(2).collect()
}

/// Words in code: of inline code, of commands, and of pictures.
fn words(document: &Document) -> Vec<&str> {
    let (blocks, prose) = parts(&document.text);
    let fenced = blocks.iter().filter(|block| {
        block.language == "console" || (block.language == "text" && block.attributes.is_empty())
    });
    let fenced = fenced.flat_map(|block| block.text.split_whitespace());
    let inline = prose.into_iter().flat_map(code).flat_map(str::split_whitespace);
    inline.chain(fenced).map(|word| word.trim_matches(['(', ')', ',', ';', ':', '"', '\''])).collect()
}

/// Whether `word` stands for many paths, or for one that is made: it has `…`, `*`, a bracket, `$`, or a part in capitals.
fn is_pattern(word: &str) -> bool {
    let in_capitals = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    word.contains(['…', '*', '<', '{', '$', '=']) || word.split(['/', '.']).any(in_capitals)
}

/// As GitHub makes them from headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let (_, prose) = parts(text);
    let mut anchors = BTreeSet::new();
    for line in prose.into_iter().flat_map(str::lines).filter(|line| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let number = (1..).find(|n| !anchors.contains(&format!("{anchor}-{n}"))).unwrap();
        if !anchors.insert(anchor.clone()) {
            anchors.insert(format!("{anchor}-{number}"));
        }
    }
    anchors
}

/// `path` without `..`, which `docs/../README.md` has.
fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        if part == Component::ParentDir {
            path.pop();
        } else {
            path.push(part);
        }
        path
    })
}

#[test]
fn links_lead_somewhere() {
    let documents = documents();
    let mut count = 0;
    for document in &documents {
        for prose in parts(&document.text).1 {
            for link in prose.split("](").skip(1) {
                let target = link.split(')').next().unwrap();
                if target.starts_with("https://") || target.contains("{{") {
                    continue;
                }
                count += 1;
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let folder = document.path.parent().unwrap();
                let folder = folder.strip_prefix(RENDERED).unwrap_or(folder);
                let path = if path.is_empty() { document.path.clone() } else { normal(&folder.join(path)) };
                assert!(root().join(&path).exists(), "{:?} links to {target}", document.path);
                let there = documents.iter().filter(|other| other.path == path);
                assert!(
                    anchor.is_empty() || there.clone().all(|there| anchors(&there.text).contains(anchor)),
                    "{:?} links to {target}, which has no such section",
                    document.path
                );
            }
        }
    }
    println!("{count} links");
}

#[test]
fn paths_exist() {
    let mut count = 0;
    for document in documents() {
        let (blocks, _) = parts(&document.text);
        // What a tutorial lets its reader write.
        let written = blocks.iter().flat_map(|block| &block.attributes);
        let written: Vec<_> = written.filter_map(|attribute| attribute.strip_prefix("title=")).collect();
        for word in words(&document) {
            let word = word.trim_end_matches('.').trim_start_matches("./");
            let at_top = !word.contains('/') && (word.ends_with(".md") || word.ends_with(".toml"));
            let is_path = at_top || FOLDERS.iter().any(|folder| word.starts_with(folder));
            if !is_path || is_pattern(word) || written.contains(&word) {
                continue;
            }
            count += 1;
            // docker-compose.yml:deploy/compose/tls.yml
            for path in word.split(':').take_while(|path| !path.starts_with(char::is_numeric)) {
                let rendered = root().join(format!("{RENDERED}/{path}.liquid"));
                let rendered = document.path.starts_with(RENDERED) && rendered.exists();
                assert!(rendered || root().join(path).exists(), "{:?} names {path}", document.path);
            }
        }
    }
    println!("{count} paths");
    assert!(count > 100, "{count}");
}

/// Where a project is meant to run is its own choice: these folders may be deleted, each with its page.
#[test]
fn only_its_own_page_speaks_of_a_platform() {
    for document in documents() {
        for platform in ["kubernetes", "swarm"] {
            let own = document.path.file_stem().is_some_and(|name| name == platform);
            let marks = [
                format!("{platform}.md"),
                format!("deploy/{platform}"),
                format!("check-{platform}"),
                format!("tests/stack/{platform}"),
                format!("tests/{platform}"),
                format!("`{platform}::"),
            ];
            for mark in marks.iter().filter(|_| !own) {
                assert!(!document.text.contains(mark), "{:?} names {mark}", document.path);
            }
        }
    }
}

#[test]
fn what_remains_without_the_example_does_not_speak_of_it() {
    for document in documents().iter().skip(1).step_by(2) {
        for mark in EXAMPLE.iter().chain(&["/r/hello", "api/links.rs", "fuzz_targets/links"]) {
            assert!(!document.text.contains(mark), "{:?} names {mark}", document.path);
        }
        assert!(!document.text.contains("\n\n\n\n"), "{:?} has a hole", document.path);
    }
}

/// The documents go unchanged into each project that is made from the template.
#[test]
fn only_the_readme_names_the_template() {
    if !is_template() {
        return;
    }
    let name = env!("CARGO_PKG_NAME");
    for document in documents().iter().filter(|document| document.path != Path::new("README.md")) {
        assert!(!document.text.to_lowercase().contains(name), "{:?} names {name}", document.path);
    }
}

#[test]
fn settings_are_known_and_their_defaults_are_true() {
    let variables: BTreeSet<_> = KEYS.keys().map(|key| variable(key)).collect();
    let (mut named, mut defaults) = (BTreeSet::new(), 0);
    for document in documents() {
        for found in document.text.split("APP__").skip(1) {
            let end = found.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(found.len());
            let name = found[..end].trim_end_matches("_FILE").trim_end_matches('_');
            if name.is_empty() || name == "SECTION__KEY" {
                continue;
            }
            assert!(variables.contains(&format!("APP__{name}")), "{:?} names APP__{name}", document.path);
            named.insert(name.to_owned());
        }
        // `section.key` (5 s)
        let spans: Vec<_> = document.text.split('`').collect();
        for pair in spans.windows(2) {
            let (Some(default), Some(told)) = (KEYS.get(pair[0]), pair[1].strip_prefix(" (")) else {
                continue;
            };
            let told = told.split(')').next().unwrap().replace([' ', ','], "");
            assert_eq!(told, *default, "{:?} on {}", document.path, pair[0]);
            defaults += 1;
        }
    }
    println!("{} settings, {defaults} defaults", named.len());
}

/// What is registered, from the names in the sources, and what the process collector of the crate adds.
fn registered() -> BTreeSet<String> {
    let metrics = read("src/platform/telemetry/metrics.rs");
    let literals = metrics.split('"').filter(|text| text.contains('_') && is_snake_case(text));
    let elsewhere = ["src/platform/telemetry/mod.rs", "src/platform/telemetry/writer.rs"].map(read).concat();
    let elsewhere = elsewhere.split("Counter::new(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let process =
        ["cpu_seconds_total", "open_fds", "max_fds", "virtual_memory_bytes", "resident_memory_bytes"];
    let process =
        process.iter().chain(&["start_time_seconds", "threads"]).map(|name| format!("process_{name}"));
    literals.chain(elsewhere).map(ToOwned::to_owned).chain(process).collect()
}

fn is_snake_case(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

#[test]
fn metrics_are_registered() {
    let registered = registered();
    let families: BTreeSet<_> = registered.iter().map(|name| name.split('_').next().unwrap()).collect();
    // What is called alike: fields of a line of the log, settings, files of secrets, names of compose.
    let others = [read("docs/log.schema.json"), read("src/platform/config/default.toml"), production()].concat();
    let others: BTreeSet<_> = others.split(|c: char| !c.is_ascii_lowercase() && c != '_').collect();
    let mut named = BTreeSet::new();
    for document in documents() {
        let (blocks, prose) = parts(&document.text);
        let fenced = blocks.iter().filter(|block| ["console", "text"].contains(&block.language));
        let texts = prose.into_iter().flat_map(code).chain(fenced.map(|block| block.text));
        let is_path = |text: &&str| FOLDERS.iter().any(|folder| text.starts_with(folder));
        let texts = texts.flat_map(str::split_whitespace).filter(|text| !is_path(text));
        for word in texts.flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')) {
            let family = word.split('_').next().unwrap();
            let is_claim = word.contains('_') && is_snake_case(word) && families.contains(family);
            if !is_claim || others.contains(word) {
                continue;
            }
            let plain = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
            assert!(
                registered.contains(word) || plain.is_some_and(|plain| registered.contains(plain)),
                "{:?} names {word}",
                document.path
            );
            named.insert(word.to_owned());
        }
    }
    println!("{} metrics: {named:?}", named.len());
    assert!(named.len() > 3, "{named:?}");
}

#[test]
fn targets_of_make_exist() {
    let targets = |file: &str| {
        let makefile = fs::read_to_string(root().join(file)).unwrap_or_default();
        let names = makefile.lines().filter_map(|line| line.split_once(": ##"));
        names.map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>()
    };
    let (everywhere, template) = (targets("Makefile"), targets("GNUmakefile"));
    for document in documents() {
        // The other documents are those of projects too.
        let is_readme = document.path == Path::new("README.md");
        let (blocks, prose) = parts(&document.text);
        let commands = blocks.iter().filter(|block| block.language == "console");
        let lines = commands.flat_map(|block| block.text.lines()).chain(prose.into_iter().flat_map(code));
        for line in lines {
            let Some(target) = line.strip_prefix("make ").and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            let known = everywhere.contains(target) || (is_readme && template.contains(target));
            assert!(known || is_pattern(target), "{:?} names make {target}", document.path);
        }
    }
}

/// The production stack with its monitoring.
fn production() -> String {
    read("docker-compose.prod.yml") + &read("deploy/compose/observability.yml")
}

/// Containers in the pictures: words in brackets.
#[test]
fn containers_exist() {
    let stack = production();
    let mut count = 0;
    for document in documents() {
        let (blocks, _) = parts(&document.text);
        let pictures = blocks.iter().filter(|block| block.language == "text" && block.attributes.is_empty());
        for name in pictures.flat_map(|picture| picture.text.split('[').skip(1)) {
            let name = name.split(']').next().unwrap();
            assert!(stack.contains(&format!("\n  {name}:")), "{:?} draws [{name}]", document.path);
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

#[test]
fn each_block_says_what_it_is_and_each_command_is_run_or_says_why_not() {
    let (mut run, mut excused) = (0, 0);
    for document in documents() {
        for block in parts(&document.text).0 {
            let (language, attributes) = (block.language, &block.attributes);
            let place = format!("{:?}: ```{language} {attributes:?}", document.path);
            assert!(LANGUAGES.contains(&language), "{place}");
            let known = |attribute: &&str| match attribute.split_once('=') {
                Some(("needs", why)) => language == "console" && NEEDS.contains(&why),
                Some(("title", _)) => !["console", "diff"].contains(&language),
                Some(_) => false,
                None => matches!((language, *attribute), ("text", "output" | "log") | ("diff", "otherwise")),
            };
            assert!(attributes.iter().all(known) && attributes.len() <= 1, "{place}");
            match (language, attributes.is_empty()) {
                ("console", true) => run += 1,
                ("console", false) => excused += 1,
                _ => {}
            }
        }
    }
    let rules = read("CONTRIBUTING.md");
    for why in NEEDS {
        assert!(rules.contains(&format!("| `{why}` |")), "CONTRIBUTING.md says what needs={why} means");
    }
    // Each document was counted twice.
    println!("{} blocks of commands are run, {} say why not", run / 2, excused / 2);
    assert!(run > 0);
}

/// Numbers of two characters or more.
fn numbers(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_digit() && c != ',' && c != '.');
    words.map(|word| word.trim_matches([',', '.'])).filter(|word| word.len() > 1).collect()
}

#[test]
fn the_readme_promises_what_the_guarantees_have() {
    let page = read("docs/guarantees.md");
    let measured = numbers(&page);
    let readme = read("README.md");
    let (_, prose) = parts(&readme);
    let promises = prose.concat();
    let promises = promises.split("\n- ").filter(|item| item.contains("](docs/guarantees.md#"));
    for promise in promises.map(|item| item.split("\n\n").next().unwrap()) {
        for number in numbers(promise) {
            assert!(measured.contains(number), "{number} is not in docs/guarantees.md: {promise}");
        }
    }
    for document in documents() {
        for word in document.text.split(|c: char| !c.is_ascii_alphanumeric()) {
            if word.strip_prefix('G').is_some_and(|number| number.parse::<u8>().is_ok()) {
                assert!(page.contains(&format!("| {word} |")), "{:?} names {word}", document.path);
            }
        }
    }
}
