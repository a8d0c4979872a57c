//! What becomes of an event.

use std::borrow::Cow;

use serde::Serialize;

use crate::abi;

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Keep,
    Replace(String),
    Reject(Rejection),
    Drop(Cow<'static, str>),
    Fail(String),
}

impl Verdict {
    /// It is good as it is.
    pub fn keep() -> Self {
        Self(Kind::Keep)
    }

    /// It is good, with this in its place: an object with the same `id`, `type` and `tenant_id`, or without them. A value
    /// that cannot be written as JSON (a map whose keys are not texts) is a fault, as [`Verdict::fail`] is.
    pub fn replace<T: Serialize + ?Sized>(event: &T) -> Self {
        match serde_json::to_string(event) {
            Ok(json) => Self::replace_json(json),
            Err(error) => Self::fail(format!("the replacement cannot be written as JSON: {error}")),
        }
    }

    /// As [`Verdict::replace`], with JSON that is ready.
    pub fn replace_json(json: String) -> Self {
        Self(Kind::Replace(json))
    }

    /// It is bad, and its sender is told so: see [`Rejection::new`].
    pub fn reject(code: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Rejection::new(code, detail).into()
    }

    /// It is not wanted, and its sender is told "accepted". `reason` has the form of a code, and is in the
    /// engine's log at level debug; the engine counts what a plugin drops.
    pub fn drop(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(Kind::Drop(reason.into()))
    }

    /// The plugin cannot do its work. It is a fault of the plugin, not of the event: no verdict of this call counts, and the
    /// engine sets the events of the call aside.
    pub fn fail(message: impl Into<String>) -> Self {
        Self(Kind::Fail(message.into()))
    }

    /// Whether it is [`Verdict::keep`].
    pub fn is_keep(&self) -> bool {
        self.0 == Kind::Keep
    }

    /// What replaces the event, as the text that was made.
    pub fn replacement(&self) -> Option<&str> {
        match &self.0 {
            Kind::Replace(json) => Some(json),
            _ => None,
        }
    }

    /// What replaces the event. `Null` if nothing does.
    pub fn replaced(&self) -> serde_json::Value {
        self.replacement().and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
    }

    /// Code of a rejection.
    pub fn code(&self) -> Option<&str> {
        match &self.0 {
            Kind::Reject(rejection) => Some(&rejection.code),
            _ => None,
        }
    }

    /// Words of a rejection.
    pub fn detail(&self) -> Option<&str> {
        match &self.0 {
            Kind::Reject(rejection) => Some(&rejection.detail),
            _ => None,
        }
    }

    /// Reason of a drop.
    pub fn reason(&self) -> Option<&str> {
        match &self.0 {
            Kind::Drop(reason) => Some(reason),
            _ => None,
        }
    }
}

impl From<Rejection> for Verdict {
    fn from(rejection: Rejection) -> Self {
        Self(Kind::Reject(rejection))
    }
}

impl From<Result<Verdict, Rejection>> for Verdict {
    fn from(result: Result<Verdict, Rejection>) -> Self {
        result.unwrap_or_else(Self::from)
    }
}

/// Why an event is bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub(crate) code: Cow<'static, str>,
    pub(crate) detail: Cow<'static, str>,
}

impl Rejection {
    /// `code` (`[a-z][a-z0-9_]*`, at most 64 bytes) is what a program can rely on; `detail` says in words what is wrong and
    /// how to mend it.
    pub fn new(code: impl Into<Cow<'static, str>>, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), detail: detail.into() }
    }
}

/// Where a plugin puts its verdicts, one for each event, in their order.
///
/// They go straight to where the engine reads them: a kept event costs no allocation.
#[derive(Debug)]
pub struct Verdicts<'a> {
    slots: &'a mut [abi::Verdict],
    given: usize,
    /// What the slots point to. A `String` keeps its bytes in place when it is moved.
    owned: Vec<String>,
    failed: Option<String>,
}

impl<'a> Verdicts<'a> {
    pub(crate) fn new(slots: &'a mut [abi::Verdict]) -> Self {
        slots.fill(abi::Verdict::NONE);
        Self { slots, given: 0, owned: Vec::new(), failed: None }
    }

    /// Adds the verdict on the next event.
    pub fn push(&mut self, verdict: impl Into<Verdict>) {
        let Verdict(kind) = verdict.into();
        let (outcome, first, second) = match kind {
            Kind::Keep => (abi::Outcome::KEEP, abi::Bytes::EMPTY, abi::Bytes::EMPTY),
            Kind::Replace(json) => (abi::Outcome::REPLACE, self.hold(json.into()), abi::Bytes::EMPTY),
            Kind::Reject(Rejection { code, detail }) => (abi::Outcome::REJECT, self.hold(code), self.hold(detail)),
            Kind::Drop(reason) => (abi::Outcome::DROP, self.hold(reason), abi::Bytes::EMPTY),
            Kind::Fail(message) => {
                self.failed.get_or_insert(message);
                (abi::Outcome::NONE, abi::Bytes::EMPTY, abi::Bytes::EMPTY)
            }
        };
        if let Some(slot) = self.slots.get_mut(self.given) {
            *slot = abi::Verdict { outcome, first, second, ..abi::Verdict::NONE };
        }
        self.given += 1;
    }

    fn hold(&mut self, text: Cow<'static, str>) -> abi::Bytes {
        match text {
            Cow::Borrowed(text) => abi::Bytes::of(text.as_bytes()),
            Cow::Owned(text) => {
                let bytes = abi::Bytes::of(text.as_bytes());
                self.owned.push(text);
                bytes
            }
        }
    }

    /// Ends the call: what the slots point to, to be kept until the engine has read them.
    pub(crate) fn finish(self) -> Result<Vec<String>, String> {
        let expected = self.slots.len();
        let failed = self.failed.or_else(|| {
            (self.given != expected).then(|| {
                format!("it gave {} verdicts for {expected} events: `process` must push one for each", self.given)
            })
        });
        match failed {
            None => Ok(self.owned),
            Some(words) => {
                self.slots.fill(abi::Verdict::NONE);
                Err(words)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_events_cost_no_allocation() {
        let mut slots = [abi::Verdict::NONE; 100];
        let mut verdicts = Verdicts::new(&mut slots);
        for at in 0..100 {
            verdicts.push(if at % 2 == 0 { Verdict::keep() } else { Verdict::drop("bot") });
        }
        assert_eq!(verdicts.finish().map(|owned| owned.capacity()), Ok(0));
        assert!(slots.iter().all(|slot| slot.owner.is_null()));
    }

    #[test]
    fn nothing_is_said_after_a_failure() {
        let mut slots = [abi::Verdict::NONE; 2];
        let mut verdicts = Verdicts::new(&mut slots);
        verdicts.push(Verdict::keep());
        verdicts.push(Verdict::fail("no connection"));
        verdicts.push(Verdict::fail("another"));
        assert_eq!(verdicts.finish(), Err("no connection".to_owned()));
        assert!(slots.iter().all(|slot| slot.outcome == abi::Outcome::NONE));
    }
}
