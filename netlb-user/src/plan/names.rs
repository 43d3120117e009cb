//! Names for ids: what people see instead of numbers.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Names of everything the maps number. A backend is named by its record: Service port id, address and port.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Names {
    /// Service ports by id.
    pub services: BTreeMap<u32, PortLabel>,
    /// Pods by address, as `namespace/name`.
    pub pods: BTreeMap<IpAddr, String>,
    /// Pod devices by interface index.
    pub devices: BTreeMap<u32, String>,
}

/// A Service port in one family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct PortLabel {
    /// `namespace/name`.
    pub service: String,
    /// Name of the port; empty for the only, unnamed one.
    pub port: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `ipv4` or `ipv6`.
    pub family: String,
}

impl Names {
    /// `namespace/name:port` of a Service port, without `:` if the port has no name; its number if it is not known.
    pub fn service(&self, id: u32) -> String {
        match self.services.get(&id) {
            Some(label) if label.port.is_empty() => label.service.clone(),
            Some(label) => format!("{}:{}", label.service, label.port),
            None => format!("service#{id}"),
        }
    }

    /// The pod at an address, if one is known.
    pub fn pod(&self, addr: IpAddr) -> Option<&str> {
        self.pods.get(&addr).map(String::as_str)
    }
}
