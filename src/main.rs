//! The service: its routes and its schema, behind the command line.

use std::process::ExitCode;

use app::platform::cli;
use app::platform::http::router;
use app::platform::postgres::migrations::MIGRATIONS;

fn main() -> ExitCode {
    cli::run(router::domains(), &MIGRATIONS)
}
