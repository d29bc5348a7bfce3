//! Headers with a secret in them.

use anyhow::Context as _;
use http::HeaderValue;

/// The header for a bearer token, without white space around it.
pub(super) fn bearer(token: &str) -> anyhow::Result<HeaderValue> {
    secret(&format!("Bearer {}", token.trim()))
}

/// A header that no log shows.
pub(super) fn secret(text: &str) -> anyhow::Result<HeaderValue> {
    let mut header =
        HeaderValue::from_str(text).ok().context("there are characters that no header may have")?;
    header.set_sensitive(true);
    Ok(header)
}
