//! Reading `[plugins.config.<name>]`, which the engine hands over as JSON.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Configuration of a plugin that has nothing to configure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NoConfig {}

/// Reads `json`. Every key that `C` does not know is named, whether or not `C` denies unknown fields: a misspelt key that
/// is silently left out would be found in production.
pub(crate) fn read<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    // By way of a `Value`, so that a message names no line and column of a text that nobody has seen.
    let value: Value = serde_json::from_str(json).map_err(|error| format!("the configuration is not JSON: {error}"))?;
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize(serde_path_to_error::Deserializer::new(value, &mut track), |path| {
        unknown.push(format!("unknown key `{path}`"));
    });
    match read {
        Ok(_) if !unknown.is_empty() => Err(unknown.join("; ")),
        Ok(config) => Ok(config),
        Err(error) => {
            let path = track.path().to_string();
            let whole = path == ".";
            unknown.insert(0, if whole { error.to_string() } else { format!("`{path}`: {error}") });
            Err(unknown.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only reading it counts")]
    struct Config {
        limit: u32,
        #[serde(default)]
        paths: Vec<Path>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only reading it counts")]
    struct Path {
        name: String,
    }

    fn refusal(json: &str) -> String {
        read::<Config>(json).err().unwrap_or_default()
    }

    #[test]
    fn says_where_a_key_or_a_value_is_wrong() {
        assert_eq!(refusal(r#"{"limit":1}"#), "");
        assert_eq!(refusal("{}"), "missing field `limit`");
        assert_eq!(refusal(r#"{"limit":-1}"#), "`limit`: invalid value: integer `-1`, expected u32");
        assert_eq!(
            refusal(r#"{"limit":1,"limits":2,"paths":[{"name":"a","nmae":"b"}]}"#),
            "unknown key `limits`; unknown key `paths.0.nmae`"
        );
        assert_eq!(
            refusal(r#"{"limit":1,"paths":[{"name":"a"},{"name":7}]}"#),
            "`paths[1].name`: invalid type: integer `7`, expected a string"
        );
        assert_eq!(read::<NoConfig>(r#"{"a":1}"#), Err("unknown key `a`".to_owned()));
        assert_eq!(read::<NoConfig>("{}"), Ok(NoConfig {}));
    }
}
