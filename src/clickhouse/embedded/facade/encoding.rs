//! HTTP's own compression: `Content-Encoding` of requests, `Accept-Encoding` of answers.

use std::io::{Read, Write};

use bytes::Bytes;

use super::{super::engine::QueryError, chunks::Chunks};

/// Answers below this size are sent as they are: compressing them saves nothing.
const WORTH_COMPRESSING: usize = 1024;

/// Size of the pieces that decompression makes.
const PIECE: usize = 1 << 20;

/// Decompresses a request's body, up to `limit` bytes.
pub(super) fn decode(encoding: &str, body: Chunks, limit: usize) -> Result<Chunks, QueryError> {
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(body),
        "gzip" | "x-gzip" => read(flate2::read::MultiGzDecoder::new(body), limit),
        "deflate" => read(flate2::read::ZlibDecoder::new(body), limit),
        "zstd" => read(zstd::stream::read::Decoder::new(body).map_err(|error| broken(&error))?, limit),
        "lz4" => read(lz4_flex::frame::FrameDecoder::new(body), limit),
        "br" => read(brotli::Decompressor::new(body, 64 << 10), limit),
        other => Err(QueryError::new(
            89,
            "UNKNOWN_COMPRESSION_METHOD",
            format_args!("Unknown Content-Encoding {other:?}: gzip, deflate, zstd, lz4 and br are known"),
        )),
    }
}

fn read(mut reader: impl Read, limit: usize) -> Result<Chunks, QueryError> {
    let mut decoded = Chunks::default();
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let count = reader.by_ref().take(PIECE as u64).read_to_end(&mut piece).map_err(|error| broken(&error))?;
        if count == 0 {
            return Ok(decoded);
        }
        if decoded.len() + count > limit {
            return Err(too_large(limit));
        }
        decoded.push(piece.into());
    }
}

/// The error for a body above `limit`.
pub(super) fn too_large(limit: usize) -> QueryError {
    QueryError::new(
        66,
        "QUERY_IS_TOO_LARGE",
        format_args!("the body is larger than {limit} bytes: send smaller inserts"),
    )
}

fn broken(error: &std::io::Error) -> QueryError {
    QueryError::new(354, "ZLIB_INFLATE_FAILED", format_args!("the body does not match its Content-Encoding: {error}"))
}

/// A compression that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    Lz4,
    Zstd,
    Gzip,
    Deflate,
}

impl Accepted {
    /// The cheapest that `header` allows.
    pub(super) fn choose(header: &str) -> Option<Self> {
        let allowed = |name: &str| {
            header.split(',').any(|entry| {
                let mut parts = entry.split(';').map(str::trim);
                parts.next().is_some_and(|encoding| encoding.eq_ignore_ascii_case(name))
                    && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
            })
        };
        [(Self::Lz4, "lz4"), (Self::Zstd, "zstd"), (Self::Gzip, "gzip"), (Self::Deflate, "deflate")]
            .into_iter()
            .find_map(|(encoding, name)| allowed(name).then_some(encoding))
    }

    /// The name for the `Content-Encoding` header.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// Compresses `data`; None when it is too small to be worth it.
    pub(super) fn encode(self, data: &[u8]) -> Result<Option<Bytes>, QueryError> {
        if data.len() < WORTH_COMPRESSING {
            return Ok(None);
        }
        let target = Vec::with_capacity(data.len() / 2);
        let failed = |error: std::io::Error| QueryError::new(353, "ZLIB_DEFLATE_FAILED", error);
        let packed = match self {
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(target);
                encoder.write_all(data).map_err(failed)?;
                encoder.finish().map_err(|error| failed(error.into()))?
            }
            Self::Zstd => zstd::bulk::compress(data, 1).map_err(failed)?,
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(target, flate2::Compression::fast());
                encoder.write_all(data).and_then(|()| encoder.finish()).map_err(failed)?
            }
            Self::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(target, flate2::Compression::fast());
                encoder.write_all(data).and_then(|()| encoder.finish()).map_err(failed)?
            }
        };
        Ok(Some(packed.into()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let data: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Accepted::Lz4, Accepted::Zstd, Accepted::Gzip, Accepted::Deflate] {
            let mut body = Chunks::default();
            body.push(encoding.encode(&data).unwrap().unwrap());
            let decoded = decode(encoding.name(), body.clone(), data.len()).unwrap();
            assert_eq!(decoded.join(), data, "{encoding:?}");
            assert_eq!(decode(encoding.name(), body, data.len() - 1).unwrap_err().code, 66, "{encoding:?}");
        }
        assert_eq!(decode("rot13", Chunks::default(), 1).unwrap_err().code, 89);
    }

    #[test]
    fn a_refused_encoding_is_not_chosen() {
        assert_eq!(Accepted::choose("gzip, lz4;q=0"), Some(Accepted::Gzip));
        assert_eq!(Accepted::choose("gzip;q=0.5, zstd"), Some(Accepted::Zstd));
        assert_eq!(Accepted::choose("identity"), None);
    }
}
