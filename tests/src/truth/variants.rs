//! The same document over another protocol or address family: rules make no difference between them, so neither may netlb.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use serde_json::Value;

use super::document::{Detector, Document, Expect, Origin, Protocol};

/// How a document is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Variant {
    AsItIs,
    /// UDP for TCP.
    Udp,
    /// SCTP for TCP, without rows that begin with a socket.
    Sctp,
    /// An IPv6 address for each IPv4 address.
    Ipv6,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::AsItIs, Variant::Udp, Variant::Sctp, Variant::Ipv6];

    /// As it stands in the names of tests.
    pub fn name(self) -> &'static str {
        match self {
            Variant::AsItIs => "as it is",
            Variant::Udp => "as UDP",
            Variant::Sctp => "as SCTP",
            Variant::Ipv6 => "as IPv6",
        }
    }

    /// The document so read; `None` if it is about more than one protocol, or about IPv6 already.
    pub fn of(self, document: &Document) -> Option<Document> {
        match self {
            Variant::AsItIs => Some(document.clone()),
            Variant::Udp => over(document, Protocol::Udp, "UDP"),
            Variant::Sctp => {
                let mut document = over(document, Protocol::Sctp, "SCTP")?;
                let nodes = document.clone();
                for step in &mut document.steps {
                    step.packets.retain(|packet| nodes.origin(packet.from) != Origin::Node);
                }
                Some(document)
            }
            Variant::Ipv6 => ipv6(document),
        }
    }
}

fn over(document: &Document, protocol: Protocol, word: &str) -> Option<Document> {
    if document.packets().any(|packet| packet.protocol != Protocol::Tcp) {
        return None;
    }
    let mut document = document.clone();
    for step in &mut document.steps {
        step.objects.iter_mut().for_each(|object| words(object, &|text| (text == "TCP").then(|| word.to_owned())));
        step.packets.iter_mut().for_each(|packet| packet.protocol = protocol);
    }
    Some(document)
}

fn ipv6(document: &Document) -> Option<Document> {
    if document.packets().any(|packet| packet.to.is_ipv6()) {
        return None;
    }
    let mut document = document.clone();
    let config = &mut document.config;
    config.node_addresses.iter_mut().chain(&mut config.pods).for_each(|net| *net = net6(*net));
    config.node_port_addresses.iter_mut().for_each(|text| *text = word6(text).unwrap_or_else(|| text.clone()));
    if let Detector::ClusterCidr(net) = &mut config.local_detector {
        *net = net6(*net);
    }
    document.objects.iter_mut().for_each(|object| words(object, &word6));
    for step in &mut document.steps {
        step.objects.iter_mut().for_each(|object| words(object, &word6));
        for packet in &mut step.packets {
            (packet.from, packet.to) = (address6(packet.from), socket6(packet.to));
            if let Expect::Backends(backends) = &mut packet.expect {
                *backends = backends.iter().copied().map(socket6).collect();
            }
        }
    }
    Some(document)
}

/// Changes words anywhere in an object.
fn words(value: &mut Value, change: &dyn Fn(&str) -> Option<String>) {
    match value {
        Value::String(text) => *text = change(text).unwrap_or_else(|| std::mem::take(text)),
        Value::Array(list) => list.iter_mut().for_each(|value| words(value, change)),
        Value::Object(fields) => fields.values_mut().for_each(|value| words(value, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// An IPv4 address, range or family in IPv6's words; blanks around it stay.
fn word6(text: &str) -> Option<String> {
    let bare = text.trim();
    let changed = if let Ok(address) = bare.parse::<Ipv4Addr>() {
        address6(address.into()).to_string()
    } else if let Ok(net @ IpNet::V4(_)) = bare.parse::<IpNet>() {
        net6(net).to_string()
    } else if bare == "IPv4" {
        "IPv6".to_owned()
    } else {
        return None;
    };
    Some(text.replace(bare, &changed))
}

fn address6(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(v4) => Ipv6Addr::from_bits(0xfd00_0004 << 96 | u128::from(v4.to_bits())).into(),
        IpAddr::V6(_) => address,
    }
}

fn socket6(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address6(address.ip()), address.port())
}

fn net6(net: IpNet) -> IpNet {
    match address6(net.addr()) {
        IpAddr::V6(v6) if net.addr().is_ipv4() => match net.prefix_len() {
            0 => Ipv6Net::default().into(),
            _ if v6.is_loopback() => Ipv6Net::new_assert(v6, 128).into(),
            len => Ipv6Net::new_assert(v6, 96 + len).into(),
        },
        IpAddr::V4(_) | IpAddr::V6(_) => net,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ipv4_become_ipv6() {
        for (from, to) in [
            ("10.0.0.2", "fd00:4::a00:2"),
            (" 203.0.113.0/25", " fd00:4::cb00:7100/121"),
            ("0.0.0.0/0", "::/0"),
            ("127.0.0.1/8", "::1/128"),
            ("IPv4", "IPv6"),
        ] {
            assert_eq!(word6(from).as_deref(), Some(to), "{from}");
        }
        for same in ["2001:db8::1", "2001:db8::/64", "10", "TCP", ""] {
            assert_eq!(word6(same), None, "{same}");
        }
    }
}
