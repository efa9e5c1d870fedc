//! Migrations that run concurrently, fail, are killed, or are ahead of the release (G19, G20).

use std::process::{Child, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::servers;
use crate::support::setup::Setup;
use crate::support::{Random, eventually, repeatedly};

/// Delays each statement that changes the schema of `database` by `seconds`.
fn slow_down(database: &str, seconds: f64) {
    servers::postgres().sql(
        database,
        &format!(
            "create or replace function slow() returns event_trigger language plpgsql
             as $$ begin perform pg_sleep({seconds}); end $$;
             create event trigger slow on ddl_command_start execute function slow()"
        ),
    );
}

fn speed_up(database: &str) {
    servers::postgres().sql(database, "drop event trigger slow");
}

fn spawn(setup: &Setup) -> Child {
    setup.command(&["migrate"]).spawn().unwrap()
}

fn succeeded(output: &Output) -> bool {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    true
}

/// Returns the sessions and advisory locks of other clients in `database`.
fn leftovers(database: &str) -> Vec<String> {
    let sessions = "select pid::text from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid()
                    union all select pid::text from pg_locks
                    where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())";
    servers::postgres().sql(database, sessions)
}

#[test]
fn of_eight_concurrent_migrations_one_applies_and_all_succeed() {
    let setup = Setup::shared().workload();
    slow_down(setup.database(), 0.05);

    let start = Instant::now();
    let runners: Vec<_> = (0..8).map(|_| spawn(&setup)).collect();
    let outputs: Vec<_> = runners.into_iter().map(|runner| runner.wait_with_output().unwrap()).collect();

    println!("eight concurrent migrations: all done after {:?}", start.elapsed());
    assert!(outputs.iter().all(succeeded));
    let applied = "select count(*)::text from _sqlx_migrations where success";
    assert_eq!(servers::postgres().sql(setup.database(), applied), ["1"]);
    eventually(Duration::from_secs(2), "nothing left", || {
        leftovers(setup.database()).is_empty().then_some(())
    });
}

#[test]
fn a_failed_migration_leaves_no_lock_and_can_be_run_again() {
    let setup = Setup::shared().workload();
    // The migration fails at this table, after it has created another one.
    servers::postgres().sql(setup.database(), "create table rows (id bigint)");

    let output = setup.command(&["migrate"]).output().unwrap();

    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("failed to apply a migration") && log.contains("already exists"), "{log}");
    eventually(Duration::from_secs(2), "nothing left", || {
        leftovers(setup.database()).is_empty().then_some(())
    });
    let notes = "select 1::text from pg_tables where tablename = 'notes'";
    assert!(servers::postgres().sql(setup.database(), notes).is_empty(), "the migration was applied in part");
    servers::postgres().sql(setup.database(), "drop table rows");
    setup.migrate();
}

#[test]
fn a_migration_behind_a_stuck_one_gives_up_and_reports_why() {
    let setup = Setup::shared().workload().set("DATABASE__LOCK_TIMEOUT", "500ms");
    slow_down(setup.database(), 30.0);
    let mut stuck = spawn(&setup);
    eventually(Duration::from_secs(5), "the stuck one", || {
        let sleeping = "select pid::text from pg_stat_activity
                        where datname = current_database() and wait_event = 'PgSleep'";
        (!servers::postgres().sql(setup.database(), sleeping).is_empty()).then_some(())
    });

    let start = Instant::now();
    let output = setup.command(&["migrate"]).output().unwrap();
    let gave_up = start.elapsed();

    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("another migration holds the lock"), "{log}");
    assert!(gave_up < Duration::from_secs(2), "{gave_up:?}");

    // A killed migration has to release its lock.
    stuck.kill().unwrap();
    stuck.wait().unwrap();
    let start = Instant::now();
    eventually(Duration::from_secs(5), "nothing left", || {
        leftovers(setup.database()).is_empty().then_some(())
    });
    println!("gave up after {gave_up:?}; the lock was free {:?} after kill -9", start.elapsed());
    speed_up(setup.database());
    setup.migrate();
}

#[test]
fn a_migration_killed_ten_times_still_completes() {
    let setup = Setup::shared().workload();
    slow_down(setup.database(), 0.05);
    let seed = 20_261_121_u64;
    let mut random = Random(seed);
    let (mut killed, mut refused) = (0, 0);

    for _ in 0..10 {
        let mut runner = spawn(&setup);
        repeatedly(Duration::from_millis(random.below_power(8)), || {});
        match runner.try_wait().unwrap() {
            None => killed += 1,
            Some(status) => refused += u32::from(!status.success()),
        }
        let _ = runner.kill();
        runner.wait().unwrap();
    }
    eventually(Duration::from_secs(5), "nothing left", || {
        leftovers(setup.database()).is_empty().then_some(())
    });

    println!("seed {seed}: 10 runs, {killed} killed, {refused} failed");
    assert!(killed >= 3, "{killed}");
    assert_eq!(refused, 0);
    setup.migrate();
    let mut app = setup.start();
    assert_eq!(app.get("/v1/notes").status, 200);
    assert!(app.is_running());
}

/// A deploy and a rollback need this: the release runs on the schema of the next one, which only adds to it.
#[test]
fn this_release_runs_on_the_schema_of_the_next() {
    let setup = Setup::shared().workload();
    setup.migrate();
    servers::postgres().sql(
        setup.database(),
        "alter table notes add column title text, add column clicks bigint not null default 0;
         create table of_the_next_release (id bigint);
         insert into _sqlx_migrations (version, description, success, checksum, execution_time)
         values (99991231235959, 'of the next release', true, '\\x00', 0)",
    );

    let mut app = setup.start();
    let mut client = app.client();
    let created = client.send("POST", "/v1/notes", &[], &json!({"text": "kept"}));
    let path = format!("/v1/notes/{}", created.json()["id"]);
    let read = client.get(&path);
    let listed = client.get("/v1/notes");
    let deleted = client.request("DELETE", &path, &[], "");

    let answers = [&created, &read, &listed, &deleted];
    assert_eq!(answers.map(|answer| answer.status), [201, 200, 200, 204]);
    assert_eq!(read.json()["text"], "kept");
    assert_eq!(app.get("/health/ready").status, 200);
    assert!(app.is_running());
    println!("four kinds of requests served on a schema one release ahead");
}
