//! Whose packets count as a pod's: kube-proxy's detectLocalMode, and netlb's own way, which is to know the pods' devices.

use clap::ValueEnum;
use netlb_common::config::{flags, pods};
use serde::{Deserialize, Serialize};

use crate::model::{Cidr, Family};

/// `--detect-local-mode`, with kube-proxy's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
pub enum Mode {
    /// What comes from a pod's device (the default)
    #[value(name = "known")]
    #[serde(rename = "known")]
    Known,
    /// What comes from an address in --cluster-cidr (the default if that is given)
    #[value(name = "ClusterCIDR")]
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    /// What comes from an address in spec.podCIDRs of this Node
    #[value(name = "NodeCIDR")]
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    /// What comes from --pod-bridge-interface or its ports
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// What comes from a device whose name, or whose bridge's, begins with --pod-interface-name-prefix
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// Nobody is told to be a pod
    #[value(name = "none")]
    #[serde(rename = "none")]
    None,
}

/// A mode with what it needs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Detector {
    #[default]
    Known,
    /// One range a family.
    Cidrs(Vec<Cidr>),
    /// Those of the Node object.
    NodeCidrs,
    Bridge(String),
    Prefix(String),
    None,
}

/// What `CONFIG` says of a detector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodRule {
    /// One of [`netlb_common::config::pods`].
    pub pods: u32,
    pub cidrs: Vec<Cidr>,
}

impl Detector {
    /// For `CONFIG`, given `spec.podCIDRs` of the Node object. Without ranges nobody can be told to be a pod.
    pub fn rule(&self, node_cidrs: &[Cidr]) -> PodRule {
        let ranges = |cidrs: Vec<Cidr>| match cidrs.is_empty() {
            true => PodRule { pods: pods::NONE, cidrs },
            false => PodRule { pods: pods::CIDRS, cidrs },
        };
        let plain = |pods| PodRule { pods, cidrs: Vec::new() };
        match self {
            Detector::Known => plain(pods::KNOWN),
            Detector::Cidrs(cidrs) => ranges(cidrs.clone()),
            Detector::NodeCidrs => ranges(first_of_each_family(node_cidrs)),
            Detector::Bridge(_) | Detector::Prefix(_) => plain(pods::DEVICES),
            Detector::None => plain(pods::NONE),
        }
    }

    /// Whether what comes from a device counts as a pod's by its name, or by that of the bridge it is a port of (which is what netfilter sees).
    pub fn marks(&self, device: &str, bridge: Option<&str>) -> bool {
        let mut names = [Some(device), bridge].into_iter().flatten();
        match self {
            Detector::Bridge(name) => names.any(|n| n == name),
            Detector::Prefix(prefix) => names.any(|n| n.starts_with(prefix.as_str())),
            Detector::Known | Detector::Cidrs(_) | Detector::NodeCidrs | Detector::None => false,
        }
    }
}

fn first_of_each_family(cidrs: &[Cidr]) -> Vec<Cidr> {
    let first = |family| cidrs.iter().copied().find(|cidr| Family::of(cidr.addr) == family);
    [Family::V4, Family::V6].into_iter().filter_map(first).collect()
}

/// `--masquerade`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Masquerade {
    /// A backend on this node sees the client's own address
    #[default]
    Auto,
    /// Exactly as kube-proxy does, also towards backends on this node
    KubeProxy,
}

impl Masquerade {
    /// Bits of `CONFIG`'s flags; `all` is `--masquerade-all`.
    pub fn flags(self, all: bool) -> u32 {
        let local = match self {
            Masquerade::Auto => 0,
            Masquerade::KubeProxy => flags::MASQUERADE_LOCAL,
        };
        local | if all { flags::MASQUERADE_ALL } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().filter_map(|text| Cidr::parse(text)).collect()
    }

    #[test]
    fn every_detector_to_the_datapaths_rule() {
        let node = cidrs(&["10.244.1.0/24", "10.245.1.0/24", "fd00:244:1::/64"]);
        let cluster = cidrs(&["10.244.0.0/16"]);
        for (detector, number, ranges) in [
            (Detector::Known, pods::KNOWN, vec![]),
            (Detector::Cidrs(cluster.clone()), pods::CIDRS, cluster),
            (Detector::NodeCidrs, pods::CIDRS, cidrs(&["10.244.1.0/24", "fd00:244:1::/64"])),
            (Detector::Bridge("cni0".to_owned()), pods::DEVICES, vec![]),
            (Detector::Prefix("cali".to_owned()), pods::DEVICES, vec![]),
            (Detector::None, pods::NONE, vec![]),
        ] {
            assert_eq!(detector.rule(&node), PodRule { pods: number, cidrs: ranges }, "{detector:?}");
        }
        assert_eq!(Detector::NodeCidrs.rule(&[]).pods, pods::NONE, "no range, no pod");
    }

    #[test]
    fn devices_are_marked_by_name_or_by_bridge() {
        let bridge = Detector::Bridge("cni0".to_owned());
        assert!(bridge.marks("veth1", Some("cni0")) && bridge.marks("cni0", None));
        assert!(!bridge.marks("veth1", None) && !bridge.marks("cni01", Some("br0")));
        let prefix = Detector::Prefix("cali".to_owned());
        assert!(prefix.marks("cali0a1b", None) && prefix.marks("veth1", Some("calibr")));
        assert!(!prefix.marks("xcali", Some("br0")));
        assert!(!Detector::Known.marks("veth1", Some("cni0")));
    }

    #[test]
    fn masquerade_by_its_flags() {
        assert_eq!(Masquerade::Auto.flags(false), 0);
        assert_eq!(Masquerade::KubeProxy.flags(true), flags::MASQUERADE_LOCAL | flags::MASQUERADE_ALL);
    }
}
