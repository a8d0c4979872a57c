//! One event, as a plugin sees it.

use std::fmt;

use serde::Deserialize;

use crate::{object::Object, verdict::Rejection};

/// An event, lent for the length of a call.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub(crate) id: Id,
    pub(crate) kind: &'a str,
    pub(crate) json: &'a str,
}

impl<'a> Event<'a> {
    /// Its id: the sender's, or the one that the engine made.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its type.
    pub fn kind(&self) -> &'a str {
        self.kind
    }

    /// All of it: a JSON object that the engine has found to be a valid event.
    pub fn json(&self) -> &'a str {
        self.json
    }

    /// Reads it as `T`, which may borrow from it. A `&str` can only be borrowed where the text has no escapes; `Cow<str>`
    /// with `#[serde(borrow)]` reads every text.
    ///
    /// # Errors
    /// A rejection with the code `invalid` and words that name the field.
    pub fn parse<T: Deserialize<'a>>(&self) -> Result<T, Rejection> {
        // Keeping track of the path costs time, and nearly all events are good: only a bad one is read a second time.
        serde_json::from_str(self.json).map_err(|error| {
            let mut json = serde_json::Deserializer::from_str(self.json);
            let found = serde_path_to_error::deserialize::<_, T>(&mut json).err();
            let (path, words) = match found {
                Some(found) => (found.path().to_string(), found.into_inner().to_string()),
                None => (".".to_owned(), error.to_string()),
            };
            let words = words.split_once(" at line ").map_or(words.as_str(), |(words, _)| words);
            Rejection::new("invalid", if path == "." { words.to_owned() } else { format!("`{path}`: {words}") })
        })
    }

    /// Its members, to add some, change some and take some away. Everything else stays as it was sent, to the digit.
    ///
    /// # Errors
    /// As for [`Event::parse`].
    pub fn object(&self) -> Result<Object<'a>, Rejection> {
        self.parse()
    }
}

/// A UUID: of an event or of a tenant. It is written as `01890a5d-ac96-774b-bcce-b302099a8057`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub [u8; 16]);

impl Id {
    /// Its bytes, the most significant first.
    pub fn bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
