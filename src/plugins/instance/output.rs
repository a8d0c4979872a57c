//! What a call returned, held against the contract.

use ingestion_plugin_abi::{self as abi, Outcome};

use super::Limits;
use crate::plugins::{
    call::{Fault, Verdict},
    descriptor::is_name,
    library::lent,
};

/// Most bytes of a code or a reason: part of the contract.
const CODE_BYTES: usize = 64;

/// Of a detail, the bytes that a sender is told: a request with thousands of bad events must not have an answer much
/// larger than itself.
const DETAIL_SHOWN: usize = 1024;

/// Most bytes of a detail. One may quote a value of the event, escaped, so a long one is cut and not a fault; above this
/// it is garbage.
const DETAIL_BYTES: usize = 1 << 20;

/// Reads the verdicts of one call. `input` is the number of bytes that went in.
///
/// # Safety
/// As for [`lent`]: what the verdicts point to can be read until this returns.
pub(in crate::plugins) unsafe fn read(
    raw: &[abi::Verdict],
    input: usize,
    limits: Limits,
) -> Result<Vec<Verdict>, Fault> {
    let mut reader = Reader { limits, left: limits.call_bytes(input), allowed: limits.call_bytes(input) };
    let mut verdicts = Vec::with_capacity(raw.len());
    for (index, verdict) in raw.iter().enumerate() {
        // SAFETY: the caller's promise.
        let verdict = unsafe { reader.verdict(verdict) };
        let name = |problem| Fault::BadOutput { problem: format!("events[{index}]: {problem}") };
        verdicts.push(verdict.map_err(name)?);
    }
    Ok(verdicts)
}

struct Reader {
    limits: Limits,
    /// Bytes that the call may still return.
    left: usize,
    allowed: usize,
}

impl Reader {
    unsafe fn verdict(&mut self, raw: &abi::Verdict) -> Result<Verdict, String> {
        // SAFETY: the caller's promise, in every arm.
        unsafe {
            match raw.outcome {
                Outcome::KEEP => Ok(Verdict::Keep),
                Outcome::REPLACE => self.text("its JSON", raw.first, self.limits.event_bytes).and_then(|json| {
                    if json.is_empty() {
                        Err("it is replaced by nothing".to_owned())
                    } else {
                        Ok(Verdict::Replace(json))
                    }
                }),
                Outcome::REJECT => {
                    let code = self.code("the code", raw.first)?;
                    Ok(Verdict::Reject { code, detail: self.detail(raw.second)? })
                }
                Outcome::DROP => Ok(Verdict::Drop { reason: self.code("the reason", raw.first)? }),
                Outcome::NONE => Err("it got no verdict".to_owned()),
                Outcome(other) => Err(format!("its outcome is {other}, which is none")),
            }
        }
    }

    unsafe fn text(&mut self, what: &str, bytes: abi::Bytes, most: usize) -> Result<String, String> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { lent(bytes, most) }.map_err(|problem| format!("{what} has {problem}"))?;
        self.spend(bytes.len())?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(format!("{what} is not UTF-8 (byte {})", error.valid_up_to())),
        }
    }

    unsafe fn code(&mut self, what: &str, bytes: abi::Bytes) -> Result<String, String> {
        // SAFETY: the caller's promise.
        let code = unsafe { self.text(what, bytes, CODE_BYTES) }?;
        if is_name(&code, CODE_BYTES) {
            return Ok(code);
        }
        Err(format!("{what} is {code:?}; it must be a-z, 0-9 and _, a letter first, at most {CODE_BYTES} bytes"))
    }

    unsafe fn detail(&mut self, bytes: abi::Bytes) -> Result<String, String> {
        // SAFETY: the caller's promise.
        let bytes = unsafe { lent(bytes, DETAIL_BYTES) }.map_err(|problem| format!("the detail has {problem}"))?;
        let shown = bytes.get(..DETAIL_SHOWN).unwrap_or(bytes);
        self.spend(shown.len())?;
        match std::str::from_utf8(shown) {
            Ok(text) if shown.len() == bytes.len() => Ok(text.to_owned()),
            Ok(text) => Ok(format!("{text}...")),
            // Cut within a character.
            Err(error) if error.error_len().is_none() && shown.len() < bytes.len() => {
                let text = shown.get(..error.valid_up_to()).unwrap_or_default();
                Ok(format!("{}...", String::from_utf8_lossy(text)))
            }
            Err(error) => Err(format!("the detail is not UTF-8 (byte {})", error.valid_up_to())),
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(format!("with it the call returned more than the {} bytes allowed", self.allowed)),
        }
    }
}
