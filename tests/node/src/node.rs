//! The test node as a whole: wires, pods, control plane and agents, behind a few verbs.

mod builder;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

pub use builder::Builder;

use crate::agent::{self, Agent, AgentOptions};
use crate::cgroup::Cgroup;
use crate::cluster::{Cluster, PodKey, PodState};
use crate::helper::Helper;
use crate::manifests::Manifests;
use crate::names;
use crate::objects::ObjectKey;
use crate::pod::Pod;
use crate::probe;
use crate::process::{Place, Stop};
use crate::source::{Revision, SourceDir};
use crate::state::{HostEntry, NodeEntry, PodEntry, RunFile, StateDir};
use crate::topology::{self, Node, Outside, Wires};
use crate::wire::{ProbePlan, ProbeResult, ProbeTarget};

/// Nodes, pods and what controls them. Everything is removed when it is dropped.
pub struct TestNode {
    // Fields drop in order: agents and pods first, then the wires, the cgroup, and the folder last.
    state: Mutex<State>,
    nodes: Vec<Arc<Node>>,
    outside: Outside,
    wires: Wires,
    helper: Helper,
    netlb: PathBuf,
    stop: Stop,
    _cgroup: Cgroup,
    folder: StateDir,
}

struct State {
    agents: BTreeMap<u8, Agent>,
    pods: BTreeMap<PodKey, Arc<Pod>>,
    /// Pods that are in the source no more, and the first revision without them.
    removed: Vec<(Revision, Arc<Pod>)>,
    cluster: Cluster,
    source: SourceDir,
    next_port: BTreeMap<u64, u16>,
}

/// Where requests come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// A pod.
    Pod(PodKey),
    /// A node's own network and cgroup; nodes count from 1.
    Node(u8),
    /// The host beyond the nodes.
    Outside,
    /// The host beyond that one.
    Far,
}

impl Client {
    /// As reports call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Pod(key) => key.to_string(),
            Self::Node(number) => topology::name(*number),
            Self::Outside => "outside".to_owned(),
            Self::Far => "far".to_owned(),
        }
    }
}

impl TestNode {
    /// A test node to be: one node, bridge network, checksums left to hardware.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Applies manifests: see [`TestNode::put`].
    ///
    /// # Errors
    /// When a document is not understood, and as [`TestNode::put`].
    pub fn apply(&self, yaml: &str) -> Result<Revision> {
        let mut manifests = Manifests::default();
        manifests.parse("applied", yaml);
        let (revision, notes) = self.put(manifests)?;
        if !notes.is_empty() {
            bail!("{}", notes.join("\n"));
        }
        Ok(revision)
    }

    /// Takes objects in, starts the pods they want, and writes the source. Pods that are to go are terminating from
    /// then on; [`TestNode::remove_terminating`] removes them. Returns the revision, and a line for each object that
    /// was not understood.
    ///
    /// # Errors
    /// When a pod cannot be started or the source cannot be written.
    pub fn put(&self, manifests: Manifests) -> Result<(Revision, Vec<String>)> {
        let mut state = self.lock();
        let notes = state.cluster.put(manifests);
        Ok((self.carry_out(&mut state)?, notes))
    }

    /// Deletes an object, and the pods that it made, as [`TestNode::put`] does.
    ///
    /// # Errors
    /// When there is no such object, and as [`TestNode::put`].
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<Revision> {
        let key = ObjectKey { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
        let mut state = self.lock();
        if !state.cluster.remove(&key) {
            bail!("there is no {key}");
        }
        self.carry_out(&mut state)
    }

    /// Changes the number of a Deployment's or StatefulSet's pods (`namespace/name`, or a name in `default`), as
    /// [`TestNode::put`] does.
    ///
    /// # Errors
    /// When there is no such workload, and as [`TestNode::put`].
    pub fn scale(&self, name: &str, replicas: u32) -> Result<Revision> {
        let mut state = self.lock();
        state.cluster.scale(name, replicas).map_err(anyhow::Error::msg)?;
        self.carry_out(&mut state)
    }

    /// Takes terminating pods out of the source. They go on running until [`TestNode::wait_applied`] has seen all agents
    /// apply that, and longer if the caller holds them.
    ///
    /// # Errors
    /// When the source cannot be written.
    pub fn remove_terminating(&self) -> Result<Revision> {
        let mut state = self.lock();
        let leaving: Vec<PodKey> = keys_in(&state.cluster, PodState::Terminating);
        for key in &leaving {
            state.cluster.forget(key);
        }
        let gone: Vec<_> = leaving.iter().filter_map(|key| state.pods.remove(key)).collect();
        // A StatefulSet's pod comes back once its name is free.
        let revision = self.carry_out(&mut state)?;
        state.removed.extend(gone.into_iter().map(|pod| (revision, pod)));
        Ok(revision)
    }

    /// Waits until every agent that was started has applied `revision`.
    ///
    /// # Errors
    /// As [`Agent::wait_applied`].
    pub fn wait_applied(&self, revision: Revision) -> Result<()> {
        let agents: Vec<Agent> = self.lock().agents.values().cloned().collect();
        for agent in agents {
            agent.wait_applied(revision)?;
        }
        // Dropped outside of the lock: a pod's end takes its time.
        let gone: Vec<_> = self.lock().removed.extract_if(.., |(since, _)| *since <= revision).collect();
        drop(gone);
        Ok(())
    }

    /// Brings the last change to its end: terminating pods are drained, removed and stopped once all agents know.
    ///
    /// # Errors
    /// As [`TestNode::wait_applied`].
    pub fn settle(&self) -> Result<Revision> {
        loop {
            let revision = self.lock().source.revision();
            self.wait_applied(revision)?;
            if keys_in(&self.lock().cluster, PodState::Terminating).is_empty() {
                return Ok(revision);
            }
            self.remove_terminating()?;
        }
    }

    /// Does what a kubelet does all day: looks which pods' processes have died, marks them, and starts replacements.
    /// Returns the dead.
    ///
    /// # Errors
    /// As [`TestNode::put`].
    pub fn look_after_pods(&self) -> Result<Vec<PodKey>> {
        let mut state = self.lock();
        let mut dead = Vec::new();
        for (key, pod) in &state.pods {
            if !pod.is_alive()? {
                dead.push(key.clone());
            }
        }
        if dead.is_empty() {
            return Ok(dead);
        }
        for key in &dead {
            state.cluster.set_state(key, PodState::Dead);
        }
        self.publish(&mut state)?;
        self.carry_out(&mut state)?;
        Ok(dead)
    }

    /// Writes (or with `None` removes) a file of the source folder as it is, for input that no API server would accept.
    ///
    /// # Errors
    /// When the source cannot be written.
    pub fn write_raw(&self, file: &str, text: Option<&str>) -> Result<Revision> {
        let mut state = self.lock();
        state.source.set_extra(file, text);
        self.publish(&mut state)
    }

    /// Starts an agent on every node, all with the same options.
    ///
    /// # Errors
    /// When the program is missing or an agent runs already.
    pub fn start_agents(&self, options: &AgentOptions) -> Result<Vec<Agent>> {
        self.nodes.iter().map(|node| self.start_agent(node.number, options.clone())).collect()
    }

    /// Ends every agent in order (SIGTERM; what they pinned stays) and starts them again with other options.
    ///
    /// # Errors
    /// As [`TestNode::start_agents`].
    pub fn restart_agents(&self, options: &AgentOptions) -> Result<Vec<Agent>> {
        let old = std::mem::take(&mut self.lock().agents);
        for agent in old.values() {
            agent.terminate()?;
        }
        drop(old);
        self.start_agents(options)
    }

    /// Starts an agent on a node.
    ///
    /// # Errors
    /// When the program is missing or an agent runs there already.
    pub fn start_agent(&self, node: u8, options: AgentOptions) -> Result<Agent> {
        let mut state = self.lock();
        if state.agents.contains_key(&node) {
            bail!("{} has an agent already", topology::name(node));
        }
        let agent =
            Agent::start(self.node(node)?, &self.netlb, state.source.path(), self.folder.path(), options, &self.stop)?;
        state.agents.insert(node, agent.clone());
        Ok(agent)
    }

    /// The agents that were started, by node.
    #[must_use]
    pub fn agents(&self) -> Vec<Agent> {
        self.lock().agents.values().cloned().collect()
    }

    /// A running pod, by `namespace/name` or by its name in `default`; a workload's name stands for its first pod.
    ///
    /// # Errors
    /// When there is none, with those there are.
    pub fn pod(&self, name: &str) -> Result<Arc<Pod>> {
        let wanted = PodKey::parse(name);
        let state = self.lock();
        if let Some(pod) = state.pods.get(&wanted) {
            return Ok(Arc::clone(pod));
        }
        drop(state);
        self.pods_of(name).into_iter().next().ok_or_else(|| {
            let names: Vec<_> = self.pods().iter().map(|pod| pod.key().to_string()).collect();
            anyhow!("there is no pod {wanted}; there are: {}", names.join(", "))
        })
    }

    /// The pods that a workload made and that are not on their way out, oldest first.
    #[must_use]
    pub fn pods_of(&self, workload: &str) -> Vec<Arc<Pod>> {
        let wanted = PodKey::parse(workload);
        let state = self.lock();
        let mut pods: Vec<_> = state
            .cluster
            .pods()
            .iter()
            .filter(|(_, pod)| pod.owner.namespace == wanted.namespace && pod.owner.name == wanted.name)
            .filter(|(_, pod)| pod.state == PodState::Ready)
            .filter_map(|(key, pod)| Some((pod.order(), Arc::clone(state.pods.get(key)?))))
            .collect();
        pods.sort_by_key(|(order, _)| *order);
        pods.into_iter().map(|(_, pod)| pod).collect()
    }

    /// The pods that are on their way out and still in the source.
    #[must_use]
    pub fn terminating(&self) -> Vec<Arc<Pod>> {
        let state = self.lock();
        let leaving = keys_in(&state.cluster, PodState::Terminating);
        leaving.iter().filter_map(|key| state.pods.get(key).cloned()).collect()
    }

    /// All running pods, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.lock().pods.values().cloned().collect()
    }

    /// A node; they count from 1.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn node(&self, number: u8) -> Result<&Arc<Node>> {
        self.nodes
            .iter()
            .find(|node| node.number == number)
            .ok_or_else(|| anyhow!("there is no node {number}; there are {}", self.nodes.len()))
    }

    /// All nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The world beyond the nodes.
    #[must_use]
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// What the wires are like.
    #[must_use]
    pub fn wires(&self) -> Wires {
        self.wires
    }

    /// The control plane's memory, as it is now.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        self.lock().cluster.clone()
    }

    /// The run's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The run's id, as `--run` takes it.
    #[must_use]
    pub fn id(&self) -> &str {
        self.folder.id()
    }

    /// The folder that agents read.
    #[must_use]
    pub fn source_path(&self) -> PathBuf {
        self.lock().source.path().to_owned()
    }

    /// What ends all waiting early.
    #[must_use]
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Where a client's processes run.
    ///
    /// # Errors
    /// When there is no such pod or node.
    pub fn place(&self, client: &Client) -> Result<Place> {
        match client {
            Client::Pod(key) => {
                let state = self.lock();
                let pod = state.pods.get(key).ok_or_else(|| anyhow!("there is no pod {key}"))?;
                Ok(pod.place().clone())
            }
            Client::Node(number) => Ok(self.node(*number)?.place.clone()),
            Client::Outside => Ok(self.outside.place.clone()),
            Client::Far => Ok(self.outside.far.clone()),
        }
    }

    /// Sends requests from a client, by a process of its own there, each from a source port that no other request of
    /// that client had.
    ///
    /// # Errors
    /// When the probe cannot be started; failing requests are in the results.
    pub fn probe(&self, client: &Client, targets: Vec<ProbeTarget>) -> Result<Vec<ProbeResult>> {
        let place = self.place(client)?;
        let network = place.net().inode()?;
        let first_port = self.lock().next_port.get(&network).copied().unwrap_or(probe::PORTS.start);
        let plan = serde_json::to_vec(&ProbePlan { first_port, targets })?;
        let output = place.output("a probe", self.helper.command("probe"), &plan, &self.stop)?;
        if !output.status.success() {
            bail!("a probe failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let mut results: Vec<ProbeResult> = Vec::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            results.push(serde_json::from_str(line).with_context(|| format!("cannot understand a probe: {line}"))?);
        }
        if let Some(last) = results.last() {
            self.lock().next_port.insert(network, last.next_port);
        }
        Ok(results)
    }

    /// Makes pods as the objects want them, then writes the source.
    fn carry_out(&self, state: &mut State) -> Result<Revision> {
        loop {
            let plan = state.cluster.plan().map_err(anyhow::Error::msg)?;
            for key in &plan.start {
                self.stop.check()?;
                self.start_pod(state, key)?;
            }
            let mut freed = false;
            for key in &plan.stop {
                if state.cluster.pods().get(key).is_some_and(|pod| pod.state == PodState::Dead) {
                    state.cluster.forget(key);
                    state.pods.remove(key);
                    freed = true;
                } else {
                    state.cluster.set_state(key, PodState::Terminating);
                }
            }
            // A StatefulSet's pod comes back under the name that its dead predecessor had.
            if !freed {
                break;
            }
        }
        for (key, pod) in &state.pods {
            if state.cluster.pods().get(key).is_some_and(|record| record.state == PodState::Ready) {
                pod.listen(&state.cluster.wanted_ports(key))?;
            }
        }
        self.publish(state)
    }

    fn start_pod(&self, state: &mut State, key: &PodKey) -> Result<()> {
        let ports = state.cluster.wanted_ports(key);
        let record =
            state.cluster.pods().get(key).with_context(|| format!("{key} was planned and is not there"))?.clone();
        let pod = Pod::start(key, &record, self.node(record.node)?, &self.helper, &ports)?;
        state.pods.insert(key.clone(), Arc::new(pod));
        state.cluster.set_state(key, PodState::Ready);
        Ok(())
    }

    /// Writes hosts files, the run's own file, and the source, in this order.
    fn publish(&self, state: &mut State) -> Result<Revision> {
        let namespaces: std::collections::BTreeSet<String> =
            state.pods.keys().map(|key| key.namespace.clone()).collect();
        for namespace in namespaces {
            // Written in place: it is bind-mounted where people work.
            let path = self.hosts_path(&namespace);
            fs::write(&path, names::hosts(&state.cluster, &namespace))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.folder.save(&self.describe(state))?;
        state.source.publish(state.cluster.render())
    }

    fn hosts_path(&self, namespace: &str) -> PathBuf {
        self.folder.path().join("hosts").join(namespace)
    }

    fn describe(&self, state: &State) -> RunFile {
        let pid = std::process::id();
        let descriptor = |number: i32| PathBuf::from(format!("/proc/{pid}/fd/{number}"));
        let cgroup = |place: &Place| place.cgroup().map(|group| group.path().to_owned()).unwrap_or_default();
        let nodes = self.nodes.iter().map(|node| NodeEntry {
            number: node.number,
            net: descriptor(node.net().descriptor()),
            mount: descriptor(node.mount.descriptor()),
            cgroup: cgroup(&node.place),
            run_dir: agent::run_dir(self.folder.path(), node.number),
            netlb: self.netlb.clone(),
        });
        let pods = state.pods.iter().filter_map(|(key, pod)| {
            let record = state.cluster.pods().get(key)?;
            Some(PodEntry {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                owner: record.owner.name.clone(),
                node: record.node,
                addresses: record.addresses,
                net: descriptor(pod.net().descriptor()),
                cgroup: cgroup(pod.place()),
                hosts: self.hosts_path(&key.namespace),
            })
        });
        let hosts = [Client::Outside, Client::Far].into_iter().zip([&self.outside.place, &self.outside.far]);
        let hosts = hosts.map(|(client, place)| HostEntry {
            name: client.name(),
            net: descriptor(place.net().descriptor()),
            cgroup: cgroup(place),
        });
        RunFile {
            id: self.folder.id().to_owned(),
            pid,
            nodes: nodes.collect(),
            pods: pods.collect(),
            hosts: hosts.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keys_in(cluster: &Cluster, wanted: PodState) -> Vec<PodKey> {
    cluster.pods().iter().filter(|(_, pod)| pod.state == wanted).map(|(key, _)| key.clone()).collect()
}
