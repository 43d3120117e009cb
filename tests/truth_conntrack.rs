//! kube-proxy's own table of stale conntrack entries, against the sweep's decision.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netlb_common::backend::{BackendValue, state};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::{Addr, Port, proto};
use netlb_user::observe::sweep::UdpPorts;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    ports: Vec<ServicePort>,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicePort {
    protocol: String,
    frontends: Vec<SocketAddr>,
    serving: Vec<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    protocol: String,
    to: SocketAddr,
    answered: SocketAddr,
    kept: bool,
}

/// Generation of every backend.
const GENERATION: u32 = 3;
/// Id of a backend that left, and of a Service port that did.
const GONE: u32 = 999;

fn number(protocol: &str) -> u8 {
    match protocol {
        "TCP" => proto::TCP,
        "UDP" => proto::UDP,
        "SCTP" => proto::SCTP,
        other => panic!("protocol {other}"),
    }
}

fn frontend_key(at: SocketAddr, protocol: u8) -> FrontendKey {
    let port = Port::new(at.port());
    match at.ip().is_unspecified() {
        true => FrontendKey::node_port(at.is_ipv4(), port, protocol),
        false => FrontendKey::new(Addr::from_ip(at.ip()), port, protocol),
    }
}

/// What the maps hold of a case.
struct Maps {
    frontends: BTreeMap<FrontendKey, FrontendValue>,
    backends: BTreeMap<u32, BackendValue>,
}

impl Maps {
    fn new(case: &Case) -> Self {
        let mut maps = Maps { frontends: BTreeMap::new(), backends: BTreeMap::new() };
        for (service, port) in (1u32..).zip(&case.ports) {
            let protocol = number(&port.protocol);
            for at in &port.frontends {
                let value = FrontendValue { service, ..bytemuck::Zeroable::zeroed() };
                maps.frontends.insert(frontend_key(*at, protocol), value);
            }
            for at in &port.serving {
                let value = BackendValue {
                    addr: Addr::from_ip(at.ip()),
                    port: Port::new(at.port()),
                    state: state::ACTIVE,
                    proto: protocol,
                    generation: GENERATION,
                    service,
                    ..bytemuck::Zeroable::zeroed()
                };
                maps.backends.insert(maps.backends.len() as u32 + 1, value);
            }
        }
        maps
    }

    /// The entry as the datapath would have made it.
    fn entry(&self, entry: &Entry) -> (CtKey, CtValue, Option<BackendValue>) {
        let protocol = number(&entry.protocol);
        let client: SocketAddr = "10.244.9.9:40000".parse().expect("an address");
        let (at, back) = (Addr::from_ip(entry.to.ip()), Addr::from_ip(entry.answered.ip()));
        let from = Addr::from_ip(client.ip());
        let key = CtKey::new(from, at, Port::new(client.port()), Port::new(entry.to.port()), protocol);
        let mut value = CtValue { src: from, dst: back, ..bytemuck::Zeroable::zeroed() };
        if entry.answered.ip() == entry.to.ip() {
            return (key, value, None);
        }
        let any = FrontendKey::node_port(entry.to.is_ipv4(), Port::new(entry.to.port()), protocol);
        let frontend = self.frontends.get(&frontend_key(entry.to, protocol)).or_else(|| self.frontends.get(&any));
        value.service = frontend.map_or(GONE, |frontend| frontend.service);
        let serves =
            |b: &BackendValue| (b.addr, b.port, b.service) == (back, Port::new(entry.answered.port()), value.service);
        let backend = self.backends.iter().find(|(_, b)| serves(b));
        value.backend = backend.map_or(GONE, |(id, _)| *id);
        value.backend_generation = GENERATION;
        (key, value, backend.map(|(_, b)| *b))
    }
}

#[test]
fn every_entry_leaves_or_stays_as_under_kube_proxy() {
    let cases: Vec<Case> = serde_norway::from_str(include_str!("truth/conntrack-cleanup.yaml")).expect("good YAML");
    let counts: Vec<usize> = cases.iter().map(|case| case.entries.len()).collect();
    assert_eq!(counts, [72, 2], "an entry was lost");
    let mut wrong = Vec::new();
    for case in &cases {
        let maps = Maps::new(case);
        let ports = UdpPorts::new(&maps.frontends, maps.backends.values());
        for row in &case.entries {
            let (key, value, backend) = maps.entry(row);
            if ports.leaves(&key, &value, backend.as_ref()) == row.kept {
                wrong.push(format!("{}: {} {} answered by {}", case.name, row.protocol, row.to, row.answered));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} entries are wrong:\n{}",
        wrong.len(),
        counts.iter().sum::<usize>(),
        wrong.join("\n")
    );
    println!("{} cases of conntrack clean-up pass, {} entries", cases.len(), counts.iter().sum::<usize>());
}
