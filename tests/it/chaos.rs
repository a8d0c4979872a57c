//! `make chaos`: the campaign of faults for a chosen time, and the table of what it found.
//!
//! A cycle plays every fault, each with an engine and folders of its own; cycles follow each other until the time is over. The
//! first one is always played whole. What was acknowledged is compared with what is stored at the end of each fault.

mod faults;
mod measure;
mod table;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use uuid::Uuid;

use self::{
    faults::FAULTS,
    table::{Row, Table},
};
use crate::support::{
    load::Load,
    rig::{Kind, Rig, Round},
};

/// How long the campaign goes on; a cycle that has begun with a fault finishes it.
fn minutes() -> Duration {
    let minutes: f64 =
        std::env::var("CHAOS_MINUTES").map_or(2.0, |text| text.parse().expect("CHAOS_MINUTES is a number"));
    Duration::from_secs_f64(minutes * 60.0)
}

#[test]
#[ignore = "takes as long as one likes: make chaos"]
fn campaign() {
    let (began, end) = (Instant::now(), Instant::now() + minutes());
    let mut table = Table::default();
    let mut cycles = 0;
    println!();
    while cycles == 0 || Instant::now() < end {
        for (name, fault) in FAULTS {
            if cycles > 0 && Instant::now() >= end {
                break;
            }
            let started = Instant::now();
            let row =
                catch_unwind(AssertUnwindSafe(|| fault(cycles))).unwrap_or_else(|panic| Row::failed(panic.as_ref()));
            println!(
                "{:>6.0} s  {name}: {} ({:.0} s)",
                began.elapsed().as_secs_f64(),
                row.summary(),
                started.elapsed().as_secs_f64()
            );
            table.add(name, row);
        }
        cycles += 1;
    }
    println!("\n{table}");
    assert!(table.holds(), "the campaign failed");
}

/// The negative control of every check of the campaign.
#[test]
fn an_event_that_is_lost_or_stored_twice_is_counted() {
    let mut rig = Rig::start(Kind::Apart);
    let load = Load::start(&rig.engine);
    load.wait_for_requests(20);
    rig.take(load.stop());
    let audit = rig.check();
    assert!(audit.holds(), "{audit:?}");

    rig.sent.acknowledged.insert(Uuid::now_v7());
    rig.clickhouse().query(
        "INSERT INTO overwatch.events SELECT * FROM overwatch.events ORDER BY event_id LIMIT 2 \
         SETTINGS insert_deduplicate = 0",
    );
    let audit = rig.sent.audit(&rig.clickhouse(), Duration::ZERO);
    assert_eq!((audit.lost, audit.twice, audit.acknowledged - audit.stored), (1, 2, 1), "{audit:?}");
    let round = Round { in_flight: true, ..Round::default() };
    let mut table = Table::default();
    table.add("fault", Row::new(&audit, [round]));
    assert!(!table.holds());
}
