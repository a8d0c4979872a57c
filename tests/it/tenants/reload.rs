//! The tenants' file while the engine runs.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use super::{ONE, TWO, good, refused, send};
use crate::support::engine::{Setup, eventually, tenant_section};

#[test]
fn a_changed_file_is_in_use_without_a_failed_request_and_a_wrong_one_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let file = setup.tenants_file();
    let one = tenant_section(ONE, &["stays"], "");
    fs::write(&file, one.clone() + &tenant_section(TWO, &["first"], "")).unwrap();
    let engine = setup.start();
    assert_eq!((send(&engine, "first"), send(&engine, "second")), (good(), refused(401, "key_invalid")));

    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(send(&engine, "stays"), good());
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Also when a step fails, or the sender would go on for ever.
        let steps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            fs::write(&file, one.clone() + &tenant_section(TWO, &["second"], "")).unwrap();
            eventually("the new key is taken", || send(&engine, "second") == good());
            assert_eq!(send(&engine, "first"), refused(401, "key_invalid"));

            fs::write(&file, one.clone() + &tenant_section(TWO, &["third"], "tier = \"gold\"")).unwrap();
            eventually("health tells what is wrong", || engine.component("tenants")["state"] == "degraded");
            let reason = engine.component("tenants")["reason"].as_str().unwrap().to_owned();
            for part in ["the tenants stay as they were", "tenants[1].tier = \"gold\"", "line", "\"enterprise\""] {
                assert!(reason.contains(part), "{part} is missing in {reason}");
            }
            engine.wait_for_log("the tenants' file was not taken");
            assert_eq!((send(&engine, "second"), send(&engine, "third")), (good(), refused(401, "key_invalid")));
            assert_eq!(engine.get("/health").status, 200, "ready all the time");

            fs::remove_file(&file).unwrap();
            eventually("health tells that the file is gone", || {
                engine.component("tenants")["reason"].as_str().is_some_and(|reason| reason.contains("is gone"))
            });
            assert_eq!(send(&engine, "second"), good());

            fs::write(&file, one.clone() + &tenant_section(TWO, &["third"], "disabled = true")).unwrap();
            eventually("the mended file is taken", || send(&engine, "third") == refused(403, "tenant_disabled"));
            assert_eq!(engine.component("tenants")["state"], "up");
            assert_eq!(engine.metric("ingestion_errors_total{stage=\"tenants\"}"), 2);
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = steps {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(sent.into_inner() > 10, "requests were made all the time");
}

#[test]
fn an_engine_without_tenants_says_so_and_takes_the_first() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    fs::write(setup.tenants_file(), "# nobody yet\n").unwrap();
    let engine = setup.start();
    engine.wait_for_log("there is no tenant in");
    assert_eq!(send(&engine, "key"), refused(401, "key_invalid"));
    fs::write(setup.tenants_file(), tenant_section(ONE, &["key"], "")).unwrap();
    eventually("the first tenant is taken", || send(&engine, "key") == good());
}

#[test]
fn a_change_of_retention_concerns_what_is_accepted_from_then_on() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    fs::write(setup.tenants_file(), tenant_section(ONE, &["key"], "tier = \"free\"")).unwrap();
    let engine = setup.start();
    let retention = || {
        let request = crate::support::engine::agent().get(format!("{}/usage", engine.api()));
        let answer = request.header("x-api-key", "reader").call().unwrap();
        crate::support::engine::Answer::from(answer).json()["retention_seconds"].clone()
    };
    let file = |tier: &str| {
        tenant_section(ONE, &["key"], &format!("tier = \"{tier}\"")) + &super::section("reader", "scopes = [\"read\"]")
    };
    assert_eq!(send(&engine, "key"), good());
    fs::write(setup.tenants_file(), file("paid")).unwrap();
    eventually("the paid tier holds", || retention() == 90 * 86_400);
    assert_eq!(send(&engine, "key"), good());
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.events", "2");
    let days = clickhouse.query(
        "SELECT dateDiff('hour', received_at, expires_at) AS hours, hours BETWEEN 24 AND 25, hours BETWEEN 2160 AND 2184 \
         FROM overwatch.events ORDER BY received_at FORMAT CSV",
    );
    let rows: Vec<&str> = days.lines().map(|row| row.split_once(',').unwrap().1).collect();
    assert_eq!(rows, ["1,0", "0,1"], "{days}");
}
