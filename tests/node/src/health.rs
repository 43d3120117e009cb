//! Playing the load balancer that asks every node, from outside, whether it has endpoints of a Service (healthCheckNodePort).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::address::{self, Family};
use crate::frontends::HealthCheck;
use crate::node::TestNode;
use crate::topology;

const PATIENCE: Duration = Duration::from_secs(2);

/// One node's answer.
#[derive(Clone, Debug, Serialize)]
pub struct HealthRow {
    /// `namespace/name`.
    pub service: String,
    /// The node's name.
    pub node: String,
    /// The address and port that was asked.
    pub address: SocketAddr,
    /// The ready pods that the node has.
    pub ready: usize,
    /// The HTTP status.
    pub status: Option<u16>,
    /// `localEndpoints` of the answer.
    pub local_endpoints: Option<u64>,
    /// What went wrong instead of an answer.
    pub error: Option<String>,
}

impl HealthRow {
    /// What is wrong with it.
    #[must_use]
    pub fn wrong(&self) -> Option<String> {
        let right = if self.ready > 0 { 200 } else { 503 };
        let said = match (&self.error, self.status, self.local_endpoints) {
            (Some(error), ..) => error.clone(),
            (None, Some(status), Some(count)) if (status, count) == (right, self.ready as u64) => return None,
            (None, status, count) => format!(
                "{} with {} endpoints instead of {right} with {}",
                status.unwrap_or_default(),
                count.map_or_else(|| "no".to_owned(), |count| count.to_string()),
                self.ready
            ),
        };
        Some(format!("{}: health check at {} ({}): {said}", self.service, self.address, self.node))
    }
}

/// Asks every node about every Service, over both families.
///
/// # Errors
/// When the outside cannot be entered; what nodes say is in the rows.
pub fn ask(node: &TestNode, checks: &[HealthCheck]) -> Result<Vec<HealthRow>> {
    let mut rows = Vec::new();
    for check in checks {
        for (&number, &ready) in &check.ready {
            for family in Family::BOTH {
                let address = SocketAddr::new(address::node(number).of(family), check.port);
                let answer = node.outside().place.net().run(|| get(address, "/"))?;
                let (status, local_endpoints, error) = match answer {
                    Ok((status, body)) => {
                        let count = serde_json::from_str(&body).ok();
                        let count = count.and_then(|body: Value| body.get("localEndpoints")?.as_u64());
                        (Some(status), count, None)
                    }
                    Err(error) => (None, None, Some(format!("{error:#}"))),
                };
                let (service, node) = (check.service.clone(), topology::name(number));
                rows.push(HealthRow { service, node, address, ready, status, local_endpoints, error });
            }
        }
    }
    Ok(rows)
}

/// Asks for `path` from the calling thread's network namespace; returns the answer's status and body.
///
/// # Errors
/// When nobody answers, or not in HTTP.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("receive")?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer that is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an answer without a status")?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_count_must_both_be_right() {
        let row = |ready, status, count| HealthRow {
            service: "default/s".into(),
            node: "node1".into(),
            address: "192.168.99.11:30001".parse().unwrap(),
            ready,
            status: Some(status),
            local_endpoints: count,
            error: None,
        };
        assert_eq!(row(2, 200, Some(2)).wrong(), None);
        assert_eq!(row(0, 503, Some(0)).wrong(), None);
        let said = row(2, 200, Some(1)).wrong().unwrap();
        assert!(said.ends_with("200 with 1 endpoints instead of 200 with 2"), "{said}");
        assert!(row(0, 200, Some(0)).wrong().is_some());
        assert!(row(0, 503, None).wrong().is_some());
        let refused = HealthRow { error: Some("connect: refused".into()), ..row(1, 200, Some(1)) };
        assert!(refused.wrong().unwrap().ends_with("connect: refused"));
    }
}
