//! What can be checked of a plugin without an engine.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::engine::{Engine, Input, is_name};
use crate::{Purpose, abi::descriptor::Descriptor};

/// All that is wrong with the plugin.
pub(super) fn problems(descriptor: &Descriptor, engine: &Engine) -> Vec<String> {
    let mut problems = Vec::new();
    let mut name = |what: &str, name: &str, most: usize| {
        if !is_name(name, most) {
            problems.push(format!(
                "{what} `{name}` must be lower-case letters, digits and _, a letter first, at most {most} bytes"
            ));
        }
    };
    name("the name", &descriptor.name, 40);
    for added in &descriptor.adds {
        name("the type", &added.name, 64);
    }
    for table in &descriptor.tables {
        name("the table", &table.name, 64);
        for column in &table.columns {
            name("the column", &column.name, 64);
        }
    }
    for view in &descriptor.views {
        name("the view", &view.name, 64);
    }

    if descriptor.adds.is_empty() && descriptor.enriches.is_empty() {
        problems.push("the plugin adds no type and enriches none: it would never be called".to_owned());
    }
    let knows = |kind: &String| {
        descriptor.adds.iter().any(|added| added.name == *kind)
            || descriptor.enriches.iter().any(|enriched| enriched == kind || enriched == "*")
    };
    let uses = descriptor.tables.iter().map(|table| ("table", &table.name, &table.types));
    for (what, name, types) in uses.chain(descriptor.views.iter().map(|view| ("view", &view.name, &view.types))) {
        for kind in types.iter().filter(|kind| !knows(kind)) {
            problems.push(format!(
                "the {what} `{name}` holds events of `{kind}`, which the plugin neither adds nor enriches"
            ));
        }
    }
    for table in &descriptor.tables {
        for column in table.order_by.iter().filter(|key| !table.columns.iter().any(|column| column.name == **key)) {
            problems.push(format!("the table `{}` is ordered by `{column}`, which is none of its columns", table.name));
        }
    }
    for view in &descriptor.views {
        if let Some(from) =
            view.from.as_ref().filter(|from| !descriptor.tables.iter().any(|table| table.name == **from))
        {
            problems.push(format!("the view `{}` reads the table `{from}`, which the plugin does not have", view.name));
        }
    }

    for added in &descriptor.adds {
        if added.examples.is_empty() {
            problems.push(format!("the type `{}` has no example", added.name));
        }
        for example in &added.examples {
            problems.extend(try_example(example, Some(&added.name), engine));
        }
    }
    for example in &descriptor.examples {
        problems.extend(try_example(example, None, engine));
    }
    problems
}

/// What must not change when an event is replaced.
#[derive(Deserialize, PartialEq)]
struct Fixed {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    tenant_id: Option<String>,
}

/// serde would take an array of three for them too.
fn fixed(json: &str) -> Result<Fixed, String> {
    if json.trim_ascii_start().starts_with('{') {
        serde_json::from_str(json).map_err(|error| error.to_string())
    } else {
        Err("it is no JSON object".to_owned())
    }
}

fn try_example(example: &RawValue, kind: Option<&str>, engine: &Engine) -> Option<String> {
    let json = example.get();
    let wrong = |problem: String| Some(format!("{problem}: {json}"));
    let sent = match fixed(json) {
        Ok(sent) => sent,
        Err(error) => return wrong(format!("an example is not an event ({error})")),
    };
    if sent.kind.is_none() || (kind.is_some() && sent.kind.as_deref() != kind) {
        return wrong(format!("an example of `{}` has another type", kind.unwrap_or("any type")));
    }
    let verdict = match engine.process(&[Input::new(json.to_owned())], Purpose::CHECK) {
        Ok(mut verdicts) => verdicts.pop()?,
        Err(fault) => return wrong(format!("{fault}, with the example")),
    };
    if let (Some(code), Some(detail)) = (verdict.code(), verdict.detail()) {
        return wrong(format!("an example is rejected as `{code}` ({detail})"));
    }
    let replacement = verdict.replacement()?;
    match fixed(replacement) {
        Err(error) => wrong(format!("an example is replaced by `{replacement}`, which is not an event ({error})")),
        Ok(new) => {
            let kept = |new: &Option<String>, old: &Option<String>| new.is_none() || new == old;
            if kept(&new.id, &sent.id) && kept(&new.kind, &sent.kind) && kept(&new.tenant_id, &sent.tenant_id) {
                None
            } else {
                wrong(format!("an example is replaced by `{replacement}`, with another id, type or tenant_id"))
            }
        }
    }
}
