//! Secrets: any text works as one (G11), and none gets out (G10).

use std::fs;
use std::time::Duration;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use rustix::process::Signal;

use crate::support::free_port;
use crate::support::servers::{self, PASSWORD};
use crate::support::setup::Setup;

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

/// The secret in the forms in which it might slip out.
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
    // Everything that is logged, a run with failing logins, panics, and all that is answered.
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
        // The access log has the path that the client sent; everything else must not.
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
