//! What pod servers, probes and the run say to each other: the answer that every server gives, and the lines of JSON by
//! which the run directs its helpers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A transport protocol that pods serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Transport {
    /// Connections; the server speaks HTTP and lines on each port.
    Tcp,
    /// Datagrams.
    Udp,
    /// Associations, made of raw packets: see [`crate::sctp`].
    Sctp,
}

impl Transport {
    /// As in a Service: `TCP`, `UDP` or `SCTP`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// The line that every server answers with, over every protocol:
/// `NAME client=ADDRESS:PORT server=ADDRESS:PORT REST`, where REST is what the client had to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod's name, without its namespace.
    pub pod: String,
    /// The client as the pod sees it.
    pub client: SocketAddr,
    /// The pod's own address and port.
    pub server: SocketAddr,
    /// The request's first line (HTTP: its path), at most 200 characters.
    pub echo: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} client={} server={} {}", self.pod, self.client, self.server, self.echo)
    }
}

impl FromStr for Answer {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = line.trim_end().splitn(4, ' ');
            Some(Self {
                pod: parts.next()?.to_owned(),
                client: parts.next()?.strip_prefix("client=")?.parse().ok()?,
                server: parts.next()?.strip_prefix("server=")?.parse().ok()?,
                echo: parts.next().unwrap_or_default().to_owned(),
            })
        };
        parse().ok_or_else(|| format!("not a pod's answer: {line:?}"))
    }
}

/// A pod server's first line of input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerConfig {
    /// The name it answers with.
    pub pod: String,
    /// Its addresses, for the `server=` part of answers.
    pub addresses: Vec<IpAddr>,
    /// The addresses it listens on: any, or the node's own if it shares the node's network.
    pub bind: Vec<IpAddr>,
}

/// A set of ports by protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// TCP ports.
    pub tcp: BTreeSet<u16>,
    /// UDP ports.
    pub udp: BTreeSet<u16>,
    /// SCTP ports.
    #[serde(default)]
    pub sctp: BTreeSet<u16>,
}

impl Ports {
    /// Adds a port.
    pub fn insert(&mut self, transport: Transport, port: u16) {
        match transport {
            Transport::Tcp => self.tcp.insert(port),
            Transport::Udp => self.udp.insert(port),
            Transport::Sctp => self.sctp.insert(port),
        };
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.tcp.is_superset(&other.tcp) && self.udp.is_superset(&other.udp) && self.sctp.is_superset(&other.sctp)
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Self) {
        self.tcp.extend(&other.tcp);
        self.udp.extend(&other.udp);
        self.sctp.extend(&other.sctp);
    }
}

/// What the run asks of a pod server, one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerRequest {
    /// Listen on these ports too; those it listens on already are left as they are.
    Listen(Ports),
    /// Say what arrived so far.
    Counts,
    /// Accept nothing more, and end each connection after its next answer.
    Drain,
}

/// What a pod server answers to the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServerReply {
    /// All ports it listens on now.
    Listening(Ports),
    /// What arrived so far.
    Counts(Counts),
    /// It accepts nothing more.
    Draining,
    /// It could not do it.
    Error(String),
}

/// What has arrived at a pod since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Accepted TCP connections.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Received datagrams.
    pub datagrams: u64,
}

/// What a probe is to do: its standard input, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbePlan {
    /// Source port of the first request; each request takes the next one, so that no two share a flow.
    pub first_port: u16,
    /// Asked one after the other.
    pub targets: Vec<ProbeTarget>,
}

/// One frontend to send requests to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeTarget {
    /// Chosen by the asker, returned in the result.
    pub id: usize,
    /// Where to.
    pub address: SocketAddr,
    /// By which protocol. TCP requests are HTTP and raw lines in turn.
    pub transport: Transport,
    /// Backends that must all answer before the probe stops early.
    pub expect: BTreeSet<SocketAddr>,
    /// Whether refusal is the right answer.
    pub refusal: bool,
    /// Whether silence is the right answer (on a node: connect() fails with "no route to host").
    #[serde(default)]
    pub silence: bool,
    /// Requests that are sent in any case.
    pub at_least: u32,
    /// Requests after which the probe gives up on backends not seen yet.
    pub at_most: u32,
    /// How long one request may take, in milliseconds.
    pub timeout_ms: u64,
}

/// What became of one target's requests; one line of a probe's output.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// The target's.
    pub id: usize,
    /// Requests sent.
    pub sent: u32,
    /// Requests refused (ECONNREFUSED).
    pub refused: u32,
    /// Answers by the server's own address and port.
    pub answered: BTreeMap<SocketAddr, u32>,
    /// The answering pods' names.
    pub pods: BTreeMap<SocketAddr, String>,
    /// As whom each of them saw the client.
    pub sources: BTreeMap<SocketAddr, BTreeSet<IpAddr>>,
    /// Requests that nobody answered or refused in time, or whose target was called unreachable.
    pub dropped: u32,
    /// What else happened, and how often.
    pub errors: BTreeMap<String, u32>,
    /// How long each answered request took, in microseconds, from the socket's making to the answer's last byte.
    pub latencies_us: Vec<u32>,
    /// The next unused source port.
    pub next_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_survives_the_wire() {
        for (client, server) in [("10.244.1.2:4000", "10.244.1.3:80"), ("[fd00::2]:4000", "[fd00::3]:80")] {
            let answer = Answer {
                pod: "web-0".into(),
                client: client.parse().unwrap(),
                server: server.parse().unwrap(),
                echo: "GET me this".into(),
            };
            assert_eq!(format!("{answer}\n").parse(), Ok(answer));
        }
        assert!("web-0 something else".parse::<Answer>().is_err());
    }
}
