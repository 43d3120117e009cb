//! A document of packet flows as its file has it: `truth/flows/README.md` explains each field.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use netlb_user::model::PodAddresses;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    pub source: Source,
    pub config: Config,
    /// Objects that are there in every step: the Node, the ServiceCIDR.
    pub objects: Vec<Value>,
    pub steps: Vec<Step>,
}

/// Where the rows come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub file: String,
    pub test: String,
    #[serde(default)]
    pub subtest: String,
}

/// The node, and how its proxy is set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub node_name: String,
    /// Addresses of the node's devices with their prefixes.
    pub node_addresses: Vec<IpNet>,
    /// As `nodePortAddresses` of kube-proxy's configuration.
    pub node_port_addresses: Vec<String>,
    /// What comes from these addresses comes from a pod of this node, by that pod's device.
    pub pods: Vec<IpNet>,
    /// By which the proxy tells pods from others.
    pub local_detector: Detector,
    /// As kube-proxy's `--masquerade-all`.
    pub masquerade_all: bool,
}

/// kube-proxy's local traffic detector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detector {
    /// Nobody can be told to be a pod.
    None,
    /// Sources inside are pods (detectLocalMode ClusterCIDR).
    ClusterCidr(IpNet),
}

/// The state after some events, and packets that meet it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Line of the source file.
    pub line: u32,
    pub objects: Vec<Value>,
    pub packets: Vec<Packet>,
}

/// A row: the first packet of a flow, and what must become of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packet {
    /// Line of the source file.
    pub line: u32,
    pub name: String,
    pub from: IpAddr,
    pub to: SocketAddr,
    pub protocol: Protocol,
    pub expect: Expect,
    /// Whether the backend sees an address of the node as the client.
    #[serde(default)]
    pub masquerade: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// What must become of a packet.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
pub enum Expect {
    /// It goes to one of these, each as likely as the others.
    Backends(BTreeSet<SocketAddr>),
    Verdict(Verdict),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Refused with an answer.
    Reject,
    /// Dropped without one.
    Drop,
    /// It goes on as it is.
    None,
}

/// Where a packet comes from, and so which hook it meets first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// A pod of this node: its device.
    Pod,
    /// A socket of the node itself.
    Node,
    /// Elsewhere: the uplink.
    Outside,
}

impl<'de> Deserialize<'de> for Detector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "none" {
            return Ok(Detector::None);
        }
        text.parse().map(Detector::ClusterCidr).map_err(serde::de::Error::custom)
    }
}

/// All documents of a folder, by name.
///
/// # Errors
/// If there are none, or one cannot be understood.
pub fn load(folder: &Path) -> Result<Vec<Document>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "{} holds no documents", folder.display());
    files.iter().map(|path| read(path).with_context(|| format!("in {}", path.display()))).collect()
}

fn read(path: &Path) -> Result<Document> {
    let mut document = parse(&fs::read_to_string(path)?)?;
    document.name = path.file_stem().and_then(|stem| stem.to_str()).context("a document has a name")?.to_owned();
    Ok(document)
}

/// A document from its text, without a name.
///
/// # Errors
/// If it cannot be understood, or says what cannot be.
pub fn parse(text: &str) -> Result<Document> {
    let document: Document = serde_norway::from_str(text)?;
    ensure!(!document.steps.is_empty(), "no steps");
    for packet in document.steps.iter().flat_map(|step| &step.packets) {
        let families = packet.from.is_ipv4() == packet.to.is_ipv4();
        ensure!(families, "line {}: {} and {} are of two families", packet.line, packet.from, packet.to);
        match &packet.expect {
            Expect::Backends(backends) => ensure!(!backends.is_empty(), "line {}: no backends", packet.line),
            Expect::Verdict(_) if packet.masquerade => {
                bail!("line {}: what goes to no backend is not masqueraded", packet.line)
            }
            Expect::Verdict(_) => {}
        }
    }
    Ok(document)
}

impl Document {
    /// The node's addresses, without loopback.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.config.node_addresses.iter().copied().filter(|net| !net.addr().is_loopback())
    }

    /// The node's own address of each family, as its Node object has it.
    pub fn primary(&self) -> PodAddresses {
        let node = self.objects.iter().find(|object| object["kind"] == "Node");
        let addresses = node.into_iter().flat_map(|node| list(&node["status"]["addresses"]));
        let addresses: Vec<IpAddr> = addresses.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect();
        let first = |is: fn(&IpAddr) -> bool| addresses.iter().copied().find(is);
        PodAddresses { v4: first(IpAddr::is_ipv4), v6: first(IpAddr::is_ipv6) }
    }

    /// Whether an address is this node's own.
    pub fn is_node(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node_addresses().any(|net| net.addr() == address)
    }

    /// Where packets with this source come from.
    pub fn origin(&self, from: IpAddr) -> Origin {
        if self.is_node(from) {
            Origin::Node
        } else if self.config.pods.iter().any(|net| net.contains(&from)) {
            Origin::Pod
        } else {
            Origin::Outside
        }
    }

    /// Every row.
    pub fn packets(&self) -> impl Iterator<Item = &Packet> {
        self.steps.iter().flat_map(|step| &step.packets)
    }

    /// The pods of this node: clients among the rows, and endpoints of all steps that are here without being the node itself.
    pub fn pods(&self) -> BTreeSet<IpAddr> {
        let clients = self.packets().map(|packet| packet.from).filter(|from| self.origin(*from) == Origin::Pod);
        let endpoints = self.steps.iter().flat_map(Step::endpoints);
        let here = endpoints.filter(|endpoint| endpoint.node == Some(&self.config.node_name)).map(|e| e.address);
        clients.chain(here).filter(|address| !self.is_node(*address)).collect()
    }

    /// Whether a backend of a step is on this node.
    pub fn is_here(&self, step: &Step, backend: IpAddr) -> bool {
        step.endpoints().any(|e| e.address == backend && e.node == Some(&self.config.node_name))
    }
}

/// An address of an EndpointSlice.
pub struct Endpoint<'a> {
    pub address: IpAddr,
    pub node: Option<&'a str>,
    /// Of the slice, with their protocols.
    pub ports: Vec<(Protocol, u16)>,
}

impl Step {
    /// The endpoints of its EndpointSlices.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> {
        let slices = self.objects.iter().filter(|object| object["kind"] == "EndpointSlice");
        slices.flat_map(|slice| {
            let ports: Vec<(Protocol, u16)> = list(&slice["ports"])
                .filter_map(|port| {
                    let protocol = Protocol::deserialize(&port["protocol"]).unwrap_or(Protocol::Tcp);
                    Some((protocol, u16::try_from(port["port"].as_u64()?).ok()?))
                })
                .collect();
            list(&slice["endpoints"]).filter_map(move |endpoint| {
                let address = endpoint["addresses"][0].as_str()?.parse().ok()?;
                Some(Endpoint { address, node: endpoint["nodeName"].as_str(), ports: ports.clone() })
            })
        })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_of_kube_proxys_is_lost() {
        let documents = load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("truth/flows")).expect("good documents");
        let steps: usize = documents.iter().map(|document| document.steps.len()).sum();
        let rows: usize = documents.iter().map(|document| document.packets().count()).sum();
        assert_eq!((documents.len(), steps, rows), (25, 41, 207));
    }
}
