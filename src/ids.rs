//! Identifiers as types of their own, so that no two of them can be swapped by mistake.

use std::fmt;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// A customer: the only owner that a key can write as.
    TenantId
);
uuid_id!(
    /// One event, as its sender named it, or made here (UUIDv7) when it did not.
    EventId
);
uuid_id!(
    /// One opening of a write-ahead log. New (UUIDv7) at every open, so that a log that was emptied, restored from
    /// a copy or cloned to another disk can never be taken for the one that wrote a sequence number before.
    WalId
);

/// Position of a record in the write-ahead log: grows by one a record and never repeats in one data folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct WalSeq(pub u64);

impl fmt::Display for WalSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
