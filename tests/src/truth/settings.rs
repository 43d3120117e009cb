//! How netlb is set when it meets the tables.

use netlb_common::config::{flags, pods};
use netlb_user::model::Cidr;

use super::document::{Detector, Document};

/// A way to run netlb.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Setting {
    /// As kube-proxy masquerades (`--masquerade kube-proxy`), with its local detector; else netlb's defaults.
    pub kube_proxy: bool,
    /// Pods of this node are reached by the redirect road.
    pub redirect: bool,
}

impl Setting {
    pub const ALL: [Setting; 4] = [
        Setting { kube_proxy: true, redirect: false },
        Setting { kube_proxy: true, redirect: true },
        Setting { kube_proxy: false, redirect: false },
        Setting { kube_proxy: false, redirect: true },
    ];

    /// As it stands in the names of tests.
    pub fn name(self) -> &'static str {
        match (self.kube_proxy, self.redirect) {
            (true, false) => "kube-proxy's settings, stack road",
            (true, true) => "kube-proxy's settings, redirect road",
            (false, false) => "netlb's defaults, stack road",
            (false, true) => "netlb's defaults, redirect road",
        }
    }

    /// `CONFIG`'s flags for a document.
    pub fn flags(self, document: &Document) -> u32 {
        let given = [
            (self.redirect, flags::REDIRECT),
            (self.kube_proxy, flags::MASQUERADE_LOCAL),
            (document.config.masquerade_all, flags::MASQUERADE_ALL),
        ];
        given.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, flag)| all | flag)
    }

    /// `CONFIG`'s way to tell pods from others. By default pods are known by their devices; that there is no detector stays.
    pub fn pods(self, document: &Document) -> u32 {
        match document.config.local_detector {
            Detector::None => pods::NONE,
            Detector::ClusterCidr(_) if self.kube_proxy => pods::CIDRS,
            Detector::ClusterCidr(_) => pods::KNOWN,
        }
    }

    /// The range that goes with `pods::CIDRS`.
    pub fn pod_cidr(self, document: &Document) -> Option<Cidr> {
        match document.config.local_detector {
            Detector::ClusterCidr(net) if self.kube_proxy => Some(Cidr { addr: net.network(), len: net.prefix_len() }),
            Detector::ClusterCidr(_) | Detector::None => None,
        }
    }
}
