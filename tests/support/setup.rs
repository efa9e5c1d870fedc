//! Builder for a service under test.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::app::App;
use super::servers::{self, Server};
use super::{contract, eventually};

/// How to start a service.
#[derive(Clone)]
pub struct Setup {
    /// The program that serves.
    program: String,
    /// The program that runs the commands.
    commands: String,
    settings: BTreeMap<String, String>,
    descriptors: Option<u32>,
    read_output: bool,
}

impl Setup {
    /// Uses `postgres` and `redis`, a new database and short timeouts.
    pub fn on(postgres: &Server, redis: &Server) -> Self {
        let database = postgres.create_database();
        let settings = [
            ("APP__SERVICE__NAME", database.clone()),
            ("APP__SHUTDOWN__READY_DELAY", "0s".to_owned()),
            ("APP__HTTP__PORT", "0".to_owned()),
            ("APP__DATABASE__HOST", "127.0.0.1".to_owned()),
            ("APP__DATABASE__PORT", postgres.port.to_string()),
            ("APP__DATABASE__USER", "app".to_owned()),
            ("APP__DATABASE__NAME", database),
            ("APP__DATABASE__PASSWORD_FILE", postgres.password_file.display().to_string()),
            ("APP__REDIS__HOST", "127.0.0.1".to_owned()),
            ("APP__REDIS__PORT", redis.port.to_string()),
            ("APP__REDIS__PASSWORD_FILE", redis.password_file.display().to_string()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        let program = env!("CARGO_BIN_EXE_app").to_owned();
        Self {
            commands: program.clone(),
            program,
            settings: settings.into(),
            descriptors: None,
            read_output: true,
        }
    }

    /// Uses the servers that the tests share.
    pub fn shared() -> Self {
        Self::on(servers::postgres(), servers::redis())
    }

    /// Uses the example `workload`: the same code with notes and misbehaving handlers.
    pub fn workload(self) -> Self {
        Self { program: example("workload"), commands: example("workload"), ..self }
    }

    /// Serves with the example `name`, whose log has its own format, on the schema of `workload`.
    pub fn served_by(self, name: &str) -> Self {
        Self { program: example(name), commands: example("workload"), ..self }
    }

    pub fn set(mut self, name: &str, value: impl Display) -> Self {
        self.settings.insert(format!("APP__{name}"), value.to_string());
        self
    }

    pub fn unset(mut self, name: &str) -> Self {
        self.settings.remove(&format!("APP__{name}"));
        self
    }

    /// Limits the number of open files and sockets.
    pub fn with_descriptors(mut self, count: u32) -> Self {
        self.descriptors = Some(count);
        self
    }

    /// Stops reading standard output once the service listens.
    pub fn with_unread_output(mut self) -> Self {
        self.read_output = false;
        self
    }

    /// Returns a command of the service with these settings and an otherwise empty environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = if arguments.is_empty() { &self.program } else { &self.commands };
        let mut command = Command::new(program);
        if let Some(count) = self.descriptors {
            command = Command::new("/bin/sh");
            command.args(["-c", &format!("ulimit -n {count}; exec \"$0\" \"$@\""), program]);
        }
        command.args(arguments).env_clear().envs(&self.settings);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn reads_output(&self) -> bool {
        self.read_output
    }

    /// Returns whether the log has to follow docs/log.schema.json.
    pub fn keeps_contract(&self) -> bool {
        self.program == self.commands
    }

    /// Returns the name of the service's database.
    pub fn database(&self) -> &str {
        &self.settings["APP__DATABASE__NAME"]
    }

    pub fn migrate(&self) {
        let mut migrate = self.command(&["migrate"]);
        let output = migrate.env("APP__LOG__FORMAT", "json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            contract::service_line(line);
        }
    }

    /// Migrates, starts and waits until the service is ready.
    pub fn start(self) -> App {
        self.migrate();
        self.start_migrated()
    }

    /// Starts and waits until the service is ready.
    pub fn start_migrated(self) -> App {
        let app = self.start_unready();
        eventually(Duration::from_secs(10), "ready", || {
            app.ready().is_some_and(|answer| answer.status == 200).then_some(())
        });
        app
    }

    /// Starts and waits until the service listens.
    pub fn start_unready(self) -> App {
        App::spawn(&self)
    }
}

fn example(name: &str) -> String {
    let folder = env!("CARGO_BIN_EXE_app").strip_suffix("app").unwrap();
    format!("{folder}examples/{name}")
}
