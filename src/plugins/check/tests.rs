#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Map, json};

use super::{
    CheckError, Limits, Outcome, Report, Request, Step,
    child::{self, TIME_LIMIT},
    serve_child,
};
use crate::plugins::library::fixture::{Fixture, plugin, quoted};

/// Set in a process that is the child of a check: the file.
const FILE: &str = "INGESTION_TEST_CHECK_FILE";

/// The child. Does nothing in a run of the tests.
#[test]
fn child_of_a_check() {
    if let Some(file) = std::env::var_os(FILE) {
        serve_child(&PathBuf::from(file)).unwrap();
    }
}

fn request() -> Request {
    let configs = Map::from_iter([("fixture".to_owned(), json!({ "rate": 5 }))]);
    Request { configs, limits: Limits { event_bytes: 64 << 10 } }
}

fn check_for(file: &Path, limit: Duration) -> Result<Report, CheckError> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "plugins::check::tests::child_of_a_check", "--nocapture"]).env(FILE, file);
    child::run(command, &request(), limit)
}

fn check(parts: &[(&str, &str)]) -> Result<Report, CheckError> {
    check_for(&plugin(parts).path, TIME_LIMIT)
}

fn problem(parts: &[(&str, &str)]) -> String {
    let report = check(parts).unwrap();
    report.problem().unwrap_or_else(|| panic!("{report}"))
}

fn described(json: &serde_json::Value) -> String {
    quoted(&json.to_string())
}

#[test]
fn a_good_plugin_passes_every_step() {
    let report = check(&[]).unwrap();
    assert!(report.ok, "{report}");
    let names: Vec<String> = report.steps.iter().map(|step| step.step.to_string()).collect();
    assert_eq!(
        names,
        ["file", "open", "describe", "schemas", "create", "health", "trial run", "leaks", "destroy"],
        "{report}"
    );
    assert_eq!(report.descriptor.as_ref().unwrap().name, "fixture");
    assert_eq!(report.abi_minor, Some(1));
    assert_eq!(report.sha256.as_ref().unwrap().len(), 64);
    assert!(report.problem().is_none() && report.warnings().next().is_none(), "{report}");
    let shown = report.to_string();
    assert!(shown.contains("  describe   ok       fixture 1; adds fixture\n"), "{shown}");
    assert!(shown.contains("with [plugins.config.fixture]"), "{shown}");
    assert!(shown.ends_with("the plugin can be used"), "{shown}");
}

#[test]
fn what_a_plugin_prints_does_not_disturb() {
    let report = check(&[("CREATE", "puts(\"{hello\"); fflush(stdout)")]).unwrap();
    assert!(report.ok, "{report}");
}

#[test]
fn each_step_has_its_problem() {
    let file = check_for(Path::new("/nowhere/a.so"), TIME_LIMIT).unwrap();
    assert!(file.problem().unwrap().starts_with("file: No such file"), "{file}");
    assert!(problem(&[("HEADER", "{7, 1, 1, 72}")]).starts_with("open: the header's magic is"));
    assert!(problem(&[("DESCRIPTION", "\"{}\"")]).starts_with("describe: the description is not the JSON"));
    let schema = json!({ "name": "fixture", "version": "1",
        "adds": [{ "type": "fixture", "schema": { "type": 5 }, "examples": [{ "type": "fixture" }] }] });
    assert!(problem(&[("DESCRIPTION", &described(&schema))]).starts_with("schemas: the schema of \"fixture\""));
    let refuses = problem(&[("CREATE", "say(failure, \"no\"); return NULL")]);
    assert!(refuses.starts_with("create: it does not start: no"), "{refuses}");
}

#[test]
fn a_plugin_is_given_its_configuration() {
    let given = "if (config.len != 10 || memcmp(config.data, \"{\\\"rate\\\":5}\", 10)) return NULL";
    assert!(check(&[("CREATE", given)]).unwrap().ok);
}

#[test]
fn examples_must_be_events_that_the_plugin_takes() {
    let with = |examples: serde_json::Value, more: &[(&str, &str)]| {
        let json = json!({ "name": "fixture", "version": "1", "adds": [{ "type": "fixture",
            "schema": { "properties": { "amount": { "type": "number" } } }, "examples": examples }] });
        let description = described(&json);
        problem(&[&[("DESCRIPTION", description.as_str())], more].concat())
    };
    let words = with(json!([{ "amount": 5 }]), &[]);
    assert!(words.starts_with("trial run: adds[0].examples[0] is no valid event: an event needs \"type\""), "{words}");
    let words = with(json!([{ "type": "fixture" }, { "type": "pageview", "path": "/" }]), &[]);
    assert!(words.starts_with("trial run: adds[0].examples[1] is of the type \"pageview\", and should"), "{words}");
    let words = with(json!([{ "type": "fixture", "amount": "5" }]), &[]);
    assert!(words.contains("adds[0].examples[0] does not fit its own schema: /amount: \"5\" is not"), "{words}");
    let reject =
        r#"verdict->outcome = INGESTION_OUTCOME_REJECT; verdict->first = text("no"); verdict->second = text("bad")"#;
    let words = with(json!([{ "type": "fixture" }]), &[("ON_EVENT", reject)]);
    assert!(words.contains("adds[0].examples[0]: it rejects its own example, no: bad"), "{words}");
}

#[test]
fn output_that_is_no_event_is_found() {
    let replace = |json: &str| {
        let first = quoted(json);
        problem(&[(
            "ON_EVENT",
            &format!("verdict->outcome = INGESTION_OUTCOME_REPLACE; verdict->first = text({first})"),
        )])
    };
    let words = replace("{\"type\":");
    assert!(words.contains("what it puts in its place is no valid event: an event must be a JSON object"), "{words}");
    let words = replace("{\"type\":\"click\",\"text\":\"a\"}");
    assert!(words.contains("what it puts in its place is no valid event: \"type\" was \"fixture\""), "{words}");
    assert!(
        problem(&[("ON_EVENT", "")]).contains("adds[0].examples[0]: its output is not usable: events[0]: it got no")
    );
}

#[test]
fn trouble_with_broken_examples_is_a_warning() {
    // The amount is gone.
    let fails = "if (!memmem(event->json.data, event->json.len, \"amount\", 6)) { say(failure, \"no amount\"); \
                 return INGESTION_STATUS_PANICKED; } verdict->outcome = INGESTION_OUTCOME_KEEP";
    let report = check(&[("ON_EVENT", fails)]).unwrap();
    assert!(report.ok, "{report}");
    let warning = report.warnings().next().unwrap();
    assert_eq!((warning.step, warning.outcome), (Step::Trial, Outcome::Warning));
    assert!(
        warning.detail.contains("adds[0].examples[0] with \"amount\" left out: it panicked: no amount"),
        "{report}"
    );
}

#[test]
fn leaks_are_found_also_when_they_follow_errors() {
    let always = problem(&[("ON_EVENT", "filled(verdict, 'x', 48); verdict->outcome = 1"), ("FREE", "")]);
    assert!(always.starts_with("leaks: it leaks ") && always.contains(" bytes a call"), "{always}");
    let after_errors = "if (!memmem(event->json.data, event->json.len, \"amount\", 6)) { filled(verdict, 'x', 48); \
                        return INGESTION_STATUS_FAILED; } verdict->outcome = INGESTION_OUTCOME_KEEP";
    let words = problem(&[("ON_EVENT", after_errors), ("FREE", "")]);
    assert!(words.starts_with("leaks: it leaks "), "{words}");
    // The same, freed.
    let report = check(&[("ON_EVENT", "filled(verdict, 'x', 48); verdict->outcome = 1")]).unwrap();
    assert!(report.ok, "{report}");
}

#[test]
fn a_crash_names_its_step_and_signal() {
    let crash = "*(volatile int *)8 = 1";
    for (part, code, step) in [
        ("DESCRIBE", "*(volatile int *)8 = 1; return text(DESCRIPTION)", Step::Describe),
        ("CREATE", crash, Step::Create),
        ("ON_EVENT", crash, Step::Trial),
        ("FREE", crash, Step::Trial),
        ("HEALTH", "*(volatile int *)8 = 1; return INGESTION_STATUS_OK", Step::Health),
        ("DESTROY", crash, Step::Destroy),
    ] {
        let error = check(&[(part, code)]).unwrap_err();
        let CheckError::Crashed { signal, step: crashed, .. } = &error else { panic!("{part}: {error}") };
        assert_eq!((signal.as_str(), *crashed), ("SIGSEGV", step), "{part}");
        let words = error.to_string();
        assert!(words.starts_with(&format!("it crashed with SIGSEGV while the step \"{step}\" was taken")), "{words}");
    }
}

#[test]
fn last_words_are_shown() {
    let words = check(&[("CREATE", "fputs(\"my assertion\\n\", stderr); abort()")]).unwrap_err().to_string();
    assert!(words.starts_with("it crashed with SIGABRT while the step \"create\""), "{words}");
    assert!(words.ends_with("its last words: my assertion"), "{words}");
    let words = check(&[("CREATE", "_exit(3)")]).unwrap_err().to_string();
    assert!(words.starts_with("it ended the process (exit code 3) while the step \"create\" was taken"), "{words}");
}

#[test]
fn too_much_memory_ends_the_child_alone() {
    let report =
        check(&[("CREATE", "if (malloc((size_t)5 << 30) == NULL) { say(failure, \"no memory\"); return NULL; }")]);
    assert!(report.unwrap().problem().unwrap().contains("it does not start: no memory"));
}

#[test]
fn a_hang_is_ended_and_names_its_step() {
    let hang = "for (;;) pause()";
    for (part, code, step) in [
        ("DESCRIBE", "for (;;) pause(); return text(DESCRIPTION)", Step::Describe),
        ("CREATE", hang, Step::Create),
        ("ON_EVENT", hang, Step::Trial),
        ("FREE", hang, Step::Trial),
        ("HEALTH", "for (;;) pause(); return INGESTION_STATUS_OK", Step::Health),
        ("DESTROY", hang, Step::Destroy),
    ] {
        let hanging: Fixture = plugin(&[(part, code)]);
        // Long enough for a loaded machine to come as far as that.
        let error = check_for(&hanging.path, Duration::from_secs(6)).unwrap_err();
        let words = format!("it hung: after 6s the step \"{step}\" was still being taken");
        assert_eq!(error.to_string(), words, "{part}");
    }
}

#[test]
fn processes_that_a_plugin_leaves_behind_do_not_hold_the_check() {
    let forks = "if (fork() == 0) for (;;) pause(); raise(SIGKILL)";
    let error = check(&[("CREATE", forks)]).unwrap_err();
    assert!(matches!(error, CheckError::Crashed { step: Step::Create, .. }), "{error}");
}
