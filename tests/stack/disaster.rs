//! The production stack is destroyed while it serves, and comes back from a backup that was made under load.

use std::time::Instant;

use crate::backup::{Backups, LIMIT};
use crate::docker::run;
use crate::support::meter::Meter;

#[test]
fn a_lost_stack_comes_back_with_all_that_was_before_its_backup() {
    let backups = Backups::new("drydock-backup");
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
    let during = findings.made.iter().filter(|link| link.acknowledged >= begun);
    let during = during.filter(|link| link.acknowledged < begun + took).count();
    println!("{during} links were made in the {took:.1?} of the backup; {findings}");
    assert!(during > 0);
    assert_eq!(findings.losses(), 0);

    let disaster = Instant::now();
    backups.start_empty();
    let ready = disaster.elapsed();
    print!("{}", run(&mut backups.restore(&backups.newest())));
    let restored = disaster.elapsed();
    release();
    println!(
        "PostgreSQL anew after {ready:.1?}, restored after {restored:.1?}, released after {:.1?}",
        disaster.elapsed()
    );

    let there = meter.links().unwrap();
    let lost: Vec<_> = findings.made.iter().filter(|link| !there.contains_key(&link.url)).collect();
    println!("{} links, {} lost, those of {:.1?}", findings.made.len(), lost.len(), disaster - begun);
    assert!(lost.iter().all(|link| link.acknowledged >= begun));
    assert!(!lost.is_empty() && lost.len() < findings.made.len());
    assert!(there.values().all(|slugs| slugs.len() == 1), "twice");
    // It goes on from there: new links get new numbers.
    let meter = Meter::new(stack.address, 500);
    let ((), findings) = meter.run(|| meter.await_more(1001, LIMIT));
    assert_eq!(findings.losses(), 0, "{findings}");
}
