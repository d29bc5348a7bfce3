//! Requests to the embedded API server, one connection each: HTTP/1.0, so that an answer ends with its connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Where it is, seen from the node.
pub(super) const ADDRESS: &str = "127.0.0.1:6443";

/// The code, and the object.
pub(super) fn request(method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let mut stream = TcpStream::connect(ADDRESS).context("the API server is on the node: run this there")?;
    let body = body.map(Value::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {ADDRESS}\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let code =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("an answer without a code")?;
    Ok((code, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// The same, where only success counts.
pub(super) fn expect(method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let (code, answer) = request(method, path, body)?;
    if code >= 300 {
        bail!("{}", answer["message"].as_str().unwrap_or("the API server refused it"));
    }
    Ok(answer)
}
