//! Why an event was refused, for its sender.

use std::borrow::Cow;

/// Stable machine-readable reasons: they are part of the API, shown as `errors[].code`, and label a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventErrorCode {
    /// The event is not a JSON object.
    NotAnObject,
    /// The event's JSON is longer than the limit.
    EventTooLarge,
    /// `type` is none that this engine knows.
    UnknownType,
    /// A field that this type needs is not there.
    MissingField,
    /// A field has the wrong type, length, range or form.
    InvalidField,
    /// The same field stands twice.
    DuplicateField,
    /// `tenant_id` is not the tenant of the key.
    TenantMismatch,
    /// `timestamp` is older or further ahead than the engine accepts.
    TimestampOutOfRange,
}

impl EventErrorCode {
    /// The code as it is sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAnObject => "not_an_object",
            Self::EventTooLarge => "event_too_large",
            Self::UnknownType => "unknown_type",
            Self::MissingField => "missing_field",
            Self::InvalidField => "invalid_field",
            Self::DuplicateField => "duplicate_field",
            Self::TenantMismatch => "tenant_mismatch",
            Self::TimestampOutOfRange => "timestamp_out_of_range",
        }
    }
}

/// Why an event was refused: what is wrong, where, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct EventError {
    /// The stable code.
    pub code: EventErrorCode,
    /// In words, naming the field.
    pub detail: Cow<'static, str>,
}

impl EventError {
    pub(super) fn new(code: EventErrorCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into() }
    }

    pub(super) fn invalid(field: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(EventErrorCode::InvalidField, format!("\"{field}\" {problem}"))
    }

    pub(super) fn missing(detail: &'static str) -> Self {
        Self::new(EventErrorCode::MissingField, detail)
    }
}
