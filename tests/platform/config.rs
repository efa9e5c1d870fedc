//! Configuration: every source, every error, and no secret in any output.

use app::platform::config::definitions::{KEYS, variable};
use app::platform::config::secret::ExposeSecret;
use app::platform::config::sources::{Problem, Settings};
use app::platform::config::{Config, Package};
use proptest::prelude::*;

const PACKAGE: Package = Package { name: "shop", version: "1.2.3", revision: "abc" };

fn load(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let local = [("APP__REDIS__HOST", "localhost"), ("DATABASE_URL", "postgres://app@localhost/app")];
    let variables = local.iter().chain(variables).map(|(name, value)| (name.into(), value.into()));
    Config::load(&PACKAGE, "", variables, |_| ())
        .map(|(config, (), _)| config)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn needs_only_the_addresses_of_postgres_and_redis() {
    let config = load(&[]).unwrap();

    assert_eq!(config.http.address.to_string(), "127.0.0.1:8080");
    assert!(config.management.address.is_none());
    assert_eq!(config.database.max_connections as usize, 4 * config.runtime.worker_threads);
    let service = config.service;
    assert_eq!((service.name.as_str(), service.version, service.revision), ("shop", "1.2.3", "abc"));
}

#[test]
fn reports_every_problem_together() {
    let problems = load(&[
        ("PORT", "80a"),
        ("APP__HTTP__PROT", "1"),
        ("APP__DATABASE__STATEMENT_TIMEOUT", "20s"),
        ("APP__HEALTH__REDIS", "maybe"),
        ("APP__REDIS__PASSWORD_FILE", "/nowhere"),
    ])
    .err()
    .unwrap();

    assert_eq!(problems.len(), 5, "{problems:#?}");
}

#[test]
fn rejects_a_grace_period_shorter_than_the_shutdown() {
    let problems = load(&[("APP__SHUTDOWN__GRACE", "22s")]).err().unwrap();

    assert!(problems[0].starts_with("APP__SHUTDOWN__GRACE: must be longer"), "{problems:?}");
    // 5 s + 15 s + 2 s, and another 2 s with a collector.
    assert!(load(&[("APP__SHUTDOWN__GRACE", "23s")]).is_ok());
    let traced = [("APP__SHUTDOWN__GRACE", "23s"), ("APP__OTLP__ENDPOINT", "http://collector:4318")];
    assert!(load(&traced).is_err());
}

#[test]
fn accepts_an_http_url_without_credentials_as_the_collector() {
    let otlp = |variables: &[(&str, &str)]| load(variables).map(|config| config.otlp);
    for endpoint in ["collector:4318", "grpc://collector:4317", "http://", "http://user:s3cr3t@collector"] {
        let problems = otlp(&[("APP__OTLP__ENDPOINT", endpoint)]).err().unwrap();
        assert_eq!(problems, ["APP__OTLP__ENDPOINT: must be a URL such as http://collector:4318"]);
    }
    for (name, value) in [("SAMPLE_RATIO", "1.5"), ("SAMPLE_RATIO", "NaN"), ("AUTHORIZATION", "two\nlines")] {
        let name = format!("APP__OTLP__{name}");
        assert_eq!(otlp(&[(&name, value)]).err().unwrap().len(), 1, "{name} {value}");
    }

    let set =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"), ("APP__OTLP__SAMPLE_RATIO", "0.25")];
    let set = otlp(&set).unwrap().unwrap();
    assert_eq!((set.endpoint.as_str(), set.sample_ratio), ("https://collector:4318/", 0.25));
    assert!(otlp(&[]).unwrap().is_none());
}

fn read(variables: &[(&str, &str)]) -> Settings {
    Settings::read(&PACKAGE, "", variables.iter().map(|(name, value)| (name.into(), value.into())))
}

proptest! {
    #[test]
    fn reads_any_text_as_a_secret_from_variable_and_file(value in "[^\\x00]{1,200}") {
        let direct = read(&[("APP__DATABASE__PASSWORD", &value)]);
        let secret = direct.secret("database.password").unwrap();
        prop_assert_eq!(secret.expose_secret(), &value);

        // A final carriage return belongs to the line end.
        let end = if value.ends_with('\r') { "" } else { "\n" };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{value}{end}")).unwrap();
        let path = file.path().to_str().unwrap();
        let by_file = read(&[("APP__DATABASE__PASSWORD_FILE", path)]);
        let secret = by_file.secret("database.password").unwrap();
        prop_assert_eq!(secret.expose_secret(), &value);
    }

    #[test]
    fn keeps_any_text_of_a_plain_setting(value in "[^\\x00]{1,200}") {
        let mut settings = read(&[("APP__DATABASE__USER", &value)]);
        prop_assert_eq!(settings.get::<String>("database.user"), value);
    }

    #[test]
    fn repeats_no_value_in_a_problem_and_shows_no_secret(
        key in prop::sample::select(KEYS.keys().collect::<Vec<_>>()),
        start in "|postgres://u:|postgres://h/d\\?|redis://|[^\\x00]{1,20}",
        end in "|@localhost/d|=x|[^\\x00]{1,20}",
    ) {
        let value = format!("{start}s3cr3t{end}");
        let variables = [(variable(key), value)];
        let variables = variables.each_ref().map(|(name, value)| (name.as_str(), value.as_str()));

        let problems = load(&variables).err().unwrap_or_default();
        prop_assert!(!problems.concat().contains("s3cr3t"), "{problems:?}");
        prop_assert!(!KEYS[key].secret || !read(&variables).show().contains("s3cr3t"));
    }
}

#[test]
fn shows_the_winning_source_and_what_it_shadows() {
    let settings = read(&[("PORT", "8081"), ("APP__HTTP__PORT", "9000")]);

    let shown = settings.show();

    let line = "APP__HTTP__PORT = \"9000\"  # APP__HTTP__PORT, over the default \"8080\" and PORT\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn every_variable_wins_over_its_default() {
    assert!(read(&[]).show().contains("APP__SERVICE__NAME = \"shop\"  # default\n"));

    for (key, _) in KEYS.iter().filter(|(_, definition)| !definition.secret) {
        let name = variable(key);
        let line = format!("{name} = \"given\"  # {name}");
        assert!(read(&[(&name, "given")]).show().contains(&line), "{name}");
    }
}

#[test]
fn redacts_secrets() {
    let settings = read(&[("DATABASE_URL", "postgres://u:s3cr3t@h/d")]);

    let shown = settings.show();

    assert!(shown.contains("APP__DATABASE__URL = [redacted]  # DATABASE_URL\n"), "{shown}");
    assert!(shown.contains("APP__DATABASE__PASSWORD = \"\"  # default\n"), "{shown}");
    assert!(!shown.contains("s3cr3t"));
}

#[test]
fn marks_every_secret() {
    let secrets: Vec<_> =
        KEYS.iter().filter(|(_, definition)| definition.secret).map(|(key, _)| key).collect();

    assert_eq!(
        secrets,
        ["database.password", "database.url", "otlp.authorization", "redis.password", "redis.url"]
    );
}

#[test]
fn rejects_an_unknown_name_and_suggests_the_nearest() {
    let settings = read(&[("APP__HTTP__PROT", "1"), ("APP_PORT", "tcp://10.0.0.1:80")]);

    let problems: Vec<_> = settings.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["APP__HTTP__PROT: no such setting; did you mean APP__HTTP__PORT?"]);
}

#[test]
fn rejects_a_value_together_with_its_file() {
    let settings = read(&[("DATABASE_URL", "a"), ("DATABASE_URL_FILE", "/x")]);

    let problems: Vec<_> = settings.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["DATABASE_URL_FILE: DATABASE_URL is set as well; only one of them may be"]);
}

#[test]
fn ignores_an_empty_variable() {
    let mut settings = read(&[("APP__HTTP__PORT", ""), ("PORT", "")]);

    assert_eq!(settings.get::<u16>("http.port"), 8080);
}

#[test]
fn rejects_a_limit_of_zero() {
    let problems = load(&[("APP__DATABASE__LOCK_TIMEOUT", "0s")]).err().unwrap();

    assert_eq!(problems, ["APP__DATABASE__LOCK_TIMEOUT: must be at least 1ms"]);
    assert!(load(&[("APP__SHUTDOWN__READY_DELAY", "0s")]).is_ok());
}

#[test]
fn rejects_a_time_too_long_to_add_up() {
    let longest = [("APP__HEALTH__INTERVAL", "18446744073709551615s")];

    let problems = load(&longest).err().unwrap();

    assert!(problems.contains(&"APP__HEALTH__INTERVAL: must be at most 1day".to_owned()), "{problems:?}");
}

#[test]
fn attributes_a_problem_to_its_setting_whatever_the_path_of_its_file() {
    let settings = read(&[
        ("APP__REDIS__PASSWORD_FILE", "/run/DATABASE/database.password"),
        ("DATABASE_URL", "postgres://app@localhost/app"),
        ("DATABASE_URL_FILE", "/run/REDIS/url"),
        ("APP__REDIS__HSOT", "localhost"),
    ]);

    let keys: Vec<_> = settings.problems().iter().map(|problem| problem.key.as_deref()).collect();
    assert_eq!(keys, [Some("database.url"), None, Some("redis.password")]);
}

const DOMAINS: &str = "[orders]\nlimit = 7\ntimeout = \"2s\"\ntoken = { secret = true }";

struct Orders {
    limit: usize,
    token: Option<String>,
}

fn load_orders(variables: &[(&str, &str)]) -> Result<(Orders, Settings), Vec<Problem>> {
    let local = [("APP__REDIS__HOST", "localhost"), ("DATABASE_URL", "postgres://app@localhost/app")];
    let variables = local.iter().chain(variables).map(|(name, value)| (name.into(), value.into()));
    let loaded = Config::load(&PACKAGE, DOMAINS, variables, |settings| {
        let timeout = settings.duration("orders.timeout");
        if timeout >= settings.duration("http.request_timeout") {
            settings.problem("orders.timeout", "must be shorter than the request");
        }
        let token = settings.secret("orders.token").map(|token| token.expose_secret().to_owned());
        Orders { limit: settings.size("orders.limit"), token }
    });
    loaded.map(|(_, orders, settings)| (orders, settings))
}

#[test]
fn a_domain_reads_its_settings_with_those_of_the_platform() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cr3t\n").unwrap();
    let path = file.path().to_str().unwrap();

    let (orders, settings) = load_orders(&[("APP__ORDERS__TOKEN_FILE", path)]).unwrap();
    assert_eq!((orders.limit, orders.token.as_deref()), (7, Some("s3cr3t")));
    let shown = settings.show();
    assert!(shown.contains("APP__ORDERS__LIMIT = \"7\"  # default\n"), "{shown}");
    assert!(shown.contains("APP__ORDERS__TOKEN = [redacted]"), "{shown}");

    let wrong = [("APP__ORDERS__LIMIT", "0"), ("APP__ORDERS__TIMEOUT", "10s"), ("PORT", "80a")];
    let problems = load_orders(&wrong).err().unwrap();
    let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_deref().unwrap()).collect();
    assert_eq!(keys, ["http.port", "orders.timeout", "orders.limit"]);
}

#[test]
fn the_settings_of_this_project_are_valid() {
    Settings::read(&PACKAGE, include_str!("../../src/settings.toml"), []);
}
