//! Content codings of request bodies: decompressed with a bound, because a small body can hold a huge one.

use std::io::{self, Read};

use bytes::Bytes;
use thiserror::Error;

use super::budget::{Full, Reservation};

/// What an `Accept-Encoding` header of ours says.
pub(super) const SUPPORTED: &str = "gzip, deflate, br, zstd";

/// How much is decompressed between two looks at the bounds.
const STEP: usize = 64 << 10;

/// A body that cannot be decompressed.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// A coding that this engine does not know.
    #[error("content-encoding {encoding:?} is not supported: use one of gzip, deflate, br, zstd")]
    Unsupported {
        /// The header's value.
        encoding: String,
    },
    /// The bytes are not what the coding says.
    #[error("the body is not valid {encoding}")]
    Corrupt {
        /// The coding.
        encoding: &'static str,
        /// What the decoder found.
        #[source]
        source: io::Error,
    },
    /// More than the limit comes out.
    #[error("the decompressed body has more than the {limit} bytes allowed: send fewer events at a time")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// No room for what comes out.
    #[error("the requests in flight hold all the memory that they may")]
    Full(Full),
}

/// A coding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

impl Encoding {
    /// The coding of a body, by its header, or by its first bytes where a client names none (some SDKs do not).
    pub fn of(header: Option<&[u8]>, body: &[u8]) -> Result<Self, DecodeError> {
        let named = match header.map(|value| value.trim_ascii().to_ascii_lowercase()).as_deref() {
            None | Some(b"" | b"identity") => Self::Identity,
            Some(b"gzip" | b"x-gzip") => Self::Gzip,
            Some(b"deflate") => Self::Deflate,
            Some(b"br") => Self::Brotli,
            Some(b"zstd") => Self::Zstd,
            Some(other) => {
                let encoding = String::from_utf8_lossy(other).chars().take(64).collect();
                return Err(DecodeError::Unsupported { encoding });
            }
        };
        // No JSON text starts with these bytes.
        Ok(match (named, body) {
            (Self::Identity, [0x1f, 0x8b, ..]) => Self::Gzip,
            (Self::Identity, [0x28, 0xb5, 0x2f, 0xfd, ..]) => Self::Zstd,
            _ => named,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }

    /// Decodes `body` to at most `limit` bytes, reserving what comes out.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not of this coding, too many come out, or the budget is used up.
    pub fn decode(self, body: Bytes, limit: usize, held: &mut Reservation) -> Result<Bytes, DecodeError> {
        let input = &body[..];
        let corrupt = |source| DecodeError::Corrupt { encoding: self.name(), source };
        let mut decoder: Box<dyn Read + '_> = match self {
            Self::Identity if body.len() > limit => return Err(DecodeError::TooLarge { limit }),
            Self::Identity => return Ok(body),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(input)),
            // RFC 9110 means zlib; some clients send the bare stream.
            Self::Deflate if is_zlib(input) => Box::new(flate2::read::ZlibDecoder::new(input)),
            Self::Deflate => Box::new(flate2::read::DeflateDecoder::new(input)),
            Self::Brotli => Box::new(brotli::Decompressor::new(input, STEP)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input).map_err(corrupt)?),
        };
        let mut decoded = Vec::new();
        loop {
            let before = decoded.len();
            // One byte more than allowed tells "exactly the limit" from "too large".
            let room = (limit + 1 - before).min(STEP);
            held.grow(room).map_err(DecodeError::Full)?;
            let count = decoder.by_ref().take(room as u64).read_to_end(&mut decoded).map_err(corrupt)?;
            if decoded.len() > limit {
                return Err(DecodeError::TooLarge { limit });
            }
            if count < room {
                return Ok(decoded.into());
            }
        }
    }
}

/// The two header bytes of a zlib stream (RFC 1950): method 8, and a multiple of 31.
fn is_zlib(input: &[u8]) -> bool {
    matches!(input, [first, second, ..]
        if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::Write;

    use super::*;
    use crate::api::budget::tests::budget;

    const LIMIT: usize = 200_000;

    fn held() -> Reservation {
        let (budget, tenant, _) = budget(1 << 20, LIMIT);
        budget.reservation(&tenant)
    }

    fn compressed(encoding: &str, text: &[u8]) -> Vec<u8> {
        match encoding {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "raw deflate" => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "br" => {
                let mut out = Vec::new();
                brotli::CompressorWriter::new(&mut out, 4096, 3, 20).write_all(text).unwrap();
                out
            }
            _ => zstd::stream::encode_all(text, 1).unwrap(),
        }
    }

    fn decode(header: Option<&str>, body: Vec<u8>) -> Result<Bytes, DecodeError> {
        let encoding = Encoding::of(header.map(str::as_bytes), &body)?;
        encoding.decode(body.into(), LIMIT, &mut held())
    }

    #[test]
    fn every_coding_comes_back_up_to_the_limit_and_no_further() {
        for size in [0, 1, LIMIT - 1, LIMIT] {
            let text = vec![b'a'; size];
            assert_eq!(decode(None, text.clone()).unwrap(), text);
            for coding in ["gzip", "deflate", "raw deflate", "br", "zstd"] {
                let header = coding.strip_prefix("raw ").unwrap_or(coding);
                assert_eq!(decode(Some(header), compressed(coding, &text)).unwrap(), text, "{coding} {size}");
            }
        }
        let bomb = vec![b'a'; LIMIT + 1];
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let error = decode(Some(coding), compressed(coding, &bomb)).unwrap_err();
            assert!(matches!(error, DecodeError::TooLarge { limit: LIMIT }), "{coding}: {error:?}");
        }
    }

    #[test]
    fn a_body_whose_client_forgot_the_header_is_recognised() {
        for coding in ["gzip", "zstd"] {
            assert_eq!(decode(None, compressed(coding, b"[]")).unwrap(), "[]");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_said() {
        for coding in ["gzip", "deflate", "br", "zstd"] {
            assert!(matches!(decode(Some(coding), b"[{}]".to_vec()), Err(DecodeError::Corrupt { .. })), "{coding}");
            let mut cut = compressed(coding, &[b'a'; 5000]);
            cut.truncate(cut.len() - 3);
            assert!(matches!(decode(Some(coding), cut), Err(DecodeError::Corrupt { .. })), "{coding}");
        }
        let error = decode(Some("lzma"), Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "content-encoding \"lzma\" is not supported: use one of gzip, deflate, br, zstd");
    }

    #[test]
    fn decoding_stays_within_the_shared_budget() {
        let body = compressed("gzip", &vec![b'a'; LIMIT]);
        let (budget, tenant, _) = budget(100 << 10, LIMIT);
        let mut held = budget.reservation(&tenant);
        let error = Encoding::Gzip.decode(body.into(), LIMIT, &mut held).unwrap_err();
        assert!(matches!(error, DecodeError::Full(Full::Everybody)), "{error:?}");
    }
}
