//! Node (v1).

use std::sync::Arc;

use super::meta::ObjectMeta;
use super::place::{Place, Report, Reported};
use crate::model::{NodeName, NodeSpec};

/// The zone a node is in.
const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) fn convert(root: &Place<'_>, meta: ObjectMeta, report: &mut Report) -> Result<NodeSpec, Reported> {
    let mut node = NodeSpec {
        zone: meta.labels.get(ZONE).map(|zone| Arc::from(zone.as_str())),
        name: NodeName(meta.name),
        meta: meta.meta,
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        deleting: false,
        taints: Vec::new(),
    };
    if let Ok(Some(metadata)) = root.object("metadata", report) {
        node.deleting = metadata.get("deletionTimestamp").is_some();
    }
    if let Ok(Some(status)) = root.object("status", report) {
        let mut external = Vec::new();
        for entry in status.list("addresses", report).unwrap_or_default() {
            // Host names stand in the same list.
            let list = match entry.text("type", report) {
                Ok(Some("InternalIP")) => &mut node.addresses,
                Ok(Some("ExternalIP")) => &mut external,
                _ => continue,
            };
            list.extend(entry.get("address").and_then(|address| address.as_ip(report).ok()));
        }
        node.addresses.append(&mut external);
    }
    if let Ok(Some(spec)) = root.object("spec", report) {
        let list = spec.list("podCIDRs", report).unwrap_or_default();
        let single = if list.is_empty() { spec.get("podCIDR") } else { None };
        node.pod_cidrs = list.iter().chain(&single).filter_map(|cidr| cidr.as_cidr(report).ok()).collect();
        for taint in spec.list("taints", report).unwrap_or_default() {
            node.taints.extend(taint.text("key", report).ok().flatten().map(Arc::from));
        }
    }
    Ok(node)
}
