//! The fields for which the engine has a column, and what a redacted event must still be.
//!
//! What comes out of a plugin is read by the engine as if it had been sent: a text that has become too long, or a field that
//! the event's type needs and that is gone, would make the plugin faulty.

/// What the engine makes of a field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// It says which event this is, or when it was: never touched.
    Fixed,
    /// A text of at most so many bytes.
    Text(usize),
    /// `properties` or `context`.
    Object,
    /// A number, or one of a few words.
    Other,
    /// It has no column: it is stored as a property.
    Property,
}

/// The field `name` of an event of the type `kind`.
pub fn field(kind: &str, name: &str) -> Field {
    match (name, kind) {
        ("id" | "type" | "tenant_id" | "timestamp", _) => Field::Fixed,
        ("properties" | "context", _) => Field::Object,
        ("session_id" | "user_id" | "anonymous_id", _) => Field::Text(256),
        ("url" | "path" | "referrer", _) | ("selector" | "text", "click") => Field::Text(8192),
        ("user_agent", _) => Field::Text(2048),
        ("screen" | "locale" | "timezone", _) => Field::Text(64),
        ("title", "pageview") | ("element", "click") | ("name", "custom") => Field::Text(1024),
        ("load_time_ms", "pageview")
        | ("x" | "y", "click")
        | ("depth" | "direction", "scroll")
        | ("lcp" | "fid" | "inp" | "cls" | "ttfb" | "fcp" | "dom_content_loaded" | "load_complete", "performance") => {
            Field::Other
        }
        _ => Field::Property,
    }
}

/// Whether an event of some type may not be without the field: it is masked where others are removed.
pub fn is_needed(name: &str) -> bool {
    matches!(name, "url" | "path" | "name" | "element" | "selector" | "text")
}

/// Whether a path may begin with `name`.
///
/// # Errors
/// Why not, in words.
pub fn may_be_redacted(name: &str) -> Result<(), String> {
    const KINDS: [&str; 5] = ["pageview", "click", "scroll", "performance", "custom"];
    let found = KINDS.iter().map(|kind| field(kind, name)).find(|field| *field != Field::Property);
    match found {
        Some(Field::Text(_) | Field::Object) => Ok(()),
        Some(Field::Fixed) => Err(format!("cannot be redacted: `{name}` identifies the event, or says when it was")),
        Some(Field::Other) => Err(format!("cannot be redacted: `{name}` is a number, and says nothing of a person")),
        Some(Field::Property) | None => Err(format!(
            "begins with `{name}`, which is no field with a column; a field without a column is a property: write \
             `properties.{name}`"
        )),
    }
}
