//! Releases on a production stack under load: losses while releases succeed, fail and are interrupted.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::docker::{Checkout, IMAGE, build_image, docker, image, is_full, run, variant};
use crate::stack::Stack;
use crate::support::eventually;
use crate::support::http::Client;
use crate::support::load::Load;
use crate::support::meter::{Findings, Meter};

/// Requests per second.
const RATE: u32 = 200;

/// Builds the next release, which has a newer schema, and one release for each kind of failure.
fn build_releases() {
    image();
    build("next", |checkout| {
        let migration = checkout.path().join("migrations/29991231000000_add_author.sql");
        std::fs::write(migration, "alter table notes add column author text;\n").unwrap();
    });
    // Becomes ready, but lacks one of its routes.
    build("lying", |checkout| {
        checkout.edit("src/notes.rs", r#".route("/v1/notes", "#, r#".route("/v2/notes", "#);
    });
    build_late();
    variant("unready", "ENV APP__REDIS__PORT=1 APP__HEALTH__REDIS=required");
    variant("refusing", "ENV APP__NONSENSE=1");
}

/// Fails real requests, but none of deploy/checks.
pub fn build_late() {
    build("late", |checkout| {
        let found = "note.map(axum::Json).ok_or(Error::NotFound)";
        let panics =
            r#"let note = note.ok_or(Error::NotFound)?; assert_eq!(note.text, ""); Ok(axum::Json(note))"#;
        checkout.edit("src/notes.rs", found, panics);
    });
}

fn build(tag: &str, edit: fn(&Checkout)) {
    let checkout = Checkout::with_notes();
    edit(&checkout);
    build_image(&checkout, tag, &[]);
}

fn release(stack: &Stack, arguments: &[&str]) -> Command {
    let mut command = stack.command("release", arguments);
    command.env("WATCH", "2").env("START_TIMEOUT", "10");
    command
}

#[track_caller]
fn succeeds(command: &mut Command) {
    run(command);
}

/// Runs a release that has to fail for this reason.
#[track_caller]
fn fails(command: &mut Command, reason: &str) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(reason), "{stderr}");
}

/// A running release, in a process group of its own.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines }
    }

    #[track_caller]
    fn says(&mut self, text: &str) {
        assert!(self.lines.any(|line| line.unwrap().contains(text)), "the output has no line with {text}");
    }
}

/// Sends a signal to a release and its children. Returns its exit code.
fn signal(mut release: Child, signal: &str) -> Option<i32> {
    run(Command::new("kill").args([signal, "--", &format!("-{}", release.id())]));
    release.wait().unwrap().code()
}

/// Kills a release when it prints `text`, like a crash of the machine. For "starting", waits for the first new replica.
#[track_caller]
fn cut_off(stack: &Stack, arguments: &[&str], text: &str) {
    let mut running = Running::start(&mut release(stack, arguments));
    running.says(text);
    if text == "starting" {
        let replicas = || stack.running("blue") + stack.running("green");
        eventually(Duration::from_secs(20), "a replica", || (replicas() > 2).then_some(()));
    }
    signal(running.child, "-KILL");
}

/// Returns the tag of each replica in nginx's list.
fn serving(stack: &Stack) -> Vec<String> {
    let image = |name: String| docker(&["inspect", "--format", "{{.Config.Image}}", &name]);
    let tag = |name| image(name).trim().trim_start_matches(&format!("{IMAGE}:")).to_owned();
    serving_names(stack).into_iter().map(tag).collect()
}

fn serving_names(stack: &Stack) -> Vec<String> {
    let status = run(&mut release(stack, &["--status"]));
    status.split("Requests go to:\n").nth(1).unwrap().lines().map(ToOwned::to_owned).collect()
}

/// Returns the release that does not serve.
fn other(stack: &Stack) -> &'static str {
    if serving(stack)[0] == "clean" { "next" } else { "clean" }
}

/// Runs `work` under load, prints the losses and requires that there are none.
#[track_caller]
fn loses_nothing(stack: &Stack, what: &str, work: impl FnOnce(&Meter)) {
    let findings = under_load(stack, what, work);
    assert_eq!(findings.losses(), 0, "{findings}");
    assert!(findings.requests > 1000 && findings.slowest < Duration::from_secs(3), "{findings}");
}

fn under_load(stack: &Stack, what: &str, work: impl FnOnce(&Meter)) -> Findings {
    let meter = Meter::new(stack.address, RATE);
    let ((), findings) = meter.run(|| {
        meter.await_more(101, Duration::from_secs(20));
        work(&meter);
        meter.await_more(101, Duration::from_secs(20));
    });
    println!("{what}: {findings}");
    findings
}

#[test]
fn releases() {
    build_releases();
    let stack = Stack::new("release");
    succeeds(&mut release(&stack, &["--rolling", "clean"]));
    assert_eq!(serving(&stack), ["clean", "clean"]);
    fails(&mut release(&stack, &["--rollback"]), "nothing to roll back to");
    type Check = fn(&Stack);
    let checks: [(&str, Check); 7] = [
        ("switches", switches),
        ("rolls back failed releases", rolls_back_failed_releases),
        ("rolls", rolls),
        ("recovers from an interruption", recovers_from_an_interruption),
        ("watches", watches),
        ("leaves nginx to the engine", leaves_nginx_to_the_engine),
        ("recreating loses requests", recreating_loses_requests),
    ];
    for (name, check) in checks {
        let start = Instant::now();
        check(&stack);
        println!("-- {name}: {:.1?}", start.elapsed());
    }
    stack.project.remove();
    assert_eq!(stack.project.remains(), "");
}

/// Switches repeatedly between two releases, of which one has a newer schema that the other has to support.
fn switches(stack: &Stack) {
    let count = if is_full() { 10 } else { 4 };
    loses_nothing(stack, &format!("{count} blue-green releases"), |_| {
        for turn in 0..count {
            let tag = if turn % 2 == 0 { "next" } else { "clean" };
            let start = Instant::now();
            succeeds(&mut release(stack, &[tag]));
            println!("{tag} after {:.1?}", start.elapsed());
            assert_eq!(serving(stack), [tag, tag]);
        }
    });
    let columns = "select count(*) from information_schema.columns where column_name = 'author'";
    let psql = ["exec", "-T", "postgres", "psql", "-U", "postgres", "-d", "app", "-qtAc", columns];
    assert_eq!(stack.project.compose(&psql).trim(), "1", "expected the newer schema");
}

fn rolls_back_failed_releases(stack: &Stack) {
    loses_nothing(stack, "bad releases", |_| {
        fails(&mut release(stack, &["refusing"]), "APP__NONSENSE");
        fails(&mut release(stack, &["no-such-tag"]), "no-such-tag");
        fails(&mut release(stack, &["unready"]), "not healthy");
        fails(&mut release(stack, &["lying"]), "GET /v1/notes?limit=1 with 404 instead of 200");
        assert_eq!(serving(stack), ["clean", "clean"]);
        // There is nothing to roll back to, because the failed release was removed.
        fails(&mut release(stack, &["--rollback"]), "nothing to roll back to");
    });
    let level = || {
        let name = serving_names(stack).remove(0);
        docker(&["inspect", "--format", "{{.Config.Env}}", &name]).contains("APP__LOG__LEVEL=warn")
    };
    loses_nothing(stack, "a new setting, and back by hand", |_| {
        succeeds(release(stack, &["clean"]).env("LOG_LEVEL", "warn"));
        assert!(level());
        succeeds(&mut release(stack, &["--verify"]));
        let start = Instant::now();
        let mut back = Running::start(&mut release(stack, &["--rollback"]));
        back.says("serves");
        println!("manual rollback to the stopped color took {:.1?}", start.elapsed());
        assert_eq!(back.child.wait().unwrap().code(), Some(0));
        assert!(!level());
    });
}

/// Replica by replica, with at most one more replica than usual.
fn rolls(stack: &Stack) {
    loses_nothing(stack, "a rolling release, a bad one, and back by hand", |_| {
        let mut rolling = Running::start(&mut release(stack, &["--rolling", "next"]));
        let mut most = 0;
        let status = eventually(Duration::from_secs(120), "the end", || {
            most = most.max(stack.running("blue") + stack.running("green"));
            rolling.child.try_wait().unwrap()
        });
        assert!(status.success() && most == 3, "{status} {most}");
        assert_eq!(serving(stack), ["next", "next"]);
        fails(&mut release(stack, &["--rolling", "lying"]), "is rolled back");
        assert_eq!(serving(stack), ["next", "next"]);
        if is_full() {
            succeeds(&mut release(stack, &["--rolling", "clean"]));
            succeeds(&mut release(stack, &["--rollback"]));
            assert_eq!(serving(stack), ["next", "next"]);
            fails(&mut release(stack, &["--rollback"]), "nothing to roll back to");
        }
    });
}

fn recovers_from_an_interruption(stack: &Stack) {
    loses_nothing(stack, "releases that were cut off", |_| {
        let points = ["starting", "migrating", "watching for"];
        for text in if is_full() { &points[..] } else { &points[..1] } {
            let tag = other(stack);
            cut_off(stack, &[tag], text);
            succeeds(&mut release(stack, &[tag]));
            assert_eq!(serving(stack), [tag, tag], "after {text}");
        }
        // Either command returns to the previous release, because an interrupted release is not trusted.
        let before = serving(stack);
        let points = [
            ("watching for", "--rollback"),
            ("watching for", &before[0]),
            ("starting", "--rollback"),
            ("starting", &before[0]),
        ];
        for (text, back) in if is_full() { &points[..] } else { &points[..1] } {
            cut_off(stack, &[other(stack)], text);
            succeeds(&mut release(stack, &[back]));
            assert_eq!(serving(stack), before, "{back} after {text}");
            fails(&mut release(stack, &["--rollback"]), "nothing to roll back to");
        }
        // With one replica of each release.
        let tag = other(stack);
        cut_off(stack, &["--rolling", tag], "starting 2 of 2");
        assert_eq!(serving(stack), [tag, before[0].as_str()]);
        succeeds(&mut release(stack, &["--rollback"]));
        assert_eq!(serving(stack), before);
        if is_full() {
            cut_off(stack, &["--rolling", tag], "starting 2 of 2");
            succeeds(&mut release(stack, &[tag]));
            assert_eq!(serving(stack), [tag, tag]);
        }
        // Concurrent releases. A terminated release rolls itself back, even if its output is not read.
        let before = serving(stack);
        let mut first = Running::start(release(stack, &[other(stack)]).env("WATCH", "60"));
        first.says("watching for");
        fails(&mut release(stack, &["lying"]), "another release is under way");
        let Running { child, lines } = first;
        drop(lines);
        assert_eq!(signal(child, "-TERM"), Some(1));
        assert_eq!(serving(stack), before);
    });
}

/// Real requests fail that no check covers. Losses until the rollback are bounded, and there are none afterwards.
fn watches(stack: &Stack) {
    let before = serving(stack);
    let findings = under_load(stack, "a release that fails while it is watched", |_| {
        let start = Instant::now();
        fails(release(stack, &["late"]).env("WATCH", "60"), "responses were errors");
        println!("rolled back after {:.1?}", start.elapsed());
    });
    assert_eq!(serving(stack), before);
    assert!(findings.losses() > 0 && findings.losses() < findings.requests / 2, "{findings}");
    loses_nothing(stack, "afterwards", |meter| {
        meter.await_more(1000, Duration::from_secs(20));
    });
    // All replicas stop while the release is watched: the previous color takes over immediately.
    let tag = other(stack);
    loses_nothing(stack, "a release whose replicas stop while it is watched", |_| {
        let mut release = Running::start(release(stack, &[tag]).env("WATCH", "60"));
        release.says("watching for");
        for name in serving_names(stack) {
            docker(&["kill", "--signal", "TERM", &name]);
        }
        release.says("is rolled back");
        assert_eq!(release.child.wait().unwrap().code(), Some(1));
        assert_eq!(serving(stack), before);
    });
}

/// After a release the engine still restarts a failed nginx, and nginx serves with the same list.
fn leaves_nginx_to_the_engine(stack: &Stack) {
    let (nginx, before) = (stack.project.containers("nginx").remove(0), serving(stack));
    let master = docker(&["inspect", "--format", "{{.State.Pid}}", &nginx]);
    run(Command::new("kill").args(["-KILL", master.trim()]));
    eventually(Duration::from_secs(20), "nginx again", || {
        let restarted = docker(&["inspect", "--format", "{{.RestartCount}} {{.State.Running}}", &nginx]);
        (restarted.trim() == "1 true").then_some(())
    });
    eventually(Duration::from_secs(20), "an answer", || {
        let answer = Client::try_connect(stack.address)?.try_request("GET", "/v1/notes", &[], "")?;
        (answer.status == 200).then_some(())
    });
    assert_eq!(serving(stack), before);
}

/// Negative control: the losses when compose recreates containers.
fn recreating_loses_requests(stack: &Stack) {
    let service = if serving_names(stack)[0].contains("-blue-") { "blue" } else { "green" };
    let findings = under_load(stack, "docker compose up --force-recreate", |_| {
        stack.project.compose(&["up", "--detach", "--wait", "--no-deps", "--force-recreate", service]);
    });
    assert!(findings.losses() > 0);
}

/// Measures the losses of a release of your own: run `METER=127.0.0.1:80,/v1/notes,200,60 make meter` during the release.
#[test]
#[ignore = "needs a stack: `make meter`"]
#[expect(clippy::disallowed_methods, reason = "options of a command")]
fn meter() {
    let options = std::env::var("METER").expect("METER=ADDRESS,PATH,PER_SECOND,SECONDS");
    let options: Vec<_> = options.split(',').collect();
    let load = Load::get(options[0].parse().unwrap(), options[1]);
    let time = Duration::from_secs(options[3].parse().unwrap());
    let report = load.open(options[2].parse().unwrap(), || thread::park_timeout(time));
    let (requests, good) = (report.0.len(), report.answers().filter(|answer| answer.status < 400).count());
    let (refused, lost, slowest) = (report.refused(), report.lost(), report.slowest());
    println!(
        "{requests} requests: {good} correct responses, {refused} refused, {lost} lost, slowest {slowest:.1?}"
    );
    assert_eq!(good, requests);
}
