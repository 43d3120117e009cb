//! A test node with a running agent, and what tests over real traffic ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use netlb_common::Reason;
use netlb_testnode::address::{self, Family};
use netlb_testnode::objects::ObjectKey;
use netlb_testnode::wire::{ProbeTarget, Transport};
use netlb_testnode::{Agent, AgentOptions, Client, Helper, Pod, PodKey, PodNetwork, TestNode};
use serde_json::Value;

use crate::capture::{Services, Tally, Tap};
use crate::puppet::Puppet;
use crate::sockets::PATIENCE;

/// How a rig is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// How pods are joined to their node.
    pub pods: PodNetwork,
    /// `auto`, `stack` or `redirect`.
    pub delivery: &'static str,
    /// `none` or `socket`.
    pub accel: &'static str,
    /// Whether netfilter sees bridged packets.
    pub bridge_netfilter: bool,
    /// Whether senders leave checksums to their devices.
    pub tx_checksum: bool,
}

impl Style {
    /// Both pod networks on both roads, and the bridge once more with bridged packets out of netfilter's sight.
    pub const ALL: [Style; 5] = [
        Style::new(PodNetwork::Bridge, "redirect", true),
        Style::new(PodNetwork::Bridge, "stack", true),
        Style::new(PodNetwork::Bridge, "stack", false),
        Style::new(PodNetwork::Routed, "redirect", false),
        Style::new(PodNetwork::Routed, "stack", false),
    ];

    const fn new(pods: PodNetwork, delivery: &'static str, bridge_netfilter: bool) -> Self {
        Self { pods, delivery, accel: "none", bridge_netfilter, tx_checksum: true }
    }

    /// Whether flows between pods of the node take the redirect road.
    #[must_use]
    pub fn redirects(&self) -> bool {
        self.delivery != "stack"
    }

    /// As it stands in the names of tests.
    #[must_use]
    pub fn name(&self) -> String {
        let pods = match (self.pods, self.bridge_netfilter) {
            (PodNetwork::Bridge, true) => "bridge with br_netfilter",
            (PodNetwork::Bridge, false) => "bridge",
            (PodNetwork::Routed, _) => "routed",
        };
        format!("{pods}, {}", self.delivery)
    }
}

/// A node with an agent. Dropped, nothing of it is left.
pub struct Rig {
    taps: Mutex<Option<BTreeMap<PodKey, Tap>>>,
    /// The node's agent.
    pub agent: Agent,
    /// The node and its pods.
    pub node: TestNode,
    /// How it is.
    pub style: Style,
    actor: &'static Path,
}

impl Rig {
    /// Makes a node with pods and Services from `yaml`, and waits until its agent has applied them. `actor` is the program
    /// `netlb-actor`, as an integration test knows it from cargo.
    ///
    /// # Errors
    /// When something is missing or the agent does not come up.
    pub fn start(style: Style, actor: &'static str, yaml: &str) -> Result<Self> {
        Self::start_beside(style, actor, yaml, &[])
    }

    /// As [`Rig::start`], with further arguments for the agent.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn start_with(style: Style, actor: &'static str, yaml: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_all(style, 1, actor, yaml, &[], arguments)
    }

    /// As [`Rig::start`], with more files in the source, by name, that are there before the agent first reads it.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn start_beside(style: Style, actor: &'static str, yaml: &str, files: &[(&str, String)]) -> Result<Self> {
        Self::start_all(style, 1, actor, yaml, files, &[])
    }

    /// As [`Rig::start`], with an agent on each of several nodes; [`Rig::agent`] is the first one's.
    ///
    /// # Errors
    /// As [`Rig::start`].
    pub fn start_nodes(style: Style, nodes: u8, actor: &'static str, yaml: &str) -> Result<Self> {
        Self::start_all(style, nodes, actor, yaml, &[], &[])
    }

    fn start_all(
        style: Style,
        nodes: u8,
        actor: &'static str,
        yaml: &str,
        files: &[(&str, String)],
        arguments: &[&str],
    ) -> Result<Self> {
        let actor = Path::new(actor);
        let node = TestNode::builder()
            .pod_network(style.pods)
            .nodes(nodes)
            .bridge_netfilter(style.bridge_netfilter)
            .tx_checksum(style.tx_checksum)
            .helper(Helper::binary(actor.to_owned()))
            .start()?;
        node.apply(yaml)?;
        for (name, text) in files {
            node.write_raw(name, Some(text))?;
        }
        let options = AgentOptions {
            delivery: style.delivery.to_owned(),
            accel: style.accel.to_owned(),
            extra: arguments.iter().map(|word| (*word).to_owned()).collect(),
            ..AgentOptions::default()
        };
        let agent = node.start_agents(&options)?.into_iter().next().context("no node")?;
        let rig = Self { taps: Mutex::new(None), agent, node, style, actor };
        rig.settle()?;
        Ok(rig)
    }

    /// Applies manifests and waits until the agent has applied them, and until it knows the new pods' devices.
    ///
    /// # Errors
    /// As [`TestNode::apply`] and [`TestNode::settle`].
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.node.apply(yaml)?;
        self.settle()
    }

    /// Scales a workload and waits until that has come to its end.
    ///
    /// # Errors
    /// As [`TestNode::scale`] and [`TestNode::settle`].
    pub fn scale(&self, workload: &str, replicas: u32) -> Result<()> {
        self.node.scale(workload, replicas)?;
        self.settle()
    }

    /// Waits until the last change has come to its end.
    ///
    /// # Errors
    /// As [`TestNode::settle`].
    pub fn settle(&self) -> Result<()> {
        self.node.settle()?;
        self.wait_devices()?;
        self.tap_pods()
    }

    /// Waits until the agents have found every pod's device and addresses, and their uplinks: they follow devices beside the source.
    fn wait_devices(&self) -> Result<()> {
        for (node, agent) in self.node.nodes().iter().zip(self.node.agents()) {
            let wanted: BTreeSet<IpAddr> = self
                .node
                .pods()
                .iter()
                .filter(|pod| pod.node().number == node.number)
                .filter(|pod| pod.device().is_some() && pod.is_alive().unwrap_or(false))
                .flat_map(|pod| pod.addresses().both())
                .collect();
            self.eventually("the agent knows every pod's device", || {
                let status = agent.status()?.unwrap_or_default();
                let known: BTreeSet<IpAddr> = device_addresses(&status).collect();
                let missing: Vec<_> = wanted.difference(&known).collect();
                ensure!(missing.is_empty(), "it lacks {missing:?}");
                ensure!(has_uplink(&status), "it has no program on an uplink");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Tries until `check` succeeds, for as long as a healthy agent could need.
    ///
    /// # Errors
    /// The last error of `check`.
    pub fn eventually(&self, what: &str, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE * 4;
        loop {
            match check() {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("in vain waited until {what}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Captures what arrives at every pod from now on, also at pods to come.
    ///
    /// # Errors
    /// As [`Tap::start`].
    pub fn capture(&self) -> Result<()> {
        self.taps().get_or_insert_default();
        self.tap_pods()
    }

    fn taps(&self) -> MutexGuard<'_, Option<BTreeMap<PodKey, Tap>>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tap_pods(&self) -> Result<()> {
        let mut taps = self.taps();
        let Some(taps) = taps.as_mut() else { return Ok(()) };
        for pod in self.node.pods() {
            if !taps.contains_key(pod.key()) {
                taps.insert(pod.key().clone(), Tap::start(pod.net(), "eth0", services()?)?);
            }
        }
        Ok(())
    }

    /// Ends the capture; returns what was seen at all pods.
    ///
    /// # Errors
    /// When a tap failed, or none was started.
    pub fn captured(&self) -> Result<Tally> {
        let taps = self.taps().take().context("nothing is captured; call capture() first")?;
        let mut sum = Tally::default();
        for (_, tap) in taps {
            sum.add(tap.finish()?);
        }
        Ok(sum)
    }

    /// A Service's address and port.
    ///
    /// # Errors
    /// When there is no such Service in `default`, or it has no address of that family.
    pub fn frontend(&self, service: &str, family: Family, port: u16) -> Result<SocketAddr> {
        let key = ObjectKey { kind: "Service".into(), namespace: "default".into(), name: service.into() };
        let cluster = self.node.cluster();
        let object = cluster.object(&key).with_context(|| format!("there is no {key}"))?;
        let addresses = object.pointer("/spec/clusterIPs").and_then(Value::as_array).cloned().unwrap_or_default();
        let address = addresses
            .iter()
            .filter_map(|text| text.as_str()?.parse::<IpAddr>().ok())
            .find(|address| Family::of(*address) == family);
        Ok(SocketAddr::new(address.with_context(|| format!("{key} has no {} address", family.word()))?, port))
    }

    /// The addresses at which a workload's pods serve a port.
    #[must_use]
    pub fn backends(&self, workload: &str, family: Family, port: u16) -> BTreeSet<SocketAddr> {
        self.node.pods_of(workload).iter().map(|pod| SocketAddr::new(pod.addresses().of(family), port)).collect()
    }

    /// A pod in `default`, or the first of a workload.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod(&self, name: &str) -> Result<Arc<Pod>> {
        self.node.pod(name)
    }

    /// Runs `f` in a pod's network namespace.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn inside<T: Send>(&self, pod: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.pod(pod)?.run(f)?
    }

    /// A process on the node, in its cgroup, whose sockets the socket hooks see.
    ///
    /// # Errors
    /// As [`Puppet::start`].
    pub fn node_puppet(&self) -> Result<Puppet> {
        Puppet::start(&self.node.node(1)?.place, self.actor)
    }

    /// A process in a pod, in its cgroup.
    ///
    /// # Errors
    /// As [`Puppet::start`].
    pub fn pod_puppet(&self, pod: &str) -> Result<Puppet> {
        Puppet::start(self.pod(pod)?.place(), self.actor)
    }

    /// All counters, by reason.
    ///
    /// # Errors
    /// When `netlb drops` fails or prints something else.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let rows: Value = serde_json::from_str(&self.agent.netlb(&["drops", "-o", "json"])?)?;
        rows.as_array()
            .context("`netlb drops -o json` is not a list")?
            .iter()
            .map(|row| {
                let reason = row.get("reason").and_then(Value::as_str);
                let packets = row.get("packets").and_then(Value::as_u64);
                reason.zip(packets).map(|(reason, packets)| (reason.to_owned(), packets))
            })
            .collect::<Option<_>>()
            .with_context(|| format!("a row of `netlb drops -o json` has no reason or no packets: {rows}"))
    }

    /// One counter; 0 if it is not listed.
    ///
    /// # Errors
    /// As [`Rig::counters`].
    pub fn counter(&self, reason: Reason) -> Result<u64> {
        let name = reason.name().ok_or_else(|| anyhow!("{reason:?} has no name"))?;
        Ok(self.counters()?.get(name).copied().unwrap_or_default())
    }

    /// By how much a counter grew while `f` ran.
    ///
    /// # Errors
    /// As [`Rig::counters`], and those of `f`.
    pub fn growth<T>(&self, reason: Reason, f: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
        let before = self.counter(reason)?;
        let value = f()?;
        Ok((value, self.counter(reason)?.wrapping_sub(before)))
    }

    /// Sends requests from a client to frontends until every backend expected has answered, and checks that no one else did
    /// and nothing failed. An empty set of backends means that every request must be refused.
    ///
    /// # Errors
    /// Says which frontend was answered otherwise.
    pub fn ask_all(&self, client: &Client, wanted: &[(Transport, SocketAddr, BTreeSet<SocketAddr>)]) -> Result<()> {
        let targets = wanted.iter().enumerate().map(|(id, (transport, address, backends))| {
            let count = u32::try_from(backends.len().max(1)).unwrap_or(1);
            ProbeTarget {
                id,
                address: *address,
                transport: *transport,
                expect: backends.clone(),
                refusal: backends.is_empty(),
                silence: false,
                at_least: 2 * count + 2,
                at_most: 40 * count,
                timeout_ms: u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX),
            }
        });
        let results = self.node.probe(client, targets.collect())?;
        ensure!(results.len() == wanted.len(), "{} frontends were asked, {} results came", wanted.len(), results.len());
        for (result, (transport, address, backends)) in results.iter().zip(wanted) {
            let answered: BTreeSet<SocketAddr> = result.answered.keys().copied().collect();
            let right = if backends.is_empty() { result.refused == result.sent } else { answered == *backends };
            if !right || !result.errors.is_empty() {
                bail!("{client:?} to {} {address}: expected {backends:?}, got {result:?}", transport.word());
            }
        }
        Ok(())
    }
}

/// Tells addresses of the test node's Service networks from others.
fn services() -> Result<Services> {
    let networks: Vec<IpNet> =
        [address::SERVICES_V4, address::SERVICES_V6].iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    Ok(Arc::new(move |address| networks.iter().any(|network| network.contains(&address))))
}

/// Whether programs are on an uplink.
fn has_uplink(status: &Value) -> bool {
    let mut uplinks = status.get("uplinks").and_then(Value::as_array).into_iter().flatten();
    uplinks.any(|uplink| uplink.get("attached") == Some(&Value::Bool(true)))
}

/// The addresses of pods whose devices the agent knows.
fn device_addresses(status: &Value) -> impl Iterator<Item = IpAddr> + '_ {
    let devices = status.get("devices").and_then(Value::as_array).into_iter().flatten();
    devices
        .flat_map(|device| device.get("addrs").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|address| address.as_str()?.parse().ok())
}
