//! Against a real broker: frozen, killed, cut off, and not there at first.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ingestion_engine::{health::State, ids::EventId, sink::source::Source};

use super::rig::{Log, PATIENCE, Reading, assert_topic_holds, eventually, limits, rows, settings};
use crate::support::{
    proxy::Proxy,
    tansu::{Tansu, free_port},
};

const AGE: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_from_the_log_through_the_broker_to_the_sink() {
    let broker = Tansu::start();
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 12));
    let mut reading = Reading::start(settings(&broker.brokers(), 12), limits(1000, AGE));
    log.append(200, 50, 500).await;
    let ranges = reading.store(&log.events, false).await;
    let partitions: BTreeSet<u32> = ranges.iter().map(|range| range.id.partition).collect();
    assert_eq!(partitions.len(), 12, "the topic has the configured number of partitions");
    for range in &ranges {
        assert_eq!(range.oldest_received_at_ms, 1_795_000_000_000);
        assert!(rows(range).is_sorted_by_key(|row| (row.offset, row.seq, row.ordinal)));
    }
    assert!(log.is_drained());
    assert_eq!(log.metrics.relay_events.get(), 10_000);
    assert_eq!(reading.metrics.source_events.get(), 10_000);
    eventually("the lag is seen to be gone", || log.metrics.relay_lag_events.get() == 0).await;
    assert_eq!(log.state("broker").0, State::Up);
    // This broker drops the metadata of commits, and the source notices.
    let (state, reason) = reading.state();
    assert_eq!(state, State::Degraded);
    assert!(reason.contains("at least once across failovers"), "{reason}");

    // A restart of the source goes on after what was committed.
    let stored = log.events.clone();
    reading.source.close().await;
    log.append(20, 50, 100).await;
    let mut again = Reading::start(settings(&broker.brokers(), 12), limits(1000, AGE));
    let fresh: BTreeSet<EventId> = log.events.difference(&stored).copied().collect();
    let ranges = again.store(&fresh, false).await;
    assert_eq!(ranges.iter().map(|range| range.rows).sum::<usize>(), fresh.len());
    again.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_shows_in_health_and_loses_nothing() {
    let broker = Tansu::start();
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 6));
    let mut reading = Reading::start(settings(&broker.brokers(), 6), limits(1000, AGE));
    log.append(50, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    broker.freeze();
    let frozen = Instant::now();
    while frozen.elapsed() < Duration::from_secs(10) {
        log.append(1, 20, 100).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!log.is_drained());
    eventually("health tells of it", || log.state("broker").0 == State::Down).await;
    broker.thaw();
    reading.store(&log.events, true).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    assert_topic_holds(&broker.brokers(), 6, &log.events).await;
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_was_killed_is_gone_on_with() {
    let mut broker = Tansu::start();
    // The topic is made anew by the engine, or before it by the old producer, with the broker's own number of partitions: 4.
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 4));
    log.append(50, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    // What this broker had is lost with it: only what comes from here on is counted on.
    log.events.clear();
    broker.freeze();
    log.append(50, 20, 100).await;
    broker.kill_and_restart();
    log.append(50, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    assert!(log.metrics.relay_rebuilds.get() > 0, "the broker does not know the old producer");
    assert_topic_holds(&broker.brokers(), 4, &log.events).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    // The source joins only now: this broker answers a consumer that still asks for the old topic's id with an id of
    // zeros, on which librdkafka 2.12.1 crashes (it looks up a name that is not there).
    let mut reading = Reading::start(settings(&broker.brokers(), 4), limits(1000, AGE));
    reading.store(&log.events, true).await;
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_forgot_its_producer_in_a_quiet_moment_is_gone_on_with() {
    let mut broker = Tansu::start();
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 4));
    log.append(50, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    // With nothing in flight librdkafka takes the refusals that follow for passing ones, and would repeat for ever.
    broker.kill_and_restart();
    log.append(50, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_in_mid_flight_loses_nothing() {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let proxy = Proxy::start(listen);
    let broker = Tansu::start_on(listen, proxy.address());
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 6));
    let mut reading = Reading::start(settings(&broker.brokers(), 6), limits(1000, AGE));
    log.append(50, 20, 100).await;
    let first = reading.next().await;
    reading.source.commit(&first).await.unwrap();
    let mut stored: BTreeSet<EventId> = rows(&first).into_iter().map(|row| row.event).collect();
    for _ in 0..3 {
        let before = proxy.forwarded();
        log.append(100, 20, 100).await;
        eventually("messages are on their way", || proxy.forwarded() > before).await;
        proxy.cut();
        log.append(20, 20, 100).await;
        eventually("health tells of it", || log.state("broker").0 == State::Down).await;
        proxy.mend();
        eventually("health clears", || log.state("broker").0 != State::Down).await;
    }
    while stored.len() < log.events.len() {
        let range = reading.next().await;
        stored.extend(rows(&range).into_iter().map(|row| row.event));
        reading.source.commit(&range).await.unwrap();
    }
    assert!(stored == log.events);
    eventually("all is acknowledged", || log.is_drained()).await;
    assert_topic_holds(&broker.brokers(), 6, &log.events).await;
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_later_is_waited_for() {
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (mut log, relay) = Log::relayed(settings(&listen.to_string(), 6));
    let mut reading = Reading::start(settings(&listen.to_string(), 6), limits(1000, AGE));
    log.append(20, 20, 100).await;
    eventually("health says that it is not there", || log.state("broker").0 == State::Down).await;
    eventually("the source too", || reading.state().0 == State::Down).await;
    let broker = Tansu::start_on(listen, listen);
    reading.store(&log.events, false).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    eventually("health clears", || log.state("broker").0 == State::Up).await;
    assert_topic_holds(&broker.brokers(), 6, &log.events).await;
    reading.source.close().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_while_the_broker_is_away_is_bounded_and_keeps_the_log() {
    let broker = Tansu::start();
    let (mut log, relay) = Log::relayed(settings(&broker.brokers(), 6));
    log.append(10, 20, 100).await;
    eventually("all is acknowledged", || log.is_drained()).await;
    let mut reading = Reading::start(settings(&broker.brokers(), 6), limits(1000, AGE));
    let range = reading.next().await;
    broker.freeze();
    log.append(10, 20, 100).await;
    // The commit cannot be answered any more, and the sink does not wait for it for ever.
    let commit = tokio::time::timeout(AGE, reading.source.commit(&range)).await;
    assert!(commit.is_err());
    tokio::time::timeout(PATIENCE, reading.source.close()).await.expect("the source stops");
    tokio::time::timeout(PATIENCE, relay.stop()).await.expect("the relay stops");
    assert!(!log.is_drained(), "what was not acknowledged stays in the log");
}
