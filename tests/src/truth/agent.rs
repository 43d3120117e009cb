//! netlb without its process: objects through the source folder, the compiler and the plan into the machine's maps.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use ipnet::IpNet;
use netlb_user::bpf::sys;
use netlb_user::devices::node_addresses::NodePortAddresses;
use netlb_user::k8s::{Folder, Snapshot};
use netlb_user::model::{HostState, NodeName, PodDevice, Uplink};
use netlb_user::plan::{Controller, NodeConfig};
use netlb_user::store::{KernelStore, MapStore, StoreError, Tables};
use serde_json::Value;

use super::document::{Document, Step};
use super::machine::Machine;
use super::settings::Setting;
use super::site::{MTU, Site};

/// Rounds of planning and writing in which netlb must come to rest.
const ROUNDS: usize = 100;

/// Source ports of masqueraded flows: clear of those that clients of rows use.
const SNAT_PORTS: Range<u32> = 61_000..65_536;

/// Everything between a folder of objects and the maps.
pub struct Agent {
    source: tempfile::TempDir,
    folder: Folder,
    known: Snapshot,
    devices: BTreeMap<u32, PodDevice>,
    controller: Controller,
    store: KernelStore,
    now: Duration,
}

impl Agent {
    /// Starts over empty maps. Call it on a thread in the node's network namespace.
    ///
    /// # Errors
    /// If the maps cannot be emptied.
    pub fn start(machine: &Machine, site: &Site, document: &Document, setting: Setting) -> Result<Self> {
        let store = machine.wipe()?;
        let source = tempfile::tempdir()?;
        for object in &document.objects {
            write(&source, object)?;
        }
        let mut controller = Controller::new(&Tables::default(), store.capacity());
        controller.set_node_name(Some(NodeName::new(&document.config.node_name)));
        let primary = document.primary();
        controller.set_node(NodeConfig {
            netns_cookie: sys::netns_cookie()?,
            hz: machine.hz,
            flags: setting.flags(document),
            seed: 0x7274,
            node4: primary.v4,
            node6: primary.v6,
            snat_first: SNAT_PORTS.start,
            snat_count: SNAT_PORTS.end - SNAT_PORTS.start,
            pods: setting.pods(document),
            pod_cidrs: setting.pod_cidr(document).into_iter().collect(),
        });
        controller.set_host(&host_state(site, document)?);
        let devices = site.pods.iter().map(|(address, device)| {
            let device = PodDevice {
                ifindex: device.ifindex,
                name: device.name.clone(),
                mtu: MTU,
                bridge: 0,
                pod_mac: device.far_mac,
                host_mac: device.mac,
                addrs: [*address].into(),
                pod_source: false,
            };
            (device.ifindex, device)
        });
        Ok(Agent {
            folder: Folder::new(source.path()),
            source,
            known: Snapshot::default(),
            devices: devices.collect(),
            controller,
            store,
            now: Duration::ZERO,
        })
    }

    /// Makes the cluster what a step says, and brings the maps there. Answers with what netlb has to say of the objects.
    ///
    /// # Errors
    /// If a write fails.
    pub fn show(&mut self, document: &Document, step: &Step) -> Result<Vec<String>> {
        for entry in fs::read_dir(self.source.path())? {
            fs::remove_file(entry?.path())?;
        }
        for object in document.objects.iter().chain(&step.objects) {
            write(&self.source, object)?;
        }
        let snapshot = self.folder.read()?;
        let mut changes = Some(snapshot.changes_since(&self.known));
        self.known = snapshot;
        // Longer than every grace.
        self.now += Duration::from_secs(60);
        for _ in 0..ROUNDS {
            let plan = self.controller.update(changes.take().unwrap_or_default(), Some(&self.devices), self.now);
            if plan.is_empty() {
                self.read_back()?;
                let problems = self.known.problems.iter().cloned().chain(self.controller.problems());
                return Ok(problems.map(|problem| problem.to_string()).collect());
            }
            let applied = self.controller.apply(&plan, &mut self.store);
            let fault = applied.failed.iter().find(|(_, error)| !matches!(error, StoreError::Busy { .. }));
            ensure!(fault.is_none(), "a write failed: {fault:?}");
            if !applied.failed.is_empty() {
                // As the agent does: the kernel hands out memory for entries in batches, and on a busy machine the next one is late.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Err(anyhow!("netlb does not come to rest"))
    }

    /// A restarted agent would find in the kernel's maps what was written.
    fn read_back(&self) -> Result<()> {
        let (found, shadow) = (self.store.read()?, self.controller.shadow());
        let ranges = found.source_ranges.iter().all(|range| shadow.has_range(range));
        ensure!(ranges && found.source_ranges.len() == shadow.ranges(), "source ranges read {:?}", found.source_ranges);
        ensure!(found.frontends == shadow.frontends, "frontends read {:?}", found.frontends);
        ensure!(found.uplinks == shadow.uplinks && found.clients == shadow.clients, "uplinks read {:?}", found.uplinks);
        Ok(())
    }
}

/// What the agent would find out about the node.
fn host_state(site: &Site, document: &Document) -> Result<HostState> {
    let primary = document.primary();
    let wish = NodePortAddresses::parse(&document.config.node_port_addresses)
        .map_err(|word| anyhow!("{word:?} is no NodePort address"))?;
    let own = document.config.node_addresses.iter().map(IpNet::addr).collect();
    let uplink = Uplink {
        name: site.uplink.name.clone(),
        v4: document.node_addresses().map(|net| net.addr()).find(IpAddr::is_ipv4),
        v6: document.node_addresses().map(|net| net.addr()).find(IpAddr::is_ipv6),
        mtu: MTU,
        pod_source: false,
    };
    Ok(HostState {
        node_port_addresses: wish.served(&own, primary),
        uplinks: [(site.uplink.ifindex, uplink)].into(),
        clients: BTreeMap::new(),
    })
}

/// Writes an object into the source folder, under its kind and name.
fn write(source: &tempfile::TempDir, object: &Value) -> Result<()> {
    let part = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = format!("{}-{}-{}.yaml", part("/kind"), part("/metadata/namespace"), part("/metadata/name"));
    Ok(fs::write(source.path().join(name), serde_norway::to_string(object)?)?)
}
