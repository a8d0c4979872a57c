//! Rates the web vitals of `performance` events.
//!
//! ```json
//! { "type": "performance", "path": "/", "lcp": 1840, "inp": 320 }
//! ```
//! is stored with `"properties": { "lcp_rating": "good", "inp_rating": "needs_improvement", "rating": "needs_improvement" }`.
//!
//! - The thresholds are those that Google publishes: <https://web.dev/articles/defining-core-web-vitals-thresholds>,
//!   and for FCP and TTFB <https://web.dev/articles/fcp>, <https://web.dev/articles/ttfb>. They are meant for the 75th
//!   percentile of page loads; here each page load is rated, so that the share of good ones can be counted.
//! - `rating` is the worst of them. An event without any of the five (`load_complete` alone, say) is left as it is.
//! - The ratings are this plugin's: what a sender wrote under their names is replaced, or it would be counted.

use ingestion_plugin_sdk::{
    Batch, Description, Error, Event, Host, Object, Plugin, Rejection, Verdict, export_plugin, json,
    serde_json::value::to_raw_value,
    tables::{View, column, count, property, sql},
};
use serde::{Deserialize, Serialize};

/// The worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Rating {
    Good,
    NeedsImprovement,
    Poor,
}

/// Where one rating ends and the next begins.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Thresholds {
    /// Up to here it is good, this value included.
    pub good: f64,
    /// Above it is poor.
    pub poor: f64,
}

impl Thresholds {
    fn rate(self, value: f64) -> Rating {
        if value <= self.good {
            Rating::Good
        } else if value <= self.poor {
            Rating::NeedsImprovement
        } else {
            Rating::Poor
        }
    }
}

/// `[plugins.config.web_vitals_rating]`: thresholds of each measure, milliseconds except `cls`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Largest contentful paint.
    pub lcp: Thresholds,
    /// Interaction to next paint.
    pub inp: Thresholds,
    /// Cumulative layout shift, without unit.
    pub cls: Thresholds,
    /// First contentful paint.
    pub fcp: Thresholds,
    /// Time to first byte.
    pub ttfb: Thresholds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lcp: Thresholds { good: 2500.0, poor: 4000.0 },
            inp: Thresholds { good: 200.0, poor: 500.0 },
            cls: Thresholds { good: 0.1, poor: 0.25 },
            fcp: Thresholds { good: 1800.0, poor: 3000.0 },
            ttfb: Thresholds { good: 800.0, poor: 1800.0 },
        }
    }
}

/// A measure of an event, its rating's name, and how it is rated.
type Measure = (&'static str, &'static str, Thresholds);

/// Name of the overall rating.
const OVERALL: &str = "rating";

/// The plugin.
#[derive(Debug)]
pub struct Rater {
    measures: [Measure; 5],
}

impl Plugin for Rater {
    type Config = Config;

    fn describe() -> Description {
        Description::new("web_vitals_rating", env!("CARGO_PKG_VERSION"), "Rates the web vitals of performance events")
            .enriches(["performance"])
            .example(json!({ "type": "performance", "path": "/", "lcp": 1840, "inp": 320, "cls": 0.02 }))
            .example(json!({ "type": "performance", "path": "/", "load_complete": 900 }))
            .view(
                View::of_events("ratings_daily", ["performance"])
                    .group_by("day", "Date", sql("toDate(timestamp)"))
                    .group_by("path", "String", column("path"))
                    .group_by("rating", "LowCardinality(String)", property(OVERALL))
                    .measure(count("page_loads")),
            )
    }

    fn new(config: Config, _: Host) -> Result<Self, Error> {
        let measures = [
            ("lcp", "lcp_rating", config.lcp),
            ("inp", "inp_rating", config.inp),
            ("cls", "cls_rating", config.cls),
            ("fcp", "fcp_rating", config.fcp),
            ("ttfb", "ttfb_rating", config.ttfb),
        ];
        for (name, _, Thresholds { good, poor }) in measures {
            if !(0.0..=poor).contains(&good) {
                return Err(format!("`{name}`: `good` must be from 0 to `poor`; they are {good} and {poor}").into());
            }
        }
        Ok(Self { measures })
    }

    fn event(&self, event: &Event<'_>, _: &Batch<'_>) -> Result<Verdict, Rejection> {
        let mut object = event.object()?;
        let ratings: Vec<(&str, Rating)> = self
            .measures
            .iter()
            .filter_map(|(measure, name, thresholds)| Some((*name, thresholds.rate(object.read(measure)?))))
            .collect();
        let overall = ratings.iter().map(|(_, rating)| *rating).max();

        // They go into `properties` and not beside it: there, a name that the sender has used as well would win.
        let mut properties: Object<'_> = object.read("properties").unwrap_or_default();
        let sent = |object: &Object<'_>, name| object.contains(name);
        let names = self.measures.iter().map(|(_, name, _)| *name).chain([OVERALL]);
        let spoofed: Vec<&str> = names.filter(|name| sent(&object, name) || sent(&properties, name)).collect();
        if ratings.is_empty() && spoofed.is_empty() {
            return Ok(Verdict::keep());
        }
        for name in &spoofed {
            properties.remove(name);
        }
        for (name, rating) in &ratings {
            properties.set(*name, rating);
        }
        if let Some(overall) = overall {
            properties.set(OVERALL, &overall);
        }
        let properties = match to_raw_value(&properties) {
            Ok(properties) => properties,
            Err(error) => return Ok(Verdict::fail(format!("`properties` cannot be written: {error}"))),
        };
        for name in spoofed {
            object.remove(name);
        }
        object.set("properties", &properties);
        Ok(object.into_verdict())
    }
}

export_plugin!(Rater);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "tests")]

    use ingestion_plugin_sdk::{serde_json::Value, testing::Harness};

    use super::*;

    fn stored(config: Value, event: Value) -> Value {
        let harness = Harness::<Rater>::new(config).unwrap();
        let verdict = harness.event(event.clone());
        if verdict.is_keep() { event } else { verdict.replaced() }
    }

    #[test]
    fn the_plugin_is_in_order() {
        Harness::<Rater>::new(json!({})).unwrap().check().unwrap();
    }

    #[test]
    fn each_measure_is_rated_at_its_published_thresholds() {
        for (measure, good, needs_improvement, poor) in [
            ("lcp", 2500.0, 2500.1, 4000.1),
            ("inp", 200.0, 200.1, 500.1),
            ("cls", 0.1, 0.101, 0.251),
            ("fcp", 1800.0, 1800.1, 3000.1),
            ("ttfb", 800.0, 800.1, 1800.1),
        ] {
            for (value, rating) in [(good, "good"), (needs_improvement, "needs_improvement"), (poor, "poor")] {
                let event = stored(json!({}), json!({ "type": "performance", measure: value }));
                let rated = format!("{measure}_rating");
                assert_eq!(event.get("properties"), Some(&json!({ rated: rating, "rating": rating })), "{measure}");
            }
        }
    }

    #[test]
    fn the_worst_rating_is_the_overall_one() {
        let event =
            json!({ "type": "performance", "lcp": 100, "inp": 501, "cls": 0.2, "properties": { "plan": "pro" } });
        assert_eq!(
            stored(json!({}), event).get("properties"),
            Some(&json!({
                "plan": "pro", "lcp_rating": "good", "inp_rating": "poor", "cls_rating": "needs_improvement",
                "rating": "poor"
            }))
        );
    }

    #[test]
    fn an_event_without_vitals_is_kept_as_it_is() {
        let harness = Harness::<Rater>::new(json!({})).unwrap();
        for event in [
            json!({ "type": "performance", "load_complete": 12 }),
            json!({ "type": "performance", "lcp": null, "fid": 3, "properties": null }),
        ] {
            assert!(harness.event(event.clone()).is_keep(), "{event}");
        }
    }

    #[test]
    fn a_sender_does_not_rate_itself() {
        let event = json!({
            "type": "performance", "lcp": 9000, "rating": "good", "ttfb_rating": "good",
            "properties": { "lcp_rating": "good", "rating": "good", "plan": "pro" }
        });
        assert_eq!(
            stored(json!({}), event),
            json!({
                "type": "performance", "lcp": 9000,
                "properties": { "plan": "pro", "lcp_rating": "poor", "rating": "poor" }
            })
        );
        let event = json!({ "type": "performance", "load_complete": 1, "rating": "good" });
        assert_eq!(stored(json!({}), event), json!({ "type": "performance", "load_complete": 1, "properties": {} }));
    }

    #[test]
    fn thresholds_can_be_others() {
        let config = json!({ "lcp": { "good": 1000, "poor": 2000 } });
        let event = stored(config, json!({ "type": "performance", "lcp": 1500 }));
        assert_eq!(
            event.get("properties"),
            Some(&json!({ "lcp_rating": "needs_improvement", "rating": "needs_improvement" }))
        );
        for (config, words) in [
            (json!({ "lcp": { "good": 3000, "poor": 2000 } }), "`lcp`: `good` must be from 0 to `poor`"),
            (json!({ "lcp": { "good": 1 } }), "missing field `poor`"),
            (json!({ "fid": { "good": 1, "poor": 2 } }), "unknown key `fid`"),
        ] {
            let error = Harness::<Rater>::new(config).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
