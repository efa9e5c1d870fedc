//! The seam between the platform and the project: what `main` hands over.

use std::ffi::OsString;

use axum::Router;
use prometheus::Registry;
use sqlx::migrate::Migrator;

use crate::platform::config::sources::{Problem, Settings};
use crate::platform::config::{Config, Package};
use crate::platform::state::AppState;

/// The project's parts of a service.
#[derive(Clone, Copy)]
pub struct Service {
    pub package: Package,
    pub migrations: &'static Migrator,
    /// Settings of the domains, in the format of the platform's `default.toml`.
    pub settings: &'static str,
    /// Builds the routes of the domains. Also called by `config check`, so it connects to nothing.
    pub routes: fn(&mut Setup<'_>) -> Router<AppState>,
}

/// What a domain builds its routes from, besides the handles in [`AppState`].
pub struct Setup<'a> {
    /// Reads the domain's settings. Problems are reported together with all others, before anything starts.
    pub settings: &'a mut Settings,
    /// Takes the domain's metrics; `/metrics` renders them.
    pub metrics: &'a Registry,
}

/// A service whose configuration is valid.
pub struct Loaded {
    pub config: Config,
    pub settings: Settings,
    pub routes: Router<AppState>,
    pub metrics: Registry,
}

impl Service {
    /// Loads the configuration and builds the routes.
    ///
    /// # Errors
    ///
    /// Every configuration error.
    pub fn load(
        &self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded, Vec<Problem>> {
        let metrics = Registry::new();
        let routes = |settings: &mut Settings| (self.routes)(&mut Setup { settings, metrics: &metrics });
        let (config, routes, settings) = Config::load(&self.package, self.settings, variables, routes)?;
        Ok(Loaded { config, settings, routes, metrics })
    }

    /// Reads the settings of the process, which are not validated yet.
    pub fn read_settings(&self) -> Settings {
        Settings::read(&self.package, self.settings, std::env::vars_os())
    }
}
