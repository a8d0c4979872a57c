//! `multipart/form-data`: how clients send long values for `{name:Type}` parameters.

use bytes::Bytes;

use super::{super::engine::QueryError, params::Parameters};

/// The boundary that a content type names, if it is a form.
pub(super) fn boundary(content_type: &str) -> Option<&str> {
    let (kind, rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    rest.split(';').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })
}

/// Takes every field of the form as a parameter.
pub(super) fn read(body: &Bytes, boundary: &str, parameters: &mut Parameters) -> Result<(), QueryError> {
    let delimiter = format!("--{boundary}");
    let finder = memchr::memmem::Finder::new(&delimiter);
    let mut starts = finder.find_iter(body).map(|at| (at, at + delimiter.len())).peekable();
    if boundary.is_empty() || starts.peek().is_none() {
        return Err(malformed("the boundary does not occur"));
    }
    while let Some((_, start)) = starts.next() {
        let Some(&(end, _)) = starts.peek() else { break };
        let part = body.get(start..end).unwrap_or_default();
        let part = part.strip_prefix(b"\r\n").ok_or_else(|| malformed("a part does not start on a line"))?;
        let part = part.strip_suffix(b"\r\n").unwrap_or(part);
        let at = memchr::memmem::find(part, b"\r\n\r\n").ok_or_else(|| malformed("a part has no end of headers"))?;
        let (headers, value) = part.split_at(at);
        let value = value.strip_prefix(b"\r\n\r\n").unwrap_or_default();
        let headers = String::from_utf8_lossy(headers);
        let name = field(&headers, "name").ok_or_else(|| malformed("a part has no name"))?;
        if field(&headers, "filename").is_some() && !name.starts_with("param_") && name != "query" {
            return Err(QueryError::new(
                48,
                "NOT_IMPLEMENTED",
                "external tables are not supported by the embedded engine",
            ));
        }
        let value = String::from_utf8(value.to_vec()).map_err(|_| malformed("a value is no UTF-8"))?;
        parameters.set(name, value)?;
    }
    Ok(())
}

/// `name="value"` of the Content-Disposition line.
fn field(headers: &str, wanted: &str) -> Option<String> {
    let disposition = headers
        .lines()
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-disposition")))?
        .1;
    disposition.split(';').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn malformed(why: &str) -> QueryError {
    QueryError::new(36, "BAD_ARGUMENTS", format_args!("Malformed multipart/form-data: {why}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn fields_become_parameters() {
        let boundary = boundary("multipart/form-data; charset=utf-8; boundary=\"xyz\"").unwrap();
        let body = Bytes::from_static(
            b"--xyz\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {a:String}\r\n\
              --xyz\r\nContent-Type: text/plain\r\nContent-Disposition: form-data; name=\"param_a\"\r\n\r\nx\r\n\r\ny\r\n--xyz--\r\n",
        );
        let mut parameters = Parameters::default();
        read(&body, boundary, &mut parameters).unwrap();
        assert_eq!(parameters.query, "SELECT {a:String}");
        assert_eq!(parameters.bindings, [("a".to_owned(), "x\r\n\r\ny".to_owned())]);
    }

    #[test]
    fn external_tables_are_refused() {
        let body = Bytes::from_static(
            b"--b\r\nContent-Disposition: form-data; name=\"t\"; filename=\"t.tsv\"\r\n\r\n1\r\n--b--\r\n",
        );
        assert_eq!(read(&body, "b", &mut Parameters::default()).unwrap_err().code, 48);
    }
}
