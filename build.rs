//! Hands the git revision to the compiler: GIT_REVISION where the checkout is not there (an image build).

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "the settings of a build are not those of the service")]
fn main() {
    println!("cargo::rerun-if-env-changed=GIT_REVISION");
    println!("cargo::rerun-if-changed=migrations");
    // The log of HEAD changes with each commit and each checkout, unlike HEAD itself.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let revision = std::env::var("GIT_REVISION").ok().filter(|revision| !revision.is_empty());
    let revision = revision.or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!("cargo::rustc-env=APP_REVISION={}", revision.as_deref().unwrap_or("unknown"));
}
