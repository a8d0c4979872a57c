#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use ingestion_plugin_sdk::{serde_json::Value, testing::Harness};

use super::*;

fn shop(config: Value) -> Harness<Shop> {
    Harness::new(config).unwrap()
}

fn order(changes: Value) -> Value {
    let mut order = json!({
        "id": "550e8400-e29b-41d4-a716-446655440000", "type": "purchase", "order_id": "A-1", "total": "25.50",
        "currency": "eur", "items": [{ "sku": "a", "quantity": 2, "price": 10.25 }], "shipping": 5
    });
    let Value::Object(changes) = changes else { panic!("not an object") };
    order.as_object_mut().unwrap().extend(changes);
    order
}

fn code(verdict: &Verdict) -> &str {
    verdict.code().unwrap_or("taken")
}

#[test]
fn the_plugin_is_in_order() {
    shop(json!({})).check().unwrap();
}

#[test]
fn an_order_is_stored_in_one_way() {
    let stored = shop(json!({})).event(order(json!({ "tax": "4.07", "colour": "red" }))).replaced();
    assert_eq!(
        stored,
        json!({
            "id": "550e8400-e29b-41d4-a716-446655440000", "type": "purchase", "order_id": "A-1", "total": "25.5000",
            "currency": "EUR", "items": [{ "sku": "a", "quantity": 2, "price": 10.25 }], "shipping": "5.0000",
            "tax": "4.0700", "item_count": 2, "colour": "red"
        })
    );
}

#[test]
fn an_order_without_items_is_taken_at_its_word() {
    let stored = shop(json!({})).event(json!({ "type": "purchase", "order_id": "1", "total": 7, "currency": "CHF" }));
    assert_eq!(stored.replaced()["item_count"], 0);
}

#[test]
fn money_is_not_rounded() {
    // As floats, three times 0.1 is not 0.3.
    let items = json!([{ "sku": "a", "quantity": 3, "price": 0.1 }]);
    let verdict = shop(json!({})).event(order(json!({ "items": items, "total": 0.3, "shipping": null })));
    assert_eq!(code(&verdict), "taken");
    let verdict = shop(json!({}))
        .event_json(r#"{"type":"purchase","order_id":"1","currency":"EUR","total":0.30000000000000004}"#);
    assert_eq!(code(&verdict), "invalid");
    assert!(verdict.detail().unwrap().starts_with("`total`: has more than 4 decimals"), "{verdict:?}");
}

#[test]
fn a_total_that_does_not_add_up_is_rejected() {
    let verdict = shop(json!({})).event(order(json!({ "total": "25.49" })));
    assert_eq!(code(&verdict), "total_mismatch");
    assert_eq!(
        verdict.detail().unwrap(),
        "`total` is 25.4900, and `items`, with shipping and without discount, add up to 25.5000"
    );
    let shop = shop(json!({ "tolerance": "0.01", "prices_include_tax": false }));
    for (changes, expected) in [
        (json!({ "total": "25.49" }), "taken"),
        (json!({ "total": "25.48" }), "total_mismatch"),
        (json!({ "tax": "2", "total": "27.50" }), "taken"),
        (json!({ "tax": "2" }), "total_mismatch"),
        (json!({ "discount": "25.50", "total": 0 }), "taken"),
        (json!({ "discount": "100", "total": 0 }), "total_mismatch"),
    ] {
        assert_eq!(code(&shop.event(order(changes.clone()))), expected, "{changes}");
    }
}

#[test]
fn what_is_wrong_has_a_code_and_a_place() {
    let shop = shop(json!({ "currencies": ["EUR", "chf"], "max_total": "100" }));
    for (changes, expected, detail) in [
        (json!({ "currency": "EURO" }), "unknown_currency", "ISO 4217"),
        (json!({ "currency": "USD" }), "currency_not_taken", "this shop takes EUR, CHF"),
        (json!({ "total": "100.01" }), "total_too_high", "at most 100.0000"),
        (json!({ "total": "12,50" }), "invalid", "`total`: must be an amount"),
        (json!({ "order_id": 7 }), "invalid", "`order_id`: invalid type"),
        (json!({ "items": [{ "sku": "a", "quantity": 1, "price": -1 }] }), "invalid", "`items[0].price`: must be"),
        (json!({ "items": [{ "sku": "a", "quantity": 0, "price": 1 }] }), "invalid", "`items[0].quantity`: must be 1"),
        (json!({ "properties": { "total": 1 } }), "ambiguous_field", "`properties.total` is there too"),
    ] {
        let verdict = shop.event(order(changes.clone()));
        assert_eq!(code(&verdict), expected, "{changes}: {verdict:?}");
        assert!(verdict.detail().unwrap().contains(detail), "{changes}: {verdict:?}");
    }
}

#[test]
fn a_wrong_configuration_is_refused_in_words() {
    for (config, words) in [
        (json!({ "currencies": ["EUR", "EURO"] }), "`currencies`: \"EURO\" is no currency of ISO 4217"),
        (json!({ "tolerance": "a lot" }), "`tolerance`: must be an amount"),
        (json!({ "max_totals": "1" }), "unknown key `max_totals`"),
    ] {
        let error = Harness::<Shop>::new(config).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_schema_names_what_an_order_needs() {
    let descriptor = shop(json!({})).descriptor().unwrap();
    let schema: Value = serde_json::from_str(descriptor.adds[0].schema.as_ref().unwrap().get()).unwrap();
    assert_eq!(schema["required"], json!(["order_id", "total", "currency"]));
    assert_eq!(schema["properties"]["total"]["anyOf"][1]["minimum"], 0);
    assert_eq!(schema["$defs"]["Item"]["properties"]["quantity"]["minimum"], 1);
}
