//! The service: its routes and its schema, behind the command line.

use std::process::ExitCode;

use app::migrations::MIGRATIONS;
use app::{cli, router};

fn main() -> ExitCode {
    cli::run(router::domains(), &MIGRATIONS)
}
