#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::error_chain::chain;

#[test]
fn properties_pass_through_except_those_that_guarantees_need() {
    let mut settings = Settings::default();
    for (name, value) in [("linger.ms", "77"), ("acks", "1"), ("retries", "0"), ("auto.offset.reset", "latest")] {
        settings.properties.insert(name.into(), value.into());
    }
    settings.check().unwrap();
    let producer = settings.producer_config();
    assert_eq!((producer.get("linger.ms"), producer.get("acks")), (Some("77"), Some("all")));
    assert_eq!(producer.get("retries"), None);
    assert_eq!(settings.consumer_config().get("auto.offset.reset"), Some("error"));
    assert_eq!(settings.refused_properties(), ["acks", "auto.offset.reset", "retries"]);
}

#[test]
fn an_unknown_property_is_refused_by_name() {
    let mut settings = Settings::default();
    settings.properties.insert("sasl.mechanismus".into(), "PLAIN".into());
    let error = settings.check().unwrap_err();
    assert!(chain(&error).contains("sasl.mechanismus"), "{}", chain(&error));
}
