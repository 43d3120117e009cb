//! Choosing what a test node is like, and making it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};

use super::{State, TestNode};
use crate::cgroup::Cgroup;
use crate::cluster::Cluster;
use crate::helper::Helper;
use crate::process::Stop;
use crate::source::SourceDir;
use crate::state::{StateDir, TEST_NODES};
use crate::topology::{self, Node, Outside, PodNetwork, Wires};

/// How a test node is to be. Made by [`TestNode::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    wires: Wires,
    nodes: u8,
    bridge_netfilter: Option<bool>,
    helper: Option<Helper>,
    netlb: Option<PathBuf>,
    stop: Stop,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            wires: Wires { pod_network: PodNetwork::Bridge, bridge_netfilter: true, tx_checksum: true, mtu: 1500 },
            nodes: 1,
            bridge_netfilter: None,
            helper: None,
            netlb: None,
            stop: Stop::default(),
        }
    }
}

impl Builder {
    /// The style of the pod network; [`PodNetwork::Bridge`] if not said.
    #[must_use]
    pub fn pod_network(mut self, style: PodNetwork) -> Self {
        self.wires.pod_network = style;
        self
    }

    /// The number of nodes; 1 if not said.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Whether netfilter sees bridged packets; if not said, it does with [`PodNetwork::Bridge`].
    #[must_use]
    pub fn bridge_netfilter(mut self, on: bool) -> Self {
        self.bridge_netfilter = Some(on);
        self
    }

    /// Whether pods and uplinks leave checksums to hardware; they do if not said.
    #[must_use]
    pub fn tx_checksum(mut self, on: bool) -> Self {
        self.wires.tx_checksum = on;
        self
    }

    /// Largest packet on pod devices and uplinks; 1500 bytes if not said.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.wires.mtu = mtu;
        self
    }

    /// The program that plays pods; `netlb-testnode` beside the running program if not said.
    #[must_use]
    pub fn helper(mut self, helper: Helper) -> Self {
        self.helper = Some(helper);
        self
    }

    /// The agent's program; `release/netlb` of the target folder that the running program is in, if not said.
    #[must_use]
    pub fn netlb(mut self, program: PathBuf) -> Self {
        self.netlb = Some(program);
        self
    }

    /// What ends all waiting early.
    #[must_use]
    pub fn stop(mut self, stop: Stop) -> Self {
        self.stop = stop;
        self
    }

    /// Makes the nodes.
    ///
    /// # Errors
    /// Names what could not be made.
    pub fn start(self) -> Result<TestNode> {
        if self.nodes == 0 || self.nodes > crate::address::MAX_NODES {
            bail!("there can be 1 to {} nodes, not {}", crate::address::MAX_NODES, self.nodes);
        }
        let helper = self.helper.map_or_else(Helper::find, Ok)?;
        let netlb = self.netlb.map_or_else(find_netlb, Ok)?;
        let mut wires = self.wires;
        wires.bridge_netfilter = self.bridge_netfilter.unwrap_or(wires.pod_network == PodNetwork::Bridge);

        let folder = StateDir::create(TEST_NODES)?;
        let cgroup = Cgroup::create(TEST_NODES.cgroup(folder.id())?)?;
        let outside = Outside::new(&cgroup)?;
        let mut nodes = Vec::new();
        for number in 1..=self.nodes {
            self.stop.check()?;
            let node = Node::new(number, wires, &outside, &cgroup)
                .with_context(|| format!("cannot make {}", topology::name(number)))?;
            nodes.push(Arc::new(node));
        }
        topology::mesh(&nodes)?;
        outside.route_to(1)?;
        let source = SourceDir::create(folder.path().join("source"))?;
        fs::create_dir(folder.path().join("hosts")).context("cannot make the folder for hosts files")?;
        let state = State {
            agents: BTreeMap::new(),
            pods: BTreeMap::new(),
            removed: Vec::new(),
            cluster: Cluster::new(self.nodes),
            source,
            next_port: BTreeMap::new(),
        };
        let node = TestNode {
            state: Mutex::new(state),
            nodes,
            outside,
            wires,
            helper,
            netlb,
            stop: self.stop,
            _cgroup: cgroup,
            folder,
        };
        node.publish(&mut node.lock())?;
        Ok(node)
    }
}

/// `release/netlb` of the target folder that the running program is in: programs are in `debug` or `release`, tests in
/// `deps` below.
fn find_netlb() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running program")?;
    let depth = if own.parent().is_some_and(|folder| folder.ends_with("deps")) { 3 } else { 2 };
    let target = own.ancestors().nth(depth);
    target
        .map(|target| target.join("release/netlb"))
        .with_context(|| format!("{} is in no target folder", own.display()))
}
