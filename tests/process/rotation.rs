//! Passwords that change under load (G31): no request fails, and nothing is restarted.

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

/// An unoptimised build under full load takes seconds for a login.
const LIMIT: Duration = Duration::from_secs(20);

/// A volume as Kubernetes makes it: `postgres` and `redis` lead through the link `..data` into the folder of a version,
/// and one rename changes both.
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

/// Servers with a role `service` besides the one that the tests use.
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

    /// Ends every session of the service.
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
        // Sessions are replaced all the time.
        .set("DATABASE__SESSION_LIFETIME", "1s")
        .set("SECRETS__RELOAD_INTERVAL", "200ms")
        // Without the access log, which the tests would have to read again and again.
        .set("LOG__LEVEL", "warn,app=debug")
        .start();
    add_note(&servers.postgres, &app);
    app
}

/// How often the credentials of each dependency have been found to work.
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
        // More clients than there are sessions.
        let report = Load::get(app.address, path).closed(8, || {
            for round in 0..3 {
                let password = format!("{path} {round}");
                servers.set_password(&password);
                // It takes up to a minute until Kubernetes has changed the files.
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
        "6 rotations of both passwords under {requests} requests: {failed} failed; in use {slowest:?} after the file"
    );
    assert_eq!(failed, 0);
    // A session that is lost while no new one can be made: the others do its work.
    servers.set_password("unknown to the service");
    // Not that of the health check, which never works on notes.
    let one = "select pg_terminate_backend(pid)::text from pg_stat_activity where usename = 'service'
               and query like '%from notes%' limit 1";
    // At a rate that leaves time for the logins that are tried: a build without optimisation, with all clients at once, takes
    // longer for one than a request waits.
    let report = Load::get(app.address, "/v1/notes").open(400, || {
        eventually(LIMIT, "a session to lose", || {
            (servers.postgres.sql("app", one).len() == 1).then_some(())
        });
        repeatedly(Duration::from_secs(3), || {});
    });
    let failed = report.0.len() - report.with_status(200);
    println!("one session lost while logins were refused: {failed} of {} requests failed", report.0.len());
    assert!(failed <= 1, "{failed}");
    assert_eq!(app.metric("credentials_valid{dependency=\"postgres\"}"), 0.0);
    volume.swap("unknown to the service");
    eventually(LIMIT, "valid again", || {
        (app.metric("credentials_valid{dependency=\"postgres\"}") == 1.0).then_some(())
    });
    // It is the new passwords that connections are made with.
    servers.disconnect();
    eventually(LIMIT, "new sessions", || (app.get("/v1/notes").status == 200).then_some(()));
    ready_becomes(&app, 200, "ready");
    for dependency in ["postgres", "redis"] {
        assert_eq!(app.metric(&format!("credentials_valid{{dependency=\"{dependency}\"}}")), 1.0);
    }
    assert!(app.is_running());
}

#[test]
fn a_password_that_does_not_work_is_told_and_not_used() {
    let mut servers = Servers::start("rotation-refused");
    servers.set_password("c4nary-first");
    let folder = tempfile::tempdir().unwrap();
    let files = ["postgres", "redis"].map(|name| folder.path().join(name));
    files.iter().for_each(|file| fs::write(file, "c4nary-first").unwrap());
    let mut app = start(&servers, &files[0], &files[1]);
    let valid = |dependency: &str| app.metric(&format!("credentials_valid{{dependency=\"{dependency}\"}}"));
    let told = || {
        let told =
            |line: &serde_json::Value| line["problem"].as_str().is_some_and(|p| p.starts_with("postgres: "));
        app.log().iter().filter(|line| told(line)).count()
    };

    // In place, as compose and people do it.
    let report = Load::get(app.address, "/v1/notes").closed(8, || {
        files.iter().for_each(|file| fs::write(file, "c4nary-wrong").unwrap());
        eventually(LIMIT, "refused", || {
            (valid("postgres") == 0.0 && valid("redis") == 0.0 && told() > 0).then_some(())
        });
        // Half written, empty, gone.
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
    // The login that works goes on being used, for new sessions too.
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
    // Once, not each time that the file was read.
    assert_eq!(told(), 2);
    assert!(!app.lines().iter().any(|line| line.contains("c4nary")));
    assert!(app.is_running());
}

/// The path of a file says nothing about which setting it belongs to.
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
