//! kube-proxy's own table of what nodePortAddresses selects, against netlb's rule.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlb_user::devices::node_addresses::{Matched, NodePortAddresses, Ranges};
use netlb_user::model::{Cidr, Family, PodAddresses};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    ranges: Vec<String>,
    own: BTreeSet<IpAddr>,
    ipv4: Want,
    ipv6: Want,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Want {
    all: bool,
    addresses: BTreeSet<IpAddr>,
}

#[test]
fn every_list_selects_what_kube_proxy_selects() {
    let cases: Vec<Case> = serde_norway::from_str(include_str!("truth/nodeport-addresses.yaml")).expect("good YAML");
    assert_eq!(cases.len(), 13, "a case was lost");
    for case in &cases {
        let name = &case.name;
        let ranges = Ranges(case.ranges.iter().map(|text| Cidr::parse(text).expect("a range")).collect());
        for (family, want) in [(Family::V4, &case.ipv4), (Family::V6, &case.ipv6)] {
            let want = Matched { all: want.all, addresses: want.addresses.clone() };
            assert_eq!(ranges.of(family, &case.own), want, "{name}, {}", family.name());
        }
        // What is served of it: never loopback. Without a word it is the primary address instead, as in nftables mode.
        let primary = PodAddresses { v4: "192.0.2.7".parse().ok(), v6: None };
        let served = NodePortAddresses::parse(&case.ranges).expect("good words").served(&case.own, primary);
        let found = case.ipv4.addresses.union(&case.ipv6.addresses).copied().filter(|ip| !ip.is_loopback());
        let want: BTreeSet<IpAddr> =
            if case.ranges.is_empty() { primary.v4.into_iter().collect() } else { found.collect() };
        assert_eq!(served, want, "{name}");
    }
    println!("{} of {} cases of nodePortAddresses pass", cases.len(), cases.len());
}
