//! Which tables hold rows of a tenant or of a person, and how to find them there. No I/O.

use crate::clickhouse::quote_text;

/// Tables that say what was erased and who knows of it, and that count events of whom nobody is named: they stay.
const OURS: [&str; 5] = ["erasures", "sink_reports", "schema_migrations", "ledger_inserted", "ledger_gone"];

/// A table with the columns that matter here.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub(super) struct TableColumns {
    pub table: String,
    pub columns: Vec<String>,
}

impl TableColumns {
    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|known| known == column)
    }
}

/// Whose rows, as conditions of ClickHouse are made of it.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    pub tenant_id: uuid::Uuid,
    /// Empty: all of the tenant's.
    pub user_id: String,
    pub anonymous_ids: Vec<String>,
    /// Rows that were received up to this moment, Unix milliseconds.
    pub before_ms: i64,
}

/// What is to be deleted from a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub table: String,
    pub condition: String,
    /// Whether the condition ends at a moment, so that nothing may be left: rows of counts do not say what they count, and
    /// come again for a tenant that goes on sending.
    pub ends: bool,
}

impl Whose {
    /// What to delete, in this order: rows that are found by their events go before the events. And the tables that count
    /// the tenant's events, but do not say whose they are.
    pub fn deletions(&self, database: &str, tables: &[TableColumns]) -> (Vec<Deletion>, Vec<String>) {
        let mut deletions = Vec::new();
        let mut anonymous = Vec::new();
        for table in tables.iter().filter(|table| table.has("tenant_id") && !OURS.contains(&table.table.as_str())) {
            match self.condition(database, table) {
                Some(condition) => {
                    let ends = table.has("received_at");
                    deletions.push(Deletion { table: table.table.clone(), condition, ends });
                }
                None => anonymous.push(table.table.clone()),
            }
        }
        deletions.sort_by_key(|deletion| deletion.table == "events");
        (deletions, anonymous)
    }

    fn condition(&self, database: &str, table: &TableColumns) -> Option<String> {
        let received = format!(" AND received_at <= fromUnixTimestamp64Milli({}, 'UTC')", self.before_ms);
        let received = if table.has("received_at") { received } else { String::new() };
        let condition = format!("tenant_id = '{}'{received}", self.tenant_id);
        if self.user_id.is_empty() {
            return Some(condition);
        }
        let (user, anonymous) = (quote_text(&self.user_id), self.anonymous());
        let person = if table.has("user_id") && table.has("anonymous_id") {
            format!("(user_id = {user} OR user_id = '' AND anonymous_id IN ({anonymous}))")
        } else if table.has("user_id") {
            format!("user_id = {user}")
        } else if table.has("anonymous_id") {
            format!("anonymous_id IN ({anonymous})")
        } else if table.has("raw") {
            // What was sent: an id is a text or a number there.
            let id = |name: &str| format!("trim(BOTH '\"' FROM JSONExtractRaw(raw, '{name}'))");
            let text = |name: &str| {
                format!("if(JSONType(raw, '{name}') = 'String', JSONExtractString(raw, '{name}'), {})", id(name))
            };
            let (sent_user, sent_anonymous) = (text("user_id"), text("anonymous_id"));
            format!("({sent_user} = {user} OR {sent_user} IN ('', 'null') AND {sent_anonymous} IN ({anonymous}))")
        } else if table.has("event_id") {
            let events = TableColumns {
                table: "events".to_owned(),
                columns: ["tenant_id", "received_at", "user_id", "anonymous_id"].map(str::to_owned).to_vec(),
            };
            let of_person = self.condition(database, &events)?;
            format!("event_id IN (SELECT event_id FROM {database}.events WHERE {of_person})")
        } else {
            return None;
        };
        Some(format!("{condition} AND {person}"))
    }

    /// The anonymous ids as a list of literals; never an empty one.
    fn anonymous(&self) -> String {
        let ids: Vec<String> = self.anonymous_ids.iter().map(|id| quote_text(id)).collect();
        if ids.is_empty() { "''".to_owned() } else { ids.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn table(name: &str, columns: &[&str]) -> TableColumns {
        TableColumns { table: name.to_owned(), columns: columns.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn every_table_with_a_tenant_is_deleted_from_or_named() {
        let tables = [
            table("events", &["tenant_id", "received_at", "user_id", "anonymous_id", "event_id"]),
            table("parked_events", &["tenant_id", "received_at", "event_id", "raw"]),
            table("plugin_a", &["tenant_id", "event_id", "amount"]),
            table("plugin_b", &["tenant_id", "user_id"]),
            table("events_per_minute", &["tenant_id", "minute"]),
            table("erasures", &["tenant_id", "user_id"]),
            table("schema_migrations", &["version"]),
        ];
        let mut whose =
            Whose { tenant_id: Uuid::from_u128(1), user_id: String::new(), anonymous_ids: Vec::new(), before_ms: 7 };
        let names = |deletions: &[Deletion]| deletions.iter().map(|one| one.table.clone()).collect::<Vec<_>>();
        let (all, rest) = whose.deletions("d", &tables);
        assert_eq!(names(&all), ["parked_events", "plugin_a", "plugin_b", "events_per_minute", "events"]);
        assert_eq!(rest, [""; 0]);
        let tenant = "tenant_id = '00000000-0000-0000-0000-000000000001'";
        let received = format!("{tenant} AND received_at <= fromUnixTimestamp64Milli(7, 'UTC')");
        let conditions: Vec<_> = all.iter().map(|one| one.condition.as_str()).collect();
        assert_eq!(conditions, [&received, tenant, tenant, tenant, &received]);

        whose.user_id = "o'neil".to_owned();
        whose.anonymous_ids = vec!["o'neil".to_owned(), "a".to_owned()];
        let (persons, rest) = whose.deletions("d", &tables);
        assert_eq!(names(&persons), ["parked_events", "plugin_a", "plugin_b", "events"]);
        assert_eq!(rest, ["events_per_minute"]);
        let of = |index: usize| persons.get(index).map(|one| one.condition.clone()).unwrap_or_default();
        let person = "(user_id = 'o\\'neil' OR user_id = '' AND anonymous_id IN ('o\\'neil', 'a'))";
        assert_eq!(
            of(1),
            format!("{tenant} AND event_id IN (SELECT event_id FROM d.events WHERE {received} AND {person})")
        );
        assert_eq!(of(2), format!("{tenant} AND user_id = 'o\\'neil'"));
        assert_eq!(of(3), format!("{received} AND {person}"));
        assert!(of(0).contains("JSONExtractString(raw, 'user_id')"), "{}", of(0));
    }
}
