//! From what a person asks (`--from shop/cart --to web:http`) to addresses, a device and a protocol.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use netlb_common::conntrack::CtKey;
use netlb_common::frontend::{FrontendKey, flags};
use netlb_common::{Addr, Port, proto};

use super::frame::{SYN, Shape};
use super::journey::Start;
use super::network::Network;
use super::overlay::Overlay;
use crate::plan::{Names, PortLabel};

/// A question as it is put.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// `outside`, `node`, a pod's name, or an address with or without a port.
    pub from: String,
    /// An address with a port, or a Service with or without one; `node:PORT`.
    pub to: String,
    /// TCP if neither this nor the Service says otherwise.
    pub proto: Option<u8>,
    /// TCP flags.
    pub flags: u8,
    /// Bytes of the IP packet.
    pub size: u16,
    /// The uplink by which a packet from outside comes.
    pub device: Option<String>,
    /// IPv6 where there is a choice.
    pub ipv6: bool,
}

/// A question whose names are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    pub start: Start,
    pub shape: Shape,
}

/// Source ports tried for one that no flow has yet.
const PORTS: std::ops::Range<u16> = 50_000..60_000;

/// Clients outside (RFC 5737, RFC 3849).
const OUTSIDE: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

/// Finds what a question names.
///
/// # Errors
/// If something is not known, or can be meant in several ways; the error lists what is known.
pub fn resolve(question: &Question, overlay: &Overlay<'_>, network: &dyn Network, names: &Names) -> Result<Asked> {
    let place = Place { question, overlay, network, names };
    let (dst, named) = place.destination()?;
    let (start, src) = place.source(dst.ip())?;
    let proto = question.proto.or(named).unwrap_or(proto::TCP);
    let shape = Shape { src, dst, proto, flags: question.flags, size: question.size, macs: Default::default() };
    Ok(Asked { start, shape: Shape { src: place.with_port(&shape), ..shape } })
}

struct Place<'a> {
    question: &'a Question,
    overlay: &'a Overlay<'a>,
    network: &'a dyn Network,
    names: &'a Names,
}

impl Place<'_> {
    /// Address and port, and the protocol if the name says it.
    fn destination(&self) -> Result<(SocketAddr, Option<u8>)> {
        let to = self.question.to.as_str();
        if let Ok(at) = to.parse::<SocketAddr>() {
            return Ok((at, None));
        }
        if let Ok(ip) = to.trim_matches(['[', ']']).parse::<IpAddr>() {
            bail!("--to {to} names no port; write {}", SocketAddr::new(ip, 80));
        }
        let (name, port) = match to.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (to, None),
        };
        if name == "node" {
            let port = port.and_then(|port| port.parse().ok()).context("--to node needs a port: node:30080")?;
            let ip = self.node_address(!self.wants_v6()).context("this node has no address of that family")?;
            return Ok((SocketAddr::new(ip, port), None));
        }
        self.service(name, port)
    }

    /// The family that the source, or the person, asks for.
    fn wants_v6(&self) -> bool {
        self.question.ipv6 || address(&self.question.from).is_some_and(|(ip, _)| ip.is_ipv6())
    }

    fn service(&self, name: &str, port: Option<&str>) -> Result<(SocketAddr, Option<u8>)> {
        let known = |label: &PortLabel| matches(&label.service, name);
        let services: BTreeSet<&str> =
            self.names.services.values().filter(|label| known(label)).map(|label| label.service.as_str()).collect();
        match services.len() {
            0 => bail!("there is no Service {name} with an address here; `netlb service list` shows those there are"),
            1 => {}
            _ => bail!("{name} may be {}; name its namespace too", list(services)),
        }
        let number = port.and_then(|port| port.parse::<u16>().ok());
        let proto = self.question.proto;
        let mut found: Vec<(u32, FrontendKey, u32)> = Vec::new();
        for (key, value) in self.overlay.tables().frontends.iter().filter(|(key, _)| !key.is_address()) {
            let Some(label) = self.names.services.get(&value.service).filter(|label| known(label)) else { continue };
            let named = match (number, port) {
                (Some(number), _) => key.port().get() == number,
                (None, Some(port)) => label.port == port,
                (None, None) => true,
            };
            if named && proto.is_none_or(|proto| proto == key.proto()) {
                found.push((value.service, *key, value.flags));
            }
        }
        let ports: BTreeSet<(&str, u8)> = found
            .iter()
            .filter_map(|(id, key, _)| Some((self.names.services.get(id)?.port.as_str(), key.proto())))
            .collect();
        if ports.len() > 1 {
            let words = ports.iter().map(|(port, proto)| format!("{port} ({})", proto::name(*proto)));
            bail!("{name} has several ports: {}; write {name}:PORT, and --protocol if need be", list(words));
        }
        let wanted = |key: &FrontendKey| v4(key) != self.wants_v6();
        let outside = self.is_outside();
        let best = found.iter().min_by_key(|(_, key, flags)| {
            let external = flags & flags::EXTERNAL != 0;
            // From outside by the address meant for it, else by the cluster IP; a NodePort comes last, it has no address of its own.
            (!wanted(key), external != outside, key.is_node_port(), flags & flags::LOAD_BALANCER == 0)
        });
        let Some((_, key, _)) = best else {
            bail!("{name} has no such port here; `netlb service list` shows those there are");
        };
        let ip = match key.is_node_port() {
            true => self.node_address(v4(key)).context("no address of this node serves NodePorts of that family")?,
            false => key.addr.to_ip(),
        };
        Ok((SocketAddr::new(ip, key.port().get()), Some(key.proto())))
    }

    /// An address of this node, one that serves NodePorts if there is one.
    fn node_address(&self, v4: bool) -> Option<IpAddr> {
        let tables = self.overlay.tables();
        let config = tables.config.as_ref()?;
        let primary = if v4 { config.node4 } else { config.node6 };
        let serves = |addr: &Addr| {
            tables.frontends.get(&FrontendKey::address(*addr)).is_some_and(|value| value.flags & flags::NODE != 0)
        };
        let others =
            tables.frontends.keys().filter(|key| key.is_address() && key.addr.is_v4() == v4).map(|key| key.addr);
        let mut all = std::iter::once(primary).chain(others);
        all.find(serves).or(Some(primary)).filter(|addr| *addr != Addr::UNSPECIFIED).map(Addr::to_ip)
    }

    fn source(&self, dst: IpAddr) -> Result<(Start, SocketAddr)> {
        let from = self.question.from.as_str();
        if let Some((ip, port)) = address(from) {
            if ip.is_ipv4() != dst.is_ipv4() {
                bail!("--from {from} and --to {dst} are of two families");
            }
            let start = self.start(ip)?;
            return Ok((start, SocketAddr::new(ip, port)));
        }
        match from {
            "node" => Ok((Start::Node, SocketAddr::new(super::journey::unspecified(dst), 0))),
            "outside" => {
                let ip = OUTSIDE[usize::from(dst.is_ipv6())].parse()?;
                Ok((Start::Outside(self.uplink(ip)?), SocketAddr::new(ip, 0)))
            }
            name => {
                let pods: BTreeSet<&str> =
                    self.names.pods.values().map(String::as_str).filter(|pod| matches(pod, name)).collect();
                match pods.len() {
                    0 => bail!(
                        "netlb knows no pod {name}{}; name one, an IP address, `outside` or `node`",
                        self.similar(name)
                    ),
                    1 => {}
                    _ => bail!("{name} may be {}; name its namespace too", list(pods)),
                }
                let own = self.names.pods.iter().filter(|(_, pod)| pods.contains(pod.as_str())).map(|(ip, _)| *ip);
                let Some(ip) = own.into_iter().find(|ip| ip.is_ipv4() == dst.is_ipv4()) else {
                    bail!("{name} has no address of the family of {dst}; ask for the other one");
                };
                let start = self.start(ip)?;
                Ok((start, SocketAddr::new(ip, 0)))
            }
        }
    }

    /// Where packets with this source begin: a pod with the node's own network is the node, one of another node is outside.
    fn start(&self, ip: IpAddr) -> Result<Start> {
        match self.pod_device(ip) {
            Some(ifindex) => Ok(Start::Pod(ifindex)),
            None if self.is_own(ip) => Ok(Start::Node),
            None => Ok(Start::Outside(self.uplink(ip)?)),
        }
    }

    fn pod_device(&self, ip: IpAddr) -> Option<u32> {
        let tables = self.overlay.tables();
        let id = tables.endpoint_by_addr.get(&Addr::from_ip(ip))?;
        tables.endpoints.get(id).map(|endpoint| endpoint.ifindex).filter(|ifindex| *ifindex != 0)
    }

    /// An address of the node itself.
    fn is_own(&self, ip: IpAddr) -> bool {
        self.network.output(None, ip).is_ok_and(|way| way.local)
    }

    /// The question is about a client outside of the cluster.
    fn is_outside(&self) -> bool {
        let known = |ip: IpAddr| self.pod_device(ip).is_some() || self.is_own(ip) || self.names.pod(ip).is_some();
        self.question.from == "outside" || address(&self.question.from).is_some_and(|(ip, _)| !known(ip))
    }

    /// Pods whose names begin alike, in words.
    fn similar(&self, name: &str) -> String {
        let short =
            |pod: &&str| pod.rsplit('/').next().is_some_and(|pod| pod.starts_with(name)) || pod.starts_with(name);
        let some: BTreeSet<&str> = self.names.pods.values().map(String::as_str).filter(short).collect();
        if some.is_empty() { String::new() } else { format!(" (but {})", list(some)) }
    }

    /// The uplink by which packets from an address come: the named one, else the one that leads there, else the first.
    fn uplink(&self, ip: IpAddr) -> Result<u32> {
        let uplinks = &self.overlay.tables().uplinks;
        if let Some(device) = &self.question.device {
            let link = self.network.links().find(|link| link.name == *device);
            let link = link.with_context(|| format!("there is no device {device}"))?;
            if !uplinks.contains_key(&link.ifindex) {
                bail!("{device} is no uplink; `netlb status` says why");
            }
            return Ok(link.ifindex);
        }
        let back =
            self.network.output(None, ip).ok().map(|way| way.ifindex).filter(|ifindex| uplinks.contains_key(ifindex));
        back.or_else(|| uplinks.keys().next().copied()).context(
            "this node has no uplink; `netlb status` says which devices it has, and --devices of the agent names one",
        )
    }

    /// The source with a port: the one asked for, else one that no flow has.
    fn with_port(&self, shape: &Shape) -> SocketAddr {
        let free = |port: &u16| {
            let key = CtKey::new(
                Addr::from_ip(shape.src.ip()),
                Addr::from_ip(shape.dst.ip()),
                Port::new(*port),
                Port::new(shape.dst.port()),
                shape.proto,
            );
            !self.overlay.has_flow(&key)
        };
        let mut src = shape.src;
        if src.port() == 0 {
            src.set_port(PORTS.clone().find(free).unwrap_or(PORTS.start));
        }
        src
    }
}

/// Whether a frontend is of IPv4.
fn v4(key: &FrontendKey) -> bool {
    key.addr.is_v4()
}

/// `shop/web` is meant by itself and by `web`.
fn matches(known: &str, name: &str) -> bool {
    known == name || known.split_once('/').is_some_and(|(_, short)| short == name)
}

/// An address, and a port or 0.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Some((at.ip(), at.port()));
    }
    text.trim_matches(['[', ']']).parse().ok().map(|ip| (ip, 0))
}

fn list(words: impl IntoIterator<Item = impl Into<String>>) -> String {
    words.into_iter().map(Into::into).collect::<Vec<_>>().join(", ")
}

/// A packet that opens a flow.
pub fn opens(shape: &Shape) -> bool {
    shape.proto == proto::UDP || shape.flags == SYN
}
