//! `plugins list` as a table.

use crate::{
    plugins::registry::{Listed, Standing},
    table::aligned,
};

const HEAD: [&str; 7] = ["NAME", "VERSION", "FILE", "SHA256", "TYPES", "STATE", "REASON"];

/// Digits of a sum that tell files apart.
const SUM: usize = 12;

/// A line for each file, aligned; or that there is none.
pub(super) fn table(listed: &[Listed]) -> String {
    let rows: Vec<_> = listed.iter().map(row).collect();
    aligned(HEAD, &rows, "no plugins\n")
}

fn row(listed: &Listed) -> [String; 7] {
    let or_dash = |text: Option<&String>| text.map_or("-", String::as_str).to_owned();
    let sum = listed.sha256.as_ref().map(|sum| sum.chars().take(SUM).collect());
    let types: Vec<&str> = listed.adds.iter().chain(&listed.enriches).map(String::as_str).collect();
    let state = match listed.state {
        Standing::Running => "running",
        Standing::Quarantined => "quarantined",
        Standing::Declared => "declared",
        Standing::Refused => "refused",
        Standing::Stopped => "stopped",
    };
    let mut reason = listed.reason.clone().unwrap_or_default();
    if let (Some(by), Some(since)) = (listed.by, listed.since) {
        reason = format!("{reason} (by {by}, since {})", since.round(jiff::Unit::Second).unwrap_or(since));
    }
    [
        or_dash(listed.name.as_ref()),
        or_dash(listed.version.as_ref()),
        listed.file.clone(),
        or_dash(sum.as_ref()),
        if types.is_empty() { "-".to_owned() } else { types.join(",") },
        state.to_owned(),
        reason.replace('\n', " "),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn columns_are_aligned_and_what_is_not_known_is_a_dash() {
        assert_eq!(table(&[]), "no plugins\n");
        let listed = [
            r#"{"file": "p.so", "name": "purchase", "version": "1.0", "sha256": "0123456789abcdef", "adds": ["purchase"],
                "enriches": ["click"], "state": "quarantined", "reason": "totals\nare wrong", "by": "operator",
                "since": "2026-01-02T03:04:05.678Z"}"#,
            r#"{"file": "broken.so", "name": null, "version": null, "sha256": null, "adds": [], "enriches": [],
                "state": "refused", "reason": "not ELF", "by": null, "since": null}"#,
        ];
        let listed: Vec<Listed> = listed.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
        assert_eq!(
            table(&listed),
            "NAME      VERSION  FILE       SHA256        TYPES           STATE        REASON\n\
             purchase  1.0      p.so       0123456789ab  purchase,click  quarantined  \
             totals are wrong (by operator, since 2026-01-02T03:04:06Z)\n\
             -         -        broken.so  -             -               refused      not ELF\n"
        );
    }
}
