//! What is asked of an API server: kinds, paths, selectors.

use kube::core::params::{ListParams, WatchParams};

use crate::model::{Kind, NodeName};

/// Objects of Services that another proxy serves, or that nobody does, are not even sent; one that gets such a label leaves the watch. As
/// kube-proxy asks (`cmd/kube-proxy/app/server.go`).
const OURS: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";

/// Objects of one kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    pub(super) api_version: &'static str,
    pub(super) path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
    /// Without it nothing is believed to be whole. What may be missing is: a cluster without the API, an account without the right.
    pub(super) needed: bool,
}

/// Everything netlb reads.
pub(super) fn all(here: &NodeName) -> Vec<Resource> {
    let resource =
        |kind, api_version, path| Resource { kind, api_version, path, labels: None, fields: None, needed: true };
    vec![
        // Its zone and its ranges have a say in all the rest.
        Resource { fields: Some(format!("metadata.name={here}")), ..resource(Kind::Node, "v1", "/api/v1/nodes") },
        Resource { labels: Some(OURS), ..resource(Kind::Service, "v1", "/api/v1/services") },
        Resource {
            labels: Some(OURS),
            ..resource(Kind::EndpointSlice, "discovery.k8s.io/v1", "/apis/discovery.k8s.io/v1/endpointslices")
        },
        // From Kubernetes 1.33 on.
        Resource {
            needed: false,
            ..resource(Kind::ServiceCidr, "networking.k8s.io/v1", "/apis/networking.k8s.io/v1/servicecidrs")
        },
        // For names in reports, and so that a new pod's device is looked for at once.
        Resource {
            needed: false,
            fields: Some(format!("spec.nodeName={here}")),
            ..resource(Kind::Pod, "v1", "/api/v1/pods")
        },
    ]
}

impl Resource {
    /// A page of the list: at most `limit` objects, from where the page before ended.
    pub(super) fn list(&self, limit: u32, continued: Option<String>) -> ListParams {
        ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(limit),
            continue_token: continued,
            ..ListParams::default()
        }
    }

    /// A watch that the server ends after so many seconds.
    pub(super) fn watch(&self, seconds: u32) -> WatchParams {
        WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: false,
        }
    }

    /// As people call them: `Services`.
    pub(super) fn plural(&self) -> String {
        format!("{}s", self.kind.name())
    }
}
