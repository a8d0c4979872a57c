//! README, "Ask your data": every query of it runs, and answers what is right.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::engine::{Answer, ClickHouse, Setup, agent, tenant_section};

const OURS: &str = "00000000-0000-0000-0000-000000000001";
const THEIRS: &str = "00000000-0000-0000-0000-000000000002";

/// The queries of the README's section, in their order.
fn queries() -> Vec<String> {
    let readme = include_str!("../../README.md");
    let (_, section) = readme.split_once("\n## Ask your data\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("```sql\n").skip(1);
    blocks.map(|block| block.split_once("\n```").unwrap().0.to_owned()).collect()
}

/// What a query answers for our tenant: a line a row, values separated by commas.
fn ask(clickhouse: &ClickHouse, query: &str) -> Vec<String> {
    let url = format!("{}/?param_tenant={OURS}&default_format=CSV", clickhouse.url);
    let answer = Answer::from(agent().post(&url).send(query).unwrap());
    assert_eq!(answer.status, 200, "{query}\n{}", answer.text);
    answer.text.lines().map(|line| line.replace('"', "")).collect()
}

/// An event with what every event of the test has.
fn event(at: &str, person: (&str, &str), session: &str, rest: &Value) -> Value {
    let mut event = json!({"id": Uuid::now_v7(), "timestamp": at, "user_id": person.0, "anonymous_id": person.1, "session_id": session});
    event.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    event
}

fn page(at: &str, person: (&str, &str), session: &str, path: &str, referrer: &str) -> Value {
    event(at, person, session, &json!({"type": "pageview", "path": path, "referrer": referrer}))
}

fn custom(at: &str, person: (&str, &str), session: &str, name: &str) -> Value {
    event(at, person, session, &json!({"type": "custom", "name": name}))
}

fn vitals(lcp: u32, inp: u32, cls: f64) -> Value {
    let at = "2026-03-02T10:00:00Z";
    event(at, ("", ""), "", &json!({"type": "performance", "path": "/", "lcp": lcp, "inp": inp, "cls": cls}))
}

/// Three people over three weeks; the first of March 2026 is a Sunday.
fn history() -> Vec<Value> {
    let (ann, bob, guest) = (("ann", ""), ("bob", "b-device"), ("", "g-device"));
    let mut events = vec![
        // Ann goes all the way, and comes again a day, and two weeks later.
        page("2026-03-02T10:00:00Z", ann, "s1", "/pricing", "https://www.search.example/?q=x"),
        page("2026-03-02T10:01:00Z", ann, "s1", "/signup", "https://shop.example/pricing"),
        custom("2026-03-02T10:05:00Z", ann, "s1", "signed_up"),
        page("2026-03-03T09:00:00Z", ann, "s2", "/", ""),
        page("2026-03-16T09:00:00Z", ann, "s3", "/pricing", ""),
        // Bob signs up the next day, which is too late for the funnel's last step.
        page("2026-03-02T11:00:00Z", bob, "s4", "/pricing", "https://news.example/a"),
        page("2026-03-02T11:00:30Z", bob, "s4", "/signup", ""),
        custom("2026-03-03T12:00:00Z", bob, "s5", "signed_up"),
        custom("2026-03-03T12:00:10Z", bob, "s5", "exported"),
        // A guest looks at the prices, a week later.
        page("2026-03-10T08:00:00Z", guest, "s6", "/pricing", ""),
        custom("2026-03-10T08:00:05Z", guest, "s6", "exported"),
    ];
    events.extend((1..=4).map(|number| vitals(number * 1000, number * 60, f64::from(number) / 50.0)));
    events
}

#[test]
fn every_query_of_the_readme_answers_what_is_right() {
    let home = tempfile::tempdir().unwrap();
    // Without the dedup window: a client that sends again after hours is outside of it.
    let setup = Setup::new(home.path()).config("[dedup]\nwindow = \"0s\"");
    let tenants = tenant_section(OURS, &["ours"], "") + &tenant_section(THEIRS, &["theirs"], "");
    std::fs::write(setup.tenants_file(), tenants).unwrap();
    let engine = setup.start();
    let send = |key: &str, events: &[Value]| {
        let answer = engine.post(&format!("Bearer {key}"), &[], json!(events).to_string().as_bytes());
        assert_eq!(answer.json()["events_accepted"], events.len(), "{answer:?}");
    };
    let ours = history();
    send("ours", &ours);
    // The same again, as a client that retries late does: `events_unique` and what is made of it count it once.
    send("ours", &ours[..1]);
    send("theirs", &history());
    let now = jiff::Timestamp::now().to_string();
    send("theirs", &[page(&now, ("ann", ""), "s1", "/pricing", "")]);
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT uniqExact(tenant_id, event_id) FROM overwatch.events", "31");
    clickhouse.wait_for("SELECT sum(events) FROM overwatch.events_by_minute", "32");

    let expected: [&[&str]; 10] = [
        &["2026-03-02,2,2,2", "2026-03-03,2,2,2", "2026-03-10,1,1,3", "2026-03-16,1,2,3"],
        &["2026-03-02,2,0", "2026-03-03,0,2", "2026-03-10,1,0", "2026-03-16,0,1"],
        &["2026-03-02,0,2", "2026-03-02,2,1", "2026-03-09,0,1"],
        &["1,3", "2,2", "3,1"],
        &["/pricing,4,4", "/signup,2,2", "/,1,1"],
        &["2026-03-02,2,300,2,0", "2026-03-03,2,10,0.5,100", "2026-03-10,1,5,1,100", "2026-03-16,1,0,1,100"],
        &["(direct),4", "news.example,1", "search.example,1"],
        &["/,4,3250,195,0.065"],
        &["exported,2,2", "signed_up,2,2"],
        &[],
    ];
    let queries = queries();
    assert_eq!(queries.len(), expected.len());
    for (query, expected) in queries.iter().zip(expected) {
        assert_eq!(ask(&clickhouse, query), expected, "{query}");
    }

    // The last one is of now.
    send("ours", &[page(&now, ("ann", ""), "s9", "/", ""), custom(&now, ("ann", ""), "s9", "exported")]);
    clickhouse.wait_for("SELECT sum(events) FROM overwatch.events_by_minute", "34");
    let minutes = ask(&clickhouse, &queries[9]);
    assert!(minutes.len() == 1 && minutes[0].ends_with(":00,2"), "{minutes:?}");
}
