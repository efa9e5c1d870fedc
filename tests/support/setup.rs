//! How a service is started.

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
    /// What serves.
    program: String,
    /// What has the commands.
    commands: String,
    settings: BTreeMap<String, String>,
    descriptors: Option<u32>,
    read_output: bool,
}

impl Setup {
    /// The service on `postgres` and `redis`, with a database of its own and short times.
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

    /// On the servers that the tests share.
    pub fn shared() -> Self {
        Self::on(servers::postgres(), servers::redis())
    }

    /// The example `workload` instead of the service: the same code with notes and ill-behaved handlers.
    pub fn workload(self) -> Self {
        Self { program: example("workload"), commands: example("workload"), ..self }
    }

    /// Serves with the example `name`, which has a log of its own kind, on the schema of `workload`.
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

    /// Allows it so many open files and sockets.
    pub fn with_descriptors(mut self, count: u32) -> Self {
        self.descriptors = Some(count);
        self
    }

    /// Leaves standard output unread once the service listens.
    pub fn with_unread_output(mut self) -> Self {
        self.read_output = false;
        self
    }

    /// A command of the service with these settings and nothing else from our environment.
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

    /// Whether the log has to follow docs/log.schema.json.
    pub fn keeps_contract(&self) -> bool {
        self.program == self.commands
    }

    /// The name of the database that it was given.
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
