//! Against librdkafka's mock cluster: three brokers in this process that fail on request.

use std::{collections::BTreeSet, time::Duration};

use ingestion_engine::{
    broker::{Format, Settings},
    dead_letters,
    health::State,
    sink::source::{Range, Source},
};
use rdkafka::{
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::rig::{
    EVENTS, Log, PATIENCE, Reading, TOPIC, assert_topic_holds, deduplicated, eventually, limits, read_topic, rows,
    settings, until_held,
};

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(partitions: i32) -> (Cluster, String) {
    let cluster = MockCluster::new(3).unwrap();
    cluster.create_topic(TOPIC, partitions, 3).unwrap();
    let brokers = cluster.bootstrap_servers();
    (cluster, brokers)
}

/// Of a topic of one partition whose messages have so many rows: as many as a record, so that each is one.
fn messages_of(rows: usize, brokers: &str) -> Settings {
    Settings { batch_size: rows, ..settings(brokers, 1) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_that_pass_cost_nothing() {
    let (cluster, brokers) = cluster(6);
    cluster.request_errors(
        RDKafkaApiKey::Produce,
        &[
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        ],
    );
    let (mut log, relay) = Log::relayed(settings(&brokers, 6));
    log.append(200, 20, 50).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    assert_topic_holds(&brokers, 6, &log.events).await;
    assert_eq!(log.metrics.relay_rebuilds.get(), 0);
    assert_eq!(log.metrics.relay_records.get(), 200);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_error_replaces_the_producer_and_everything_arrives_in_order() {
    let (cluster, brokers) = cluster(6);
    let (mut log, relay) = Log::relayed(settings(&brokers, 6));
    log.append(100, 20, 50).await;
    for error in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    ] {
        let before = log.metrics.relay_rebuilds.get();
        cluster.request_errors(RDKafkaApiKey::Produce, &[error; 3]);
        log.append(100, 20, 50).await;
        eventually("the producer is replaced", || log.metrics.relay_rebuilds.get() > before).await;
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        eventually("all is acknowledged", || log.is_drained()).await;
    }
    assert_topic_holds(&brokers, 6, &log.events).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_all_brokers_shows_in_health_and_loses_nothing() {
    let (cluster, brokers) = cluster(6);
    let (mut log, relay) = Log::relayed(settings(&brokers, 6));
    log.append(50, 20, 50).await;
    eventually("the broker is up", || log.state("broker").0 == State::Up).await;
    for broker in 1..=3 {
        cluster.broker_down(broker).unwrap();
    }
    let outage = tokio::time::Instant::now();
    eventually("health tells of the outage", || log.state("broker").0 == State::Down).await;
    assert!(!log.state("broker").1.is_empty());
    // The log takes events throughout the five seconds that the brokers are away.
    while outage.elapsed() < Duration::from_secs(5) {
        log.append(1, 20, 50).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!log.is_drained());
    for broker in 1..=3 {
        cluster.broker_up(broker).unwrap();
    }
    eventually("all is acknowledged", || log.is_drained()).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    assert_topic_holds(&brokers, 6, &log.events).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_may_move() {
    let (cluster, brokers) = cluster(3);
    let (mut log, relay) = Log::relayed(settings(&brokers, 3));
    for round in 0..6 {
        for partition in 0..3 {
            cluster.partition_leader(TOPIC, partition, Some(1 + (partition + round) % 3)).unwrap();
        }
        log.append(50, 20, 50).await;
    }
    eventually("all is acknowledged", || log.is_drained()).await;
    assert_topic_holds(&brokers, 3, &log.events).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_write_json_and_ones_that_write_binary_share_a_topic() {
    let (_cluster, brokers) = cluster(3);
    let limits = limits(200, Duration::from_millis(200));
    let mut reading = Reading::start(settings(&brokers, 3), limits);
    let (mut json, json_relay) = Log::relayed(Settings { format: Format::Json, ..settings(&brokers, 3) });
    let (mut binary, binary_relay) = Log::relayed(Settings { format: Format::Binary, ..settings(&brokers, 3) });
    for _ in 0..10 {
        json.append(5, 20, 50).await;
        binary.append(5, 20, 50).await;
    }
    let all: BTreeSet<_> = json.events.union(&binary.events).copied().collect();
    reading.store(&all, false).await;
    let seen = read_topic(&brokers, 3, until_held(all.len())).await;
    for (log, is_json) in [(&json, true), (&binary, false)] {
        let of_log = seen.iter().filter(|message| message.rows.iter().all(|(_, event)| log.events.contains(event)));
        let events: usize = of_log.inspect(|seen| assert_eq!(seen.is_json, is_json)).map(|seen| seen.rows.len()).sum();
        assert_eq!(events, log.events.len());
    }
    assert!(dead_letters::read_files(&reading.home.path().join("dead-letters")).unwrap().is_empty());
    json_relay.stop().await;
    binary_relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_above_the_limit_is_a_dead_letter_and_holds_nothing_up() {
    let (_cluster, brokers) = cluster(3);
    let (mut log, relay) = Log::relayed(Settings { max_message_bytes: 20_000, ..settings(&brokers, 3) });
    log.append(3, 20, 5).await;
    let small = log.events.clone();
    log.append_text(1, 1, &"x".repeat(30_000)).await;
    let large: Vec<_> = log.events.difference(&small).copied().collect();
    log.append(3, 20, 5).await;
    eventually("all has left the log", || log.is_drained()).await;
    let letters = log.dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].event_id, letters[0].form), (large[0], dead_letters::Form::TopicRow));
    assert!(
        letters[0].bytes.len() > 30_000 && letters[0].reason.contains("a message has room for"),
        "{}",
        letters[0].reason
    );
    log.events.remove(&large[0]);
    assert_topic_holds(&brokers, 3, &log.events).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_broker_finds_too_large_is_sent_row_by_row() {
    let (cluster, brokers) = cluster(1);
    let (mut log, relay) = Log::relayed(settings(&brokers, 1));
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    log.append(1, 20, 5).await;
    eventually("all has left the log", || log.is_drained()).await;
    assert_eq!(log.metrics.relay_rebuilds.get(), 1);
    assert_eq!(log.metrics.relay_messages.get(), 20);
    assert_topic_holds(&brokers, 1, &log.events).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_wait_together_share_a_message_and_are_sent_row_by_row_if_it_is_too_large() {
    for (too_large, messages) in [(false, 1), (true, 200)] {
        let (cluster, brokers) = cluster(1);
        let ids = 1..=3;
        ids.clone().for_each(|id| cluster.broker_down(id).unwrap());
        let (mut log, relay) = Log::relayed(settings(&brokers, 1));
        log.append(10, 20, 5).await;
        if too_large {
            cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
        }
        ids.for_each(|id| cluster.broker_up(id).unwrap());
        eventually("all has left the log", || log.is_drained()).await;
        assert_eq!(log.metrics.relay_rebuilds.get(), u64::from(too_large));
        assert_eq!(log.metrics.relay_messages.get(), messages);
        assert_eq!(log.metrics.relay_records.get(), 10);
        assert_topic_holds(&brokers, 1, &log.events).await;
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_range_in_flight_is_formed_again_after_a_restart() {
    let (_cluster, brokers) = cluster(1);
    let (mut log, relay) = Log::relayed(messages_of(20, &brokers));
    log.append(100, 20, 50).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    // Limits of the first start, a restart in mid-flight, limits of the second: the range must not change.
    let mut first = Reading::start(settings(&brokers, 1), limits(300, Duration::from_millis(50)));
    let committed = first.next().await;
    first.source.commit(&committed).await.unwrap();
    let in_flight = first.next().await;
    assert_eq!(in_flight.id.first, committed.id.last + 1);
    first.source.close().await;

    let mut second = Reading::start(settings(&brokers, 1), limits(7, Duration::from_millis(10)));
    let again = second.next().await;
    assert_eq!(again.id, in_flight.id);
    assert_eq!(again.body.by_row(), in_flight.body.by_row());
    second.source.commit(&again).await.unwrap();
    let next = second.next().await;
    assert_eq!(next.id.first, again.id.last + 1);
    assert!(next.rows <= 20, "the limits of today hold from here on");
    assert_eq!(second.state().0, State::Up, "this broker keeps metadata");
    second.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_is_revoked_is_repeated_by_the_next_owner_and_stale_commits_are_ignored() {
    let (_cluster, brokers) = cluster(2);
    let (mut log, relay) = Log::relayed(settings(&brokers, 2));
    log.append(60, 20, 50).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    let mut first = Reading::start(settings(&brokers, 2), limits(100, Duration::from_millis(50)));
    let (a, b) = (first.next().await, first.next().await);
    assert_ne!(a.id.partition, b.id.partition);
    let mut second = Reading::start(settings(&brokers, 2), limits(100, Duration::from_millis(50)));
    for range in [&a, &b] {
        tokio::time::timeout(PATIENCE, range.revoked.cancelled()).await.expect("a second member revokes the ranges");
    }
    // One insert was finished, the other is given up. The mock takes no commit while a group is joining, so the first
    // is refused until the member is out of its generation, and then no later commit may go through.
    first.source.commit(&a).await.unwrap();
    first.source.abandon(&b).await;

    let mut given = Vec::new();
    for member in [&mut first, &mut second] {
        let range = member.next().await;
        for stale in [&a, &b] {
            member.source.commit(stale).await.unwrap();
        }
        given.push(range);
    }
    for range in &given {
        let before = if range.id.partition == a.id.partition { &a } else { &b };
        assert_eq!((&range.id, range.body.by_row()), (&before.id, before.body.by_row()), "it is repeated as it was");
        assert!(!range.revoked.is_cancelled());
    }
    assert_ne!(given[0].id.partition, given[1].id.partition);
    first.source.close().await;
    second.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_partition_says_so_and_tells_of_what_nobody_stores() {
    // Another cluster, whose group takes nobody in.
    let (closed, closed_brokers) = cluster(1);
    let not_now = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;
    closed.request_errors(RDKafkaApiKey::JoinGroup, &[not_now; 2000]);
    let outside = Reading::start(settings(&closed_brokers, 1), limits(100, Duration::from_millis(50)));

    let (_cluster, brokers) = cluster(1);
    let (mut log, relay) = Log::relayed(messages_of(1, &brokers));
    let first = Reading::start(settings(&brokers, 1), limits(100, Duration::from_millis(50)));
    eventually("the first member has the partition", || first.partitions() == 1).await;
    let second = Reading::start(settings(&brokers, 1), limits(100, Duration::from_millis(50)));
    let idle = |member: &Reading| member.state().1.contains("stands by: the 1 partitions of topic");
    // In whatever order they are told: the partition is taken from one before the other has it.
    let one_works = || first.partitions() + second.partitions() == 1 && idle(&first) != idle(&second);
    eventually("one of them has the partition, and the other stands by", one_works).await;
    let (mut works, stands_by) = if idle(&first) { (second, first) } else { (first, second) };
    assert_eq!((works.partitions(), stands_by.partitions()), (1, 0));
    assert_eq!((works.state().1.as_str(), stands_by.state().0), ("", State::Up));

    // The one that has the partition stores nothing.
    log.append(3, 1, 1).await;
    let waits = |(state, reason): (State, String)| {
        state == State::Degraded && reason.contains("3 messages wait in partitions 0, of which no sink has stored one")
    };
    eventually("the other one tells", || waits(stands_by.state())).await;
    works.store(&log.events, false).await;
    eventually("it is taken back", || stands_by.state().0 == State::Up && idle(&stands_by)).await;

    works.source.close().await;
    assert_eq!(works.metrics.source_partitions.get_or_create(&EVENTS).get(), 0);
    eventually("who is not let in tells so", || {
        let (state, reason) = outside.state();
        state == State::Degraded && reason.contains("group sink does not let this sink in")
    })
    .await;
    assert_eq!(outside.partitions(), 0);
    closed.clear_request_errors(RDKafkaApiKey::JoinGroup);
    eventually("it is let in", || outside.partitions() == 1 && outside.state().1.is_empty()).await;
    outside.source.close().await;

    eventually("the other one takes over", || stands_by.partitions() == 1 && stands_by.state().1.is_empty()).await;
    stands_by.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_gone_are_counted_and_shown() {
    let (cluster, brokers) = cluster(1);
    let (mut log, relay) = Log::relayed(messages_of(1, &brokers));
    log.append(10, 1, 1).await;
    let mut first = Reading::start(settings(&brokers, 1), limits(5, Duration::from_mins(1)));
    let range = first.next().await;
    first.source.commit(&range).await.unwrap();
    first.source.close().await;
    let next = range.id.last + 1;
    // The mock keeps 5 MB of a partition and drops the oldest: random text, which does not compress.
    for _ in 0..30 {
        let noise: String = (0..6000).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
        log.append_text(1, 1, &noise).await;
    }
    eventually("all is acknowledged", || log.is_drained()).await;
    let seen = read_topic(&brokers, 1, |seen| seen.last().is_some_and(|last| last.offset == 39)).await;
    let earliest = u64::try_from(seen[0].offset).unwrap();
    assert!(earliest > next, "the mock did not drop anything: it still has {earliest}");

    let mut second = Reading::start(settings(&brokers, 1), limits(1000, Duration::from_millis(50)));
    let range = second.next().await;
    assert_eq!(range.id.first, earliest);
    assert_eq!(second.metrics.source_gap_offsets.get(), earliest - next);
    let (state, reason) = second.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.contains(&format!("{} offsets of partition 0", earliest - next)), "{reason}");
    second.source.close().await;
    relay.stop().await;
    drop(cluster);
}

/// librdkafka aborts the process when a partition that it is stopping is taken out of the assignment once more, as it was when
/// a look after gaps followed the one before at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_are_refused_again_and_again_are_outlived() {
    let (cluster, brokers) = cluster(6);
    let (mut log, relay) = Log::relayed(settings(&brokers, 6));
    let mut reading = Reading::start(settings(&brokers, 6), limits(1000, Duration::from_millis(10)));
    let mut stored = BTreeSet::new();
    for _ in 0..20 {
        cluster.request_errors(RDKafkaApiKey::Fetch, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE; 4]);
        log.append(4, 20, 50).await;
        reading.store_rest(&log.events, &mut stored, false).await;
    }
    assert_eq!(stored, log.events);
    assert_eq!(reading.metrics.source_gap_offsets.get(), 0);
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_stands_still_keeps_its_partitions_and_a_bounded_memory() {
    let (_cluster, brokers) = cluster(4);
    let (mut log, relay) = Log::relayed(settings(&brokers, 4));
    let mut settings = settings(&brokers, 4);
    settings.buffer_bytes = 100_000;
    settings.properties.insert("session.timeout.ms".into(), "6000".into());
    settings.properties.insert("heartbeat.interval.ms".into(), "500".into());
    let mut reading = Reading::start(settings, limits(200, Duration::from_millis(50)));
    log.append(400, 20, 50).await;
    let first = reading.next().await;
    eventually("all is acknowledged", || log.is_drained()).await;
    // Longer than the session: a member that did not poll would be out by now.
    let stood = tokio::time::Instant::now();
    while stood.elapsed() < Duration::from_secs(8) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(reading.metrics.source_events.get() < 4000, "it reads on without bound");
    }
    assert!(!first.revoked.is_cancelled());
    let mut stored: BTreeSet<_> = rows(&first).into_iter().map(|row| row.event).collect();
    reading.source.commit(&first).await.unwrap();
    reading.store_rest(&log.events, &mut stored, false).await;
    assert_eq!(stored, log.events);
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_that_the_sink_cannot_take_yet_grows() {
    let (_cluster, brokers) = cluster(4);
    let (mut log, relay) = Log::relayed(settings(&brokers, 4));
    let settings = Settings { ranges_under_way: 2, ..settings(&brokers, 4) };
    let mut reading = Reading::start(settings, limits(100_000, Duration::from_millis(50)));
    log.append(100, 20, 50).await;
    let taken = [reading.next().await, reading.next().await];
    // Sent while two ranges are under way, and long after the others were old enough.
    log.append(100, 20, 50).await;
    eventually("everything is read", || reading.metrics.source_events.get() == log.events.len() as u64).await;
    let mut stored = BTreeSet::new();
    let mut ranges = [0; 4];
    let mut store = |range: &Range| {
        ranges[range.id.partition as usize] += 1;
        stored.extend(rows(range).into_iter().map(|row| row.event));
        stored.len()
    };
    for range in &taken {
        store(range);
        reading.source.commit(range).await.unwrap();
    }
    loop {
        let range = reading.next().await;
        let stored = store(&range);
        reading.source.commit(&range).await.unwrap();
        if stored == log.events.len() {
            break;
        }
    }
    assert_eq!(stored, log.events);
    let waited: Vec<u32> = (0..4).filter(|id| taken.iter().all(|range| range.id.partition != *id)).collect();
    assert_eq!(waited.len(), 2, "one range of a partition is under way at a time");
    assert!(waited.iter().all(|id| ranges[*id as usize] == 1), "{waited:?} of {ranges:?}");
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_row_is_a_dead_letter_and_its_offset_passes() {
    use rdkafka::{
        ClientConfig,
        producer::{BaseProducer, BaseRecord, Producer},
    };
    let (_cluster, brokers) = cluster(1);
    let stranger: BaseProducer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
    let send = |value: &str| stranger.send(BaseRecord::<(), str>::to(TOPIC).partition(0).payload(value)).unwrap();
    send("not a row");
    stranger.flush(PATIENCE).unwrap();
    let (mut log, relay) = Log::relayed(messages_of(2, &brokers));
    log.append(5, 2, 1).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    send("{\"neither\":\"is this\"}");
    stranger.flush(PATIENCE).unwrap();
    let mut reading = Reading::start(settings(&brokers, 1), limits(2, Duration::from_millis(50)));
    let ranges =
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(reading.store(&log.events, false)));
    assert!(ranges.len() >= 5);
    let letters = || {
        let mut letters = dead_letters::read_files(&reading.home.path().join("dead-letters")).unwrap();
        letters.sort_by_key(|letter| letter.offset);
        letters
    };
    eventually("both are kept", || letters().len() == 2).await;
    assert!(letters().iter().all(|letter| letter.reason.contains("not a row")), "{:?}", letters());
    assert_eq!(letters()[1].bytes, b"{\"neither\":\"is this\"}");
    let places: Vec<_> = letters().iter().map(|letter| (letter.partition, letter.offset, letter.line)).collect();
    assert_eq!(places, [(0, 0, 0), (0, 6, 0)]);
    reading.source.close().await;
    relay.stop().await;
    let seen = read_topic(&brokers, 1, |_| true).await;
    assert_eq!(deduplicated(&seen).1, 0);
}
