//! Answers as a ClickHouse server words them: status, headers, body.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};

use super::{
    super::engine::{QueryError, Summary},
    encoding::Accepted,
    request::Answer,
};

/// The status that a server gives to an error number (its `exceptionCodeToHTTPStatus`).
fn status(code: u32) -> StatusCode {
    match code {
        // Bad arguments, unparsable values, wrong syntax, wrong types.
        6 | 15 | 25 | 26 | 27 | 36 | 38 | 41 | 44 | 53 | 62 | 65 | 67 | 68 | 72 | 117 | 167 | 168 | 321 | 376 | 427
        | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
        // Unknown function, identifier, type, storage, table, aggregate function, sorting direction, format,
        // statement, database, setting, database engine, role.
        46 | 47 | 50 | 56 | 60 | 63 | 70 | 71 | 73 | 78 | 81 | 115 | 336 | 511 => StatusCode::NOT_FOUND,
        48 => StatusCode::NOT_IMPLEMENTED,
        66 => StatusCode::PAYLOAD_TOO_LARGE,
        159 => StatusCode::REQUEST_TIMEOUT,
        // No memory for the body, no place among the sessions, socket time-out, file that cannot be opened.
        76 | 202 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
        // Wrong user or password, no such user, access denied.
        192 | 193 | 194 | 497 | 516 => StatusCode::FORBIDDEN,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer for an error.
pub(super) fn error(error: &QueryError) -> Response {
    let mut message = error.message.clone();
    if !message.ends_with('\n') {
        message.push('\n');
    }
    let status = status(error.code);
    let mut response = text(status, message);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response.headers_mut().insert("x-clickhouse-exception-code", HeaderValue::from(error.code));
    response
}

/// A plain text.
pub(super) fn text(status: StatusCode, message: impl Into<Body>) -> Response {
    let mut response = Response::new(message.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    response
}

/// The answer to a statement that succeeded, compressed if `accepted` says so.
pub(super) fn success(answer: Answer, accepted: Option<Accepted>, timezone: &str) -> Result<Response, QueryError> {
    let mut headers = HeaderMap::new();
    let content_type = if answer.blocks { "application/octet-stream" } else { content_type(&answer.format) };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let query_id = answer.query_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    for (name, value) in [
        ("x-clickhouse-query-id", query_id.as_str()),
        ("x-clickhouse-format", &answer.format),
        ("x-clickhouse-timezone", timezone),
        ("x-clickhouse-summary", &summary(&answer.summary, answer.body.len())),
        ("x-clickhouse-server-display-name", "ingestion-engine"),
    ] {
        // A query id that the client made up may not fit into a header: then it is not repeated.
        if !value.is_empty()
            && let Ok(value) = HeaderValue::from_str(value)
        {
            headers.insert(name, value);
        }
    }
    let mut body = answer.body;
    if !answer.blocks
        && let Some(encoding) = accepted
        && let Some(packed) = encoding.encode(&body)?
    {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        body = packed;
    }
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    Ok(response)
}

/// Numbers are texts, as a server sends them.
fn summary(figures: &Summary, result_bytes: usize) -> String {
    let elapsed = std::time::Duration::try_from_secs_f64(figures.elapsed_seconds).unwrap_or_default().as_nanos();
    format!(
        "{{\"read_rows\":\"{}\",\"read_bytes\":\"{}\",\"written_rows\":\"{}\",\"written_bytes\":\"{}\",\
         \"total_rows_to_read\":\"0\",\"result_rows\":\"{}\",\"result_bytes\":\"{result_bytes}\",\"elapsed_ns\":\"{elapsed}\"}}",
        figures.read_rows, figures.read_bytes, figures.written_rows, figures.written_bytes, figures.result_rows,
    )
}

fn content_type(format: &str) -> &'static str {
    match format {
        "JSON" | "JSONCompact" | "JSONStrings" | "JSONColumns" | "JSONCompactStrings" | "JSONColumnsWithMetadata" => {
            "application/json; charset=UTF-8"
        }
        "JSONEachRow" | "JSONCompactEachRow" | "JSONStringsEachRow" | "JSONLines" | "NDJSON" => {
            "application/x-ndjson; charset=UTF-8"
        }
        "CSV" => "text/csv; charset=UTF-8; header=absent",
        "CSVWithNames" | "CSVWithNamesAndTypes" => "text/csv; charset=UTF-8; header=present",
        "TSV"
        | "TabSeparated"
        | "TSVRaw"
        | "TabSeparatedRaw"
        | "TSVWithNames"
        | "TabSeparatedWithNames"
        | "TSVWithNamesAndTypes"
        | "TabSeparatedWithNamesAndTypes" => "text/tab-separated-values; charset=UTF-8",
        "RowBinary"
        | "RowBinaryWithNames"
        | "RowBinaryWithNamesAndTypes"
        | "Native"
        | "Parquet"
        | "Arrow"
        | "ArrowStream"
        | "ORC"
        | "Avro"
        | "MsgPack"
        | "Protobuf" => "application/octet-stream",
        "XML" => "application/xml; charset=UTF-8",
        "HTML" => "text/html; charset=UTF-8",
        _ => "text/plain; charset=UTF-8",
    }
}
