//! What the documents say has to be true: links, paths, settings, metrics, targets of make, guarantees, and commands, which
//! `template/proofs/test-docs` runs. The rules also hold for a document without the example domain.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "tests print what they checked")]

#[path = "../../tests/support/mod.rs"]
#[expect(dead_code, reason = "some of it is for the other test binaries")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::support::setup::Setup;

/// Why `template/proofs/test-docs` does not run a block of commands; it documents each.
const NEEDS: [&str; 5] = ["docker", "registry", "cluster", "root", "time"];
const LANGUAGES: [&str; 9] = ["console", "diff", "ini", "json", "rust", "sql", "text", "toml", "yaml"];
/// Prefixes of paths in the repository. Commands create `secrets/`, `backups/` and `target/`, so they are not here.
const FOLDERS: [&str; 8] =
    ["src/", "tests/", "migrations/", "docs/", "scripts/", "deploy/", ".github/", "docker-compose"];
/// A table row or a marked section about one of these is removed with the example domain.
const EXAMPLE: [&str; 3] = ["/v1/links", "/r/{slug}", "src/links"];
/// Files that a generated project has instead of those of the template.
const RENDERED: &str = "template/files";
const MAX_WORDS: usize = 15_000;

struct Document {
    /// From the root of the repository.
    path: PathBuf,
    text: String,
    /// What remains when the example domain is removed.
    without_example: String,
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let text = read(&path);
        let without_example = without_example(&text);
        Self { path, text, without_example }
    }

    /// The text with and without the example domain.
    fn versions(&self) -> [&str; 2] {
        [&self.text, &self.without_example]
    }

    fn is(&self, path: &str) -> bool {
        self.path == Path::new(path)
    }
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
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Every document that a reader of the repository or of a generated project gets.
fn documents() -> Vec<Document> {
    let mut paths: Vec<_> = ["README.md", "migrations/README.md"].map(PathBuf::from).into();
    paths.push(Path::new(RENDERED).join("README.md.liquid"));
    for folder in [".github", "docs"] {
        paths.extend(
            entries(folder).filter(|path| path.extension().is_some_and(|extension| extension == "md")),
        );
    }
    let pages = entries("deploy").map(|folder| folder.join("README.md"));
    paths.extend(pages.filter(|page| root().join(page).exists()));
    paths.into_iter().map(Document::read).collect()
}

/// The entries of a folder, from the root of the repository.
fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    entries.map(move |entry| Path::new(folder).join(entry.unwrap().file_name()))
}

fn without_example(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "<!-- example -->" => {
                assert!(!inside, "a marked section begins inside another");
                inside = true;
            }
            "<!-- /example -->" => {
                assert!(inside, "a marked section ends without a beginning");
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

/// Fenced blocks, and the prose between them.
fn parts(text: &str) -> (Vec<Block<'_>>, Vec<&str>) {
    let mut blocks = Vec::new();
    let mut prose = Vec::new();
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

fn blocks(text: &str) -> Vec<Block<'_>> {
    parts(text).0
}

fn prose(text: &str) -> Vec<&str> {
    parts(text).1
}

/// Text between backticks.
fn code(prose: &str) -> Vec<&str> {
    assert!(prose.matches('`').count().is_multiple_of(2), "an unpaired backtick in: {prose}");
    prose.split('`').skip(1).step_by(2).collect()
}

/// Words of inline code, of commands, and of diagrams.
fn words(text: &str) -> Vec<&str> {
    let (blocks, prose) = parts(text);
    let fenced = blocks.iter().filter(|block| {
        block.language == "console" || (block.language == "text" && block.attributes.is_empty())
    });
    let fenced = fenced.flat_map(|block| block.text.split_whitespace());
    let inline = prose.into_iter().flat_map(code).flat_map(str::split_whitespace);
    inline.chain(fenced).map(|word| word.trim_matches(['(', ')', ',', ';', ':', '"', '\''])).collect()
}

/// Whether `word` is a pattern or a placeholder: it has `…`, `*`, a bracket, `$`, or a part in capitals.
fn is_pattern(word: &str) -> bool {
    let in_capitals = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    word.contains(['…', '*', '<', '{', '$', '=']) || word.split(['/', '.']).any(in_capitals)
}

/// The anchors that GitHub derives from headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text).into_iter().flat_map(str::lines).filter(|line| line.starts_with('#')) {
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

/// Resolves `..` in a path such as `docs/../README.md`.
fn normalize(path: &Path) -> PathBuf {
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
        for link in
            document.versions().into_iter().flat_map(prose).flat_map(|prose| prose.split("](").skip(1))
        {
            let target = link.split(')').next().unwrap();
            if target.starts_with("https://") || target.contains("{{") {
                continue;
            }
            count += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.path.parent().unwrap();
            let folder = folder.strip_prefix(RENDERED).unwrap_or(folder);
            let path = if path.is_empty() { document.path.clone() } else { normalize(&folder.join(path)) };
            assert!(root().join(&path).exists(), "{:?} links to {target}", document.path);
            let page = documents.iter().find(|page| page.path == path);
            let has_anchor =
                |page: &Document| page.versions().iter().all(|text| anchors(text).contains(anchor));
            assert!(
                anchor.is_empty() || page.is_none_or(has_anchor),
                "{:?} links to {target}, which has no such section",
                document.path
            );
        }
    }
    println!("{count} links");
    assert!(count > 20, "{count}");
}

#[test]
fn paths_exist() {
    let mut count = 0;
    let mut missing = Vec::new();
    for document in documents() {
        // A tutorial lets its reader write files.
        let blocks = blocks(&document.text);
        let attributes = blocks.iter().flat_map(|block| &block.attributes);
        let written: Vec<_> = attributes.filter_map(|attribute| attribute.strip_prefix("title=")).collect();
        for word in words(&document.text) {
            let word = word.trim_end_matches('.').trim_start_matches("./");
            let at_root = !word.contains('/') && word.ends_with(".toml");
            let is_path = at_root || FOLDERS.iter().any(|folder| word.starts_with(folder));
            if !is_path || is_pattern(word) || written.contains(&word) {
                continue;
            }
            count += 1;
            // docker-compose.yml:deploy/compose/tls.yml
            for path in word.split(':').take_while(|path| !path.starts_with(char::is_numeric)) {
                let is_rendered = document.path.starts_with(RENDERED)
                    && root().join(format!("{RENDERED}/{path}.liquid")).exists();
                if !is_rendered && !root().join(path).exists() {
                    missing.push(format!("{:?} names {path}", document.path));
                }
            }
        }
    }
    println!("{count} paths");
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(count > 100, "{count}");
}

/// A project may delete the folder of an orchestrator, with the page in it.
#[test]
fn only_its_own_page_names_an_orchestrator() {
    for document in documents() {
        for orchestrator in ["kubernetes", "swarm"] {
            let marks = [
                format!("deploy/{orchestrator}"),
                format!("tests/stack/{orchestrator}"),
                format!("tests/{orchestrator}"),
                format!("`{orchestrator}::"),
            ];
            let is_own = document.path.starts_with(format!("deploy/{orchestrator}"));
            for mark in marks.iter().filter(|_| !is_own) {
                assert!(!document.text.contains(mark), "{:?} names {mark}", document.path);
            }
        }
    }
}

#[test]
fn documents_without_the_example_do_not_name_it() {
    for document in documents() {
        for mark in EXAMPLE.iter().chain(&["/r/hello", "api/links.rs"]) {
            assert!(!document.without_example.contains(mark), "{:?} names {mark}", document.path);
        }
        assert!(!document.without_example.contains("\n\n\n\n"), "{:?} has a hole", document.path);
    }
}

/// A generated project gets the other documents as they are.
#[test]
fn only_the_readme_names_the_template() {
    let name = env!("CARGO_PKG_NAME");
    for document in documents().iter().filter(|document| !document.is("README.md")) {
        assert!(!document.text.to_lowercase().contains(name), "{:?} names {name}", document.path);
    }
}

/// The keys of the platform with their defaults, from `section.key`.
fn settings() -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut section = String::new();
    for line in read("src/platform/config/default.toml").lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, default)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            settings.insert(format!("{section}.{key}"), default.trim_matches('"').to_owned());
        }
    }
    settings
}

#[test]
fn settings_exist_and_their_defaults_are_right() {
    let settings = settings();
    let variables: BTreeSet<_> = settings.keys().map(|key| key.replace('.', "__").to_uppercase()).collect();
    let mut named = BTreeSet::new();
    let mut defaults = 0;
    for document in documents() {
        for found in document.text.split("APP__").skip(1) {
            let end = found.find(|c: char| !c.is_ascii_uppercase() && c != '_').unwrap_or(found.len());
            let name = found[..end].trim_end_matches("_FILE").trim_end_matches('_');
            if name.is_empty() || name == "SECTION__KEY" {
                continue;
            }
            assert!(variables.contains(name), "{:?} names APP__{name}", document.path);
            named.insert(name.to_owned());
        }
        // `section.key` (5 s)
        let spans: Vec<_> = document.text.split('`').collect();
        for pair in spans.windows(2) {
            let (Some(default), Some(text)) = (settings.get(pair[0]), pair[1].strip_prefix(" (")) else {
                continue;
            };
            let documented = text.split(')').next().unwrap().replace([' ', ','], "");
            assert_eq!(documented, default.replace(' ', ""), "{:?} on {}", document.path, pair[0]);
            defaults += 1;
        }
    }
    println!("{} settings, {defaults} defaults", named.len());
    assert!(named.len() > 10 && defaults > 10, "{named:?}, {defaults}");
}

fn is_snake_case(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

/// The names that the service exports once it has served a request from the cache. A metric with labels and no value is
/// not exported.
fn exported_metrics() -> BTreeSet<String> {
    let app = Setup::shared().workload().start();
    app.get("/v1/notes/1");
    let text = app.get("/metrics").body;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn metrics_exist() {
    let exported = exported_metrics();
    let families: BTreeSet<_> = exported.iter().map(|name| name.split('_').next().unwrap()).collect();
    // Words that look like a metric: fields of the log, settings, files of secrets, names in compose files.
    let others = [
        read("docs/log.schema.json"),
        read("src/platform/config/default.toml"),
        read("docker-compose.prod.yml"),
        read("deploy/compose/observability.yml"),
    ];
    let others: BTreeSet<_> =
        others.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_lowercase() && c != '_')).collect();
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
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
            assert!(
                exported.contains(word) || base.is_some_and(|base| exported.contains(base)),
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
        let makefile = read(file);
        let names = makefile.lines().filter_map(|line| line.split_once(": ##"));
        names.map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>()
    };
    let everywhere = targets("Makefile");
    let template = targets("template/Makefile");
    for document in documents() {
        let names_the_template = document.is("README.md") || document.is("docs/guarantees.md");
        let (blocks, prose) = parts(&document.text);
        let commands = blocks.iter().filter(|block| block.language == "console");
        let lines = commands.flat_map(|block| block.text.lines()).chain(prose.into_iter().flat_map(code));
        for line in lines {
            let Some(target) = line.strip_prefix("make ").and_then(|rest| rest.split(' ').next()) else {
                continue;
            };
            let exists = everywhere.contains(target) || (names_the_template && template.contains(target));
            assert!(exists || is_pattern(target), "{:?} names make {target}", document.path);
        }
    }
}

/// Containers in diagrams are words in brackets.
#[test]
fn containers_exist() {
    let stack = [read("docker-compose.prod.yml"), read("deploy/compose/observability.yml")].concat();
    let mut count = 0;
    for document in documents() {
        let blocks = blocks(&document.text);
        let diagrams = blocks.iter().filter(|block| block.language == "text" && block.attributes.is_empty());
        for name in diagrams.flat_map(|diagram| diagram.text.split('[').skip(1)) {
            let name = name.split(']').next().unwrap();
            assert!(stack.contains(&format!("\n  {name}:")), "{:?} draws [{name}]", document.path);
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

#[test]
fn each_block_has_a_language_and_each_command_is_run_or_says_why_not() {
    let mut run = 0;
    let mut excused = 0;
    for document in documents() {
        for Block { language, attributes, .. } in document.versions().into_iter().flat_map(blocks) {
            let place = format!("{:?}: ```{language} {attributes:?}", document.path);
            assert!(LANGUAGES.contains(&language), "{place}");
            let is_known = |attribute: &&str| match attribute.split_once('=') {
                Some(("needs", why)) => language == "console" && NEEDS.contains(&why),
                Some(("title", _)) => !["console", "diff"].contains(&language),
                Some(_) => false,
                None => matches!((language, *attribute), ("text", "output" | "log") | ("diff", "otherwise")),
            };
            assert!(attributes.iter().all(is_known) && attributes.len() <= 1, "{place}");
        }
        let blocks = blocks(&document.text);
        let commands = blocks.iter().filter(|block| block.language == "console");
        let (with_needs, without): (Vec<_>, Vec<_>) =
            commands.partition(|block| !block.attributes.is_empty());
        run += without.len();
        excused += with_needs.len();
    }
    let script = read("template/proofs/test-docs");
    let rules = read(".github/CONTRIBUTING.md");
    for why in NEEDS {
        assert!(script.contains(&format!("\n#   needs={why} ")), "test-docs does not explain needs={why}");
        assert!(rules.contains(&format!("`{why}`")), "CONTRIBUTING.md does not name needs={why}");
    }
    println!("{run} blocks of commands are run, {excused} say why not");
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
    let text = prose(&readme).concat();
    let items = text.split("\n- ").filter(|item| item.contains("](docs/guarantees.md#"));
    let promises: Vec<_> = items.map(|item| item.split("\n\n").next().unwrap()).collect();
    assert!(promises.len() > 4, "{promises:?}");
    for promise in promises {
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

#[test]
fn guarantees_name_tests_that_exist() {
    let page = read("docs/guarantees.md");
    let names = code(&page).into_iter().filter(|name| name.contains("::") && !name.starts_with("axum::"));
    let names: Vec<_> = names.collect();
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let (module, test) = name.split_once("::").unwrap();
        let test = format!("fn {}", test.trim_end_matches('…'));
        let files = ["api", "platform", "process", "stack"].map(|tests| format!("tests/{tests}/{module}.rs"));
        let mut existing = files.iter().filter(|file| root().join(file).exists());
        assert!(existing.any(|file| read(file).contains(&test)), "{name}");
    }
}

#[test]
fn documents_stay_short() {
    let documents = documents();
    let of_docs = documents.iter().filter(|document| document.path.starts_with("docs"));
    let count = |document: &Document| document.text.split_whitespace().count();
    let words: usize = of_docs.map(count).sum();
    println!("{words} words in docs/, {} in all documents", documents.iter().map(count).sum::<usize>());
    assert!(words <= MAX_WORDS, "{words}");
    let files = entries("docs").count();
    assert!(files <= 11, "{files}");
    let lines = read("README.md").lines().count();
    assert!(lines < 120, "{lines}");
}

/// What a machine can check of the style: US spelling, and an actor with a name.
#[test]
fn documents_are_in_us_english_and_name_the_actor() {
    let british = [
        "behaviour",
        "colour",
        "licence",
        "labelled",
        "misspelt",
        "optimis",
        "organis",
        "recognis",
        "serialis",
    ];
    let vague = ["nobody", "somebody", "whoever", "mended", "taken back"];
    for document in documents() {
        let outside_code = prose(&document.text).into_iter().flat_map(|prose| prose.split('`').step_by(2));
        for text in outside_code.map(str::to_lowercase) {
            for word in british.iter().chain(&vague) {
                assert!(!text.contains(word), "{:?} has {word:?}", document.path);
            }
        }
    }
}
