//! The loss meter as a command, for a stack of yours: `METER=127.0.0.1:80,200,60 make meter`.

use std::thread;
use std::time::Duration;

use crate::support::meter::Meter;

/// `METER` holds address, requests per second and seconds. The links that it makes stay there.
#[test]
#[ignore = "needs a stack: `make meter`"]
#[expect(clippy::disallowed_methods, reason = "options of a command")]
fn meter() {
    let options = std::env::var("METER").expect("METER=ADDRESS,PER_SECOND,SECONDS");
    let options: Vec<_> = options.split(',').collect();
    let meter = Meter::new(options[0].parse().unwrap(), options[1].parse().unwrap());
    let time = Duration::from_secs(options[2].parse().unwrap());
    let ((), findings) = meter.run(|| thread::park_timeout(time));
    println!("{findings}");
    assert_eq!(findings.losses(), 0);
}
