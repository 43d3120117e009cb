//! The world: every object netlb knows, with the indexes that make one change cost one change.
//!
//! Three verbs: apply, delete, reset. Each answers with what may have to be compiled again. Indexes follow from the objects alone: a world
//! built in any order, by any detour, equals one built at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::device::PodDevice;
use super::endpoints::SliceSpec;
use super::names::{NodeName, PodName, PolicyName, ServiceName, SliceName};
use super::node::{NamespaceSpec, NodeSpec, ServiceCidrSpec};
use super::object::{Kind, Object, ObjectKey};
use super::pod::PodSpec;
use super::scheduler::Scheduler;
use super::service::ServiceSpec;
use super::types::{Meta, Protocol};

/// All objects, and what sits behind this node's pod devices.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct World {
    services: BTreeMap<ServiceName, ServiceSpec>,
    slices: BTreeMap<SliceName, SliceSpec>,
    nodes: BTreeMap<NodeName, NodeSpec>,
    pods: BTreeMap<PodName, PodSpec>,
    namespaces: BTreeMap<Arc<str>, NamespaceSpec>,
    cidrs: BTreeMap<Arc<str>, ServiceCidrSpec>,
    policies: BTreeMap<PolicyName, Meta>,
    devices: BTreeMap<u32, PodDevice>,
    /// Name of the node we are on.
    here: Option<NodeName>,
    /// Its primary addresses, and all that are known.
    node_addresses: BTreeSet<IpAddr>,
    own_addresses: BTreeSet<IpAddr>,
    /// How Services choose that do not say.
    scheduler: Scheduler,

    slices_of: BTreeMap<ServiceName, BTreeSet<SliceName>>,
    slices_at: BTreeMap<IpAddr, BTreeSet<SliceName>>,
    claims: BTreeMap<Claim, BTreeSet<Claimant>>,
    pods_at: BTreeMap<IpAddr, BTreeSet<PodName>>,
    devices_at: BTreeMap<IpAddr, BTreeSet<u32>>,
}

/// What may have to be compiled again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    /// Services whose compiled result may have changed; some of them may be gone.
    pub services: BTreeSet<ServiceName>,
    /// The pod devices have changed.
    pub devices: bool,
    /// The Service CIDRs have changed.
    pub cidrs: bool,
}

impl Dirty {
    pub fn merge(&mut self, other: Dirty) {
        self.services.extend(other.services);
        self.devices |= other.devices;
        self.cidrs |= other.cidrs;
    }
}

/// An address, port and protocol that a Service wants to be reached on; the unspecified address of a family stands for a NodePort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Claim {
    pub addr: IpAddr,
    /// Host order.
    pub port: u16,
    pub protocol: Protocol,
}

/// Claimants in order of right: the older Service first (one that does not say its age is the youngest), then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claimant {
    created: i64,
    service: ServiceName,
}

/// What a Service claims: nothing, unless it is ours and has ClusterIPs.
fn claims_of(spec: &ServiceSpec) -> BTreeSet<Claim> {
    let ports = spec.ports.iter().filter(|_| spec.is_served());
    ports.flat_map(|port| spec.claims(port)).map(|(claim, _)| claim).collect()
}

impl World {
    /// The object is now this; it may be new.
    pub fn apply(&mut self, object: Object) -> Dirty {
        match object {
            Object::Service(spec) => self.set_service(spec.name.clone(), Some(spec)),
            Object::EndpointSlice(spec) => self.set_slice(spec.name.clone(), Some(spec)),
            Object::Pod(spec) => self.set_pod(spec.name.clone(), Some(spec)),
            Object::ServiceCidr(spec) => {
                let old = self.cidrs.insert(spec.name.clone(), spec.clone());
                Dirty { cidrs: old.as_ref() != Some(&spec), ..Dirty::default() }
            }
            Object::Node(spec) => self.set_node_object(spec.name.clone(), Some(spec)),
            Object::Namespace(spec) => {
                self.namespaces.insert(spec.name.clone(), spec);
                Dirty::default()
            }
            Object::NetworkPolicy(name, meta) => {
                self.policies.insert(name, meta);
                Dirty::default()
            }
        }
    }

    /// The object is gone; it need not have been known.
    pub fn delete(&mut self, key: &ObjectKey) -> Dirty {
        let ObjectKey { kind, namespace, name } = key;
        match kind {
            Kind::Service => self.set_service(ServiceName::new(namespace, name), None),
            Kind::EndpointSlice => self.set_slice(SliceName::new(namespace, name), None),
            Kind::Pod => self.set_pod(PodName::new(namespace, name), None),
            Kind::ServiceCidr => Dirty { cidrs: self.cidrs.remove(name).is_some(), ..Dirty::default() },
            Kind::Node => self.set_node_object(NodeName(name.clone()), None),
            Kind::Namespace => {
                self.namespaces.remove(name);
                Dirty::default()
            }
            Kind::NetworkPolicy => {
                self.policies.remove(&PolicyName::new(namespace, name));
                Dirty::default()
            }
        }
    }

    /// These are all objects there are: what is not among them is gone. Devices stay.
    pub fn reset(&mut self, objects: impl IntoIterator<Item = Object>) -> Dirty {
        let mut dirty = Dirty::default();
        let mut gone = self.keys();
        for object in objects {
            gone.remove(&object.key());
            dirty.merge(self.apply(object));
        }
        for key in gone {
            dirty.merge(self.delete(&key));
        }
        dirty
    }

    /// The pod devices of this node, by interface index. Services with a backend at an address that changed its device are dirty.
    pub fn set_devices(&mut self, devices: &BTreeMap<u32, PodDevice>) -> Dirty {
        if self.devices == *devices {
            return Dirty::default();
        }
        let mut at: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
        for (ifindex, device) in devices {
            for addr in &device.addrs {
                at.entry(*addr).or_default().insert(*ifindex);
            }
        }
        let old = std::mem::replace(&mut self.devices_at, at);
        self.devices = devices.clone();
        let touched: BTreeSet<IpAddr> = old.keys().chain(self.devices_at.keys()).copied().collect();
        let moved = touched.into_iter().filter(|addr| old.get(addr) != self.devices_at.get(addr));
        let services = moved.flat_map(|addr| self.services_at(addr)).collect();
        Dirty { services, devices: true, cidrs: false }
    }

    /// The name of the node we are on; `None`: not known, so nothing is local.
    pub fn set_here(&mut self, name: Option<NodeName>) -> Dirty {
        if self.here == name {
            return Dirty::default();
        }
        self.here = name;
        self.all_services()
    }

    /// The primary addresses of the node we are on: they have a part in source ranges.
    pub fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Dirty {
        if self.node_addresses == addresses {
            return Dirty::default();
        }
        self.node_addresses = addresses;
        let restricted = self.services.values().filter(|spec| !spec.source_ranges.ranges.is_empty());
        Dirty { services: restricted.map(|spec| spec.name.clone()).collect(), ..Dirty::default() }
    }

    /// The primary addresses of the node we are on.
    pub fn node_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.node_addresses
    }

    /// All addresses of the node we are on, as far as they are known: an endpoint at one of them is here, whatever its slice says.
    pub fn set_own_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> Dirty {
        let old = std::mem::replace(&mut self.own_addresses, addresses);
        let changed: Vec<IpAddr> = old.symmetric_difference(&self.own_addresses).copied().collect();
        let services = changed.into_iter().flat_map(|addr| self.services_at(addr)).collect();
        Dirty { services, ..Dirty::default() }
    }

    /// Whether an address is the node's own, or sits behind a pod device of it.
    pub fn is_on_node(&self, addr: IpAddr) -> bool {
        self.own_addresses.contains(&addr) || self.devices_at.contains_key(&addr)
    }

    /// How Services choose a backend that do not say.
    pub fn set_scheduler(&mut self, scheduler: Scheduler) -> Dirty {
        if self.scheduler == scheduler {
            return Dirty::default();
        }
        self.scheduler = scheduler;
        self.all_services()
    }

    /// How a Service chooses a backend.
    pub fn scheduler(&self, spec: &ServiceSpec) -> Scheduler {
        spec.scheduler.unwrap_or(self.scheduler)
    }

    /// The name of the node we are on.
    pub fn here(&self) -> Option<&NodeName> {
        self.here.as_ref()
    }

    /// The zone of the node we are on (label `topology.kubernetes.io/zone` of its Node).
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.nodes.get(self.here.as_ref()?)?.zone.as_ref()
    }

    /// Keys of all objects.
    pub fn keys(&self) -> BTreeSet<ObjectKey> {
        let key = |kind, namespace: &Arc<str>, name: &Arc<str>| ObjectKey {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let none = Arc::from("");
        let mut keys = BTreeSet::new();
        keys.extend(self.services.keys().map(|n| key(Kind::Service, &n.namespace, &n.name)));
        keys.extend(self.slices.keys().map(|n| key(Kind::EndpointSlice, &n.namespace, &n.name)));
        keys.extend(self.pods.keys().map(|n| key(Kind::Pod, &n.namespace, &n.name)));
        keys.extend(self.policies.keys().map(|n| key(Kind::NetworkPolicy, &n.namespace, &n.name)));
        keys.extend(self.nodes.keys().map(|n| key(Kind::Node, &none, &n.0)));
        keys.extend(self.namespaces.keys().map(|n| key(Kind::Namespace, &none, n)));
        keys.extend(self.cidrs.keys().map(|n| key(Kind::ServiceCidr, &none, n)));
        keys
    }

    pub fn service(&self, name: &ServiceName) -> Option<&ServiceSpec> {
        self.services.get(name)
    }

    /// All Services, by name.
    pub fn services(&self) -> impl Iterator<Item = &ServiceSpec> {
        self.services.values()
    }

    /// The slices of a Service, by name.
    pub fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &SliceSpec> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    pub fn slice(&self, name: &SliceName) -> Option<&SliceSpec> {
        self.slices.get(name)
    }

    /// The Service that has the right to a claim: the oldest that makes it.
    pub fn owner(&self, claim: &Claim) -> Option<&ServiceName> {
        self.claims.get(claim)?.first().map(|claimant| &claimant.service)
    }

    /// All Service CIDR objects, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidrSpec> {
        self.cidrs.values()
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeSpec> {
        self.nodes.values()
    }

    pub fn node(&self, name: &NodeName) -> Option<&NodeSpec> {
        self.nodes.get(name)
    }

    /// All Namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceSpec> {
        self.namespaces.values()
    }

    /// All NetworkPolicies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyName> {
        self.policies.keys()
    }

    /// All Pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &PodSpec> {
        self.pods.values()
    }

    /// The Pod at an address of its own; the first by name if several say so.
    pub fn pod_at(&self, addr: IpAddr) -> Option<&PodName> {
        self.pods_at.get(&addr)?.first()
    }

    /// The pod devices, by interface index.
    pub fn devices(&self) -> &BTreeMap<u32, PodDevice> {
        &self.devices
    }

    /// The device an address sits behind. `None` also if two claim it: what is not sure is left to the stack.
    pub fn device_at(&self, addr: IpAddr) -> Option<u32> {
        let devices = self.devices_at.get(&addr)?;
        if devices.len() == 1 { devices.first().copied() } else { None }
    }

    /// Services with an endpoint at this address.
    pub fn services_at(&self, addr: IpAddr) -> impl Iterator<Item = ServiceName> {
        let slices = self.slices_at.get(&addr).into_iter().flatten();
        slices.filter_map(|name| self.slices.get(name)?.service.clone())
    }

    fn set_service(&mut self, name: ServiceName, spec: Option<ServiceSpec>) -> Dirty {
        let old = self.services.get(&name);
        if old == spec.as_ref() {
            return Dirty::default();
        }
        let age = |s: &ServiceSpec| s.meta.created.unwrap_or(i64::MAX);
        let claimed = |s: Option<&ServiceSpec>| -> BTreeMap<Claim, i64> {
            s.map(|s| claims_of(s).into_iter().map(|claim| (claim, age(s))).collect()).unwrap_or_default()
        };
        let (before, after) = (claimed(old), claimed(spec.as_ref()));
        let mut services = BTreeSet::from([name.clone()]);
        let claims: BTreeSet<Claim> = before.keys().chain(after.keys()).copied().collect();
        for claim in claims {
            if before.get(&claim) == after.get(&claim) {
                continue;
            }
            let claimants = self.claims.entry(claim).or_default();
            let owner = claimants.first().map(|c| c.service.clone());
            if let Some(created) = before.get(&claim) {
                claimants.remove(&Claimant { created: *created, service: name.clone() });
            }
            if let Some(created) = after.get(&claim) {
                claimants.insert(Claimant { created: *created, service: name.clone() });
            }
            if owner.as_ref() != claimants.first().map(|c| &c.service) {
                services.extend(claimants.iter().map(|c| c.service.clone()));
            }
            if claimants.is_empty() {
                self.claims.remove(&claim);
            }
        }
        match spec {
            Some(spec) => self.services.insert(name, spec),
            None => self.services.remove(&name),
        };
        Dirty { services, ..Dirty::default() }
    }

    /// Another zone of ours may mean other backends anywhere.
    fn set_node_object(&mut self, name: NodeName, spec: Option<NodeSpec>) -> Dirty {
        let zone = self.zone().cloned();
        match spec {
            Some(spec) => self.nodes.insert(name, spec),
            None => self.nodes.remove(&name),
        };
        if self.zone() == zone.as_ref() { Dirty::default() } else { self.all_services() }
    }

    fn all_services(&self) -> Dirty {
        Dirty { services: self.services.keys().cloned().collect(), ..Dirty::default() }
    }

    fn set_slice(&mut self, name: SliceName, spec: Option<SliceSpec>) -> Dirty {
        if self.slices.get(&name) == spec.as_ref() {
            return Dirty::default();
        }
        let mut services = BTreeSet::new();
        if let Some(old) = self.slices.remove(&name) {
            for endpoint in &old.endpoints {
                remove_from(&mut self.slices_at, &endpoint.addr, &name);
            }
            if let Some(service) = old.service {
                remove_from(&mut self.slices_of, &service, &name);
                services.insert(service);
            }
        }
        if let Some(new) = spec {
            for endpoint in &new.endpoints {
                self.slices_at.entry(endpoint.addr).or_default().insert(name.clone());
            }
            if let Some(service) = &new.service {
                self.slices_of.entry(service.clone()).or_default().insert(name.clone());
                services.insert(service.clone());
            }
            self.slices.insert(name, new);
        }
        Dirty { services, ..Dirty::default() }
    }

    fn set_pod(&mut self, name: PodName, spec: Option<PodSpec>) -> Dirty {
        let own = |pod: &PodSpec| if pod.host_network { Vec::new() } else { pod.ips.clone() };
        if let Some(old) = self.pods.remove(&name) {
            for ip in own(&old) {
                remove_from(&mut self.pods_at, &ip, &name);
            }
        }
        if let Some(new) = spec {
            for ip in own(&new) {
                self.pods_at.entry(ip).or_default().insert(name.clone());
            }
            self.pods.insert(name, new);
        }
        Dirty::default()
    }
}

/// Takes `value` out of the set under `key`, and the set with its last value.
fn remove_from<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}
