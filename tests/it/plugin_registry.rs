//! The registry of plugins without the rest of an engine: real libraries, real checks in real children.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ingestion_engine::{
    control::{self, ClientError, Control, Request, Served},
    health::{Health, Report, State},
    ids::{EventId, TenantId},
    metrics::Metrics,
    plugins::{
        Plugins,
        call::{Call, Fault, Input, Purpose, Verdict},
        faults::FaultWindow,
        instance::Limits,
        plugin::{Deadline, Plugin},
        registry::{CommandError, Declare, Isolation, Listed, Mode, Parts, Settings, Standing},
        threads,
    },
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    engine::{Setup, eventually},
    plugins::{copy_bytes_in, folder, move_in, pilot},
};

/// A data folder, and what is compiled for it.
struct Home {
    root: tempfile::TempDir,
    allow: BTreeSet<String>,
    mode: Mode,
    isolated: bool,
    declared: Arc<Mutex<Vec<String>>>,
}

/// A registry that runs.
struct Node {
    plugins: Plugins,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Home {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { root, allow: BTreeSet::new(), mode: Mode::Run, isolated: false, declared: Arc::default() }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    fn file(&self, name: &str) -> PathBuf {
        folder(self.path()).join(name)
    }

    /// The bytes of the plugin `name` in `version`.
    fn made(&self, name: &str, version: &str, flags: &[&str]) -> Vec<u8> {
        fs::read(pilot(self.path(), name, version, flags)).unwrap()
    }

    async fn start(&self) -> Node {
        self.start_with(FaultWindow::new(3, Duration::from_secs(3600))).await
    }

    async fn start_with(&self, faults: FaultWindow) -> Node {
        self.start_with_deadline(faults, Duration::from_secs(10)).await
    }

    async fn start_with_deadline(&self, faults: FaultWindow, deadline: Duration) -> Node {
        let settings = Settings {
            dir: folder(self.path()),
            data_dir: self.data(),
            program: env!("CARGO_BIN_EXE_ingestion-engine").into(),
            allow: self.allow.clone(),
            mode: self.mode,
            isolation: Isolation { all: self.isolated, named: BTreeSet::new(), bytes: 1 << 30 },
            deadline: Deadline { base: deadline, per_event: Duration::ZERO },
            threads: threads::Settings { threads: 2, leaked: 2 },
            faults,
            limits: Limits { event_bytes: 256 << 10 },
            config: std::collections::BTreeMap::new(),
        };
        let declared = Arc::clone(&self.declared);
        let declare: Declare = Box::new(move |descriptor| {
            declared.lock().unwrap().push(format!("{} {}", descriptor.name, descriptor.version));
            if descriptor.version == "undeclarable" { Err("its columns changed".to_owned()) } else { Ok(()) }
        });
        let (health, metrics) = (Health::default(), Arc::new(Metrics::new()));
        let parts = Parts { health: health.component("plugins"), metrics: Arc::clone(&metrics), declare };
        let plugins = Plugins::start(settings, parts).await.unwrap();
        Node { plugins, health, metrics }
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.data().join("plugin-state/state.json")).unwrap()).unwrap()
    }

    fn edit_state(&self, edit: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        edit(&mut state);
        fs::write(self.data().join("plugin-state/state.json"), state.to_string()).unwrap();
    }
}

impl Node {
    fn plugin(&self, name: &str) -> Option<Arc<Plugin>> {
        self.plugins.current().named(name).cloned()
    }

    /// What the plugin in use says that its version is, by a call.
    async fn version(&self, name: &str) -> Option<String> {
        version_of(&self.plugins, self.plugin(name)?).await
    }

    fn listed(&self, file: &str) -> Vec<Listed> {
        self.plugins.list().into_iter().filter(|listed| listed.file == file).collect()
    }

    fn refusal(&self, file: &str) -> Option<String> {
        let refused = self.listed(file).into_iter().find(|listed| listed.state == Standing::Refused);
        refused.and_then(|listed| listed.reason)
    }

    fn wait_for_refusal(&self, file: &str) -> String {
        eventually("the file is refused", || self.refusal(file).is_some());
        self.refusal(file).unwrap()
    }

    fn wait_for_version(&self, name: &str, version: &str) {
        let current = || self.plugin(name).map(|plugin| plugin.descriptor.version.clone());
        eventually("the version is in use", || current().as_deref() == Some(version));
    }

    fn health(&self) -> Report {
        self.health.snapshot().remove("plugins").unwrap()
    }

    fn wait_for_health(&self, state: State) -> String {
        eventually("health follows", || self.health().state == state);
        self.health().reason.unwrap_or_default()
    }

    async fn stop(self) {
        self.plugins.stop().await;
    }
}

async fn call(plugins: &Plugins, plugin: Arc<Plugin>, what: &str) -> Result<Verdict, Fault> {
    let json = json!({ "type": plugin.name(), "do": what }).to_string();
    call_with(plugins, plugin, json).await.unwrap()
}

async fn hang(plugins: &Plugins, plugin: Arc<Plugin>) -> Result<Result<Verdict, Fault>, threads::RunError> {
    let json = json!({ "type": plugin.name(), "do": "hang" }).to_string();
    call_with(plugins, plugin, json).await
}

async fn call_with(
    plugins: &Plugins,
    plugin: Arc<Plugin>,
    json: String,
) -> Result<Result<Verdict, Fault>, threads::RunError> {
    let job = move |worker: &threads::Worker| {
        let events = [Input { json: &json, kind: plugin.name(), id: EventId(Uuid::now_v7()) }];
        let call = Call { tenant: TenantId(Uuid::nil()), received_at_ms: 0, purpose: Purpose::LIVE, events: &events };
        plugin.process(worker, &call).map(|mut verdicts| verdicts.remove(0))
    };
    plugins.threads().run(job).await
}

async fn version_of(plugins: &Plugins, plugin: Arc<Plugin>) -> Option<String> {
    match call(plugins, plugin, "replace").await {
        Ok(Verdict::Replace(json)) => {
            let event: Value = serde_json::from_str(&json).unwrap();
            event["version"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_changes_and_goes_while_its_users_go_on() {
    let home = Home::new();
    let node = home.start().await;
    assert_eq!((node.plugins.list(), node.health().state), (Vec::new(), State::Up));

    copy_bytes_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "1");
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    let listed = node.listed("pilot.so").remove(0);
    assert_eq!((listed.state, listed.adds), (Standing::Running, vec!["pilot".to_owned()]));

    let first = node.plugin("pilot").unwrap();
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    // Over the file of the one in use, in place: what runs is a copy.
    let second = node.plugin("pilot").unwrap();
    copy_bytes_in(&home.made("pilot", "3", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "3");
    for (plugin, version) in [(first, "1"), (second, "2"), (node.plugin("pilot").unwrap(), "3")] {
        assert_eq!(
            version_of(&node.plugins, plugin).await.as_deref(),
            Some(version),
            "it has users until they are done"
        );
    }
    assert_eq!(node.health().state, State::Up);

    fs::remove_file(home.file("pilot.so")).unwrap();
    eventually("it is gone", || node.plugin("pilot").is_none());
    assert_eq!(home.state()["retired"], json!({ "pilot": "pilot" }));
    assert!(node.plugins.list().is_empty());
    assert!(node.metrics.render().contains("ingestion_plugin_loads_total{result=\"loaded\"} 3"));

    copy_bytes_in(&home.made("pilot", "3", &[]), home.path(), "back.so");
    node.wait_for_version("pilot", "3");
    assert_eq!(home.state()["retired"], json!({}));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_copied_file_is_not_looked_at() {
    let home = Home::new();
    let node = home.start().await;
    let bytes = home.made("pilot", "1", &[]);
    let mut file = fs::File::create(home.file("pilot.so")).unwrap();
    file.write_all(&bytes[..bytes.len() / 2]).unwrap();
    // Another one comes, so that the folder is looked at.
    move_in(&home.made("other", "1", &[]), home.path(), "other.so");
    node.wait_for_version("other", "1");
    assert_eq!(node.listed("pilot.so"), []);
    file.write_all(&bytes[bytes.len() / 2..]).unwrap();
    drop(file);
    node.wait_for_version("pilot", "1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_with_one_name_or_one_type_the_first_stays() {
    let home = Home::new();
    let pilot = home.made("pilot", "1", &[]);
    move_in(&pilot, home.path(), "pilot.so");
    let node = home.start().await;

    move_in(&home.made("pilot", "2", &[]), home.path(), "another.so");
    let refusal = node.wait_for_refusal("another.so");
    assert!(refusal.contains("\"pilot\" is in use already, from the file pilot.so"), "{refusal}");
    // A plugin of another name with the same type; both names are as long as each other.
    move_in(&replaced(&pilot, b"\"name\":\"pilot\"", b"\"name\":\"robot\""), home.path(), "robot.so");
    let refusal = node.wait_for_refusal("robot.so");
    assert!(refusal.contains("\"pilot\"") && refusal.contains("pilot.so"), "{refusal}");
    let built_in = replaced(&pilot, b"\"name\":\"pilot\"", b"\"name\":\"click\"");
    let built_in = replaced(&built_in, b"\"type\":\"pilot\"", b"\"type\":\"click\"");
    move_in(&replaced(&built_in, b"[\"pilot\"]", b"[\"click\"]"), home.path(), "click.so");
    let refusal = node.wait_for_refusal("click.so");
    assert!(refusal.contains("engine's own type \"click\""), "{refusal}");

    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    let reason = node.wait_for_health(State::Degraded);
    for file in ["another.so", "robot.so", "click.so"] {
        assert!(reason.contains(file), "{reason}");
    }
    // The one that waited takes its place without a gap, and the other one goes on waiting.
    fs::remove_file(home.file("pilot.so")).unwrap();
    eventually("another one is in use", || {
        node.plugin("pilot").expect("there is one at any time").descriptor.version == "2"
    });
    assert!(node.refusal("robot.so").is_some());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_file_is_the_same_plugin_without_a_gap() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "a.so");
    let node = home.start().await;
    fs::rename(home.file("a.so"), home.file("b.so")).unwrap();
    eventually("it has the new file's name", || node.plugin("pilot").expect("there is one at any time").file == "b.so");
    assert_eq!(node.plugins.list().len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_leaves_the_old_one_in_place() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;

    move_in(b"no library", home.path(), "pilot.so");
    let refusal = node.wait_for_refusal("pilot.so");
    assert!(refusal.to_lowercase().contains("elf"), "{refusal}");
    let reason = node.wait_for_health(State::Degraded);
    assert!(reason.contains("pilot.so") && reason.contains("the earlier one stays in use"), "{reason}");

    move_in(&home.made("pilot", "undeclarable", &[]), home.path(), "pilot.so");
    eventually("its tables are refused", || node.refusal("pilot.so").is_some_and(|words| words.contains("columns")));
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));

    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    node.wait_for_health(State::Up);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_others_may_write_is_used_once_that_is_mended() {
    let home = Home::new();
    let node = home.start().await;
    let mode = |mode| fs::set_permissions(home.file("pilot.so"), fs::Permissions::from_mode(mode)).unwrap();
    let unsafe_file = home.path().join("unsafe.so");
    fs::write(&unsafe_file, home.made("pilot", "1", &[])).unwrap();
    fs::set_permissions(&unsafe_file, fs::Permissions::from_mode(0o666)).unwrap();
    fs::rename(&unsafe_file, home.file("pilot.so")).unwrap();
    let refusal = node.wait_for_refusal("pilot.so");
    assert!(refusal.contains("chmod go-w"), "{refusal}");
    assert!(node.plugin("pilot").is_none());
    mode(0o644);
    node.wait_for_version("pilot", "1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_allowed_sums_are_used() {
    let mut home = Home::new();
    let node = home.start().await;
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "1");
    home.allow = BTreeSet::from([node.listed("pilot.so").remove(0).sha256.unwrap()]);
    node.stop().await;

    let node = home.start().await;
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    let refusal = node.wait_for_refusal("pilot.so");
    assert!(refusal.contains("plugins.allow does not list"), "{refusal}");
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    node.stop().await;

    // What was in use and is not listed any more stands without code, and no command brings it back.
    home.allow = BTreeSet::from(["0".repeat(64)]);
    let node = home.start().await;
    assert!(!node.plugin("pilot").unwrap().is_loaded());
    let refused = node.plugins.resume("pilot".to_owned()).await.unwrap_err().to_string();
    assert!(refused.contains("plugins.allow does not list"), "{refused}");
    assert!(!node.plugin("pilot").unwrap().is_loaded());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_put_back_as_it_was_is_loaded_again() {
    let home = Home::new();
    let good = home.made("pilot", "1", &[]);
    move_in(&good, home.path(), "pilot.so");
    home.start().await.stop().await;
    fs::write(home.file("pilot.so"), b"no library").unwrap();
    for entry in fs::read_dir(home.data().join("plugin-state/libraries")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let node = home.start().await;
    assert!(!node.plugin("pilot").unwrap().is_loaded());
    // The very bytes that were in use before, and no command.
    move_in(&good, home.path(), "pilot.so");
    eventually("it is loaded", || node.plugin("pilot").unwrap().is_loaded());
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    node.wait_for_health(State::Up);
    assert_eq!(node.listed("pilot.so").len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_no_more_threads_may_hang_a_mended_file_is_still_taken() {
    let home = Home::new();
    let library = home.made("pilot", "1", &[]);
    move_in(&library, home.path(), "pilot.so");
    // As many threads as may hang, and more faults than those before the plugin is quarantined.
    let node =
        home.start_with_deadline(FaultWindow::new(100, Duration::from_secs(3600)), Duration::from_millis(50)).await;
    while !node.plugins.threads().is_exhausted() {
        let plugin = node.plugin("pilot").unwrap();
        let hung = hang(&node.plugins, plugin).await;
        assert!(matches!(hung, Err(threads::RunError::Abandoned { .. })), "{hung:?}");
    }
    assert!(matches!(call(&node.plugins, node.plugin("pilot").unwrap(), "").await, Err(Fault::Exhausted { .. })));
    assert!(node.metrics.render().contains("ingestion_plugin_faults_total{plugin=\"pilot\",kind=\"deadline\"} 2"));
    let mended = [library.as_slice(), b"mended"].concat();
    let before = node.plugin("pilot").unwrap().caller.sha256.clone();
    move_in(&mended, home.path(), "pilot.so");
    eventually("the mended file is in use", || node.plugin("pilot").unwrap().caller.sha256 != before);
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    node.stop().await;
}

/// A library that was built for contract 1.0, as somebody still has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_of_the_first_contract_is_checked_loaded_and_called() {
    let home = Home::new();
    let node = home.start().await;
    let library = home.path().join("legacy.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plugins/v1_0/plugin.c");
    let flags = ["-std=c11", "-shared", "-fPIC", "-o"];
    let compiled = std::process::Command::new("cc").args(flags).arg(&library).arg(source).status().unwrap();
    assert!(compiled.success());
    move_in(&fs::read(&library).unwrap(), home.path(), "legacy.so");
    node.wait_for_version("legacy", "1.0");
    let says = async |what: &str| {
        let json = format!("{{\"type\":\"legacy_note\",\"say\":\"{what}\"}}");
        call_with(&node.plugins, node.plugin("legacy").unwrap(), json).await.unwrap()
    };
    assert_eq!(says("keep").await, Ok(Verdict::Keep));
    assert_eq!(
        says("replace").await,
        Ok(Verdict::Replace("{\"type\":\"legacy_note\",\"say\":\"replaced\"}".to_owned()))
    );
    assert!(matches!(says("reject").await, Ok(Verdict::Reject { code, .. }) if code == "told_to"));
    assert!(matches!(says("drop").await, Ok(Verdict::Drop { reason }) if reason == "told_to"));
    assert!(matches!(says("fail").await, Err(Fault::Failed { .. })));
    assert_eq!(node.health().state, State::Up);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_bad_file_goes_on_with_the_copy_of_the_good_one() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    home.start().await.stop().await;

    fs::write(home.file("pilot.so"), b"no library").unwrap();
    let node = home.start().await;
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    assert_eq!(node.listed("pilot.so").len(), 2, "the one in use, and the one that was refused");
    let reason = node.wait_for_health(State::Degraded);
    assert!(reason.contains("pilot.so is not used"), "{reason}");
    node.stop().await;

    // Not even the copy: it is there without code, so that nothing passes by it.
    let libraries = home.data().join("plugin-state/libraries");
    for entry in fs::read_dir(&libraries).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let node = home.start().await;
    let plugin = node.plugin("pilot").unwrap();
    assert!(!plugin.is_loaded());
    assert!(plugin.quarantine().unwrap().reason.contains("cannot be loaded"));
    assert!(matches!(node.plugins.resume("pilot".to_owned()).await, Err(CommandError::Load { .. })));
    // A good file mends it.
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    assert_eq!(node.version("pilot").await.as_deref(), Some("2"));
    node.wait_for_health(State::Up);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_went_while_the_engine_was_down_retires_its_types() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    home.start().await.stop().await;
    fs::remove_file(home.file("pilot.so")).unwrap();
    let node = home.start().await;
    assert!(node.plugin("pilot").is_none());
    assert_eq!(home.state()["retired"], json!({ "pilot": "pilot" }));
    node.stop().await;
    // And its copy with it, at the next start.
    home.start().await.stop().await;
    assert_eq!(fs::read_dir(home.data().join("plugin-state/libraries")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_passed_its_check_is_not_checked_again_at_start() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    home.start().await.stop().await;
    // Shown by a description that only the state can know.
    home.edit_state(|state| state["files"]["pilot.so"]["descriptor"]["version"] = json!("remembered"));
    let node = home.start().await;
    node.wait_for_version("pilot", "remembered");
    node.stop().await;
    home.edit_state(|state| state["files"]["pilot.so"]["checked_by"] = json!("another engine"));
    let node = home.start().await;
    node.wait_for_version("pilot", "1");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_s_quarantine_outlives_a_restart_and_a_new_file() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;
    node.plugins.quarantine("pilot".to_owned(), "it lies".to_owned()).await.unwrap();
    assert_eq!(node.plugin("pilot").unwrap().quarantine().unwrap().reason, "it lies");
    let unknown = node.plugins.quarantine("pylot".to_owned(), String::new()).await.unwrap_err();
    assert_eq!(unknown.to_string(), "there is no plugin \"pylot\"; in use are: pilot");
    node.stop().await;

    let node = home.start().await;
    let plugin = node.plugin("pilot").unwrap();
    assert_eq!(plugin.quarantine().unwrap().reason, "it lies");
    assert!(!plugin.is_loaded(), "its code does not run, not even to be made");
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    assert!(node.plugin("pilot").unwrap().quarantine().is_some());
    let reason = node.wait_for_health(State::Degraded);
    assert!(reason.contains("pilot is quarantined since") && reason.contains("it lies"), "{reason}");
    assert!(node.metrics.render().contains("ingestion_plugin_quarantined{plugin=\"pilot\"} 1"));

    node.plugins.resume("pilot".to_owned()).await.unwrap();
    assert_eq!(node.version("pilot").await.as_deref(), Some("2"));
    node.wait_for_health(State::Up);
    let again = node.plugins.resume("pilot".to_owned()).await;
    assert_eq!(again, Err(CommandError::NotQuarantined("pilot".to_owned())));
    node.stop().await;
    let node = home.start().await;
    assert_eq!(node.version("pilot").await.as_deref(), Some("2"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantine_by_faults_outlives_a_restart_but_not_a_new_file() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;
    for _ in 0..3 {
        let plugin = node.plugin("pilot").unwrap();
        let fault = call(&node.plugins, Arc::clone(&plugin), "fail").await.unwrap_err();
        plugin.fault(&fault);
    }
    eventually("it is remembered", || home.state()["faulty"].as_object().unwrap().len() == 1);
    assert_eq!(node.listed("pilot.so").remove(0).state, Standing::Quarantined);
    node.stop().await;

    let node = home.start().await;
    assert!(node.plugin("pilot").unwrap().quarantine().unwrap().reason.contains("as told"));
    let bad = fs::read(home.file("pilot.so")).unwrap();
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    assert_eq!(node.version("pilot").await.as_deref(), Some("2"));
    // The same file again is the same file.
    move_in(&bad, home.path(), "pilot.so");
    node.wait_for_version("pilot", "1");
    assert!(node.plugin("pilot").unwrap().quarantine().is_some());
    node.plugins.resume("pilot".to_owned()).await.unwrap();
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    assert_eq!(home.state()["faulty"], json!({}));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_is_told_and_the_plugins_are_checked_anew() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    home.start().await.stop().await;
    fs::write(home.data().join("plugin-state/state.json"), b"{\"files\":").unwrap();
    let node = home.start().await;
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    let reason = node.wait_for_health(State::Degraded);
    assert!(reason.contains("was damaged"), "{reason}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_takes_no_plugin_with_it() {
    let home = Home::new();
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;
    let (dir, aside) = (folder(home.path()), home.path().join("aside"));
    fs::rename(&dir, &aside).unwrap();
    let reason = node.wait_for_health(State::Degraded);
    assert!(reason.contains("what was in use stays in use"), "{reason}");
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    fs::rename(&aside, &dir).unwrap();
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    node.wait_for_health(State::Up);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_api_only_declares_tables() {
    let mut home = Home::new();
    home.mode = Mode::DeclareOnly;
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;
    assert!(node.plugins.current().is_empty());
    assert_eq!(node.listed("pilot.so").remove(0).state, Standing::Declared);
    move_in(&home.made("other", "1", &[]), home.path(), "other.so");
    eventually("the other one is declared", || node.listed("other.so").len() == 1);
    assert_eq!(*home.declared.lock().unwrap(), ["pilot 1", "other 1"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_do_not_share_a_registry() {
    let home = Home::new();
    let node = home.start().await;
    let (data_dir, settings) = (home.data(), Request::List);
    assert!(matches!(control::ask::<Value>(&data_dir, &settings, |_| {}), Err(ClientError::NotRunning { .. })));
    // A socket that a killed engine left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(data_dir.join("control.sock")).unwrap());
    assert!(matches!(control::ask::<Value>(&data_dir, &settings, |_| {}), Err(ClientError::NotRunning { .. })));
    let served =
        Served { plugins: node.plugins.clone(), reprocessor: Arc::default(), replayer: None, wal: None, ledger: None };
    let control = Control::start(&data_dir, served).unwrap();
    let mode = fs::metadata(data_dir.join("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "1");

    let ask = |request: Request| {
        let data_dir = data_dir.clone();
        tokio::task::spawn_blocking(move || control::ask::<Value>(&data_dir, &request, |_| {}))
    };
    let listed = ask(Request::List).await.unwrap().unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&json!("pilot"), &json!("running")));
    let quarantine = Request::Quarantine { name: "pilot".to_owned(), reason: "why not".to_owned() };
    assert_eq!(ask(quarantine).await.unwrap().unwrap(), Value::Null);
    let refused = ask(Request::Reprocess { name: "pilot".to_owned() }).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("plugins resume pilot"), "{refused}");
    assert_eq!(ask(Request::Resume { name: "pilot".to_owned() }).await.unwrap().unwrap(), Value::Null);
    let refused = ask(Request::Resume { name: "nobody".to_owned() }).await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "there is no plugin \"nobody\"; in use are: pilot");
    let refused = ask(Request::Reprocess { name: "pilot".to_owned() }).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("ClickHouse"), "{refused}");

    // Neither a line that is none nor one without end keeps others from asking.
    for garbage in [b"{}\n".to_vec(), vec![b'x'; 1 << 20]] {
        let mut stream = std::os::unix::net::UnixStream::connect(data_dir.join("control.sock")).unwrap();
        // The server may hang up before it has read everything.
        stream.write_all(&garbage).ok();
    }
    ask(Request::List).await.unwrap().unwrap();
    control.stop().await;
    assert!(!data_dir.join("control.sock").exists());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_a_new_version_gives_up_is_another_one_s() {
    let home = Home::new();
    let pilot = home.made("pilot", "1", &[]);
    move_in(&pilot, home.path(), "pilot.so");
    let node = home.start().await;
    move_in(&replaced(&pilot, b"\"name\":\"pilot\"", b"\"name\":\"robot\""), home.path(), "robot.so");
    node.wait_for_refusal("robot.so");
    let other = replaced(&pilot, b"\"type\":\"pilot\"", b"\"type\":\"pylot\"");
    move_in(&replaced(&other, b"[\"pilot\"]", b"[\"pylot\"]"), home.path(), "pilot.so");
    node.wait_for_version("robot", "1");
    node.wait_for_health(State::Up);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_no_engine_runs_the_commands_work_on_what_it_remembers() {
    let home = Home::new();
    let setup = Setup::new(home.path());
    let run = |command: &str| {
        let (status, text) = setup.run(command);
        (status.success(), text)
    };
    assert_eq!(run("plugins list --json").1.trim(), "[]");
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    home.start().await.stop().await;

    let (ok, text) = run("plugins quarantine pilot --reason testing");
    assert!(ok && text.contains("no engine runs now"), "{text}");
    let (ok, text) = run("plugins list");
    assert!(ok && text.contains("no engine runs") && text.contains("testing (by operator"), "{text}");
    let (ok, text) = run("plugins quarantine nobody");
    assert!(!ok && text.contains("it knows: pilot"), "{text}");
    let node = home.start().await;
    assert_eq!(node.plugin("pilot").unwrap().quarantine().unwrap().reason, "testing");
    // The registry runs, and there is no socket: what is remembered is not touched under its feet.
    let (ok, text) = run("plugins resume pilot");
    assert!(!ok && text.contains("no control socket"), "{text}");
    node.stop().await;

    let (ok, text) = run("plugins resume pilot");
    assert!(ok && text.contains("plugins reprocess pilot"), "{text}");
    let (ok, text) = run("plugins resume pilot");
    assert!(!ok && text.contains("not quarantined"), "{text}");
    let (ok, text) = run("plugins reprocess pilot");
    assert!(!ok && text.contains("start the engine"), "{text}");
    let node = home.start().await;
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    node.stop().await;
}

#[test]
fn a_library_is_checked_by_hand_as_the_engine_does() {
    let home = Home::new();
    let setup = Setup::new(home.path());
    let good = pilot(home.path(), "pilot", "1", &[]);
    let (status, text) = setup.run(&format!("plugins check {}", good.display()));
    assert!(status.success() && text.contains("the plugin can be used"), "{text}");
    let (status, text) = setup.run(&format!("plugins check --json {}", good.display()));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(status.success() && report["descriptor"]["name"] == "pilot", "{text}");
    let bad = home.path().join("bad.so");
    fs::write(&bad, "no library").unwrap();
    let (status, text) = setup.run(&format!("plugins check {}", bad.display()));
    assert_eq!(status.code(), Some(1));
    assert!(text.contains("FAILED") && text.contains("cannot be used"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_plugin_is_swapped_like_others() {
    let mut home = Home::new();
    home.isolated = true;
    move_in(&home.made("pilot", "1", &[]), home.path(), "pilot.so");
    let node = home.start().await;
    assert_eq!(node.version("pilot").await.as_deref(), Some("1"));
    let crash = call(&node.plugins, node.plugin("pilot").unwrap(), "segfault").await.unwrap_err();
    assert_eq!(crash.kind(), "crash", "and here we are");
    move_in(&home.made("pilot", "2", &[]), home.path(), "pilot.so");
    node.wait_for_version("pilot", "2");
    assert_eq!(node.version("pilot").await.as_deref(), Some("2"));
    node.stop().await;
}

#[test]
fn a_path_that_is_too_long_for_a_socket_is_told() {
    let error = control::socket_path(&PathBuf::from("/").join("x".repeat(120))).unwrap_err().to_string();
    assert!(error.contains("at most 107") && error.contains("data_dir"), "{error}");
}

/// `bytes` with every `old` replaced by a `new` of the same length, which leaves a library a library.
fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, w)| *w == old).map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "it is there");
    for at in places {
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    bytes
}
