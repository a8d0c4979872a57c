//! Filling in what differs between one node, a cluster and the embedded engine.

use crate::clickhouse::{quote_identifier, quote_text};

/// Blocks that a table remembers so as to drop a repeated insert. A range makes one block per partition of the table
/// that it touches (at most 20), so 10,000 entries span at least 500 inserts: far more than can be in flight.
const SINGLE_NODE: &str = "non_replicated_deduplication_window = 10000";

/// On a cluster a repeat may come days later, from another node after an outage: a week, and as many blocks as a
/// keeper holds without strain (each is one small node in it).
const REPLICATED: &str = "replicated_deduplication_window = 100000, replicated_deduplication_window_seconds = 604800";

/// By default ClickHouse syncs neither inserts nor merges, which a server makes up for with replicas. The embedded
/// engine has none and the write-ahead log lets go of a row once its insert is acknowledged, so here inserts and
/// merged parts are synced, and the parts that a merge replaced stay on disk until the merged one is safe there.
const DURABLE: &str =
    "fsync_after_insert = 1, fsync_part_directory = 1, min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480";

/// Where a schema is to stand.
#[derive(Clone, Debug)]
pub struct Template {
    /// Database of all tables.
    pub database: String,
    /// Cluster to create everything on, with replicated tables. None: one node.
    pub cluster: Option<String>,
    /// Whether the server is this engine's own child: its tables then sync every insert.
    pub embedded: bool,
}

impl Template {
    /// The text of a migration with its variables filled in.
    pub fn render(&self, text: &str) -> String {
        let on_cluster = |name: &String| format!("ON CLUSTER {}", quote_text(name));
        let on_cluster = self.cluster.as_ref().map_or_else(String::new, on_cluster);
        let (replicated, window) = match self.cluster {
            Some(_) => ("Replicated", REPLICATED),
            None => ("", SINGLE_NODE),
        };
        let settings = if self.embedded { format!("{window}, {DURABLE}") } else { window.to_owned() };
        text.replace("${database}", &quote_identifier(&self.database))
            .replace("${on_cluster}", &on_cluster)
            .replace("${replicated}", replicated)
            .replace("${settings}", &settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_text_fits_one_node_a_cluster_and_the_embedded_engine() {
        let text = "CREATE TABLE ${database}.t ${on_cluster} ENGINE = ${replicated}MergeTree SETTINGS ${settings}";
        let template = |cluster: Option<&str>, embedded| Template {
            database: "o`x".into(),
            cluster: cluster.map(str::to_owned),
            embedded,
        };
        let single = template(None, false).render(text);
        assert_eq!(
            single,
            "CREATE TABLE `o\\`x`.t  ENGINE = MergeTree SETTINGS non_replicated_deduplication_window = 10000"
        );
        let cluster = template(Some("main"), false).render(text);
        assert!(cluster.contains("ON CLUSTER 'main' ENGINE = ReplicatedMergeTree"), "{cluster}");
        assert!(cluster.contains("replicated_deduplication_window_seconds = 604800"), "{cluster}");
        assert!(!cluster.contains("non_replicated") && !cluster.contains("fsync"), "{cluster}");
        let embedded = template(None, true).render(text);
        assert!(embedded.ends_with("min_rows_to_fsync_after_merge = 1, old_parts_lifetime = 480"), "{embedded}");
    }
}
