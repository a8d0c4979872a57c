//! What stands in the place of what was there.

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// What a masked value is replaced by.
pub const MASK: &str = "***";

/// Bytes of a hash that are kept: 128 bits tell any number of people apart, and take half the room in every row.
const HASH_BYTES: usize = 16;

/// A block of SHA-256, as HMAC pads its key to.
const BLOCK: usize = 64;

/// `mode` in the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is gone.
    Remove,
    /// `***` stands there.
    #[default]
    Mask,
    /// A keyed hash stands there: the same for the same value of the same tenant, so that it can still be counted.
    Hash,
}

/// Makes replacements.
#[derive(Clone)]
pub enum Replacement {
    /// See [`Mode::Remove`].
    Remove,
    /// See [`Mode::Mask`].
    Mask,
    /// See [`Mode::Hash`].
    Hash(Box<Hmac>),
}

impl Replacement {
    /// What stands in a text in the place of `value`.
    pub fn text(&self, tenant: [u8; 16], value: &str) -> String {
        match self {
            Self::Remove => String::new(),
            Self::Mask => MASK.to_owned(),
            Self::Hash(hmac) => hmac.hex(tenant, value),
        }
    }
}

/// HMAC-SHA-256 (RFC 2104) with its key worked in.
#[derive(Clone)]
pub struct Hmac {
    inner: Sha256,
    outer: Sha256,
}

impl Hmac {
    /// With this key.
    pub fn new(key: &[u8]) -> Self {
        let mut block = [0; BLOCK];
        let hashed;
        let key = if key.len() > BLOCK {
            hashed = Sha256::digest(key);
            hashed.as_slice()
        } else {
            key
        };
        for (to, from) in block.iter_mut().zip(key) {
            *to = *from;
        }
        let padded = |pad: u8| Sha256::new_with_prefix(block.map(|byte| byte ^ pad));
        Self { inner: padded(0x36), outer: padded(0x5c) }
    }

    /// The hash of a value of a tenant: another tenant's is another, so that nobody can be followed from one to the next.
    fn hex(&self, tenant: [u8; 16], value: &str) -> String {
        let hash = self.of(&[&tenant, value.as_bytes()]);
        hash.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut inner = self.inner.clone();
        for part in parts {
            inner.update(part);
        }
        self.outer.clone().chain_update(inner.finalize()).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_hash_is_that_of_the_standard() {
        // RFC 4231, cases 1, 2 and 6.
        for (key, data, expected) in [
            (&[0x0b; 20][..], &b"Hi There"[..], "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            assert_eq!(hex(&Hmac::new(key).of(&[data])), expected);
        }
    }

    #[test]
    fn tenants_do_not_share_hashes() {
        let hmac = Hmac::new(b"a key of 16 bytes");
        assert_eq!(hmac.hex([1; 16], "x"), hmac.hex([1; 16], "x"));
        assert_ne!(hmac.hex([1; 16], "x"), hmac.hex([2; 16], "x"));
        assert_eq!(hmac.hex([1; 16], "x").len(), 32);
    }
}
