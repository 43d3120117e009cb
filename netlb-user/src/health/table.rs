//! What each Service's health check port answers: two calls replace all there is, as kube-proxy's `SyncServices` and `SyncEndpoints` do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{Family, ServiceName};

/// A port that a Service wants opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HealthPort {
    /// 1..=65535, host order.
    pub port: u16,
    /// Of the Service's cluster IPs.
    pub families: BTreeSet<Family>,
}

/// Ready endpoints on this node, counted once an address.
pub type Ready = BTreeMap<Family, usize>;

/// Where ports are opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Addresses {
    /// On every address of the node there is, now and later.
    #[default]
    All,
    /// On these, as far as the Service has their family.
    These(BTreeSet<IpAddr>),
}

/// All Services with a port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Table {
    addresses: Addresses,
    services: BTreeMap<ServiceName, Entry>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    port: HealthPort,
    ready: Ready,
}

impl Table {
    /// These are all Services with a port. True if that changed anything.
    pub fn sync_services(&mut self, ports: BTreeMap<ServiceName, HealthPort>) -> bool {
        let mut old = std::mem::take(&mut self.services);
        self.services = ports
            .into_iter()
            .map(|(name, port)| {
                let known = old.get(&name).filter(|known| known.port.port == port.port);
                let ready = known.map(|known| known.ready.clone()).unwrap_or_default();
                (name, Entry { port, ready })
            })
            .collect();
        let changed = old != self.services;
        old.clear();
        changed
    }

    /// How many endpoints they have here. True if that changed anything.
    pub fn sync_endpoints(&mut self, ready: &BTreeMap<ServiceName, Ready>) -> bool {
        let mut changed = false;
        for (name, entry) in &mut self.services {
            let now = ready.get(name).cloned().unwrap_or_default();
            changed |= std::mem::replace(&mut entry.ready, now) != entry.ready;
        }
        changed
    }

    /// Where ports are opened. True if that changed anything.
    pub fn set_addresses(&mut self, addresses: Addresses) -> bool {
        let old = std::mem::replace(&mut self.addresses, addresses);
        old != self.addresses
    }

    /// Every address that a Service's port is opened on (unspecified: on all), and the port.
    pub fn listeners(&self) -> impl Iterator<Item = (&ServiceName, IpAddr, u16)> {
        self.services.iter().flat_map(|(name, entry)| {
            let wanted: Vec<IpAddr> = match &self.addresses {
                Addresses::All => vec![IpAddr::from([0, 0, 0, 0])],
                Addresses::These(addresses) => {
                    let mine = addresses.iter().filter(|addr| entry.port.families.contains(&Family::of(**addr)));
                    mine.copied().collect()
                }
            };
            wanted.into_iter().map(move |addr| (name, addr, entry.port.port))
        })
    }

    /// All Services with a port, and that port.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, &HealthPort)> {
        self.services.iter().map(|(name, entry)| (name, &entry.port))
    }

    /// Endpoints that an asker of this family is told of. kube-proxy counts a family at a time; who asks over the family that the Service lacks
    /// gets the other's count.
    pub fn ready(&self, name: &ServiceName, family: Family) -> usize {
        let Some(entry) = self.services.get(name) else { return 0 };
        let families = &entry.port.families;
        let family = if families.contains(&family) { Some(&family) } else { families.first() };
        family.and_then(|family| entry.ready.get(family)).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(entries: &[(&str, u16, &[Family])]) -> BTreeMap<ServiceName, HealthPort> {
        let port = |port, families: &[Family]| HealthPort { port, families: families.iter().copied().collect() };
        entries.iter().map(|(name, number, families)| (ServiceName::new("a", name), port(*number, families))).collect()
    }

    fn ready(name: &str, v4: usize, v6: usize) -> BTreeMap<ServiceName, Ready> {
        BTreeMap::from([(ServiceName::new("a", name), Ready::from([(Family::V4, v4), (Family::V6, v6)]))])
    }

    const BOTH: &[Family] = &[Family::V4, Family::V6];

    #[test]
    fn a_service_that_comes_or_moves_to_another_port_begins_with_none() {
        let mut table = Table::default();
        let b = ServiceName::new("a", "b");
        assert!(!table.sync_endpoints(&ready("b", 3, 4)), "nobody asked for it");
        assert!(table.sync_services(ports(&[("b", 9000, BOTH)])));
        assert_eq!(table.ready(&b, Family::V4), 0);
        assert!(table.sync_endpoints(&ready("b", 3, 4)));
        assert!(!table.sync_endpoints(&ready("b", 3, 4)) && !table.sync_services(ports(&[("b", 9000, BOTH)])));
        assert_eq!((table.ready(&b, Family::V4), table.ready(&b, Family::V6)), (3, 4));
        assert!(table.sync_services(ports(&[("b", 9001, BOTH)])));
        assert_eq!(table.ready(&b, Family::V4), 0);
        table.sync_endpoints(&ready("b", 3, 4));
        assert!(table.sync_endpoints(&BTreeMap::new()));
        assert_eq!(table.ready(&b, Family::V4), 0);
    }

    #[test]
    fn a_service_of_one_family_answers_the_other_with_its_own_count() {
        let mut table = Table::default();
        table.sync_services(ports(&[("b", 9000, &[Family::V6])]));
        table.sync_endpoints(&ready("b", 3, 4));
        assert_eq!(table.ready(&ServiceName::new("a", "b"), Family::V4), 4);
    }

    #[test]
    fn ports_open_on_addresses_of_the_services_families() {
        let mut table = Table::default();
        table.sync_services(ports(&[("b", 9000, BOTH), ("c", 9001, &[Family::V6])]));
        let all: IpAddr = "0.0.0.0".parse().expect("an address");
        let found: Vec<_> = table.listeners().map(|(_, addr, port)| (addr, port)).collect();
        assert_eq!(found, [(all, 9000), (all, 9001)]);
        let v4: IpAddr = "192.0.2.1".parse().expect("an address");
        let v6: IpAddr = "2001:db8::1".parse().expect("an address");
        assert!(table.set_addresses(Addresses::These([v4, v6].into())));
        let found: Vec<_> = table.listeners().map(|(_, addr, port)| (addr, port)).collect();
        assert_eq!(found, [(v4, 9000), (v6, 9000), (v6, 9001)]);
    }
}
