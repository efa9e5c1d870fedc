//! Private PostgreSQL and Redis servers, which a test can stop, kill, freeze and restart.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::free_port;

/// The password of each private server; it must never appear in any output.
pub const PASSWORD: &str = "c4nary-p@ss/w#rd\"'%:?";

/// A server controlled through `scripts/server`. Stops on drop or when the process ends.
pub struct Server {
    pub port: u16,
    pub password_file: PathBuf,
    control: Mutex<Control>,
}

struct Control {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `kind` (postgres or redis) with its data in the folder `name`.
    pub fn start(kind: &str, name: &str) -> Self {
        let port = free_port();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{kind}"));
        fs::create_dir_all(&directory).unwrap();
        let password_file = directory.join("password");
        fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/server"))
            .arg(kind)
            .arg(&directory)
            .arg(port.to_string())
            .env("POSTGRES_ARGS", "-c fsync=off -c max_connections=300 -c log_statement=all")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut control = Control { child, commands, answers };
        let answer = control.answer();
        assert_eq!(answer, "ready", "`scripts/install-servers` installs missing servers");
        Self { port, password_file, control: Mutex::new(control) }
    }

    /// Sends `command` (stop, kill, start, pause, resume) and waits until it has taken effect.
    #[track_caller]
    pub fn command(&self, command: &str) {
        let mut control = self.control.lock().unwrap();
        writeln!(control.commands.as_ref().unwrap(), "{command}").unwrap();
        let answer = control.answer();
        assert!(answer.starts_with("ok"), "{command}: {answer}");
    }

    /// Creates an empty database for a test and returns its name.
    pub fn create_database(&self) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.sql("app", &format!("drop database if exists {name} with (force)"));
        self.sql("app", &format!("create database {name}"));
        name
    }

    /// Runs `statement` and returns the first column of its rows as text.
    pub fn sql(&self, database: &str, statement: &str) -> Vec<String> {
        let options = self.options(database);
        block_on(async move {
            let mut connection: PgConnection = options.connect().await.unwrap();
            let statement = sqlx::AssertSqlSafe(statement);
            let rows = sqlx::raw_sql(statement).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            use sqlx::{Row, ValueRef};
            let texts = rows.iter().filter(|row| !row.is_empty()).map(|row| {
                let value = row.try_get_raw(0).unwrap();
                String::from(if value.is_null() { "" } else { value.as_str().unwrap() })
            });
            texts.collect()
        })
    }

    /// Opens a connection to this Redis.
    pub fn redis(&self) -> redis::Connection {
        let login = redis::RedisConnectionInfo::default().set_password(PASSWORD);
        let address = redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), self.port);
        let info =
            redis::IntoConnectionInfo::into_connection_info(address).unwrap().set_redis_settings(login);
        redis::Client::open(info).unwrap().get_connection().unwrap()
    }

    pub fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("app")
            .password(PASSWORD)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }
}

impl Control {
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut control = self.control.lock().unwrap();
        control.commands = None;
        control.child.wait().unwrap();
    }
}

/// The shared PostgreSQL, for tests that do not break it.
pub fn postgres() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("postgres", env!("CARGO_CRATE_NAME")))
}

/// The shared Redis, for tests that do not break it.
pub fn redis() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start("redis", env!("CARGO_CRATE_NAME")))
}

/// Runs asynchronous work of a test, such as a statement in a session that stays open.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}
