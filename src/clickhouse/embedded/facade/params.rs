//! What a request asks for besides its statement: URL parameters, `X-ClickHouse-*` headers, form fields.

use std::time::Duration;

use axum::http::{HeaderMap, Method};

use super::super::engine::QueryError;

/// Parameters that a server takes and that mean nothing here: there is one user, answers are complete when they start,
/// and answers are compressed as `Accept-Encoding` says.
const IGNORED: [&str; 16] = [
    "user",
    "password",
    "quota_key",
    "role",
    "wait_end_of_query",
    "buffer_size",
    "send_progress_in_http_headers",
    "http_headers_progress_interval_ms",
    "enable_http_compression",
    "http_zlib_compression_level",
    "cancel_http_readonly_queries_on_client_close",
    "add_http_cors_header",
    "client_protocol_version",
    "stacktrace",
    "http_write_exception_in_output_format",
    "http_response_buffer_size",
];

/// A session, as a request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SessionRequest {
    pub(super) id: String,
    /// How long it is kept unused.
    pub(super) timeout: Duration,
    /// It must exist already.
    pub(super) must_exist: bool,
    /// It ends with this request.
    pub(super) closes: bool,
}

/// The parameters that name a session, as sent.
#[derive(Debug, Default)]
struct SessionTexts {
    id: Option<String>,
    timeout: Option<String>,
    check: bool,
    close: bool,
}

/// Everything that a request sets.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// The `query` parameter; empty when the statement is in the body.
    pub(super) query: String,
    pub(super) database: Option<String>,
    pub(super) default_format: Option<String>,
    pub(super) query_id: Option<String>,
    /// Answer in ClickHouse's compressed blocks.
    pub(super) compress: bool,
    /// The body consists of ClickHouse's compressed blocks.
    pub(super) decompress: bool,
    session: SessionTexts,
    /// Settings for this request.
    pub(super) settings: Vec<(String, String)>,
    /// Values for `{name:Type}` in the statement.
    pub(super) bindings: Vec<(String, String)>,
}

impl Parameters {
    /// Reads URL parameters; headers fill in what the URL does not say.
    pub(super) fn read(url_query: &str, headers: &HeaderMap) -> Result<Self, QueryError> {
        let mut parameters = Self::default();
        for (name, value) in form_urlencoded::parse(url_query.as_bytes()) {
            parameters.set(name.into_owned(), value.into_owned())?;
        }
        let header = |name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty()).map(str::to_owned)
        };
        parameters.database = parameters.database.or_else(|| header("x-clickhouse-database"));
        parameters.default_format = parameters.default_format.or_else(|| header("x-clickhouse-format"));
        parameters.query_id = parameters.query_id.or_else(|| header("x-clickhouse-query-id"));
        Ok(parameters)
    }

    /// Takes one parameter, from the URL or from a form field.
    pub(super) fn set(&mut self, name: String, value: String) -> Result<(), QueryError> {
        let flag = |value: &str| matches!(value, "1" | "true");
        let filled = |value: String| (!value.is_empty()).then_some(value);
        match name.as_str() {
            "query" => self.query.push_str(&value),
            "database" => self.database = filled(value),
            "default_format" => self.default_format = filled(value),
            "query_id" => self.query_id = filled(value),
            "compress" => self.compress = flag(&value),
            "decompress" => self.decompress = flag(&value),
            "session_id" => self.session.id = filled(value),
            "session_timeout" => self.session.timeout = filled(value),
            "session_check" => self.session.check = flag(&value),
            "close_session" => self.session.close = flag(&value),
            ignored if IGNORED.contains(&ignored) => {}
            other => {
                if let Some(binding) = other.strip_prefix("param_") {
                    self.bindings.push((binding.to_owned(), value));
                } else if !other.is_empty() && other.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                    self.settings.push((name, value));
                } else {
                    return Err(QueryError::new(
                        115,
                        "UNKNOWN_SETTING",
                        format_args!("Setting {other:?} is neither a builtin setting nor a parameter"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The session, if one is named.
    pub(super) fn session(&self) -> Result<Option<SessionRequest>, QueryError> {
        /// As on a server.
        const DEFAULT_SECONDS: u64 = 60;
        const MAX_SECONDS: u64 = 3600;
        let Some(id) = self.session.id.clone() else { return Ok(None) };
        let seconds = match self.session.timeout.as_deref() {
            None => DEFAULT_SECONDS,
            Some(text) => match text.parse() {
                Ok(seconds) if seconds <= MAX_SECONDS => seconds,
                _ => {
                    return Err(QueryError::new(
                        374,
                        "INVALID_SESSION_TIMEOUT",
                        format_args!("Invalid session timeout {text:?}: 0 to {MAX_SECONDS} seconds"),
                    ));
                }
            },
        };
        Ok(Some(SessionRequest {
            id,
            timeout: Duration::from_secs(seconds),
            must_exist: self.session.check,
            closes: self.session.close,
        }))
    }
}

/// Refuses what a web page in a browser on this machine may be made to send: the interface asks for no password, so a
/// foreign page must not reach it, neither directly (its origin tells) nor under a host name of its own that
/// resolves to this machine.
pub(super) fn refuse_foreign_pages(method: &Method, headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(host) = text("host")
        && !is_local(host)
    {
        return Err("the Host header names another machine: use 127.0.0.1 or localhost");
    }
    if let Some(origin) = text("origin") {
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        if !is_local(host) {
            return Err("requests from pages of other origins are refused");
        }
    }
    // A link in a page is a navigation: it shows its answer to the user, not to the page, and GET cannot write.
    let navigates = method == Method::GET && text("sec-fetch-mode") == Some("navigate");
    if text("sec-fetch-site") == Some("cross-site") && !navigates {
        return Err("requests from pages of other sites are refused");
    }
    Ok(())
}

fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn parameters_find_their_place() {
        let mut headers = HeaderMap::new();
        headers.insert("x-clickhouse-database", HeaderValue::from_static("from_header"));
        headers.insert("x-clickhouse-format", HeaderValue::from_static("CSV"));
        let url = "query=SELECT+1&default_format=JSON&max_threads=2&param_id=7&user=u&session_id=s&session_timeout=5";
        let parameters = Parameters::read(url, &headers).unwrap();
        assert_eq!(parameters.query, "SELECT 1");
        assert_eq!(parameters.database.as_deref(), Some("from_header"));
        assert_eq!(parameters.default_format.as_deref(), Some("JSON"));
        assert_eq!(parameters.settings, [("max_threads".to_owned(), "2".to_owned())]);
        assert_eq!(parameters.bindings, [("id".to_owned(), "7".to_owned())]);
        let session =
            SessionRequest { id: "s".to_owned(), timeout: Duration::from_secs(5), must_exist: false, closes: false };
        assert_eq!(parameters.session().unwrap(), Some(session));
        assert_eq!(Parameters::read("a%27b=1", &headers).unwrap_err().code, 115);
        let long = Parameters::read("session_id=s&session_timeout=3601", &headers).unwrap();
        assert_eq!(long.session().unwrap_err().code, 374);
    }

    #[test]
    fn foreign_pages_are_refused() {
        for (name, value, allowed) in [
            ("host", "127.0.0.1:8123", true),
            ("host", "localhost", true),
            ("host", "[::1]:8123", true),
            ("host", "evil.example:8123", false),
            ("host", "127.0.0.1.evil.example", false),
            ("origin", "http://localhost:3000", true),
            ("origin", "https://evil.example", false),
            ("origin", "null", false),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "none", true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(refuse_foreign_pages(&Method::POST, &headers).is_ok(), allowed, "{name}: {value}");
        }
    }
}
