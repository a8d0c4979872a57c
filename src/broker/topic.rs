//! The topic: made when it is missing, compared with what the engine relies on, and its partitions counted, again and
//! again for as long as the engine runs.
//!
//! The look at the topic is also how health knows that the broker answers: librdkafka's own events tell of broken
//! connections, not of a broker that is frozen, and not of one that came back while there was nothing to send.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientContext,
    admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication},
    client::DefaultClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::MetadataTopic,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{BrokerError, Carries, ClientEvents, MESSAGE_OVERHEAD, Settings, Severity, Status};
use crate::error_chain::chain;

/// How often, at least, a topic that is as it should be is looked at: one small request, and how soon a frozen broker shows.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often while something is missing.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long the broker may take to answer a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may take to make a topic on all of its nodes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

impl ConsumerContext for ClientEvents {}

/// A running look at the topic; stops when its token is cancelled.
#[derive(Clone)]
pub(crate) struct TopicWatch {
    /// Partitions of the topic; 0 until it is known to exist.
    pub(crate) partitions: watch::Receiver<u32>,
    look_now: Arc<Notify>,
}

impl TopicWatch {
    /// Looks at once, because something suggests that the topic is not what it was.
    pub(crate) fn look_now(&self) {
        self.look_now.notify_one();
    }
}

/// Starts to look after the topic in the background. Needs a Tokio runtime.
///
/// # Errors
/// [`BrokerError`] when the configuration is refused; an absent broker is waited for.
pub(crate) fn watch(
    settings: &Settings,
    status: Arc<Status>,
    cancel: CancellationToken,
) -> Result<TopicWatch, BrokerError> {
    for property in settings.refused_properties() {
        tracing::warn!(property, "this broker property is set by the engine and cannot be changed");
    }
    let mut config = settings.client_config();
    // A look must never make the topic with the broker's defaults.
    config.set("allow.auto.create.topics", "false");
    let client: BaseConsumer<ClientEvents> =
        config.create_with_context(ClientEvents::new(status.clone())).map_err(BrokerError::Configuration)?;
    let (publish, partitions) = watch::channel(0);
    let look_now = Arc::new(Notify::new());
    let client = Arc::new(client);
    let mut watcher = Watcher { settings: settings.clone(), client, status, publish, checked: false };
    tokio::spawn({
        let look_now = look_now.clone();
        async move {
            let watching = cancel.run_until_cancelled(async {
                loop {
                    // Nodes that lost the same broker do not ask it together.
                    let pause = watcher.look().await.mul_f64(rand::random_range(0.5..1.0));
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = look_now.notified() => {}
                    }
                }
            });
            // It never ends by itself.
            watching.await;
            close(watcher);
        }
    });
    Ok(TopicWatch { partitions, look_now })
}

/// Whether the topic exists, asked once, by a client that lives only for that: for a topic that most never have. Nothing is
/// made, and nobody's health is told.
///
/// # Errors
/// [`KafkaError`] when the configuration is refused or the broker does not answer.
pub async fn exists(settings: &Settings) -> Result<bool, KafkaError> {
    let mut config = settings.client_config();
    config.set("allow.auto.create.topics", "false");
    let topic = settings.topic.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer<Quiet> = config.create_with_context(Quiet)?;
        let metadata = client.fetch_metadata(Some(&topic), LOOK_TIMEOUT)?;
        Ok(metadata.topics().iter().any(|found| found.name() == topic && !found.partitions().is_empty()))
    });
    asked.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Events of a client that nobody needs to hear of.
pub(super) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for Quiet {}

struct Watcher {
    settings: Settings,
    client: Arc<BaseConsumer<ClientEvents>>,
    status: Arc<Status>,
    publish: watch::Sender<u32>,
    /// The topic's settings were compared since it last came into being.
    checked: bool,
}

impl Watcher {
    /// One look. Returns how long to wait until the next.
    async fn look(&mut self) -> Duration {
        let (client, topic) = (self.client.clone(), self.settings.topic.clone());
        let asked = tokio::task::spawn_blocking(move || {
            // Serves what librdkafka queued: log lines and errors.
            while client.poll(Duration::ZERO).is_some() {}
            let metadata = client.fetch_metadata(Some(&topic), LOOK_TIMEOUT)?;
            let mut topics = metadata.topics().iter();
            Ok(topics.find(|found| found.name() == topic && !found.partitions().is_empty()).map(Found::of))
        });
        let found = match asked.await.unwrap_or(Err(KafkaError::Canceled)) {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("the broker at {} does not answer: {}", self.settings.brokers, chain(&error));
                self.status.set("connection", Severity::Down, reason);
                return LOOK_AGAIN;
            }
        };
        self.status.contacted();
        if let Some(found) = found {
            self.publish.send_if_modified(|known| std::mem::replace(known, found.partitions) != found.partitions);
            if !self.checked {
                self.compare(&found).await;
                self.checked = true;
            }
            return LOOK_EVERY;
        }
        self.checked = false;
        if !self.settings.create_topic {
            let Settings { topic, partitions, .. } = &self.settings;
            let advice = match self.settings.carries {
                Carries::Events => "",
                Carries::Parked => "; plugins have parked events, which wait for it",
            };
            let reason = format!(
                "topic {topic} does not exist, and the engine is told not to make it: make it with {partitions} \
                 partitions, or set redpanda.create_topic{advice}"
            );
            self.status.set(self.about(), Severity::Down, reason);
            return LOOK_AGAIN;
        }
        match self.create().await {
            Ok(()) => self.status.clear(self.about()),
            Err(reason) => {
                let reason = format!("topic {} cannot be made: {reason}", self.settings.topic);
                self.status.set(self.about(), Severity::Down, reason);
            }
        }
        LOOK_AGAIN
    }

    /// Under which name health hears of this topic: a node may look after two.
    fn about(&self) -> &'static str {
        match self.settings.carries {
            Carries::Events => "topic",
            Carries::Parked => "parked topic",
        }
    }

    async fn create(&self) -> Result<(), String> {
        let settings = &self.settings;
        let retention = settings.retention.as_millis().to_string();
        let min_insync = settings.min_insync_replicas.to_string();
        let max_message = (settings.max_message_bytes + MESSAGE_OVERHEAD).to_string();
        let partitions = i32::try_from(settings.partitions).map_err(|error| error.to_string())?;
        let replication = i32::try_from(settings.replication_factor).map_err(|error| error.to_string())?;
        let topic = NewTopic::new(&settings.topic, partitions, TopicReplication::Fixed(replication))
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention)
            .set("retention.bytes", "-1")
            .set("min.insync.replicas", &min_insync)
            .set("max.message.bytes", &max_message);
        let admin = self.admin().map_err(|error| chain(&error))?;
        let created = admin.create_topics([&topic], &admin_options()).await;
        close(admin);
        let created = created.map_err(|error| chain(&error))?;
        match created.into_iter().next() {
            Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, code))) => Err(KafkaError::AdminOp(code).to_string()),
            Some(Ok(_)) | None => {
                tracing::info!(topic = settings.topic, partitions, replication, "topic is made");
                Ok(())
            }
        }
    }

    async fn compare(&self, found: &Found) {
        let described = match self.admin() {
            Ok(admin) => {
                let topic = ResourceSpecifier::Topic(&self.settings.topic);
                let described = admin.describe_configs([&topic], &admin_options()).await;
                close(admin);
                described
            }
            Err(error) => Err(error),
        };
        let config = match described.map(|resources| resources.into_iter().next()) {
            Ok(Some(Ok(resource))) => Some(resource),
            Ok(None) => None,
            Ok(Some(Err(code))) => {
                tracing::warn!(%code, "the topic's settings cannot be read, so they are not compared");
                None
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the topic's settings cannot be read, so they are not compared");
                None
            }
        };
        let value = |name: &str| config.as_ref().and_then(|config: &ConfigResource| config.get(name)?.value.clone());
        let weaker = weaker(&self.settings, found, value);
        if weaker.is_empty() {
            self.status.clear(self.about());
        } else {
            let reason = format!("topic {} is weaker than configured: {}", self.settings.topic, weaker.join(", "));
            self.status.set(self.about(), Severity::Degraded, reason);
        }
    }

    /// A client for one request: the queue on which it logs is served by nobody, so it must not live long.
    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
        self.settings.client_config().create()
    }
}

/// Drops a client on a thread that may wait for the client's own threads.
fn close<T: Send + 'static>(client: T) {
    drop(tokio::task::spawn_blocking(move || drop(client)));
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ADMIN_TIMEOUT)).operation_timeout(Some(ADMIN_TIMEOUT))
}

/// What metadata say of a topic.
#[derive(Clone, Copy, Debug)]
struct Found {
    partitions: u32,
    /// Copies of the partition that has the fewest.
    replicas: usize,
}

impl Found {
    fn of(topic: &MetadataTopic) -> Self {
        let partitions = topic.partitions();
        Self {
            partitions: u32::try_from(partitions.len()).unwrap_or(u32::MAX),
            replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
        }
    }
}

/// In which respects the topic keeps less than configured. A setting that the broker does not show is not judged.
fn weaker(settings: &Settings, found: &Found, value: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut weaker = Vec::new();
    if found.replicas < usize::try_from(settings.replication_factor).unwrap_or(usize::MAX) {
        weaker.push(format!("{} replicas, not {}", found.replicas, settings.replication_factor));
    }
    let number = |name: &str| value(name).and_then(|text| text.parse::<i128>().ok());
    // -1 stands for "no limit" in Kafka's retention settings.
    let retention = i128::try_from(settings.retention.as_millis()).unwrap_or(i128::MAX);
    let largest = i128::try_from(settings.max_message_bytes).unwrap_or(i128::MAX);
    let rules: [(&str, i128, bool); 3] = [
        ("min.insync.replicas", i128::from(settings.min_insync_replicas), false),
        ("retention.ms", retention, true),
        ("max.message.bytes", largest, false),
    ];
    for (name, wanted, negative_is_unlimited) in rules {
        if let Some(actual) = number(name)
            && actual < wanted
            && !(negative_is_unlimited && actual < 0)
        {
            weaker.push(format!("{name} {actual}, not {wanted}"));
        }
    }
    if let Some(limit) = number("retention.bytes").filter(|limit| *limit >= 0) {
        weaker.push(format!("retention.bytes {limit}, not unlimited"));
    }
    if let Some(policy) = value("cleanup.policy").filter(|policy| policy.contains("compact")) {
        weaker.push(format!("cleanup.policy {policy}, not delete"));
    }
    weaker
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replicas, settings of the topic, and what is to be named.
    type Case<'a> = (usize, &'a [(&'a str, &'a str)], &'a [&'a str]);

    #[test]
    fn a_weaker_topic_is_named_setting_by_setting() {
        let settings = Settings::default();
        let cases: [Case<'_>; 6] = [
            (3, &[("min.insync.replicas", "2"), ("retention.ms", "-1"), ("retention.bytes", "-1")], &[]),
            (3, &[], &[]),
            (1, &[], &["1 replicas, not 3"]),
            (3, &[("min.insync.replicas", "1")], &["min.insync.replicas 1, not 2"]),
            (
                3,
                &[("retention.ms", "3600000"), ("retention.bytes", "1000")],
                &["retention.ms 3600000, not 1209600000", "retention.bytes 1000, not unlimited"],
            ),
            (
                3,
                &[("max.message.bytes", "1000"), ("cleanup.policy", "compact,delete")],
                &["max.message.bytes 1000, not 1000000", "cleanup.policy compact,delete, not delete"],
            ),
        ];
        for (replicas, configured, expected) in cases {
            let found = Found { partitions: 12, replicas };
            let value =
                |name: &str| configured.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(weaker(&settings, &found, value), expected);
        }
    }
}
