//! Removes personal data from events of all types, before anything is stored.
//!
//! ```text
//! event --may_concern: a search for bytes--> kept as it is (nearly all)
//!                    --walk: once through the JSON--> values at paths, query parameters, e-mail addresses: replaced
//! ```
//!
//! - What is looked for: values at configured paths ([`path`]), values of query parameters in every text, and addresses of
//!   e-mail in every text and name. What becomes of it: it is removed, masked, or hashed with a key.
//! - What stays is not touched: digits, spaces and the order of members are as they were sent.
//! - Nothing that was removed goes into a log, a metric or the words of an error.
//! - A redacted event is still a valid one: the engine reads it again, and what only a *sender* decides on must never make
//!   this plugin faulty. So an event that would grow beyond the engine's limits loses its hashes.
//!
//! # What it is not
//! It knows forms, not people: a name in a comment stays where it is. And it is given events last, after the plugins that add
//! or enrich their types (those with `*` come last): what those write into tables of their own comes from the event as
//! stored, so it is redacted too. But events that are parked, because this plugin or another is quarantined, lie in
//! `parked_events` as they were sent, until they are reprocessed. Whoever cannot have that adds `.fail_closed()` in
//! [`Redact::describe`]: senders are then told to come again.

mod fields;
mod path;
mod plan;
mod replacement;
mod scrub;
mod text;
mod walk;

use std::{fs, path::PathBuf};

use ingestion_plugin_sdk::{
    Batch, Description, Error, Event, Host, Plugin, Rejection, Verdict, Verdicts, export_plugin, json,
};
use serde::Deserialize;

pub use replacement::Mode;
use replacement::{Hmac, Replacement};
use walk::{Counts, NotJson, Walk};

/// Fewest bytes of a key: a shorter one can be guessed, and then so can what was hashed.
const KEY_BYTES: usize = 16;

/// An event that grows beyond this is cut instead: the engine takes events of 64 KiB unless it is told otherwise.
const GROWN_BYTES: usize = 48 << 10;

/// So is one that grows to more than so many times its size: of all events of a call together the engine takes four times
/// what it gave.
const GROWN_TIMES: usize = 3;

/// `[plugins.config.redact]`.
#[derive(Deserialize)]
#[serde(default)]
pub struct Config {
    /// What becomes of what is found.
    mode: Mode,
    /// Values that are replaced, wherever these paths lead.
    paths: Vec<String>,
    /// Whether addresses of e-mail are replaced in every text.
    emails: bool,
    /// Query parameters whose values are replaced in every text; upper or lower case.
    query_parameters: Vec<String>,
    /// The key for `mode = "hash"`.
    hash_key: Option<String>,
    /// A file that holds the key. Line breaks at its end do not count.
    hash_key_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        let parameters =
            ["email", "phone", "password", "secret", "token", "access_token", "id_token", "refresh_token", "api_key"];
        Self {
            mode: Mode::default(),
            paths: Vec::new(),
            emails: true,
            query_parameters: parameters.map(str::to_owned).to_vec(),
            hash_key: None,
            hash_key_file: None,
        }
    }
}

/// The plugin.
pub struct Redact {
    plan: plan::Plan,
    host: Host,
}

impl Plugin for Redact {
    type Config = Config;

    fn describe() -> Description {
        Description::new("redact", env!("CARGO_PKG_VERSION"), "Removes personal data from events of all types")
            .enriches(["*"])
            .example(
                json!({ "type": "pageview", "url": "https://shop.test/?email=jane%40example.com", "user_id": "u-7" }),
            )
            .example(json!({ "type": "custom", "name": "signed up", "properties": { "email": "jane@example.com" } }))
    }

    fn new(config: Config, host: Host) -> Result<Self, Error> {
        if config.paths.is_empty() && !config.emails && config.query_parameters.is_empty() {
            return Err("there is nothing to redact: set `paths` or `query_parameters`, or `emails = true`".into());
        }
        let replacement = match config.mode {
            Mode::Remove => Replacement::Remove,
            Mode::Mask => Replacement::Mask,
            Mode::Hash => Replacement::Hash(Box::new(Hmac::new(key(&config)?.as_bytes()))),
        };
        let plan = plan::Plan::new(replacement, config.emails, config.query_parameters, &config.paths)?;
        Ok(Self { plan, host })
    }

    fn event(&self, event: &Event<'_>, batch: &Batch<'_>) -> Result<Verdict, Rejection> {
        let (verdict, counts) = self.redact(event, batch);
        self.count(counts);
        Ok(verdict)
    }

    fn process(&self, batch: &Batch<'_>, verdicts: &mut Verdicts<'_>) {
        // Counted once for all of them: a counter is shared by all threads.
        let mut counts = Counts::default();
        for event in batch {
            let (verdict, counted) = self.redact(&event, batch);
            verdicts.push(verdict);
            counts += counted;
        }
        self.count(counts);
    }
}

export_plugin!(Redact);

impl Redact {
    fn redact(&self, event: &Event<'_>, batch: &Batch<'_>) -> (Verdict, Counts) {
        let json = event.json();
        if !self.plan.may_concern(json) {
            return (Verdict::keep(), Counts::default());
        }
        let tenant = batch.tenant_id().bytes();
        let walk = |replacement| Walk::new(json, event.kind(), tenant, &self.plan, replacement).redacted();
        let mut redacted = walk(&self.plan.replacement);
        if let Ok(Some((grown, _))) = &redacted
            && grown.len() > json.len().max(GROWN_BYTES.min(GROWN_TIMES * json.len()))
        {
            redacted = walk(&Replacement::Remove);
        }
        match redacted {
            Ok(None) => (Verdict::keep(), Counts::default()),
            Ok(Some((json, counts))) => (Verdict::replace_json(json), counts),
            Err(NotJson) => (Verdict::fail("an event is not JSON"), Counts::default()),
        }
    }

    fn count(&self, counts: Counts) {
        for (name, by) in [
            ("redacted_events", counts.events),
            ("redacted_values", counts.values),
            ("redacted_emails", counts.emails),
            ("redacted_query_parameters", counts.parameters),
        ] {
            if by > 0 {
                self.host.count(name, by);
            }
        }
    }
}

/// The key of the hashes.
fn key(config: &Config) -> Result<String, Error> {
    let key = match (&config.hash_key, &config.hash_key_file) {
        (Some(key), None) => key.clone(),
        (None, Some(file)) => fs::read_to_string(file)
            .map_err(|error| format!("`hash_key_file`: {}: {error}", file.display()))?
            .trim_end_matches(['\r', '\n'])
            .to_owned(),
        _ => return Err("`mode = \"hash\"` needs either `hash_key` or `hash_key_file`".into()),
    };
    if key.len() < KEY_BYTES {
        return Err(format!("the key of the hashes has {} bytes, and needs {KEY_BYTES} at least", key.len()).into());
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
