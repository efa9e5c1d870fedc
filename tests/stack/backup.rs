//! Backups of the production stack are complete, restores are all or nothing, and drills leave nothing behind. A stack that
//! is destroyed under load is restored from a backup.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::docker::{docker, run};
use crate::stack::Stack;
use crate::support::eventually;
use crate::support::meter::Meter;

const LIMIT: Duration = Duration::from_secs(30);

/// A stack and the folder of its backups.
struct Backups {
    stack: Stack,
    folder: TempDir,
}

impl Backups {
    fn new(name: &str) -> Self {
        Self { stack: Stack::new(name), folder: TempDir::new().unwrap() }
    }

    fn backup(&self) -> Command {
        let mut command = self.stack.command("backup", &[]);
        command.env("BACKUP_DIR", self.folder.path());
        command
    }

    fn restore(&self, file: &Path) -> Command {
        let mut command = self.stack.command("restore", &[]);
        command.env("BACKUP_DIR", self.folder.path()).arg(file);
        command
    }

    /// Returns the names of all files except the lock.
    fn files(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != ".lock").collect()
    }

    fn newest(&self) -> PathBuf {
        let files = self.files();
        self.folder.path().join(files.iter().rfind(|name| name.ends_with(".dump")).unwrap())
    }

    fn psql(&self) -> Command {
        let psql = ["exec", "-T", "postgres", "psql", "--host=127.0.0.1", "--username=app", "-qtA"];
        self.stack.project.command(&psql)
    }

    #[track_caller]
    fn sql(&self, text: &str) -> String {
        run(self.psql().args(["--command", text])).trim().to_owned()
    }

    /// Destroys the stack and starts only PostgreSQL.
    fn start_empty(&self) {
        self.stack.project.remove();
        assert_eq!(self.stack.project.remains(), "");
        self.stack.project.compose(&["up", "--detach", "--wait", "postgres"]);
    }

    fn tables(&self) -> String {
        self.sql("select count(*) from pg_tables where schemaname = 'public'")
    }

    /// Opens a transaction that is rolled back when its input closes.
    fn transaction(&self, statement: &str) -> Child {
        let mut psql = self.psql().stdin(Stdio::piped()).spawn().unwrap();
        writeln!(psql.stdin.as_mut().unwrap(), "begin; {statement};").unwrap();
        let idle = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        eventually(LIMIT, "an open transaction", || (self.sql(idle) == "1").then_some(()));
        psql
    }

    /// Returns the number of sessions of the scripts; if `waiting`, only sessions that wait for a lock.
    fn sessions(&self, waiting: bool) -> String {
        let lock = if waiting { "and wait_event_type = 'Lock'" } else { "" };
        let sessions = "select count(*) from pg_stat_activity where application_name like 'deploy-%'";
        self.sql(&format!("{sessions} {lock}"))
    }

    /// Starts a script that has to wait for `statement`, sends a signal and returns the exit code.
    #[track_caller]
    fn interrupt(&self, script: &mut Command, statement: &str, signal: Signal) -> Option<i32> {
        let mut blocker = self.transaction(statement);
        let mut script = script.stderr(Stdio::null()).spawn().unwrap();
        eventually(LIMIT, "a lock", || (self.sessions(true) == "1").then_some(()));
        kill_process(Pid::from_child(&script), signal).unwrap();
        let code = eventually(Duration::from_secs(5), "the end", || script.try_wait().unwrap()).code();
        if code.is_some() {
            assert_eq!(self.sessions(false), "0", "the connection has to close before the script exits");
        }
        drop(blocker.stdin.take());
        blocker.wait().unwrap();
        code
    }

    /// Returns the containers of drills.
    fn drills(&self) -> String {
        let filter = format!("name={}-deploy-", self.stack.project.name);
        docker(&["ps", "--all", "--quiet", "--filter", &filter])
    }
}

#[track_caller]
fn refused(command: &mut Command, reason: &str) {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains(reason), "{errors}");
}

#[test]
fn backups_are_whole_and_restores_are_all_or_nothing() {
    let backups = Backups::new("dumps");
    backups.start_empty();
    refused(&mut backups.backup(), "has no table");
    assert!(backups.files().is_empty(), "{:?}", backups.files());
    backups.stack.project.compose(&["run", "--rm", "migrate"]);
    backups.sql("insert into notes (text) select n::text from generate_series(1, 5000) n");
    keeps_the_configured_number(&backups);
    leaves_nothing_when_it_is_interrupted(&backups);
    drills(&backups);
    refused(&mut backups.restore(&backups.newest()), "has tables");
    refuses_what_is_damaged(&backups);
    restores_all_or_nothing(&backups);
}

fn keeps_the_configured_number(backups: &Backups) {
    for name in ["app-notes.dump", "other.dump", "app-20200101T000000.000Z-kept.dump"] {
        fs::write(backups.folder.path().join(name), "").unwrap();
    }
    refused(backups.backup().env("BACKUP_KEEP", "0"), "BACKUP_KEEP");
    let others = backups.files();
    let mut made = Vec::new();
    for _ in 0..4 {
        let output = run(backups.backup().env("BACKUP_KEEP", "2"));
        made.push(output.split(": ").next().unwrap().rsplit('/').next().unwrap().to_owned());
        let kept = made.iter().rev().take(2).flat_map(|name| [name.clone(), format!("{name}.sha256")]);
        assert_eq!(backups.files(), kept.chain(others.iter().cloned()).collect());
    }
    others.iter().for_each(|name| fs::remove_file(backups.folder.path().join(name)).unwrap());
    // Of two concurrent backups, one may fail because the other holds the lock.
    let both =
        [(); 2].map(|()| backups.backup().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let both: Vec<Output> = both.into_iter().map(|backup| backup.wait_with_output().unwrap()).collect();
    let is_locked = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("Another backup");
    assert!(both.iter().all(|output| output.status.success() || is_locked(output)), "{both:?}");
    let dumps = backups.files().iter().filter(|name| name.ends_with(".dump")).count();
    assert_eq!(dumps, 2 + both.iter().filter(|output| output.status.success()).count());
    run(Command::new("sh").args(["-c", "sha256sum --check *.sha256"]).current_dir(backups.folder.path()));
}

fn leaves_nothing_when_it_is_interrupted(backups: &Backups) {
    let before = backups.files();
    assert_eq!(backups.interrupt(&mut backups.backup(), "lock table notes", Signal::TERM), Some(143));
    assert_eq!(backups.files(), before);
    // After SIGKILL, only the next backup can clean up. The leftovers do not look like a backup.
    assert_eq!(backups.interrupt(&mut backups.backup(), "lock table notes", Signal::KILL), None);
    let mut left = backups.files();
    left.remove(".partial");
    assert_eq!(left, before);
    eventually(LIMIT, "a backup", || backups.backup().output().unwrap().status.success().then_some(()));
    assert_eq!(backups.files().len(), before.len() + 2);
}

/// Without a file, the drill uses the newest backup.
fn drills(backups: &Backups) {
    let start = Instant::now();
    let output = run(&mut backups.restore(Path::new("--drill")));
    println!("a drill took {:.1?}:\n{output}", start.elapsed());
    let newest = backups.newest();
    assert!(output.contains(newest.to_str().unwrap()), "{output}");
    let version = backups.sql("select max(version) from _sqlx_migrations");
    let migrations = backups.sql("select '  _sqlx_migrations ' || count(*) from _sqlx_migrations") + "\n";
    for part in [&format!("version {version}"), "  notes 5000\n", &migrations, " 0 h "] {
        assert!(output.contains(part), "{part} in {output}");
    }
    assert_eq!(backups.drills(), "");

    let mut drill = backups.restore(Path::new("--drill")).spawn().unwrap();
    eventually(LIMIT, "a drill", || (!backups.drills().is_empty()).then_some(()));
    kill_process(Pid::from_child(&drill), Signal::KILL).unwrap();
    drill.wait().unwrap();
    eventually(LIMIT, "no drill", || backups.drills().is_empty().then_some(()));
}

/// Damages a copy of the newest backup. Its checksum is that of the original, or recalculated if `forged`.
fn damaged(backups: &Backups, forged: bool, damage: impl FnOnce(&mut Vec<u8>)) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let (file, sum) = (folder.path().join("copy.dump"), folder.path().join("copy.dump.sha256"));
    let mut bytes = fs::read(backups.newest()).unwrap();
    damage(&mut bytes);
    fs::write(&file, bytes).unwrap();
    if forged {
        fs::write(sum, run(Command::new("sha256sum").arg(&file))).unwrap();
    } else {
        fs::copy(format!("{}.sha256", backups.newest().display()), sum).unwrap();
    }
    (folder, file)
}

fn refuses_what_is_damaged(backups: &Backups) {
    backups.start_empty();
    let middle = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 100);
    let unsummed = damaged(backups, true, |_| ());
    fs::remove_file(format!("{}.sha256", unsummed.1.display())).unwrap();
    for ((folder, file), reason) in [
        (damaged(backups, false, middle), "checksum"),
        (damaged(backups, false, cut), "checksum"),
        (damaged(backups, false, Vec::clear), "empty"),
        (unsummed, "checksum"),
        // Damage that the checksum does not detect is rolled back.
        (damaged(backups, true, cut), "failed"),
    ] {
        refused(&mut backups.restore(&file), reason);
        assert_eq!(backups.tables(), "0", "{reason}");
        refused(backups.restore(Path::new("--drill")).arg(&file), reason);
        assert_eq!(backups.drills(), "");
        refused(&mut backups.restore(&folder.path().join("none.dump")), "missing");
    }
}

fn restores_all_or_nothing(backups: &Backups) {
    let newest = backups.newest();
    let interrupted = backups.interrupt(&mut backups.restore(&newest), "create table notes()", Signal::TERM);
    assert_eq!((interrupted, backups.tables().as_str()), (Some(143), "0"));
    run(&mut backups.restore(&newest));
    assert_eq!(backups.sql("select count(*) from notes"), "5000");
    let others = "select count(*) from pg_class where relnamespace = 'public'::regnamespace
        and relowner <> 'app'::regrole";
    assert_eq!(backups.sql(others), "0", "all tables belong to the role app");
    assert_eq!(
        backups.sql("select count(*) > 0 from pg_stats where tablename = 'notes'"),
        "t",
        "the restore has to analyze the tables"
    );
}

#[test]
fn a_lost_stack_comes_back_with_all_that_was_before_its_backup() {
    let backups = Backups::new("backup");
    let stack = &backups.stack;
    let release = || run(stack.command("release", &["clean"]).env("WATCH", "2"));
    release();
    let meter = Meter::new(stack.address, 500);
    let ((begun, took), findings) = meter.run(|| {
        meter.await_more(2500, LIMIT);
        let begun = Instant::now();
        print!("{}", run(&mut backups.backup()));
        let took = begun.elapsed();
        meter.await_more(1000, LIMIT);
        (begun, took)
    });
    let during = findings.written.iter().filter(|note| note.acknowledged >= begun);
    let during = during.filter(|note| note.acknowledged < begun + took).count();
    println!("{during} notes written during the backup ({took:.1?}); {findings}");
    assert!(during > 0);
    assert_eq!(findings.losses(), 0);

    let disaster = Instant::now();
    backups.start_empty();
    let ready = disaster.elapsed();
    print!("{}", run(&mut backups.restore(&backups.newest())));
    let restored = disaster.elapsed();
    release();
    println!(
        "new PostgreSQL after {ready:.1?}, restored after {restored:.1?}, released after {:.1?}",
        disaster.elapsed()
    );

    let there = meter.notes().unwrap();
    let lost: Vec<_> = findings.written.iter().filter(|note| !there.contains_key(&note.text)).collect();
    println!("{} notes, {} lost, written in {:.1?}", findings.written.len(), lost.len(), disaster - begun);
    assert!(lost.iter().all(|note| note.acknowledged >= begun));
    assert!(!lost.is_empty() && lost.len() < findings.written.len());
    assert!(there.values().all(|ids| ids.len() == 1), "twice");
    // The stack continues from there: new notes get new numbers.
    let meter = Meter::new(stack.address, 500);
    let ((), findings) = meter.run(|| meter.await_more(1001, LIMIT));
    assert_eq!(findings.losses(), 0, "{findings}");
}
