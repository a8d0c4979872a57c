//! The plugin under the address and undefined-behaviour sanitizers, with events that are cut off anywhere.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// As many ways through the code as fit into few bytes.
const EVENTS: [&str; 5] = [
    r#"{"type":"pageview","url":"https://a.test/?utm_source=news&utm_medium=e%2Dmail&utm_term=%f0%9f%8c&x=%4","n":1}"#,
    r#"{ "a" : [ { "url" : "?utm_source=no" } , "]}" ] , "\u0075rl" : "\/?utm_source\u003dn\u00e9\ud83c\udf08\"\\" }"#,
    r#"{"utm_source":"mine","url":"?a&utm_source=theirs&utm_medium=&&utm_medium=+%20%#utm_term=x","p":{"q":"\\"}}"#,
    r#"{"url":"?utm_source=\ud83cx\udf08\u12&utm_term=%c3%28%ed%a0%80%f4%90%80%80"}"#,
    r#"{"url":null,"url":"?utm_content=%00%1f%7f%22%5c"}"#,
];

#[test]
fn reads_nothing_that_it_was_not_lent() {
    let driver = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
    let sanitizers = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    if utm_c::compile("tests/driver.c", &sanitizers, &driver).is_err() {
        eprintln!("no sanitizers here: only the output is looked at");
        utm_c::compile("tests/driver.c", &[], &driver).unwrap();
    }

    let mut lines: Vec<String> = Vec::new();
    for event in EVENTS {
        for cut in 0..=event.len() {
            lines.push(event[..cut].to_owned());
            lines.push(event[cut..].to_owned());
        }
    }
    // A value that is cut in the middle of a character, wherever its limit falls, and one that grows most.
    for at in 0..5 {
        lines.push(format!(r#"{{"url":"?utm_term={}{}"}}"#, "x".repeat(at), "\u{1f308}".repeat(100)));
    }
    let worst: Vec<String> = ["source", "medium", "campaign", "term", "content"]
        .iter()
        .map(|name| format!("utm_{name}={}", "%1f".repeat(300)))
        .collect();
    lines.push(format!(r#"{{"url":"?{}"}}"#, worst.join("&")));
    lines.push(format!(r#"{{"a":{}1{},"url":"?utm_term=deep"}}"#, "[".repeat(10_000), "]".repeat(10_000)));

    let mut child =
        Command::new(&driver).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
    drop(stdin);
    let result = child.wait_with_output().unwrap();
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));

    let output = String::from_utf8(result.stdout).unwrap();
    let answers: Vec<&str> = output.lines().collect();
    assert_eq!(answers.len(), lines.len());
    let mut replaced = 0;
    for (sent, answer) in lines.iter().zip(answers) {
        // What is not JSON may be kept or not: the engine never sends it.
        if serde_json::from_str::<serde_json::Value>(sent).is_ok() && !answer.is_empty() {
            serde_json::from_str::<serde_json::Value>(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
            replaced += 1;
        }
    }
    // The whole event stands among the cut ones twice. The fourth has \u12, which is no JSON.
    assert_eq!(replaced, 2 * 4 + 5 + 1);
    // Deeper than the JSON library here would read.
    assert!(output.ends_with("\"utm_term\":\"deep\"}\n"));
}
