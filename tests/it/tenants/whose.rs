//! No sequence of keys, headers and bodies makes a row under another tenant.

use std::{cell::RefCell, collections::BTreeMap};

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use serde_json::json;
use uuid::Uuid;

use super::{NOBODY, ONE, TWO};
use crate::support::engine::{Answer, Setup, agent, tenant_section};

/// What a request says of itself, in every place where something could be said.
#[derive(Clone, Debug)]
struct Sent {
    authorization: Option<Shown>,
    api_key: Option<Shown>,
    headers: Vec<(&'static str, &'static str)>,
    /// The tenant that each event claims, and where.
    events: Vec<Claim>,
    shape: Shape,
    gzip: bool,
}

/// A key, and the tenant that is named before it.
#[derive(Clone, Debug)]
struct Shown {
    scheme: &'static str,
    tenant: Option<&'static str>,
    key: &'static str,
}

#[derive(Clone, Debug)]
enum Claim {
    Nothing,
    Field(&'static str),
    /// Twice, the second time in another way.
    Twice(&'static str, &'static str),
    InProperties(&'static str),
    InContext(&'static str),
    /// A name that reads the same to a careless parser.
    Lookalike(&'static str),
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Envelope(&'static str),
    Array,
    /// The first event alone.
    Single,
}

fn tenant() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![ONE, TWO, NOBODY])
}

fn shown() -> impl Strategy<Value = Shown> {
    // Mostly good ones: what is refused at once shows little.
    let scheme = prop_oneof![8 => Just("Bearer "), 1 => Just("bearer  "), 1 => Just("Basic "), 2 => Just("")];
    let wrong = prop::sample::select(vec!["key-of-nobody", ONE, "key-of-one:key-of-two"]);
    let key = prop_oneof![4 => Just("key-of-one"), 4 => Just("key-of-two"), 1 => wrong];
    (scheme, prop::option::weighted(0.4, tenant()), key).prop_map(|(scheme, tenant, key)| Shown { scheme, tenant, key })
}

fn claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        3 => Just(Claim::Nothing),
        2 => tenant().prop_map(Claim::Field),
        1 => (tenant(), tenant()).prop_map(|(one, two)| Claim::Twice(one, two)),
        1 => tenant().prop_map(Claim::InProperties),
        1 => tenant().prop_map(Claim::InContext),
        1 => tenant().prop_map(Claim::Lookalike),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let header = (prop::sample::select(vec!["x-tenant-id", "tenant-id", "x-forwarded-user", "cookie"]), tenant());
    let shape = prop_oneof![tenant().prop_map(Shape::Envelope), Just(Shape::Array), Just(Shape::Single)];
    (
        prop::option::weighted(0.8, shown()),
        prop::option::weighted(0.3, shown()),
        prop::collection::vec(header, 0..2),
        prop::collection::vec(claim(), 1..4),
        shape,
        any::<bool>(),
    )
        .prop_map(|(authorization, api_key, headers, events, shape, gzip)| Sent {
            authorization,
            api_key,
            headers,
            events,
            shape,
            gzip,
        })
}

impl Sent {
    /// Whose the request is, by the rules that the README gives: `Authorization` before `X-Api-Key`, the key's own tenant,
    /// and nobody's if another is named.
    fn owner(&self) -> Option<&'static str> {
        let shown = match &self.authorization {
            Some(shown) if shown.scheme.eq_ignore_ascii_case("bearer ") || shown.scheme == "bearer  " => shown,
            Some(_) => return None,
            None => self.api_key.as_ref().filter(|shown| shown.scheme.is_empty())?,
        };
        let owner = match shown.key {
            "key-of-one" => ONE,
            "key-of-two" => TWO,
            _ => return None,
        };
        shown.tenant.is_none_or(|named| named == owner).then_some(owner)
    }

    /// The body, and the ids of its events.
    fn body(&self) -> (Vec<u8>, Vec<Uuid>) {
        let count = if matches!(self.shape, Shape::Single) { 1 } else { self.events.len() };
        let ids: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
        let events: Vec<String> = self.events.iter().zip(&ids).map(|(claim, id)| event(claim, *id)).collect();
        let text = match self.shape {
            Shape::Envelope(tenant) => {
                format!(r#"{{"tenant_id": "{tenant}", "events": [{}], "tenant": "{tenant}"}}"#, events.join(","))
            }
            Shape::Array => format!("[{}]", events.join(",")),
            Shape::Single => events.into_iter().next().unwrap(),
        };
        if !self.gzip {
            return (text.into_bytes(), ids);
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        (encoder.finish().unwrap(), ids)
    }
}

fn event(claim: &Claim, id: Uuid) -> String {
    let plain = json!({"id": id, "type": "custom", "name": "n"});
    let with = |extra: String| format!("{}, {extra}}}", plain.to_string().trim_end_matches('}'));
    match claim {
        Claim::Nothing => plain.to_string(),
        Claim::Field(tenant) => with(format!(r#""tenant_id": "{tenant}""#)),
        Claim::Twice(one, two) => with(format!(r#""tenant_id": "{one}", "tenant\u005fid": "{two}""#)),
        Claim::InProperties(tenant) => with(format!(r#""properties": {{"tenant_id": "{tenant}"}}"#)),
        Claim::InContext(tenant) => with(format!(r#""context": {{"tenant_id": "{tenant}"}}"#)),
        Claim::Lookalike(tenant) => with(format!(r#""Tenant_id": "{tenant}", "tenantId": "{tenant}""#)),
    }
}

#[test]
fn no_sequence_of_keys_headers_and_bodies_makes_a_row_under_another_tenant() {
    let home = tempfile::tempdir().unwrap();
    let setup = Setup::new(home.path());
    let file = tenant_section(ONE, &["key-of-one"], "") + &tenant_section(TWO, &["key-of-two"], "");
    std::fs::write(setup.tenants_file(), file).unwrap();
    let engine = setup.start();
    let (agent, url) = (agent(), format!("{}/ingest", engine.api()));
    // By event, who alone may own its row.
    let expected = RefCell::new(BTreeMap::<Uuid, &'static str>::new());

    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let result = runner.run(&prop::collection::vec(sent(), 1..4), |sequence| {
        for sent in sequence {
            let (body, ids) = sent.body();
            let mut request = agent.post(&url);
            let written = |shown: &Shown| {
                let tenant = shown.tenant.map(|tenant| format!("{tenant}:")).unwrap_or_default();
                format!("{}{tenant}{}", shown.scheme, shown.key)
            };
            if let Some(shown) = &sent.authorization {
                request = request.header("authorization", written(shown));
            }
            if let Some(shown) = &sent.api_key {
                request = request.header("x-api-key", written(shown));
            }
            for (name, value) in &sent.headers {
                request = request.header(*name, *value);
            }
            if sent.gzip {
                request = request.header("content-encoding", "gzip");
            }
            let answer = Answer::from(request.send(&body[..]).unwrap());
            let Some(owner) = sent.owner() else {
                prop_assert!(answer.status == 401, "{sent:?}: {answer:?}");
                continue;
            };
            prop_assert!(matches!(answer.status, 200 | 400), "{sent:?}: {answer:?}");
            let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
            let refused: Vec<_> = errors.iter().map(|error| error["index"].as_u64().unwrap()).collect();
            for (index, (claim, id)) in (0..).zip(sent.events.iter().zip(ids)) {
                let own = match claim {
                    Claim::Field(tenant) => *tenant == owner,
                    Claim::Twice(..) => false,
                    _ => true,
                };
                prop_assert_eq!(!refused.contains(&index), own, "{:?}: {:?}", &sent, &answer);
                if own {
                    expected.borrow_mut().insert(id, owner);
                }
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));

    let expected = expected.into_inner();
    assert!(expected.len() > 100 && expected.values().any(|owner| *owner == TWO), "{}", expected.len());
    let clickhouse = engine.clickhouse();
    clickhouse.wait_for("SELECT count() FROM overwatch.events", &expected.len().to_string());
    let rows = clickhouse.query("SELECT event_id, tenant_id FROM overwatch.events ORDER BY event_id FORMAT TSV");
    let stored: BTreeMap<Uuid, String> = rows
        .lines()
        .map(|row| row.split_once('\t').unwrap())
        .map(|(id, tenant)| (id.parse().unwrap(), tenant.to_owned()))
        .collect();
    let expected: BTreeMap<Uuid, String> = expected.into_iter().map(|(id, owner)| (id, owner.to_owned())).collect();
    assert_eq!(stored, expected);
}
