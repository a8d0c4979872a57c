//! API keys: what is held of them, and what one of them may do.
//!
//! A key is 256 random bits. It is held as its SHA-256: a slow hash defends guessable passwords, and here it would cost
//! throughput and add no safety.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What the keys that this engine makes begin with, so that a leaked one can be found by a scanner.
pub const PREFIX: &str = "iek_";

/// Random bytes of a key.
const RANDOM_BYTES: usize = 32;

/// Most bytes of a key that somebody else made.
const MOST_BYTES: usize = 256;

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySum(pub [u8; 32]);

impl KeySum {
    /// The sum of `key`.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// The first eight digits: enough to tell the keys of a tenant apart, and no help in guessing one.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let digits: Vec<u8> =
            hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
        let (pairs, rest) = digits.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
        if rest.is_empty() { bytes.try_into().ok().map(Self) } else { None }
    }
}

impl fmt::Display for KeySum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeySum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Makes a key. It is shown once and never held.
///
/// # Errors
/// The system has no random numbers to give.
pub fn generate() -> Result<String, rand::rand_core::OsError> {
    let mut random = [0; RANDOM_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut random)?;
    Ok(format!("{PREFIX}{}", KeySum(random)))
}

/// Whether `key` can be a key at all: visible ASCII of a sane length, and of the right one if it begins like ours.
pub fn is_well_formed(key: &str) -> bool {
    let ours = |digits: &str| digits.len() == 2 * RANDOM_BYTES && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (1..=MOST_BYTES).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_graphic())
        && key.strip_prefix(PREFIX).is_none_or(ours)
}

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending events.
    Ingest,
    /// Looking at the tenant's own settings, usage and figures.
    Read,
    /// All that `read` may, and what changes something for the tenant.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Read, Self::Admin];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Ingest => 1,
            Self::Read => 2,
            Self::Admin => 4,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|scope| scope.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is no scope; give \"ingest\", \"read\" or \"admin\""))
    }
}

/// The scopes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether the key may be used for `scope`.
    pub const fn allow(self, scope: Scope) -> bool {
        let granted = if self.0 & Scope::Admin.bit() != 0 { self.0 | Scope::Read.bit() } else { self.0 };
        granted & scope.bit() != 0
    }

    /// As written, in the order of [`Scope::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.0 & scope.bit() != 0)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// An origin that a key may be used from: `https://shop.example`, or `https://*.shop.example` for every host below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(Box<str>);

impl Origin {
    /// Whether `origin`, a request's `Origin` header, is one of those meant.
    pub fn allows(&self, origin: &str) -> bool {
        let Some((scheme, domain)) = self.0.split_once("*.") else { return self.0.eq_ignore_ascii_case(origin) };
        let origin = origin.to_ascii_lowercase();
        let Some(host) = origin.strip_prefix(scheme) else { return false };
        host.strip_suffix(domain).is_some_and(|below| {
            below.strip_suffix('.').is_some_and(|below| !below.is_empty() && !below.contains(['/', '@', ':']))
        })
    }

    /// As written, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let wrong = || {
            format!(
                "{text:?} is no origin; give scheme and host, as browsers send them: \"https://shop.example\", \
                 \"http://localhost:3000\", or \"https://*.shop.example\" for every host below"
            )
        };
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or_else(wrong)?;
        let (name, port) = host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let name = name.strip_prefix("*.").unwrap_or(name);
        let valid = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'[' | b']' | b':'))
            && port.is_none_or(|port| port.parse::<u16>().is_ok());
        if valid { Ok(Self(text.into())) } else { Err(wrong()) }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A key of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its sum.
    pub sum: KeySum,
    /// For people; may be empty.
    pub name: Box<str>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// Where it may be used from; empty: anywhere.
    pub origins: Box<[Origin]>,
    /// From when on it is no longer taken.
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

/// Why a key that is known may not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// It has not this scope.
    Scope(Scope),
    /// It is for other origins, or for pages only.
    Origin,
}

impl Key {
    /// Whether it may be used at `now` for `scope` by a page of `origin`.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn check(&self, now: Timestamp, scope: Scope, origin: Option<&str>) -> Result<(), Refused> {
        if self.revoked.is_some_and(|revoked| revoked <= now) {
            return Err(Refused::Revoked);
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            return Err(Refused::Expired);
        }
        if !self.scopes.allow(scope) {
            return Err(Refused::Scope(scope));
        }
        // Whoever leaves the header out is not one of the pages that the key is for.
        let from = |allowed: &Origin| origin.is_some_and(|origin| allowed.allows(origin));
        if !self.origins.is_empty() && !self.origins.iter().any(from) {
            return Err(Refused::Origin);
        }
        Ok(())
    }

    /// In a word, for lists.
    pub fn state(&self, now: Timestamp) -> &'static str {
        if self.revoked.is_some_and(|revoked| revoked <= now) {
            "revoked"
        } else if self.expires.is_some_and(|expires| expires <= now) {
            "expired"
        } else {
            "active"
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_made_key_is_well_formed_and_never_the_same() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert!(one != two && is_well_formed(&one) && one.len() == 68, "{one}");
        assert_eq!(KeySum::from_hex(&KeySum::of(&one).to_string()), Some(KeySum::of(&one)));
        // The example of FIPS 180-2.
        assert_eq!(KeySum::of("abc").to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        for wrong in ["", "a b", "iek_12", &format!("{one}0"), &"x".repeat(257), "schl\u{fc}ssel"] {
            assert!(!is_well_formed(wrong), "{wrong}");
        }
        for wrong in ["", "ba78", "g".repeat(64).as_str()] {
            assert_eq!(KeySum::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn origins_are_compared_as_browsers_send_them() {
        let origin = |text: &str| text.parse::<Origin>();
        let plain = origin("https://Shop.example").unwrap();
        assert!(plain.allows("https://shop.example") && plain.allows("HTTPS://SHOP.EXAMPLE"));
        for other in ["http://shop.example", "https://shop.example:8443", "https://shop.example.evil", "null", ""] {
            assert!(!plain.allows(other), "{other}");
        }
        let below = origin("https://*.shop.example").unwrap();
        assert!(below.allows("https://a.shop.example") && below.allows("https://a.b.SHOP.example"));
        for other in
            ["https://shop.example", "https://.shop.example", "https://evilshop.example", "http://a.shop.example"]
        {
            assert!(!below.allows(other), "{other}");
        }
        assert!(!below.allows("https://evil.com/.shop.example") && !below.allows("https://u@a.shop.example"));
        for wrong in ["*", "shop.example", "https://", "https://a/b", "https://a:x", "ftp://a", "https://a b"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
        assert!(origin("http://localhost:3000").unwrap().allows("http://localhost:3000"));
    }

    #[test]
    fn a_key_is_refused_for_the_first_reason_that_holds() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let key = |expires: Option<&str>, revoked: Option<&str>, scopes: &[Scope], origins: &[&str]| Key {
            sum: KeySum::of("k"),
            name: "".into(),
            scopes: scopes.iter().copied().collect(),
            origins: origins.iter().map(|origin| origin.parse().unwrap()).collect(),
            expires: expires.map(|time| time.parse().unwrap()),
            revoked: revoked.map(|time| time.parse().unwrap()),
        };
        let check = |key: Key, origin| key.check(now, Scope::Ingest, origin);
        let ingest = &[Scope::Ingest][..];
        assert_eq!(check(key(None, None, ingest, &[]), None), Ok(()));
        assert_eq!(check(key(Some("2026-01-02T00:00:00Z"), None, ingest, &[]), None), Err(Refused::Expired));
        assert_eq!(check(key(Some("2026-01-02T00:00:01Z"), None, ingest, &[]), None), Ok(()));
        let both = key(Some("2026-01-01T00:00:00Z"), Some("2026-01-01T00:00:00Z"), ingest, &[]);
        assert_eq!(both.state(now), "revoked");
        assert_eq!(check(both, None), Err(Refused::Revoked));
        assert_eq!(check(key(None, Some("2026-01-03T00:00:00Z"), ingest, &[]), None), Ok(()));
        assert_eq!(check(key(None, None, &[Scope::Admin], &[]), None), Err(Refused::Scope(Scope::Ingest)));
        let page = || key(None, None, ingest, &["https://a.example", "https://b.example"]);
        assert_eq!(check(page(), Some("https://b.example")), Ok(()));
        assert_eq!(check(page(), Some("https://c.example")), Err(Refused::Origin));
        assert_eq!(check(page(), None), Err(Refused::Origin));
        let admin: Scopes = [Scope::Admin].into_iter().collect();
        assert!(admin.allow(Scope::Read) && !admin.allow(Scope::Ingest));
        assert_eq!(admin.iter().collect::<Vec<_>>(), [Scope::Admin]);
    }
}
