//! Dead letters: those on this node's disk, and what is told of any.

use std::{io, path::Path};

use super::Question;
use crate::{
    dead_letters::{self, read_files},
    ids::{TenantId, WalId},
    ledger::UNKNOWN,
};

/// What is told of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Whose event it is; none when that cannot be read.
    pub tenant: Option<TenantId>,
    /// Its name.
    pub letter_id: String,
    /// When the event was accepted, Unix milliseconds, and where it entered; none when that is not known.
    pub accepted: Option<(i64, (WalId, u64, u32))>,
    /// When it could not be delivered, Unix milliseconds.
    pub died_at_ms: i64,
    /// Where it failed.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// What became of it.
    pub state: String,
    /// Where it is.
    pub kept: String,
}

/// The letters of the event of `question` in the files of `folder`. Blocking.
///
/// # Errors
/// The file system's.
pub fn find(folder: &Path, question: &Question) -> io::Result<Vec<Letter>> {
    let kept = format!("on disk in {}", folder.display());
    let letters = read_files(folder)?.into_iter().filter(|letter| letter.event_id == question.event);
    let letters = letters.map(|letter| Letter { kept: kept.clone(), ..Letter::from(letter) });
    // One of which nobody knows whose it is may be the tenant's.
    let wanted =
        |letter: &Letter| question.tenant.is_none() || letter.tenant.is_none() || letter.tenant == question.tenant;
    Ok(letters.filter(wanted).collect())
}

impl From<dead_letters::Letter> for Letter {
    fn from(letter: dead_letters::Letter) -> Self {
        let place = (letter.wal_id, letter.wal_seq, letter.wal_ordinal);
        Self {
            tenant: known(letter.tenant_id),
            letter_id: letter.letter_id.to_string(),
            accepted: (!letter.wal_id.0.is_nil()).then_some((letter.received_at_ms, place)),
            died_at_ms: letter.died_at_ms,
            stage: letter.stage.as_str().to_owned(),
            reason: letter.reason,
            state: "held".to_owned(),
            kept: String::new(),
        }
    }
}

/// The tenant, where it could be read.
pub(super) fn known(tenant: TenantId) -> Option<TenantId> {
    (tenant != UNKNOWN).then_some(tenant)
}
