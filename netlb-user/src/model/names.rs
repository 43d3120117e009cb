//! Names of objects: ordered, cheap to clone, not to be mixed up.

use std::fmt;
use std::sync::Arc;

macro_rules! namespaced {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name {
            pub namespace: Arc<str>,
            pub name: Arc<str>,
        }

        impl $name {
            pub fn new(namespace: &str, name: &str) -> Self {
                Self { namespace: namespace.into(), name: name.into() }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.namespace, self.name)
            }
        }
    )* };
}

macro_rules! plain {
    ($($(#[$doc:meta])* $name:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub Arc<str>);

        impl $name {
            pub fn new(name: &str) -> Self {
                Self(name.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )* };
}

namespaced! {
    /// A Service, as `namespace/name`.
    ServiceName;
    /// An EndpointSlice, as `namespace/name`.
    SliceName;
    /// A Pod, as `namespace/name`.
    PodName;
    /// A NetworkPolicy, as `namespace/name`.
    PolicyName;
}

plain! {
    /// A Node.
    NodeName;
    /// The name of a port in a Service or EndpointSlice; empty for the only, unnamed port.
    PortName;
}
