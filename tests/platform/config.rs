//! Loading of settings: every source, every problem, no secret shown.

use app::platform::config::Config;
use app::platform::config::secret::ExposeSecret;
use app::platform::config::sources::{KEYS, Settings, variable};
use proptest::prelude::*;

fn load(variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let local = [("APP__REDIS__HOST", "localhost"), ("DATABASE_URL", "postgres://app@localhost/app")];
    let variables = local.iter().chain(variables);
    Config::load(variables.map(|(name, value)| (name.into(), value.into())))
        .map(|(config, _)| config)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[test]
fn two_addresses_are_all_that_has_to_be_set() {
    let config = load(&[]).unwrap();

    assert_eq!(config.http.address.to_string(), "127.0.0.1:8080");
    assert!(config.management.address.is_none());
    assert_eq!(config.database.max_connections as usize, 4 * config.runtime.worker_threads);
}

#[test]
fn every_problem_is_reported_at_once() {
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
fn the_shutdown_stages_have_to_fit_the_grace_period() {
    let problems = load(&[("APP__SHUTDOWN__GRACE", "22s")]).err().unwrap();

    assert!(problems[0].starts_with("APP__SHUTDOWN__GRACE: must be longer"), "{problems:?}");
    // 5 s, 15 s and 2 s, and with a collector 2 s more.
    assert!(load(&[("APP__SHUTDOWN__GRACE", "23s")]).is_ok());
    let traced = [("APP__SHUTDOWN__GRACE", "23s"), ("APP__OTLP__ENDPOINT", "http://collector:4318")];
    assert!(load(&traced).is_err());
}

#[test]
fn the_collector_is_an_address_of_http_without_a_secret() {
    let collector = |variables: &[(&str, &str)]| load(variables).map(|config| config.collector);
    for endpoint in ["collector:4318", "grpc://collector:4317", "http://", "http://user:s3cr3t@collector"] {
        let problems = collector(&[("APP__OTLP__ENDPOINT", endpoint)]).err().unwrap();
        assert_eq!(problems, ["APP__OTLP__ENDPOINT: must be a URL such as http://collector:4318"]);
    }
    for (name, value) in [("SAMPLE_RATIO", "1.5"), ("SAMPLE_RATIO", "NaN"), ("AUTHORIZATION", "two\nlines")] {
        let name = format!("APP__OTLP__{name}");
        assert_eq!(collector(&[(&name, value)]).err().unwrap().len(), 1, "{name} {value}");
    }

    let set =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"), ("APP__OTLP__SAMPLE_RATIO", "0.25")];
    let set = collector(&set).unwrap().unwrap();
    assert_eq!((set.endpoint.as_str(), set.sample_ratio), ("https://collector:4318/", 0.25));
    assert!(collector(&[]).unwrap().is_none());
}

fn read(variables: &[(&str, &str)]) -> Settings {
    Settings::read(variables.iter().map(|(name, value)| (name.into(), value.into())))
}

proptest! {
    #[test]
    fn any_text_is_a_secret_by_variable_and_by_file(value in "[^\\x00]{1,200}") {
        let direct = read(&[("APP__DATABASE__PASSWORD", &value)]);
        let secret = direct.secret("database.password").unwrap();
            prop_assert_eq!(secret.expose_secret(), &value);

        // A final carriage return and the newline behind it would both count as the line end.
        let end = if value.ends_with('\r') { "" } else { "\n" };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{value}{end}")).unwrap();
        let path = file.path().to_str().unwrap();
        let by_file = read(&[("APP__DATABASE__PASSWORD_FILE", path)]);
        let secret = by_file.secret("database.password").unwrap();
            prop_assert_eq!(secret.expose_secret(), &value);
    }

    #[test]
    fn any_text_of_a_plain_setting_arrives_unchanged(value in "[^\\x00]{1,200}") {
        let mut settings = read(&[("APP__DATABASE__USER", &value)]);
        prop_assert_eq!(settings.get::<String>("database.user"), value);
    }

    #[test]
    fn whatever_is_set_no_problem_repeats_it_and_no_secret_is_shown(
        key in prop::sample::select(KEYS.keys().collect::<Vec<_>>()),
        start in "|postgres://u:|postgres://h/d\\?|redis://|[^\\x00]{1,20}",
        end in "|@localhost/d|=x|[^\\x00]{1,20}",
    ) {
        let value = format!("{start}s3cr3t{end}");
        let variables = [(variable(key), value)];
        let variables = variables.each_ref().map(|(name, value)| (name.as_str(), value.as_str()));

        let problems = load(&variables).err().unwrap_or_default();
        prop_assert!(!problems.concat().contains("s3cr3t"), "{problems:?}");
        let secret = ["url", "password", "authorization"].iter().any(|name| key.ends_with(name));
        prop_assert!(!secret || !read(&variables).show().contains("s3cr3t"));
    }
}

#[test]
fn later_sources_win_and_the_shadowed_ones_are_told() {
    let settings = read(&[("PORT", "8081"), ("APP__HTTP__PORT", "9000")]);

    let shown = settings.show();

    let line = "APP__HTTP__PORT = \"9000\"  # APP__HTTP__PORT, over the default \"8080\" and PORT\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn the_service_is_called_as_the_package_unless_it_has_a_name() {
    let default = format!("APP__SERVICE__NAME = \"{}\"  # default\n", env!("CARGO_PKG_NAME"));
    assert!(read(&[]).show().contains(&default));

    for key in
        KEYS.keys().filter(|key| !["url", "password", "authorization"].iter().any(|end| key.ends_with(end)))
    {
        let name = variable(key);
        let line = format!("{name} = \"given\"  # {name}");
        assert!(read(&[(&name, "given")]).show().contains(&line), "{name} does not win");
    }
}

#[test]
fn secrets_are_redacted() {
    let settings = read(&[("DATABASE_URL", "postgres://u:s3cr3t@h/d")]);

    let shown = settings.show();

    assert!(shown.contains("APP__DATABASE__URL = [redacted]  # DATABASE_URL\n"), "{shown}");
    assert!(!shown.contains("s3cr3t"));
}

#[test]
fn a_misspelt_name_is_refused_with_the_nearest_known_one() {
    let settings = read(&[("APP__HTTP__PROT", "1"), ("APP_PORT", "tcp://10.0.0.1:80")]);

    let problems: Vec<_> = settings.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["APP__HTTP__PROT: no such setting; did you mean APP__HTTP__PORT?"]);
}

#[test]
fn a_value_and_its_file_exclude_each_other() {
    let settings = read(&[("DATABASE_URL", "a"), ("DATABASE_URL_FILE", "/x")]);

    let problems: Vec<_> = settings.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems, ["DATABASE_URL_FILE: DATABASE_URL is set as well; only one of them may be"]);
}

#[test]
fn the_empty_variable_is_not_set() {
    let mut settings = read(&[("APP__HTTP__PORT", ""), ("PORT", "")]);

    assert_eq!(settings.get::<u16>("http.port"), 8080);
}

#[test]
fn a_limit_of_zero_would_be_none_and_is_refused() {
    let problems = load(&[("APP__DATABASE__LOCK_TIMEOUT", "0s")]).err().unwrap();

    assert_eq!(problems, ["APP__DATABASE__LOCK_TIMEOUT: must be at least 1ms"]);
    assert!(load(&[("APP__SHUTDOWN__READY_DELAY", "0s")]).is_ok());
}
