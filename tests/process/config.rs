//! Configuration and secrets: all errors are reported together (G12), any text works as a secret (G11), and no output
//! contains a secret (G10).

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rustix::process::Signal;

use crate::support::free_port;
use crate::support::servers::{self, PASSWORD};
use crate::support::setup::Setup;

fn app(arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String, String, Duration) {
    let start = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    let output = command.args(arguments).env_clear().envs(settings.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr), start.elapsed())
}

#[test]
fn five_faults_give_five_lines_before_anything_is_connected() {
    // Nothing listens at these addresses: a connection would be refused and reported.
    let settings = [
        ("PORT", "eighty"),
        ("APP__HTTP__PROT", "1"),
        ("DATABASE_URL", "localhost:5432/s3cr3t"),
        ("APP__REDIS__HOST", "127.0.0.1"),
        ("APP__REDIS__PASSWORD_FILE", "/nowhere/password"),
        ("APP__SHUTDOWN__READY_DELAY", "5"),
    ];
    let mut worst = Duration::ZERO;
    for arguments in [&[] as &[&str], &["serve"], &["migrate"], &["config", "check"], &["config", "show"]] {
        let (code, stdout, stderr, time) = app(arguments, &settings);

        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{stderr}");
        let expected = [
            "PORT",
            "APP__HTTP__PROT",
            "DATABASE_URL",
            "APP__REDIS__PASSWORD_FILE",
            "APP__SHUTDOWN__READY_DELAY",
        ];
        for name in expected {
            let start = format!("{name}: ");
            assert_eq!(stderr.lines().filter(|line| line.starts_with(&start)).count(), 1, "{name}: {stderr}");
        }
        assert_eq!(stderr.lines().count(), 5, "{stderr}");
        assert!(!stderr.contains("s3cr3t"));
        worst = worst.max(time);
    }
    println!("five errors reported within {worst:?}");
    assert!(worst < Duration::from_millis(200));
}

#[test]
fn names_a_file_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();

    let (code, _, stderr, _) =
        app(&["config", "check"], &[("DATABASE_URL_FILE", path), ("REDIS_URL", "redis://h")]);

    assert_eq!(code, Some(78));
    assert!(stderr.contains("DATABASE_URL_FILE") && stderr.contains("is not a regular file"), "{stderr}");
}

#[test]
fn config_show_prints_values_and_their_sources() {
    let settings = [
        ("DATABASE_URL", "postgres://me:s3cr3t@localhost/shop"),
        ("REDIS_URL", "redis://localhost"),
        ("PORT", "9000"),
        ("APP__HTTP__PORT", "9001"),
    ];

    let (code, stdout, stderr, _) = app(&["config", "show"], &settings);

    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout
            .contains("APP__HTTP__PORT = \"9001\"  # APP__HTTP__PORT, over the default \"8080\" and PORT\n")
    );
    assert!(stdout.contains("APP__DATABASE__URL = [redacted]  # DATABASE_URL\n"), "{stdout}");
    assert!(!stdout.contains("s3cr3t"));
}

#[test]
fn the_version_has_the_revision() {
    let (code, stdout, _, _) = app(&["--version"], &[]);

    assert_eq!(code, Some(0));
    assert_eq!(stdout.trim(), format!("app {} ({})", app::PACKAGE.version, app::PACKAGE.revision));
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();

    let output = Setup::shared().set("HTTP__PORT", address.port()).command(&[]).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("failed to listen on {address}")));
}

#[test]
fn whatever_the_password_the_login_works_by_variable_by_file_and_by_url() {
    let setup = Setup::shared();
    let role = format!("{}_role", setup.database());
    let admin = |statement: &str| servers::postgres().sql("app", statement);
    admin(&format!("drop role if exists {role}; create role {role} superuser login"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut logins = 0;
    let mut log_in = |password: &str| {
        admin(&format!("alter role {role} password '{}'", password.replace('\'', "''")));
        fs::write(file.path(), format!("{password}\n")).unwrap();
        let encoded: String = url::form_urlencoded::byte_serialize(password.as_bytes()).collect();
        let url = format!(
            "postgres://{role}:{}@127.0.0.1:{}/{}",
            encoded.replace('+', "%20"),
            servers::postgres().port,
            setup.database()
        );
        let setup = || setup.clone().set("DATABASE__USER", &role).unset("DATABASE__PASSWORD_FILE");
        for setup in [
            setup().set("DATABASE__PASSWORD", password),
            setup().set("DATABASE__PASSWORD_FILE", file.path().display()),
            setup().set("DATABASE__URL", &url),
        ] {
            let output = setup.command(&["migrate"]).output().unwrap();
            assert!(output.status.success(), "{password:?}: {}", String::from_utf8_lossy(&output.stdout));
            logins += 1;
        }
    };

    for unusual in ["98765432", "007", "true", "[a,b]", "\"quoted\"", "'x'", " pad ", "-1", "1e3", "${HOME}"]
    {
        log_in(unusual);
    }
    let mut runner = TestRunner::deterministic();
    for _ in 0..15 {
        log_in(&"[ -~]{1,40}".new_tree(&mut runner).unwrap().current());
    }

    println!("{logins} logins with unusual and random passwords");
}

/// Checks for the secret in each form that an output could contain.
fn assert_no_canary(text: &str) {
    let encoded: String = url::form_urlencoded::byte_serialize(PASSWORD.as_bytes()).collect();
    for form in [PASSWORD, &encoded, &PASSWORD.escape_debug().to_string(), "c4nary"] {
        assert!(!text.contains(form), "{form} is in {text}");
    }
}

#[test]
fn no_secret_is_in_any_output() {
    let url = format!(
        "postgres://app:{}@127.0.0.1:{}/app",
        url::form_urlencoded::byte_serialize(PASSWORD.as_bytes()).collect::<String>(),
        servers::postgres().port
    );
    // Covers the trace log, a run with failing logins, panics, and all responses.
    let faulty = Setup::shared()
        .workload()
        .set("LOG__LEVEL", "trace")
        .set("DATABASE__URL", &url)
        .set("OTLP__ENDPOINT", format!("http://127.0.0.1:{}", free_port()))
        .set("OTLP__AUTHORIZATION", "Bearer c4nary")
        .start();
    for path in
        ["/panic", "/panic/c4nary-in-a-panic", "/panic-in-task", "/health/ready", "/metrics", "/nowhere"]
    {
        let answer = faulty.get(path);
        assert!(!answer.body.contains("c4nary"), "{answer:?}");
    }
    let refused = Setup::shared()
        .set("LOG__LEVEL", "trace")
        .set("DATABASE__USER", "nobody")
        .set("REDIS__USER", "nobody")
        .start_unready();
    refused.logged("the refused login", |line| line["error"] == "authentication");
    let answer = refused.get("/health/ready");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("authentication"), "{answer:?}");

    for mut app in [faulty, refused] {
        app.signal(Signal::TERM);
        app.wait(Duration::from_secs(20));
        // Only the access log contains the path that the client sent.
        let lines: Vec<_> = app.lines().into_iter().filter(|line| !line.contains("/panic/c4nary")).collect();
        assert!(lines.len() > 5, "{lines:?}");
        assert_no_canary(&lines.join("\n"));
        assert_no_canary(&app.errors());
    }
    let shown =
        Setup::shared().set("OTLP__AUTHORIZATION", "Bearer c4nary").command(&["config", "show"]).output();
    let shown = shown.unwrap();
    assert_no_canary(&String::from_utf8(shown.stdout).unwrap());
}
