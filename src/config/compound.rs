//! Kinds of values made of parts: addresses, names that other systems restrict, and librdkafka's properties.

use std::collections::BTreeMap;

use rdkafka::config::ClientConfig;
use rdkafka::{error::KafkaError, types::RDKafkaConfRes};

use super::{
    error::Problem,
    kinds::{Kind, Secret, not_one_of, string},
    raw::{Raw, Shape},
};
use crate::{api::Network, broker::PROTECTED_PROPERTIES};

/// What this process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Takes events over HTTP into the write-ahead log and, with brokers, relays them.
    pub api: bool,
    /// Writes events to ClickHouse.
    pub sink: bool,
}

/// The texts of a list.
pub(super) fn strings(raw: &Raw) -> Result<Vec<&str>, Problem> {
    let wrong = || Problem::new("not a list of strings", r#"give one, such as ["a", "b"]"#);
    let Raw::List(items) = raw else { return Err(wrong()) };
    items.iter().map(|item| string(item).map_err(|_| wrong())).collect()
}

/// A list of roles.
pub struct RoleList;

impl Kind for RoleList {
    type Value = Roles;
    const SHAPE: Shape = Shape::List;

    fn parse(raw: &Raw) -> Result<Roles, Problem> {
        let mut roles = Roles { api: false, sink: false };
        for name in strings(raw)? {
            match name {
                "api" => roles.api = true,
                "sink" => roles.sink = true,
                _ => return Err(Problem::new(format!("unknown role {name:?}"), not_one_of(&["api", "sink"]).fix)),
            }
        }
        if roles.api || roles.sink {
            return Ok(roles);
        }
        Err(Problem::new("no role", r#"give "api", "sink" or both"#))
    }
}

/// Brokers as `host:port`.
pub struct BrokerList;

impl Kind for BrokerList {
    type Value = Vec<String>;
    const SHAPE: Shape = Shape::List;

    fn parse(raw: &Raw) -> Result<Vec<String>, Problem> {
        let brokers = strings(raw)?;
        for broker in &brokers {
            let valid = broker.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && !host.contains(['/', '@', ','])
                    && !host.contains(char::is_whitespace)
                    && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !valid {
                let fix = r#"give host:port without a scheme, such as "redpanda-0:9092""#;
                return Err(Problem::new(format!("{broker:?} is not a broker's address"), fix));
            }
        }
        Ok(brokers.into_iter().map(str::to_owned).collect())
    }
}

/// Blocks of addresses.
pub struct Networks;

impl Kind for Networks {
    type Value = Vec<Network>;
    const SHAPE: Shape = Shape::List;

    fn parse(raw: &Raw) -> Result<Vec<Network>, Problem> {
        let network = |text: &str| {
            text.parse::<Network>().map_err(|error| {
                let fix = r#"give addresses or blocks of them, such as ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"]"#;
                Problem::new(format!("{text:?} is wrong: {error}"), fix)
            })
        };
        strings(raw)?.into_iter().map(network).collect()
    }
}

fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && text.len() <= 64
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn not_an_identifier() -> Problem {
    Problem::new("not an identifier", "give up to 64 letters, digits and underscores that do not begin with a digit")
}

/// A name of ClickHouse's that needs no quotes.
pub struct Identifier;

impl Kind for Identifier {
    type Value = String;

    fn parse(raw: &Raw) -> Result<String, Problem> {
        let text = string(raw)?;
        if is_identifier(text) { Ok(text.to_owned()) } else { Err(not_an_identifier()) }
    }
}

/// An [`Identifier`], or empty for none.
pub struct OptionalIdentifier;

impl Kind for OptionalIdentifier {
    type Value = Option<String>;

    fn parse(raw: &Raw) -> Result<Option<String>, Problem> {
        if string(raw)?.is_empty() { Ok(None) } else { Identifier::parse(raw).map(Some) }
    }
}

/// A name of Kafka's: a topic or a group.
pub struct KafkaName;

impl Kind for KafkaName {
    type Value = String;

    fn parse(raw: &Raw) -> Result<String, Problem> {
        let text = string(raw)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=249).contains(&text.len()) && text.chars().all(allowed) && text != "." && text != ".." {
            return Ok(text.to_owned());
        }
        Err(Problem::new("not a name that Kafka takes", "give 1 to 249 letters, digits, dots, underscores or hyphens"))
    }
}

/// The URL of an HTTP server, or empty for none.
pub struct OptionalUrl;

impl Kind for OptionalUrl {
    type Value = Option<String>;

    fn parse(raw: &Raw) -> Result<Option<String>, Problem> {
        let text = string(raw)?;
        if text.is_empty() {
            return Ok(None);
        }
        let fix = r#"give one, such as "http://clickhouse:8123" or "https://clickhouse:8443""#;
        let Some((_, rest)) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https")) else {
            return Err(Problem::new("not a URL that begins with http:// or https://", fix));
        };
        let authority = rest.split('/').next().unwrap_or("");
        if authority.contains('@') {
            return Err(Problem::new("a user or password in the URL", "give clickhouse.user and clickhouse.password"));
        }
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let port_is_right = match authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => port.parse::<u16>().is_ok_and(|port| port > 0),
            _ => true,
        };
        if host.is_empty() || !port_is_right || rest.contains(['?', '#']) || rest.contains(char::is_whitespace) {
            return Err(Problem::new("not the URL of a server", fix));
        }
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    /// A password in a URL is an error, which must not print it.
    fn shown(raw: &Raw) -> Raw {
        match raw {
            Raw::Text(text) if text.contains(['@', '?']) => raw.hidden(),
            _ => raw.clone(),
        }
    }
}

/// librdkafka's properties that are not for the operator to set, each with the reason.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", "set redpanda.brokers"),
    ("metadata.broker.list", "set redpanda.brokers"),
    ("acks", "an event leaves the log only when all in-sync replicas have it: always \"all\""),
    ("request.required.acks", "an event leaves the log only when all in-sync replicas have it: always \"all\""),
    ("enable.idempotence", "without it a retry writes an event twice: always true"),
    ("enable.gapless.guarantee", "the sink relies on no message overtaking a failed one: always true"),
    ("max.in.flight", "idempotence limits it"),
    ("max.in.flight.requests.per.connection", "idempotence limits it"),
    ("queuing.strategy", "order within a partition needs fifo"),
    ("message.timeout.ms", "an event waits in the log for as long as it takes: always 0"),
    ("delivery.timeout.ms", "an event waits in the log for as long as it takes: always 0"),
    ("retries", "an event waits in the log for as long as it takes"),
    ("message.send.max.retries", "an event waits in the log for as long as it takes"),
    ("transactional.id", "the relay's producer is idempotent, not transactional"),
    ("message.max.bytes", "set redpanda.max_message_bytes"),
    ("compression.codec", "set redpanda.compression"),
    ("compression.type", "set redpanda.compression"),
    ("group.id", "set redpanda.group"),
    ("enable.auto.commit", "an offset is committed only after its insert: always false"),
    ("enable.auto.offset.store", "an offset is committed only after its insert: always false"),
    ("auto.offset.reset", "a gap must be counted, not jumped over"),
    ("partition.assignment.strategy", "the sink finishes a partition before it gives it away, which needs \"range\""),
    ("isolation.level", "the sink reads committed messages only"),
];

/// Anything for librdkafka, such as TLS and SASL. Every value counts as a secret.
pub struct Properties;

impl Kind for Properties {
    type Value = BTreeMap<String, Secret>;
    const SHAPE: Shape = Shape::Table;

    fn parse(raw: &Raw) -> Result<Self::Value, Problem> {
        let Raw::Table(entries) = raw else {
            return Err(Problem::new("not a table", r#"give one of strings, such as { "security.protocol" = "ssl" }"#));
        };
        let mut properties = BTreeMap::new();
        let mut wrong = Vec::new();
        for (key, value) in entries {
            match property(key, value) {
                Ok(value) => {
                    properties.insert(key.clone(), value);
                }
                Err(why) => wrong.push(format!("{key:?}: {why}")),
            }
        }
        if wrong.is_empty() {
            return Ok(properties);
        }
        Err(Problem::new(wrong.join("; "), "remove or correct them"))
    }

    fn shown(raw: &Raw) -> Raw {
        let Raw::Table(entries) = raw else { return raw.hidden() };
        let shown = |(key, value): &(String, Raw)| {
            (key.clone(), if shows_no_secret(key) { value.clone() } else { value.hidden() })
        };
        Raw::Table(entries.iter().map(shown).collect())
    }
}

fn property(key: &str, value: &Raw) -> Result<Secret, String> {
    if let Some((_, why)) = OURS.iter().find(|(ours, _)| *ours == key) {
        return Err(format!("not yours to set, {why}"));
    }
    // The broker's own list, which it enforces, has more: aliases, and what needs no words of its own. What it would
    // only ignore with a warning is better refused here.
    if PROTECTED_PROPERTIES.contains(&key) {
        return Err("not yours to set, a guarantee of the engine rests on it".to_owned());
    }
    let Raw::Text(value) = value else { return Err("its value is not a string".to_owned()) };
    // librdkafka is asked one property at a time: its own answer names the first wrong one only.
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok(Secret::new(value)),
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err("librdkafka knows no such property".to_owned())
        }
        // Its words could repeat the value.
        Err(_) => Err("librdkafka refuses its value".to_owned()),
    }
}

/// Whether the value of a librdkafka property, or of a plugin's key, may be printed.
pub(super) fn shows_no_secret(property: &str) -> bool {
    const TELLING: [&str; 10] =
        ["password", "secret", "credential", "token", "key", "pem", "oauthbearer", "jaas", "assertion", "config"];
    !TELLING.iter().any(|word| property.contains(word))
}

/// The address of a service, `http://` or `https://`, with any path; or empty for none.
pub struct OptionalEndpoint;

impl Kind for OptionalEndpoint {
    type Value = Option<axum::http::Uri>;

    fn parse(raw: &Raw) -> Result<Self::Value, Problem> {
        let text = string(raw)?;
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = |what: &str| Problem::new(what, r#"give one, such as "https://accounts.example/keys/check""#);
        let uri: axum::http::Uri = text.parse().map_err(|_| wrong("not a URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("not a URL that begins with http:// or https://"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(wrong("not a URL that begins with http:// or https://"));
        }
        if authority.as_str().contains('@') {
            return Err(wrong("a user or password in the URL, which would not be sent"));
        }
        Ok(Some(uri))
    }

    /// A password in a URL is an error, which must not print it.
    fn shown(raw: &Raw) -> Raw {
        OptionalUrl::shown(raw)
    }
}
