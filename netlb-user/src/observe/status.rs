//! status.json: what the agent knows of itself, for people and for whoever waits until a change has taken effect.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::delivery::Delivery;
use crate::k8s::SourceFailure;
use crate::model::Problem;
use crate::runtime::atomic_file;

/// The whole file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub abi: u32,
    pub kernel: String,
    pub node: String,
    pub pid: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// `attached`, or `detached` if the agent was told to attach nothing.
    pub mode: String,
    /// The source was read whole, the devices were listed, the programs are attached, and all of it is in the maps.
    pub synced: bool,
    pub source: SourceStatus,
    /// State of the source that is in effect: of a folder its `revision` file's content, of an API server a count of states.
    pub revision: Option<String>,
    pub ready: Ready,
    /// Services with at least one frontend.
    pub services: usize,
    /// Backends in use, counted once a Service port.
    pub backends: usize,
    pub problems: Vec<Problem>,
    /// Objects netlb reads and does not act on yet.
    pub not_enforced: Vec<String>,
    pub delivery: Option<Delivery>,
    pub devices: Vec<DeviceStatus>,
    /// Every device that is no pod's, uplink or not.
    pub uplinks: Vec<UplinkStatus>,
    /// The node's primary address of each family, as far as it has one.
    pub node_addresses: Vec<IpAddr>,
    /// Addresses of the node on which NodePorts answer.
    pub node_port_addresses: BTreeSet<IpAddr>,
    pub health: HealthStatus,
    /// Source ports of masqueraded flows: `first-last`.
    pub snat_ports: String,
    pub conntrack: Conntrack,
    /// What an operator should know and need not act on at once.
    pub notes: Vec<String>,
}

/// Who says what there is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SourceStatus {
    /// `folder PATH` or `API server (…)`.
    pub from: String,
    /// It, or part of it, cannot be followed now.
    pub failure: Option<SourceFailure>,
}

/// Does the node balance as it should?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ready {
    pub ready: bool,
    /// In words; empty when ready.
    pub reason: String,
}

/// A pod's device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceStatus {
    pub name: String,
    pub ifindex: u32,
    pub addrs: BTreeSet<IpAddr>,
    /// How the addresses became known, see [`crate::devices::How`].
    pub how: String,
    /// netlb's programs are on it.
    pub attached: bool,
}

/// A device that is no pod's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UplinkStatus {
    pub name: String,
    pub ifindex: u32,
    /// The source of what is masqueraded here: at most one a family.
    pub addrs: Vec<IpAddr>,
    /// Bytes of IP packet.
    pub mtu: u32,
    pub is_uplink: bool,
    /// Why it is one, or is none, in words.
    pub why: String,
    /// netlb's programs are on it.
    pub attached: bool,
}

/// What is answered to load balancers and probes over HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HealthStatus {
    /// Where `/healthz` and `/livez` answer; `None`: nowhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` and its like answer; `None`: nowhere.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    pub ports: Vec<HealthPortStatus>,
}

/// A Service's `healthCheckNodePort`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HealthPortStatus {
    /// `namespace/name`.
    pub service: String,
    pub port: u16,
    /// Ready endpoints on this node by family (`ipv4`, `ipv6`), only those the Service has; load balancers are told to come where there are some.
    pub ready: BTreeMap<String, usize>,
    /// Where it is open; an unspecified address: on all.
    pub open_on: Vec<SocketAddr>,
}

/// How full conntrack was at the last sweep, in entries; a flow has two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Conntrack {
    /// Of answered flows (map `CT`).
    pub entries: usize,
    pub capacity: u32,
    /// Of flows without an answer yet (map `CT_NEW`, which forgets the oldest when full).
    pub new_entries: usize,
    pub new_capacity: u32,
}

impl Conntrack {
    /// A line for people when `CT` is nearly full (four fifths).
    pub fn pressure(&self) -> Option<String> {
        let full = self.capacity > 0 && self.entries as u64 * 5 >= u64::from(self.capacity) * 4;
        full.then(|| {
            format!(
                "conntrack holds {} of {} entries; when it is full, answered flows can be forgotten in a flood: start the agent with a larger --max-conntrack (after `netlb cleanup`)",
                self.entries, self.capacity
            )
        })
    }
}

/// Where the agent writes it.
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("status.json")
}

/// # Errors
/// If the run directory cannot be written.
pub fn write(run_dir: &Path, status: &Status) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(status).map_err(io::Error::other)?;
    atomic_file::write(&path(run_dir), &json)
}

/// The status last written.
///
/// # Errors
/// NotFound if no agent ever wrote one there.
pub fn read(run_dir: &Path) -> io::Result<Status> {
    let json = std::fs::read(path(run_dir))?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}

/// Is the process that wrote a status still there, and a netlb?
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "netlb")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::delivery::{Mode, Road};

    /// A status with something in every field.
    pub(crate) fn sample() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            abi: 1,
            kernel: "6.18.0".to_owned(),
            node: "node1".to_owned(),
            pid: 4242,
            started: 1_700_000_000,
            mode: "attached".to_owned(),
            synced: true,
            source: SourceStatus { from: "folder /objects".to_owned(), failure: None },
            revision: Some("42".to_owned()),
            ready: Ready { ready: true, reason: String::new() },
            services: 5,
            backends: 12,
            problems: vec![Problem {
                file: Some("bad.yaml".to_owned()),
                object: "Service default/bad".to_owned(),
                field: "spec.ports[0].port".to_owned(),
                message: "70000 is no port".to_owned(),
                remedy: "use 1 to 65535".to_owned(),
            }],
            not_enforced: vec!["NetworkPolicy shop/deny".to_owned()],
            delivery: Some(Delivery { mode: Mode::Auto, road: Road::Redirect, why: "nothing has a say".to_owned() }),
            devices: vec![DeviceStatus {
                name: "veth1".to_owned(),
                ifindex: 7,
                addrs: BTreeSet::from(["10.244.1.5".parse().expect("an address")]),
                how: "namespace".to_owned(),
                attached: true,
            }],
            uplinks: vec![UplinkStatus {
                name: "eth0".to_owned(),
                ifindex: 2,
                addrs: vec!["192.168.99.11".parse().expect("an address")],
                mtu: 1500,
                is_uplink: true,
                why: "carries a default route".to_owned(),
                attached: true,
            }],
            node_addresses: vec!["192.168.99.11".parse().expect("an address")],
            node_port_addresses: BTreeSet::from(["192.168.99.11".parse().expect("an address")]),
            health: HealthStatus {
                healthz: Some(([0, 0, 0, 0], 10256).into()),
                metrics: Some(([127, 0, 0, 1], 10249).into()),
                ports: vec![HealthPortStatus {
                    service: "shop/web".to_owned(),
                    port: 30500,
                    ready: [("ipv4".to_owned(), 2), ("ipv6".to_owned(), 1)].into(),
                    open_on: vec![([192, 0, 2, 1], 30500).into()],
                }],
            },
            snat_ports: "1024-29999".to_owned(),
            conntrack: Conntrack { entries: 8, capacity: 10, new_entries: 1, new_capacity: 4 },
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_fields_that_others_wait_for() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        write(dir.path(), &sample()).expect("writable");
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path(dir.path())).expect("readable")).expect("JSON");
        assert_eq!(json["pid"], 4242);
        assert_eq!(json["synced"], true);
        assert_eq!(json["revision"], "42");
        assert_eq!(json["problems"][0]["field"], "spec.ports[0].port");
        assert_eq!(json["delivery"]["road"], "redirect");
        assert_eq!(json["ready"]["ready"], true);
        assert_eq!(read(dir.path()).expect("readable"), sample());
    }

    #[test]
    fn pressure_begins_at_four_fifths() {
        let at = |entries| Conntrack { entries, capacity: 10, ..Conntrack::default() }.pressure().is_some();
        assert_eq!([at(0), at(7), at(8), at(10)], [false, false, true, true]);
        assert!(Conntrack::default().pressure().is_none());
    }
}
