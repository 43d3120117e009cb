//! What the control plane of a cluster knows, as plain values: objects, pods, and the YAML that follows from them.
//!
//! Nothing here starts a process or writes a file. [`Cluster::put`] takes objects in, [`Cluster::plan`] says which pods to
//! start and stop, [`Cluster::set_state`] is told what became of them, and [`Cluster::render`] is the source folder.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::address::{self, Dual};
use crate::manifests::{Broken, Manifests};
use crate::objects::{ContainerPort, Meta, ObjectKey, PodSpec, ServiceSpec, WorkloadSpec, view};
use crate::services::{self, Allocator};
use crate::slices::{self, Candidate};
use crate::topology::{self, short_hash};
use crate::wire::Ports;

/// A pod's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl PodKey {
    /// Reads `namespace/name`, or a name in `default`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A name that is good for directories: pod names have no underscore.
    #[must_use]
    pub fn flat(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where in its life a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Has an address, does not answer yet.
    Starting,
    /// Answers.
    Ready,
    /// Its process died.
    Dead,
    /// Is to go; still answers.
    Terminating,
}

/// A pod as the control plane sees it.
#[derive(Clone, Debug)]
pub struct PodRecord {
    /// The node it runs on; nodes count from 1.
    pub node: u8,
    /// Its addresses (the node's, if it shares the node's network).
    pub addresses: Dual,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// What made it: a workload, or itself.
    pub owner: ObjectKey,
    /// Where in its life it is.
    pub state: PodState,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What its containers listen on.
    pub ports: Vec<ContainerPort>,
    host: Option<u8>,
    made_from: u32,
    order: u64,
    pub(crate) object: Value,
}

impl PodRecord {
    /// Pods in the order in which they were made.
    #[must_use]
    pub fn order(&self) -> u64 {
        self.order
    }
}

/// What is to be done so that pods are as the objects want them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods that were just made, in state `Starting`.
    pub start: Vec<PodKey>,
    /// Pods that are to go.
    pub stop: Vec<PodKey>,
}

/// The control plane's memory.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(crate) nodes: u8,
    pub(crate) objects: BTreeMap<ObjectKey, Value>,
    pub(crate) broken: BTreeMap<String, Broken>,
    pods: BTreeMap<PodKey, PodRecord>,
    allocator: Allocator,
    made: u64,
}

const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// The zone of a node: they take turns.
#[must_use]
pub fn zone(node: u8) -> &'static str {
    ZONES.get(usize::from(node.saturating_sub(1)) % ZONES.len()).copied().unwrap_or("zone-a")
}

impl Cluster {
    /// A cluster of `nodes` nodes without objects.
    #[must_use]
    pub fn new(nodes: u8) -> Self {
        Self {
            nodes,
            objects: BTreeMap::new(),
            broken: BTreeMap::new(),
            pods: BTreeMap::new(),
            allocator: Allocator::default(),
            made: 0,
        }
    }

    /// Takes objects in, new or changed. Returns a line for each that was not understood; it is passed on as it is.
    pub fn put(&mut self, manifests: Manifests) -> Vec<String> {
        let mut notes = Vec::new();
        for broken in manifests.broken {
            notes.push(format!("{}: not YAML, passed on as it is: {}", broken.origin, broken.error));
            self.broken.insert(broken.origin.clone(), broken);
        }
        let mut services = Vec::new();
        for mut object in manifests.objects {
            let key = match ObjectKey::of(&object) {
                Ok(key) => key,
                Err(error) => {
                    let origin = format!("object-{:08x}", short_hash(&object.to_string()));
                    notes.push(format!("an object is passed on as it is: {error}"));
                    let text = serde_norway::to_string(&object).unwrap_or_default();
                    self.broken.insert(origin.clone(), Broken { origin, text, error });
                    continue;
                }
            };
            if !key.namespace.is_empty()
                && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.insert("namespace".to_owned(), json!(key.namespace));
            }
            if key.kind == "Service" {
                self.allocator.reserve(&object);
                services.push((key, object));
            } else {
                self.objects.insert(key, object);
            }
        }
        for (key, mut object) in services {
            if let Err(error) = services::complete(&mut object, self.objects.get(&key), &mut self.allocator) {
                notes.push(format!("{key}: {error}"));
            }
            self.objects.insert(key, object);
        }
        notes
    }

    /// Forgets an object; says whether it was there.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        match self.objects.remove(key) {
            Some(object) => {
                if key.kind == "Service" {
                    self.allocator.release(&object);
                }
                true
            }
            None => false,
        }
    }

    /// Changes `spec.replicas` of the workload called `name` (a namespace, `default` if none is said, and a name).
    ///
    /// # Errors
    /// When there is no such Deployment or StatefulSet, with those there are.
    pub fn scale(&mut self, name: &str, replicas: u32) -> Result<(), String> {
        let wanted = PodKey::parse(name);
        let scalable = |key: &ObjectKey| matches!(key.kind.as_str(), "Deployment" | "StatefulSet");
        let found = self
            .objects
            .iter_mut()
            .find(|(key, _)| scalable(key) && key.namespace == wanted.namespace && key.name == wanted.name);
        match found.and_then(|(_, object)| object.get_mut("spec")).and_then(Value::as_object_mut) {
            Some(spec) => {
                spec.insert("replicas".to_owned(), json!(replicas));
                Ok(())
            }
            None => {
                let known: Vec<_> = self
                    .objects
                    .keys()
                    .filter(|key| scalable(key))
                    .map(|key| format!("{}/{}", key.namespace, key.name))
                    .collect();
                Err(format!("there is no Deployment or StatefulSet {wanted}; there are: {}", known.join(", ")))
            }
        }
    }

    /// Makes records for missing pods and names those that are too many, out of date or dead.
    ///
    /// # Errors
    /// When a node has no pod address left, or a workload's template cannot be understood.
    pub fn plan(&mut self) -> Result<Plan, String> {
        let mut plan = Plan::default();
        let mut wanted_owners = BTreeSet::new();
        let workloads: Vec<(ObjectKey, Value)> = self
            .objects
            .iter()
            .filter(|(key, _)| matches!(key.kind.as_str(), "Pod" | "Deployment" | "StatefulSet" | "DaemonSet"))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        for (owner, object) in workloads {
            let slots = self.slots(&owner, &object).map_err(|error| format!("{owner}: {error}"))?;
            wanted_owners.insert(owner.clone());
            let surge = object.pointer("/spec/strategy/rollingUpdate/maxSurge").and_then(Value::as_u64);
            let surge = surge.map_or(usize::MAX, |pods| usize::try_from(pods).unwrap_or(usize::MAX).max(1));
            self.fit(&owner, slots, surge, &mut plan).map_err(|error| format!("{owner}: {error}"))?;
        }
        for (key, pod) in &self.pods {
            if !wanted_owners.contains(&pod.owner) && pod.state != PodState::Terminating {
                plan.stop.push(key.clone());
            }
        }
        Ok(plan)
    }

    /// The pods that a workload wants: what they are made from, and the name or node that a pod must have.
    fn slots(&self, owner: &ObjectKey, object: &Value) -> Result<Vec<Slot>, String> {
        if owner.kind == "Pod" {
            return Ok(vec![Slot { name: Some(owner.name.clone()), node: None, template: object.clone() }]);
        }
        let spec: WorkloadSpec = view(object, "/spec")?;
        let template = spec.template;
        Ok(match owner.kind.as_str() {
            "DaemonSet" => {
                (1..=self.nodes).map(|node| Slot { name: None, node: Some(node), template: template.clone() }).collect()
            }
            "StatefulSet" => (0..spec.replicas.unwrap_or(1))
                .map(|n| Slot { name: Some(format!("{}-{n}", owner.name)), node: None, template: template.clone() })
                .collect(),
            _ => (0..spec.replicas.unwrap_or(1))
                .map(|_| Slot { name: None, node: None, template: template.clone() })
                .collect(),
        })
    }

    /// Gives each slot a pod that is there, or a new one; what remains of the owner's pods is stopped. At most `surge` pods are
    /// replaced at once: for the other slots pods that are out of date stay until the next plan.
    fn fit(&mut self, owner: &ObjectKey, slots: Vec<Slot>, surge: usize, plan: &mut Plan) -> Result<(), String> {
        let mut free: Vec<(PodKey, u64)> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.owner == *owner && pod.state != PodState::Terminating)
            .map(|(key, pod)| (key.clone(), pod.order))
            .collect();
        free.sort_by_key(|(_, order)| *order);
        let mut missing = Vec::new();
        for slot in slots {
            let made_from = short_hash(&slot.template.to_string());
            let fits = |key: &PodKey| {
                self.pods.get(key).is_some_and(|pod| {
                    pod.made_from == made_from
                        && pod.state != PodState::Dead
                        && slot.name.as_ref().is_none_or(|name| *name == key.name)
                        && slot.node.is_none_or(|node| node == pod.node)
                })
            };
            match free.iter().position(|(key, _)| fits(key)) {
                Some(index) => {
                    free.remove(index);
                }
                None => missing.push(slot),
            }
        }
        let is_dead = |key: &PodKey| self.pods.get(key).is_some_and(|pod| pod.state == PodState::Dead);
        let (dead, old): (Vec<PodKey>, Vec<PodKey>) = free.into_iter().map(|(key, _)| key).partition(is_dead);
        let kept = missing.len().saturating_sub(surge.max(missing.len().saturating_sub(old.len()))).min(old.len());
        missing.truncate(missing.len() - kept);
        plan.stop.extend(dead);
        plan.stop.extend(old.iter().take(old.len() - kept).cloned());
        for slot in missing {
            // A name that is in use must be given up first; the next plan makes its successor.
            let taken = |name: &String| {
                self.pods.contains_key(&PodKey { namespace: owner.namespace.clone(), name: name.clone() })
            };
            if slot.name.as_ref().is_some_and(taken) {
                continue;
            }
            plan.start.push(self.make_pod(owner, slot)?);
        }
        Ok(())
    }

    fn make_pod(&mut self, owner: &ObjectKey, slot: Slot) -> Result<PodKey, String> {
        let meta: Meta = view(&slot.template, "/metadata")?;
        let spec: PodSpec = view(&slot.template, "/spec")?;
        self.made += 1;
        let name = slot.name.unwrap_or_else(|| {
            format!(
                "{}-{}",
                owner.name,
                suffix(short_hash(&format!("{}/{}/{}", owner.namespace, owner.name, self.made)))
            )
        });
        let named_node = (1..=self.nodes).find(|n| spec.node_name.as_deref() == Some(topology::name(*n).as_str()));
        let node = slot.node.or(named_node).unwrap_or_else(|| self.emptiest_node(owner));
        let host = if spec.host_network { None } else { Some(self.free_host(node)?) };
        let addresses = host.map_or(address::node(node), |host| address::pod(node, host));
        let key = PodKey { namespace: owner.namespace.clone(), name };
        let record = PodRecord {
            node,
            addresses,
            host_network: spec.host_network,
            owner: owner.clone(),
            state: PodState::Starting,
            labels: meta.labels,
            ports: spec.containers.into_iter().flat_map(|container| container.ports).collect(),
            host,
            made_from: short_hash(&slot.template.to_string()),
            order: self.made,
            object: slot.template,
        };
        self.pods.insert(key.clone(), record);
        Ok(key)
    }

    /// The node with the fewest pods of the same owner, and of those the one with the fewest pods.
    fn emptiest_node(&self, owner: &ObjectKey) -> u8 {
        let load = |node: &u8| {
            let there = || self.pods.values().filter(|pod| pod.node == *node);
            (there().filter(|pod| pod.owner == *owner).count(), there().count())
        };
        (1..=self.nodes).min_by_key(load).unwrap_or(1)
    }

    /// An address that no pod of the node has; the one longest unused, so that a new pod is not taken for an old one.
    fn free_host(&self, node: u8) -> Result<u8, String> {
        let used: BTreeSet<u8> = self.pods.values().filter(|pod| pod.node == node).filter_map(|pod| pod.host).collect();
        let first = u8::try_from(2 + self.made.wrapping_sub(1) % 250).unwrap_or(2);
        (first..=251).chain(2..first).find(|host| !used.contains(host)).ok_or_else(|| {
            format!("{} has no pod address left (250 pods); run with more --nodes", topology::name(node))
        })
    }

    /// Notes what became of a pod.
    pub fn set_state(&mut self, key: &PodKey, state: PodState) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.state = state;
        }
    }

    /// Forgets a pod; its address is free again.
    pub fn forget(&mut self, key: &PodKey) {
        self.pods.remove(key);
    }

    /// All pods.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<PodKey, PodRecord> {
        &self.pods
    }

    /// How many nodes there are; they count from 1.
    #[must_use]
    pub fn nodes(&self) -> u8 {
        self.nodes
    }

    /// An object as it is now, defaults filled in.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<&Value> {
        self.objects.get(key)
    }

    /// The objects of one kind.
    pub fn objects(&self, kind: &str) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind)
    }

    /// The Services that could be understood.
    #[must_use]
    pub fn services(&self) -> Vec<(ObjectKey, ServiceSpec)> {
        self.objects("Service").filter_map(|(key, object)| Some((key.clone(), view(object, "/spec").ok()?))).collect()
    }

    /// What a pod must listen on: its containers' ports, and the numbers that Services which select it name as target.
    #[must_use]
    pub fn wanted_ports(&self, key: &PodKey) -> Ports {
        let mut ports = Ports::default();
        let Some(pod) = self.pods.get(key) else { return ports };
        let mut insert = |transport, number: i64| {
            if let (Some(transport), Ok(number @ 1..)) = (transport, u16::try_from(number)) {
                ports.insert(transport, number);
            }
        };
        for port in &pod.ports {
            insert(crate::objects::transport(port.protocol()), port.container_port);
        }
        for (service, spec) in self.services() {
            if service.namespace == key.namespace && slices::selects(&spec.selector, &pod.labels) {
                for port in &spec.ports {
                    if let Some(number) = slices::resolve(port, &pod.ports) {
                        insert(port.transport(), number);
                    }
                }
            }
        }
        ports
    }

    /// All EndpointSlices: those made from selectors, and those that somebody else wrote.
    #[must_use]
    pub fn slices(&self) -> Vec<Value> {
        let mut out = Vec::new();
        for (service, spec) in self.services() {
            if spec.selector.is_empty() || spec.is_external_name() {
                continue;
            }
            let pods: Vec<Candidate<'_>> = self
                .pods
                .iter()
                .filter(|(key, _)| key.namespace == service.namespace)
                .map(|(key, pod)| Candidate {
                    name: &key.name,
                    labels: &pod.labels,
                    ports: &pod.ports,
                    addresses: pod.addresses,
                    node: topology::name(pod.node),
                    zone: zone(pod.node),
                    serving: matches!(pod.state, PodState::Ready | PodState::Terminating),
                    terminating: pod.state == PodState::Terminating,
                })
                .collect();
            out.extend(slices::slices(&service.namespace, &service.name, &spec, &pods));
        }
        out.extend(self.objects("EndpointSlice").map(|(_, object)| object.clone()));
        out
    }
}

struct Slot {
    name: Option<String>,
    node: Option<u8>,
    template: Value,
}

/// Five characters of Kubernetes' alphabet for generated names.
fn suffix(hash: u32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = hash;
    (0..5)
        .map(|_| {
            let letter = ALPHABET.get((rest % 27) as usize).copied().unwrap_or(b'x');
            rest /= 27;
            char::from(letter)
        })
        .collect()
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
