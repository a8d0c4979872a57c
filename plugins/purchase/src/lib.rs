//! Orders of a shop: the event type `purchase`, with money that is exact.
//!
//! ```json
//! { "type": "purchase", "order_id": "A-1001", "total": "129.90", "currency": "eur",
//!   "items": [{ "sku": "SHOE-42", "quantity": 1, "price": "119.90" }], "shipping": "10.00" }
//! ```
//!
//! - An order whose items do not add up to its total, or whose currency the shop does not take, is rejected: its sender
//!   hears of it, and no report has to explain it away.
//! - What is stored is written in one way: the currency in capitals, amounts as texts with four decimals, and the number
//!   of things sold as `item_count`.
//! - Each order is a row of the table `plugin_purchase_orders`; `plugin_purchase_revenue_daily` is the revenue by day and
//!   currency.

mod currency;
mod money;

use std::borrow::Cow;

use ingestion_plugin_sdk::{
    Batch, Description, Error, Event, EventType, Host, Object, Plugin, Rejection, Verdict, export_plugin, json,
    tables::{Table, View, column, count, property, sql, sum, uniq},
};
use schemars::JsonSchema;
use serde::Deserialize;

pub use money::Money;

/// The fields of an order. An event has others (`user_id`, `timestamp`, ...), which are none of our business.
#[derive(Debug, Deserialize, JsonSchema)]
struct Purchase<'a> {
    /// The shop's own number of the order.
    #[serde(borrow)]
    #[schemars(length(min = 1))]
    #[expect(dead_code, reason = "is stored as it is; here for the schema")]
    order_id: Cow<'a, str>,
    /// What was paid.
    total: Money,
    /// The currency of every amount, as ISO 4217 has it; capitals or not.
    #[serde(borrow)]
    currency: Cow<'a, str>,
    /// What was bought. With it, the total is checked.
    #[serde(borrow, default)]
    items: Option<Vec<Item<'a>>>,
    /// Taxes. `prices_include_tax` in the configuration says whether prices have them in.
    #[serde(default)]
    tax: Option<Money>,
    /// Costs of shipping.
    #[serde(default)]
    shipping: Option<Money>,
    /// What was taken off the prices.
    #[serde(default)]
    discount: Option<Money>,
    /// The coupon that was used.
    #[serde(borrow, default)]
    #[expect(dead_code, reason = "is stored as it is; here for the schema")]
    coupon: Option<Cow<'a, str>>,
}

/// One line of an order.
#[derive(Debug, Deserialize, JsonSchema)]
struct Item<'a> {
    /// The shop's own number of the article.
    #[serde(borrow)]
    #[schemars(length(min = 1))]
    #[expect(dead_code, reason = "is stored as it is; here for the schema")]
    sku: Cow<'a, str>,
    /// How many of them.
    #[schemars(range(min = 1))]
    quantity: u32,
    /// Price of one.
    price: Money,
}

/// `[plugins.config.purchase]`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Currencies that the shop takes; all of ISO 4217 if there are none.
    pub currencies: Vec<String>,
    /// Whether prices of items have taxes in them, as in Europe. If not, `tax` is added to them.
    pub prices_include_tax: bool,
    /// By how much a total may differ from what its items add up to: shops round in different ways.
    pub tolerance: Amount,
    /// A higher total is taken for a mistake. No limit if it is not set.
    pub max_total: Option<Amount>,
}

/// An amount in the configuration: `"0.01"`, as a text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Amount(Money);

impl TryFrom<String> for Amount {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Money::parse(&text).map(Self)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { currencies: Vec::new(), prices_include_tax: true, tolerance: Amount::default(), max_total: None }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct Shop {
    currencies: Vec<&'static str>,
    config: Config,
}

/// Names that our columns read from `properties`. A second value under one of them, inside the sender's own `properties`,
/// would be stored in place of the one that was checked.
const OURS: [&str; 9] =
    ["order_id", "total", "currency", "items", "tax", "shipping", "discount", "coupon", "item_count"];

impl Plugin for Shop {
    type Config = Config;

    fn describe() -> Description {
        Description::new("purchase", env!("CARGO_PKG_VERSION"), "Orders of a shop, with money that is exact")
            .adds(
                EventType::new("purchase", "An order was paid")
                    .schema_of::<Purchase>()
                    .example(json!({
                        "type": "purchase", "order_id": "A-1001", "total": "129.90", "currency": "eur",
                        "items": [{ "sku": "SHOE-42", "quantity": 1, "price": "119.90" }],
                        "shipping": "10.00", "coupon": "SPRING", "user_id": "u-7"
                    }))
                    .example(json!({ "type": "purchase", "order_id": "A-1002", "total": 5, "currency": "EUR" })),
            )
            .table(
                Table::new("orders", ["purchase"])
                    .column("order_id", "String", property("order_id"))
                    .column("currency", "LowCardinality(String)", property("currency"))
                    .column("total", "Decimal(18, 4)", property("total"))
                    .column("tax", "Nullable(Decimal(18, 4))", property("tax"))
                    .column("shipping", "Nullable(Decimal(18, 4))", property("shipping"))
                    .column("discount", "Nullable(Decimal(18, 4))", property("discount"))
                    .column("coupon", "LowCardinality(String)", property("coupon"))
                    .column("item_count", "UInt64", property("item_count"))
                    .order_by(["order_id"]),
            )
            .view(
                View::of_table("revenue_daily", "orders")
                    .group_by("day", "Date", sql("toDate(timestamp)"))
                    .group_by("currency", "LowCardinality(String)", column("currency"))
                    .measure(sum("revenue", "Decimal(38, 4)", column("total")))
                    .measure(count("orders"))
                    .measure(uniq("buyers", sql("if(user_id != '', user_id, anonymous_id)"))),
            )
    }

    fn new(config: Config, _: Host) -> Result<Self, Error> {
        let currencies = config.currencies.iter().map(|code| {
            currency::known(code).ok_or_else(|| format!("`currencies`: {code:?} is no currency of ISO 4217"))
        });
        Ok(Self { currencies: currencies.collect::<Result<_, _>>()?, config })
    }

    fn event(&self, event: &Event<'_>, _: &Batch<'_>) -> Result<Verdict, Rejection> {
        let purchase: Purchase = event.parse()?;
        let mut object = event.object()?;
        not_twice(&object)?;
        let currency = self.currency(&purchase.currency)?;
        self.check_total(&purchase)?;

        object.set("currency", currency);
        object.set("total", &purchase.total);
        for (name, amount) in [("tax", purchase.tax), ("shipping", purchase.shipping), ("discount", purchase.discount)]
        {
            if let Some(amount) = amount {
                object.set(name, &amount);
            }
        }
        let count: u64 = purchase.items.iter().flatten().map(|item| u64::from(item.quantity)).sum();
        object.set("item_count", &count);
        Ok(object.into_verdict())
    }
}

export_plugin!(Shop);

impl Shop {
    fn currency(&self, sent: &str) -> Result<&'static str, Rejection> {
        let Some(code) = currency::known(sent) else {
            return Err(Rejection::new(
                "unknown_currency",
                "`currency` is no currency of ISO 4217: three letters, like \"EUR\"",
            ));
        };
        if self.currencies.is_empty() || self.currencies.contains(&code) {
            return Ok(code);
        }
        let taken = self.currencies.join(", ");
        Err(Rejection::new("currency_not_taken", format!("`currency` is {code}; this shop takes {taken}")))
    }

    fn check_total(&self, purchase: &Purchase<'_>) -> Result<(), Rejection> {
        let total = purchase.total;
        if let Some(Amount(most)) = self.config.max_total.filter(|most| total > most.0) {
            return Err(Rejection::new("total_too_high", format!("`total` is {total}, and must be at most {most}")));
        }
        let Some(items) = &purchase.items else { return Ok(()) };
        if let Some(at) = items.iter().position(|item| item.quantity == 0) {
            return Err(Rejection::new("invalid", format!("`items[{at}].quantity`: must be 1 or more")));
        }
        let amount = |amount: Option<Money>| amount.unwrap_or_default().ten_thousandths();
        let mut sum: i128 = items.iter().map(|item| i128::from(item.quantity) * item.price.ten_thousandths()).sum();
        sum += amount(purchase.shipping) - amount(purchase.discount);
        if !self.config.prices_include_tax {
            sum += amount(purchase.tax);
        }
        if (sum - total.ten_thousandths()).abs() <= self.config.tolerance.0.ten_thousandths() {
            return Ok(());
        }
        let tax = if self.config.prices_include_tax { "" } else { ", with tax" };
        Err(Rejection::new(
            "total_mismatch",
            format!(
                "`total` is {total}, and `items`, with shipping and without discount{tax}, add up to {}{}.{:04}",
                if sum < 0 { "-" } else { "" },
                sum.abs() / 10_000,
                sum.abs() % 10_000
            ),
        ))
    }
}

/// Refuses an order that says something of ours in `properties` too.
fn not_twice(object: &Object<'_>) -> Result<(), Rejection> {
    let Some(properties) = object.read::<Object<'_>>("properties") else { return Ok(()) };
    match OURS.into_iter().find(|name| properties.contains(name)) {
        None => Ok(()),
        Some(name) => Err(Rejection::new(
            "ambiguous_field",
            format!("`properties.{name}` is there too: a purchase has `{name}` beside its `type`, and only there"),
        )),
    }
}

#[cfg(test)]
mod tests;
