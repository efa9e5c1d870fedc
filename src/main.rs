//! The service: hands its routes, migrations, and settings to the platform.

use std::process::ExitCode;

use app::platform::service::Service;
use app::{PACKAGE, links, platform};
use axum::Router;
use sqlx::migrate::Migrator;

static MIGRATIONS: Migrator = sqlx::migrate!();

fn main() -> ExitCode {
    platform::run(Service {
        package: PACKAGE,
        migrations: &MIGRATIONS,
        settings: include_str!("settings.toml"),
        routes: |_setup| Router::new().merge(links::router()),
    })
}
