//! Answers that are compressed where the client takes that.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Bytes;

use super::answer::{self, Answer};

/// Whether the client says that it takes gzip (RFC 9110, section 12.5.3).
pub(super) fn accepted(headers: &HeaderMap) -> bool {
    let lists = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    lists.flat_map(|list| list.split(',')).any(|part| {
        let (coding, weight) = part.split_once(';').unwrap_or((part, ""));
        let refused = || {
            let value = weight.trim().strip_prefix("q=").map(str::trim);
            value.is_some_and(|value| value.parse::<f32>().is_ok_and(|value| value == 0.0))
        };
        coding.trim().eq_ignore_ascii_case("gzip") && !refused()
    })
}

/// Compressed, fast rather than small: a scrape shrinks to less than a tenth all the same.
pub(super) fn compressed(text: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text).and_then(|()| encoder.finish()).ok().map(Bytes::from)
}

pub(super) fn marked(answer: Answer) -> Answer {
    answer::with_header(answer, header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn gzip_is_sent_to_who_asks_for_it() {
        for (header, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=1.0, *;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0", false),
            ("gzip; q=0.1", true),
            ("identity", false),
            ("", false),
            ("xgzip", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(header));
            assert_eq!(accepted(&headers), expected, "{header}");
        }
        assert!(!accepted(&HeaderMap::new()));
    }

    #[test]
    fn what_is_compressed_reads_as_it_was() {
        let text = "kubeproxy_x{a=\"b\"} 1\n".repeat(1000);
        let small = compressed(text.as_bytes()).expect("it works");
        assert!(small.len() * 10 < text.len(), "{}", small.len());
        let mut back = String::new();
        flate2::read::GzDecoder::new(&small[..]).read_to_string(&mut back).expect("gzip");
        assert_eq!(back, text);
    }
}
