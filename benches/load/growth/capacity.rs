//! The model as text: what things cost, what a rate takes, what N nodes carry and what is full first.
//!
//! Every number is marked: measured (M) with the curve that it comes from, cited (C) with its source, or assumed (A).

use std::fmt::Write as _;

use load::stats::{shown, shown_whole};

use crate::{
    curves,
    model::{
        BATCH, BROKERS_BEST, BROKERS_KEYED, CLICKHOUSE_CORES, Costs, DAY, EVENT_DAYS, LOG_BYTES, Line, MAX_ROWS,
        NETWORK, NODE_CORES, Plan, REPLICAS, TOPIC_DAYS, USED,
    },
    results::Document,
};

/// The text: curves and model.
pub fn markdown(document: &Document) -> String {
    let mut text = String::from(
        "# Growth and capacity\n\nMade by `make bench-growth` from [growth.json](growth.json); `growth --plot docs/growth.json` \
         writes it again. Changes belong into `benches/load/growth`.\n\n\
         Cost is CPU time: seconds a million events (s/M), of the engine's own process, and of ClickHouse's with its three views \
         and fsync. The log syncs before every acknowledgement. At the end of every point each acknowledged event was looked \
         for in ClickHouse, in the table and in the sums of the views (for the deepest logs: the ledger balances and counts in log \
         and tables what was acknowledged). Events are about 330 bytes of JSON unless a curve says otherwise, of 50 tenants, over \
         64 connections, in batches of 100 (tenants and connections: of 10). A curve is called flat when its most is \
         within a quarter of its least.\n\n![What an event costs](growth.svg)\n\n## Curves\n",
    );
    for (key, curve) in &document.curves {
        let of = |name: &str| curve.measured.get(name).map_or("?", String::as_str);
        let names = ["date", "revision", "processor", "cores", "memory", "runs", "seconds"].map(of);
        let [date, revision, processor, cores, memory, runs, seconds] = names;
        add(
            &mut text,
            &format!("- {key}: {date}, {revision}, {processor}, {cores} cores, {memory}, runs: {runs} of {seconds} s"),
        );
    }
    text += &curves::text(document);
    match Costs::of(document) {
        Some(costs) => model(&mut text, &costs),
        None => add(&mut text, "\n## Model\n\nIt needs the curves of partitions, batch and connections."),
    }
    text
}

fn add(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    writeln!(text, "{line}").unwrap_or(());
}

fn model(text: &mut String, costs: &Costs) {
    costs_table(text, costs);
    let plans = [1e6, 1e7].map(|rate| Plan::of(costs, rate));
    let [one, ten] = &plans;
    plan_table(text, costs, one, ten);
    nodes(text, costs, one, ten);
}

fn costs_table(text: &mut String, costs: &Costs) {
    add(text, "\n## Model\n\n(M) measured here, with the curve; (C) cited, with the source below; (A) assumed.\n");
    add(text, "| | | from |\n|---|--:|---|");
    let percent = |line: &Line| format!("a line, off by {:.0} % at most", line.off * 100.0);
    let mut row = |what: &str, value: String, from: String| add(text, &format!("| {what} | {value} | {from} |"));
    row(
        "`a0` API node: checks, log, relay",
        format!("{} s/M", shown(costs.api.at_zero)),
        format!("(M) partitions, {}", percent(&costs.api)),
    );
    row("`a1` API node, a message", format!("{} µs", shown(costs.api.slope)), "(M) the same".to_owned());
    row(
        "`g` events that a relay sends together, of a node at its full rate",
        shown(costs.together),
        "(M) partitions 64".to_owned(),
    );
    row("`q` API node, a request", format!("{} µs", shown(costs.request)), "(M) batch".to_owned());
    row("`w` the log's writer, a thread of a node", format!("{} s/M", shown(costs.writer)), "(M) depth 0".to_owned());
    row("`y` the relay, a thread of a node", format!("{} s/M", shown(costs.relay)), "(M) partitions 16".to_owned());
    row(
        "`z` poll and decode, a thread of a sink",
        format!("{} s/M", shown(costs.poll)),
        "(M) partitions 16".to_owned(),
    );
    row(
        "`s0` sink: fetch, decode, encode, send",
        format!("{} s/M", shown(costs.sink.at_zero)),
        format!("(M) partitions, {}", percent(&costs.sink)),
    );
    row("`s1` sink, a message", format!("{} µs", shown(costs.sink.slope)), "(M) the same".to_owned());
    row(
        "`c0` ClickHouse, rows with their views and merges",
        format!("{} s/M", shown(costs.clickhouse.at_zero)),
        format!("(M) partitions, batch, connections, {}", percent(&costs.clickhouse)),
    );
    row(
        "`c1` ClickHouse, an insert (a part each in four tables)",
        format!("{} ms", shown(costs.clickhouse.slope / 1e3)),
        "(M) the same".to_owned(),
    );
    row(
        "engine and ClickHouse on one node, no broker",
        format!("{} and {} s/M", shown(costs.alone.0), shown(costs.alone.1)),
        "(M) batch 100".to_owned(),
    );
    row("`B` body", format!("{} B an event", shown(costs.body)), "(M) batch 100".to_owned());
    row("`L` log, compressed", format!("{} B an event", shown(costs.log)), "(M) batch 100".to_owned());
    row("`F` the log's files", format!("{} B an event", shown(costs.log_disk)), "(M) depth 0".to_owned());
    row(
        "`T` topic, compressed",
        format!("{} B an event", shown(costs.topic)),
        "(M) partitions 16, counted on the wire, protocol included".to_owned(),
    );
    row(
        "`D` stored, all tables",
        format!("{} B an event", shown(costs.stored)),
        "(M) batch 100, young parts".to_owned(),
    );
    row("`u` used share of cores", USED.to_string(), "(C1)".to_owned());
    row(
        "cores of an engine's node, of a ClickHouse server",
        format!("{NODE_CORES}, {CLICKHOUSE_CORES}"),
        "(A)".to_owned(),
    );
    row("`b` events in a request, each of another session", BATCH.to_string(), "(A)".to_owned());
    row(
        "three brokers, keyed / at best",
        format!("{BROKERS_KEYED} / {} MB/s", shown_whole(1_250)),
        "(C2) / (C3)".to_owned(),
    );
    row("network of a node", format!("{} Gbit/s", NETWORK * 8.0 / 1e9), "(A)".to_owned());
    row(
        "retention: events, topic (3 replicas); the log's size",
        format!("{EVENT_DAYS} days, {TOPIC_DAYS} days; {} GB", LOG_BYTES / 1e9),
        "the engine's defaults".to_owned(),
    );
}

fn plan_table(text: &mut String, costs: &Costs, one: &Plan, ten: &Plan) {
    add(
        text,
        "\nWith R events a second, P partitions, m = P (1 - (1 - 1/P)^g) / g messages an event, and r = min(100,000, 0.5 s R / P) \
         rows an insert at least (`sink.max_rows`, `sink.max_age`; ranges get larger while inserts are slow):\n\n| | formula | 1M events/s | 10M events/s |\n|---|---|--:|--:|",
    );
    let mut row = |what: &str, formula: &str, value: &dyn Fn(&Plan) -> String| {
        add(text, &format!("| {what} | {formula} | {} | {} |", value(one), value(ten)));
    };
    let gigabytes = |bytes: f64| format!("{} GB/s", shown(bytes / 1e9));
    let terabytes = |bytes: f64| format!("{} TB", shown(bytes / 1e12));
    row("partitions", "P: twice the sink nodes, up to a power of two, at least 6", &|plan| whole(plan.partitions));
    row("messages an event", "m", &|plan| shown(plan.messages));
    row("API cores", "R (a0 + a1 m + q (1/b - 1/100)) / u", &|plan| whole(plan.cores(plan.api)));
    row("API nodes", "the more of cores / 8 and R max(w, y) / u", &|plan| whole(plan.api_nodes()));
    row("sink cores", "R (s0 + s1 m) / u", &|plan| whole(plan.cores(plan.sink)));
    row("sink nodes", "the more of cores / 8 and R z / u", &|plan| whole(plan.sink_nodes()));
    row("rows an insert, inserts/s", "r, R / r", &|plan| inserts_of(plan, 0));
    row("ClickHouse cores then", "R (c0 + c1 / r) / u", &|plan| whole(clickhouse_cores(plan, 0)));
    row("the same with `sink.max_age` so long that r = 100,000", "R / 100,000", &|plan| inserts_of(plan, 1));
    row("ClickHouse cores then", "R (c0 + c1 / 100,000) / u", &|plan| whole(clickhouse_cores(plan, 1)));
    row("ClickHouse servers, one topic and group for each", "cores / 64", &|plan| {
        whole(clickhouse_cores(plan, 1) / CLICKHOUSE_CORES)
    });
    row("new parts/s, all tables", "4 R / r", &|plan| format!("{} or {}", parts_of(plan, 0), parts_of(plan, 1)));
    row("network into API nodes", "R B", &|plan| gigabytes(plan.rate * costs.body));
    row("into Redpanda, between its brokers, out of it", "R T, 2 R T, R T (C4)", &|plan| {
        let topic = plan.rate * costs.topic;
        format!("{}, {}, {}", gigabytes(topic), gigabytes(2.0 * topic), gigabytes(topic))
    });
    row("Redpanda, threes of brokers: keyed / at best", "R T / 330 MB/s, R T / 1,250 MB/s", &|plan| {
        let topic = plan.rate * costs.topic / 1e6;
        format!("{} / {}", whole(topic / BROKERS_KEYED), whole(topic / BROKERS_BEST))
    });
    row("Redpanda's memory for partitions", "2 MB P 3 (C4)", &|plan| {
        format!("{} GB", shown(plan.partitions * REPLICAS * 2e6 / 1e9))
    });
    row("Redpanda's disk, 14 days", "3 R T 14 d", &|plan| {
        terabytes(REPLICAS * plan.rate * costs.topic * TOPIC_DAYS * DAY)
    });
    row("the same, one day", "3 R T 1 d", &|plan| terabytes(REPLICAS * plan.rate * costs.topic * DAY));
    row("ClickHouse's disk, 90 days, a replica", "R D 90 d", &|plan| {
        terabytes(plan.rate * costs.stored * EVENT_DAYS * DAY)
    });
    row("into ClickHouse, a replica", "R L (A: compressed as in the log)", &|plan| gigabytes(plan.rate * costs.log));
    row("API nodes' disk writes, all together", "R L", &|plan| gigabytes(plan.rate * costs.log));
    row("outage of the broker that their logs outlast", "nodes 10 GB / (R F)", &|plan| {
        let nodes = plan.api_nodes();
        format!("{} min", shown(nodes * LOG_BYTES / (plan.rate * costs.log_disk) / 60.0))
    });
}

fn inserts_of(plan: &Plan, which: usize) -> String {
    plan.inserts
        .get(which)
        .map_or_else(String::new, |inserts| format!("{}, {}", whole(inserts.rows.floor()), whole(inserts.a_second)))
}

fn parts_of(plan: &Plan, which: usize) -> String {
    plan.inserts.get(which).map_or_else(String::new, |inserts| whole(4.0 * inserts.a_second))
}

fn clickhouse_cores(plan: &Plan, which: usize) -> f64 {
    plan.inserts.get(which).map_or(0.0, |inserts| plan.cores(inserts.cost))
}

/// Rounded up: there is no half of a node.
fn whole(value: f64) -> String {
    let text = shown(value.ceil());
    text.split_once('.').map_or(text.clone(), |(whole, _)| whole.to_owned())
}

/// What one of everything carries, and with it N of everything; what is full first.
fn nodes(text: &mut String, costs: &Costs, one: &Plan, ten: &Plan) {
    let of_cores = |cores: f64, cost: f64| cores * USED * 1e6 / cost;
    let cost = |plan: &Plan, which: usize| plan.inserts.get(which).map_or(f64::INFINITY, |inserts| inserts.cost);
    let mut parts = [
        ("an API node", "N 8 u / (a0 + a1 m)", of_cores(NODE_CORES, one.api)),
        ("an API node's network, in and out", "N 10 Gbit/s / (B + T)", NETWORK / (costs.body + costs.topic)),
        ("an API node's log writer, one thread", "N u / w", of_cores(1.0, costs.writer)),
        ("an API node's relay, one thread", "N u / y", of_cores(1.0, costs.relay)),
        ("a sink node's polling thread", "N u / z", of_cores(1.0, costs.poll)),
        ("a sink node", "N 8 u / (s0 + s1 m)", of_cores(NODE_CORES, one.sink)),
        ("three brokers, keyed (C2)", "N 330 MB/s / T", BROKERS_KEYED * 1e6 / costs.topic),
        (
            "a ClickHouse server of 64 cores, default inserts",
            "S 64 u / (c0 + c1 / r)",
            of_cores(CLICKHOUSE_CORES, cost(one, 0)),
        ),
        (
            "a ClickHouse server of 64 cores, inserts of 100,000 rows",
            "S 64 u / (c0 + c1 / 100,000)",
            of_cores(CLICKHOUSE_CORES, cost(one, 1)),
        ),
        ("a ClickHouse server, one insert of 100,000 rows a second (C5)", "S 100,000 rows", MAX_ROWS),
    ];
    parts.sort_by(|one, other| one.2.total_cmp(&other.2));
    add(
        text,
        "\n## What N nodes carry, and what is full first\n\nEvents a second of one of each (m of 1M events/s), the one that is \
         full first at the top. N times as many carry N times that, for nothing is shared between API nodes, nor between sink nodes, \
         but broker and ClickHouse:\n\n| | formula | events/s |\n|---|---|--:|",
    );
    for (what, formula, rate) in parts {
        add(text, &format!("| {what} | {formula} | {} |", shown((rate / 1e3).round() * 1e3)));
    }
    let (engine, clickhouse) = costs.alone;
    let alone = of_cores(1.0, engine + clickhouse);
    add(
        text,
        &format!(
            "\nA node alone, with the embedded ClickHouse, carries {} events/s a core at that utilization: {} with 8 cores.\n",
            shown((alone / 1e2).round() * 1e2),
            shown((alone * NODE_CORES / 1e3).round() * 1e3)
        ),
    );
    let share = |plan: &Plan| clickhouse_cores(plan, 0) / CLICKHOUSE_CORES;
    let inserts = |plan: &Plan| plan.inserts.first().map_or(0.0, |inserts| inserts.a_second);
    add(
        text,
        &format!(
            "**At 1M events/s** API and sink nodes are added until there are enough ({} and {}). What cannot be multiplied is \
             what a topic has one of: the ClickHouse server that its group writes to. Its cores are {} % of {CLICKHOUSE_CORES}, and \
             it gets {} inserts a second, where its makers advise about one (C5) and slow inserts down from 1,000 parts of a \
             partition on (C6). By that advice the number of inserts is what is over its limit first, before cores, brokers or network; measured, they cost \
             {} of its cores. Raise `sink.max_age` (rows are then queryable so much later) until inserts have 100,000 rows.\n",
            whole(one.api_nodes()),
            whole(one.sink_nodes()),
            whole(share(one) * 100.0),
            whole(inserts(one)),
            whole(clickhouse_cores(one, 0) - one.cores(costs.clickhouse.at_zero)),
        ),
    );
    add(
        text,
        &format!(
            "**At 10M events/s** the one ClickHouse server would need {} cores ({} inserts a second) with the defaults, and {} with \
             inserts of 100,000 rows. Sinks of one group write to one address, and a range that is repeated has to meet the server \
             that knows its token; so events are split over {} topics, each with its group and its server, by tenant in the load \
             balancer (A: the engine has no such setting but the topic's name and the ClickHouse URL of each node). Disk is next: \
             {} TB for 90 days, and {} TB in Redpanda for the default of 14 days, which one day would make {}.\n",
            whole(clickhouse_cores(ten, 0)),
            whole(inserts(ten)),
            whole(clickhouse_cores(ten, 1)),
            whole(clickhouse_cores(ten, 1) / CLICKHOUSE_CORES),
            shown(ten.rate * costs.stored * EVENT_DAYS * DAY / 1e12),
            shown(REPLICAS * ten.rate * costs.topic * TOPIC_DAYS * DAY / 1e12),
            shown(REPLICAS * ten.rate * costs.topic * DAY / 1e12),
        ),
    );
    text.push_str(HONESTY);
}

const HONESTY: &str = "## What this does not know

- Everything was measured on two cores that load, engine, broker and ClickHouse shared. CPU time tells what work there is, and
  a little more than that (caches and the scheduler are shared too). Locks, memory bandwidth and interrupts of many cores are in
  none of it: that 8 or 64 cores do 8 or 64 times as much of it is assumed. Redpanda and a ClickHouse cluster were not run.
- The broker of the tests keeps everything in memory; what it costs says nothing of Redpanda, whose limits are cited.
- Merges of a run of seconds are the young ones. Over days the same rows are merged some times more; queries come on top.
- A thread is held against the same share of a core as a machine's cores are, though it alone could use more of one.
- Replicated tables write every row on each replica, and fetch parts over the network: all of a server's numbers are a replica's.

## Sources

- (C1) ClickHouse Cloud, [scaling recommendations](https://clickhouse.com/docs/products/cloud/features/autoscaling/scaling-recommendations):
  target utilization of 53 %.
- (C2) Jack Vanlightly, [Kafka vs Redpanda performance, part 4](https://jack-vanlightly.com/analyses/2023/5/15/kafka-vs-redpanda-performance-part-4-impact-of-record-keys):
  with record keys, and so with small batches, Redpanda topped out at 330 MB/s where 500 were sent by 100 producers, on i3en.6xlarge.
- (C3) Redpanda, [faster and safer than Kafka](https://redpanda.com/blog/redpanda-faster-safer-than-kafka): 1.25 million messages a
  second of 1 KB, acks = all, fsync, replicated to three nodes, for an hour.
- (C4) Redpanda, [sizing guidelines](https://docs.redpanda.com/streaming/26.2/deploy/redpanda/manual/sizing/): of each byte
  written to a leader two go to replicas and one to a consumer; 2 MB of memory a partition replica, 2 GB a core.
- (C5) ClickHouse, [bulk inserts](https://clickhouse.com/docs/en/cloud/bestpractices/bulk-inserts): 10,000 to 100,000 rows an insert,
  about one insert a second.
- (C6) ClickHouse, [MergeTree settings](https://clickhouse.com/docs/reference/settings/merge-tree-settings/parts-to):
  `parts_to_delay_insert`, 1,000 active parts of one partition by default.
";
