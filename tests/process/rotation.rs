//! Passwords that change under load (G31): no request fails, and no restart is needed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::dependencies::{add_note, ready_becomes};
use crate::support::app::App;
use crate::support::load::Load;
use crate::support::servers::Server;
use crate::support::setup::Setup;
use crate::support::{eventually, repeatedly};

/// A debug build under full load takes seconds for a login.
const LIMIT: Duration = Duration::from_secs(20);

/// A Kubernetes volume: `postgres` and `redis` resolve through the link `..data` to the folder of a version, so one rename
/// changes both.
struct Volume {
    folder: tempfile::TempDir,
    version: u32,
}

impl Volume {
    fn new(password: &str) -> Self {
        let mut volume = Self { folder: tempfile::tempdir().unwrap(), version: 0 };
        volume.swap(password);
        for name in ["postgres", "redis"] {
            symlink(format!("..data/{name}"), volume.path(name)).unwrap();
        }
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn swap(&mut self, password: &str) {
        self.version += 1;
        let version = format!("..version-{}", self.version);
        fs::create_dir(self.path(&version)).unwrap();
        for name in ["postgres", "redis"] {
            fs::write(self.path(&version).join(name), password).unwrap();
        }
        symlink(version, self.path("..new")).unwrap();
        fs::rename(self.path("..new"), self.path("..data")).unwrap();
    }
}

/// Servers with an additional role `service`.
struct Servers {
    postgres: Server,
    redis: Server,
    admin: redis::Connection,
}

impl Servers {
    fn start(name: &str) -> Self {
        let (postgres, redis) = (Server::start("postgres", name), Server::start("redis", name));
        let admin = redis.redis();
        postgres.sql("app", "drop role if exists service");
        postgres.sql("app", "create role service superuser login");
        Self { postgres, redis, admin }
    }

    fn set_password(&mut self, password: &str) {
        self.postgres.sql("app", &format!("alter role service password '{password}'"));
        let mut command = redis::cmd("ACL");
        command.arg(&["SETUSER", "service", "on", "resetpass", "~*", "+@all", &format!(">{password}")]);
        command.query::<()>(&mut self.admin).unwrap();
    }

    /// Terminates every session of the service.
    fn disconnect(&mut self) {
        let terminate =
            "select pg_terminate_backend(pid)::text from pg_stat_activity where usename = 'service'";
        assert!(!self.postgres.sql("app", terminate).is_empty());
        redis::cmd("CLIENT").arg(&["KILL", "USER", "service"]).query::<()>(&mut self.admin).unwrap();
    }
}

fn start(servers: &Servers, postgres: &Path, redis: &Path) -> App {
    let setup = Setup::on(&servers.postgres, &servers.redis).workload();
    setup.migrate();
    let app = setup
        .set("DATABASE__USER", "service")
        .set("DATABASE__PASSWORD_FILE", postgres.display())
        .set("REDIS__USER", "service")
        .set("REDIS__PASSWORD_FILE", redis.display())
        .set("DATABASE__MAX_CONNECTIONS", 4)
        // Sessions are renewed continuously.
        .set("DATABASE__SESSION_LIFETIME", "1s")
        .set("SECRETS__RELOAD_INTERVAL", "200ms")
        // No access log, which the tests would have to parse repeatedly.
        .set("LOG__LEVEL", "warn,app=debug")
        .start();
    add_note(&servers.postgres, &app);
    app
}

/// Returns how often the credentials of each dependency have been validated.
fn in_use(app: &App) -> [usize; 2] {
    let lines = app.log();
    ["postgres", "redis"].map(|dependency| {
        let found = |line: &&serde_json::Value| {
            line["message"] == "credentials are in use" && line["dependency"] == dependency
        };
        lines.iter().filter(found).count()
    })
}

#[test]
fn passwords_change_under_load_and_no_request_fails() {
    let mut servers = Servers::start("rotation");
    servers.set_password("c4nary-first");
    let mut volume = Volume::new("c4nary-first");
    let mut app = start(&servers, &volume.path("postgres"), &volume.path("redis"));
    let (mut slowest, mut requests, mut failed) = (Duration::ZERO, 0, 0);

    for path in ["/v1/notes", "/v1/notes/1"] {
        // More clients than sessions.
        let report = Load::get(app.address, path).closed(8, || {
            for round in 0..3 {
                let password = format!("{path} {round}");
                servers.set_password(&password);
                // Kubernetes takes up to a minute to update the files.
                repeatedly(Duration::from_secs(2), || {});
                let before = in_use(&app);
                volume.swap(&password);
                let start = Instant::now();
                eventually(LIMIT, "both new logins", || {
                    let now = in_use(&app);
                    (now[0] > before[0] && now[1] > before[1]).then_some(())
                });
                slowest = slowest.max(start.elapsed());
            }
        });
        requests += report.0.len();
        failed += report.0.len() - report.with_status(200);
    }

    println!(
        "6 rotations of both passwords under {requests} requests: {failed} failed; in use {slowest:?} after the file changed"
    );
    assert_eq!(failed, 0);
    // One session is lost while no new session can be opened: the others do its work.
    servers.set_password("unknown to the service");
    // Excludes the session of the health check, which never queries notes.
    let one = "select pg_terminate_backend(pid)::text from pg_stat_activity where usename = 'service'
               and query like '%from notes%' limit 1";
    // The rate leaves time for trial logins: in a debug build with all clients active, a login takes longer than a request
    // may wait.
    let report = Load::get(app.address, "/v1/notes").open(400, || {
        eventually(LIMIT, "a session to lose", || {
            (servers.postgres.sql("app", one).len() == 1).then_some(())
        });
        repeatedly(Duration::from_secs(3), || {});
    });
    let failed = report.0.len() - report.with_status(200);
    println!("one session lost while logins failed: {failed} of {} requests failed", report.0.len());
    assert!(failed <= 1, "{failed}");
    assert_eq!(app.metric("credentials_valid{dependency=\"postgres\"}"), 0.0);
    volume.swap("unknown to the service");
    eventually(LIMIT, "valid again", || {
        (app.metric("credentials_valid{dependency=\"postgres\"}") == 1.0).then_some(())
    });
    // New connections use the new passwords.
    servers.disconnect();
    eventually(LIMIT, "new sessions", || (app.get("/v1/notes").status == 200).then_some(()));
    ready_becomes(&app, 200, "ready");
    for dependency in ["postgres", "redis"] {
        assert_eq!(app.metric(&format!("credentials_valid{{dependency=\"{dependency}\"}}")), 1.0);
    }
    assert!(app.is_running());
}

#[test]
fn a_password_that_does_not_work_is_reported_and_not_used() {
    let mut servers = Servers::start("rotation-refused");
    servers.set_password("c4nary-first");
    let folder = tempfile::tempdir().unwrap();
    let files = ["postgres", "redis"].map(|name| folder.path().join(name));
    files.iter().for_each(|file| fs::write(file, "c4nary-first").unwrap());
    let mut app = start(&servers, &files[0], &files[1]);
    let valid = |dependency: &str| app.metric(&format!("credentials_valid{{dependency=\"{dependency}\"}}"));
    let reports = || {
        let is_report =
            |line: &serde_json::Value| line["problem"].as_str().is_some_and(|p| p.starts_with("postgres: "));
        app.log().iter().filter(|line| is_report(line)).count()
    };

    // In place, as compose and administrators replace files.
    let report = Load::get(app.address, "/v1/notes").closed(8, || {
        files.iter().for_each(|file| fs::write(file, "c4nary-wrong").unwrap());
        eventually(LIMIT, "refused", || {
            (valid("postgres") == 0.0 && valid("redis") == 0.0 && reports() > 0).then_some(())
        });
        // Half written, empty, missing.
        files.iter().for_each(|file| fs::write(file, "").unwrap());
        eventually(LIMIT, "an empty file", || {
            app.log()
                .iter()
                .any(|line| line["problem"].as_str().is_some_and(|p| p.ends_with("is empty")))
                .then_some(())
        });
        files.iter().for_each(|file| fs::remove_file(file).unwrap());
        repeatedly(Duration::from_secs(2), || {});
        files.iter().for_each(|file| fs::write(file, "c4nary-first").unwrap());
        eventually(LIMIT, "valid again", || {
            (valid("postgres") == 1.0 && valid("redis") == 1.0).then_some(())
        });
    });

    println!(
        "wrong, empty and absent files under {} requests: {} answered",
        report.0.len(),
        report.with_status(200)
    );
    assert_eq!(report.with_status(200), report.0.len());
    // The working login stays in use, for new sessions too.
    files.iter().for_each(|file| fs::write(file, "c4nary-wrong again").unwrap());
    eventually(LIMIT, "refused", || (valid("postgres") == 0.0 && valid("redis") == 0.0).then_some(()));
    servers.disconnect();
    eventually(LIMIT, "new sessions", || (app.get("/v1/notes").status == 200).then_some(()));
    let hits = || app.metric("cache_operations_total{operation=\"get\",outcome=\"hit\"}");
    let before = hits();
    eventually(LIMIT, "an answer from the cache", || {
        assert_eq!(app.get("/v1/notes/1").status, 200);
        (hits() > before).then_some(())
    });
    assert_eq!((valid("postgres"), valid("redis")), (0.0, 0.0));
    // Reported once, not each time that the file is read.
    assert_eq!(reports(), 2);
    assert!(!app.lines().iter().any(|line| line.contains("c4nary")));
    assert!(app.is_running());
}

/// The path of a file does not determine which setting it belongs to.
#[test]
fn a_problem_of_redis_does_not_stop_the_rotation_of_postgres() {
    let mut servers = Servers::start("rotation-path");
    servers.set_password("c4nary-first");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("DATABASE")).unwrap();
    let postgres = folder.path().join("postgres");
    let redis = folder.path().join("DATABASE/redis");
    [&postgres, &redis].into_iter().for_each(|file| fs::write(file, "c4nary-first").unwrap());
    let app = start(&servers, &postgres, &redis);

    fs::write(&redis, "").unwrap();
    servers.postgres.sql("app", "alter role service password 'c4nary-second'");
    fs::write(&postgres, "c4nary-second").unwrap();

    app.logged("the rotation of PostgreSQL", |line| {
        line["message"] == "credentials are in use" && line["dependency"] == "postgres"
    });
}
