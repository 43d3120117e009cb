//! An object of any kind, its key, and how it changes.

use std::fmt;
use std::sync::Arc;

use super::endpoints::SliceSpec;
use super::names::PolicyName;
use super::node::{NamespaceSpec, NodeSpec, ServiceCidrSpec};
use super::pod::PodSpec;
use super::service::ServiceSpec;
use super::types::Meta;

/// The kinds netlb reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    Namespace,
    Node,
    ServiceCidr,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 7] = [
        Kind::Namespace,
        Kind::Node,
        Kind::ServiceCidr,
        Kind::Pod,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::NetworkPolicy,
    ];

    /// As written in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
            Kind::Pod => "Pod",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::NetworkPolicy => "NetworkPolicy",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Kind::Namespace | Kind::Node | Kind::ServiceCidr => false,
            Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy => true,
        }
    }
}

/// Identity of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    pub kind: Kind,
    /// Empty for kinds outside namespaces.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (self.kind.name(), &self.name);
        if self.kind.is_namespaced() {
            write!(f, "{kind} {}/{name}", self.namespace)
        } else {
            write!(f, "{kind} {name}")
        }
    }
}

/// An object, as far as netlb reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    Namespace(NamespaceSpec),
    Node(NodeSpec),
    ServiceCidr(ServiceCidrSpec),
    Pod(PodSpec),
    Service(ServiceSpec),
    EndpointSlice(SliceSpec),
    /// Kept by name: policies are not enforced yet, and netlb says so.
    NetworkPolicy(PolicyName, Meta),
}

impl Object {
    pub fn key(&self) -> ObjectKey {
        let outside = || Arc::from("");
        match self {
            Object::Namespace(o) => ObjectKey { kind: Kind::Namespace, namespace: outside(), name: o.name.clone() },
            Object::Node(o) => ObjectKey { kind: Kind::Node, namespace: outside(), name: o.name.0.clone() },
            Object::ServiceCidr(o) => ObjectKey { kind: Kind::ServiceCidr, namespace: outside(), name: o.name.clone() },
            Object::Pod(o) => {
                ObjectKey { kind: Kind::Pod, namespace: o.name.namespace.clone(), name: o.name.name.clone() }
            }
            Object::Service(o) => {
                ObjectKey { kind: Kind::Service, namespace: o.name.namespace.clone(), name: o.name.name.clone() }
            }
            Object::EndpointSlice(o) => {
                ObjectKey { kind: Kind::EndpointSlice, namespace: o.name.namespace.clone(), name: o.name.name.clone() }
            }
            Object::NetworkPolicy(name, _) => {
                ObjectKey { kind: Kind::NetworkPolicy, namespace: name.namespace.clone(), name: name.name.clone() }
            }
        }
    }
}

/// What a source says has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The object is now this.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectKey),
    /// Something in the source cannot be read and never was: what is not named may exist all the same. Belongs to the next `Synced`.
    Incomplete,
    /// The source has been read to its end. Unless `Incomplete` came with it, what it did not name does not exist; until it comes without,
    /// nothing that an agent before this one left is removed from the maps.
    Synced,
}
