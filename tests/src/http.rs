//! A question over HTTP/1.1 and its answer, as they stand on the wire.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// How long an answer may take before the test calls it missing.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    pub status: u16,
    /// In the order of the wire, names as they are written.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The only header of this name, which is compared letter by letter.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known == name);
        let (first, second) = (found.next(), found.next());
        if second.is_none() { first.map(|(_, value)| value.as_str()) } else { None }
    }
}

/// Asks once, on a connection of its own.
///
/// # Errors
/// When nobody listens, or the answer is none.
pub fn ask(at: SocketAddr, method: &str, path: &str) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE).with_context(|| format!("nobody listens on {at}"))?;
    stream.set_read_timeout(Some(PATIENCE)).context("no timeout")?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").context("cannot ask")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("no answer from {at}"))?;
    parse(&text).with_context(|| format!("not an answer: {text:?}"))
}

fn parse(text: &str) -> Option<Response> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.map(|line| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())));
    Some(Response { status, headers: headers.collect::<Option<_>>()?, body: body.to_owned() })
}
