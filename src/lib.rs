//! A production web service. [`platform`] is the template's; every other module is a domain and the project's.

use platform::config::Package;

pub mod platform;

pub mod links;

/// Name, version, and commit of this build.
pub const PACKAGE: Package = Package {
    name: env!("CARGO_PKG_NAME"),
    version: env!("CARGO_PKG_VERSION"),
    revision: env!("APP_REVISION"),
};
