//! Amounts of money, exact.
//!
//! A `f64` cannot hold 0.1, so an amount never becomes one: it is read from the digits that were sent, counted in
//! ten-thousandths, and written as a text with four decimals, which a `Decimal(18, 4)` takes as it is.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::value::RawValue;

/// Decimals that are kept: one more than any currency has, for prices of small things.
const DECIMALS: usize = 4;

/// Digits before the point, so that the whole fits into a `Decimal(18, 4)`.
const WHOLE_DIGITS: usize = 14;

/// An amount that is not negative, in ten-thousandths of a currency's unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(u64);

impl Money {
    /// The amount in ten-thousandths. Sums are made of these: the dearest order of ten thousand items is far from the end
    /// of an `i128`.
    pub fn ten_thousandths(self) -> i128 {
        i128::from(self.0)
    }

    /// Reads `129.9`, `129.90` or `129`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) {
            return Err("must be an amount of 0 or more, like \"129.90\" or 129.9, without exponent, sign or currency");
        }
        // Zeros say nothing at either end.
        let (whole, decimals) = (whole.trim_start_matches('0'), decimals.trim_end_matches('0'));
        if decimals.len() > DECIMALS {
            return Err("has more than 4 decimals; round it, and send it as a text if a float has made them");
        }
        if whole.len() > WHOLE_DIGITS {
            return Err("has more than 14 digits before the point");
        }
        let all = format!("0{whole}{decimals:0<DECIMALS$}");
        all.parse().map(Self).map_err(|_| "is too large")
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04}", self.0 / 10_000, self.0 % 10_000)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text of the JSON: a number that went through a float would have lost its digits.
        let json = <&RawValue>::deserialize(deserializer)?.get();
        let text: Cow<'_, str> = if json.starts_with('"') {
            serde_json::from_str(json).map(Cow::Owned).map_err(D::Error::custom)?
        } else {
            json.into()
        };
        Self::parse(&text).map_err(D::Error::custom)
    }
}

impl JsonSchema for Money {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Money".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount with at most 4 decimals; best sent as a text",
            "anyOf": [{ "type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$" }, { "type": "number", "minimum": 0 }]
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(json: &str) -> Result<String, String> {
        serde_json::from_str::<Money>(json).map(|money| money.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn digits_are_kept_as_they_were_sent() {
        for (json, expected) in [
            ("129.9", "129.9000"),
            (r#""129.90""#, "129.9000"),
            ("0", "0.0000"),
            ("0.1", "0.1000"),
            (r#""007.1000000""#, "7.1000"),
            ("99999999999999.9999", "99999999999999.9999"),
            (r#""\u0031""#, "1.0000"),
        ] {
            assert_eq!(read(json).unwrap(), expected, "{json}");
        }
    }

    #[test]
    fn what_is_no_exact_amount_is_refused() {
        for (json, words) in [
            ("-1", "must be an amount"),
            ("1e3", "without exponent"),
            (r#""""#, "must be an amount"),
            (r#""1.""#, "must be an amount"),
            (r#""1,50""#, "must be an amount"),
            (r#""12 EUR""#, "currency"),
            ("true", "must be an amount"),
            ("null", "must be an amount"),
            ("0.30000000000000004", "more than 4 decimals"),
            ("100000000000000", "more than 14 digits"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
    }
}
