//! Defaults of the engine's tables that its command line has no words for.

/// The file's name in the engine's folder.
pub(super) const FILE: &str = "engine-config.xml";

/// Every merge writes all rows of its parts again. `merge_selector_base` is about how many parts of a size come together
/// before they are merged into one: with 20 instead of 5 a row is written again half as often until its part is large (three
/// times instead of six from 60,000 rows to a billion). Merges were more than half of what an event costs ClickHouse
/// (measured at 120,000 events/s: 8.3 s a million with 5, 6.0 with 20). A table has up to four times as many parts meanwhile,
/// far below the thousand from which on inserts are slowed down.
pub(super) const CONFIG: &str = "<clickhouse>
    <!-- Written anew at every start. -->
    <merge_tree><merge_selector_base>20</merge_selector_base></merge_tree>
</clickhouse>
";
