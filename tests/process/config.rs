//! Wrong settings, secrets, and the commands about them.

use std::process::Command;
use std::time::{Duration, Instant};

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
    println!("five problems reported within {worst:?}");
    assert!(worst < Duration::from_millis(200));
}

#[test]
fn an_unreadable_file_is_told_with_owner_mode_and_our_uid() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();

    let (code, _, stderr, _) =
        app(&["config", "check"], &[("DATABASE_URL_FILE", path), ("REDIS_URL", "redis://h")]);

    assert_eq!(code, Some(78));
    assert!(stderr.contains("DATABASE_URL_FILE") && stderr.contains("is not a regular file"), "{stderr}");
}

#[test]
fn config_show_tells_values_and_their_sources() {
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
    assert_eq!(stdout.trim(), format!("app {} ({})", app::VERSION, app::REVISION));
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();

    let output = Setup::shared().set("HTTP__PORT", address.port()).command(&[]).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("cannot listen on {address}")));
}
