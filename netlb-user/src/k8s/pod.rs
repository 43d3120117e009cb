//! Pod (v1).

use super::meta::ObjectMeta;
use super::place::{Place, Report, Reported};
use crate::model::{NodeName, PodName, PodSpec};

pub(super) fn convert(root: &Place<'_>, meta: ObjectMeta, report: &mut Report) -> Result<PodSpec, Reported> {
    let mut pod = PodSpec {
        name: PodName { namespace: meta.namespace, name: meta.name },
        meta: meta.meta,
        node: None,
        host_network: false,
        ips: Vec::new(),
        labels: meta.labels,
    };
    if let Ok(Some(spec)) = root.object("spec", report) {
        pod.node = spec.text("nodeName", report).ok().flatten().map(NodeName::new);
        pod.host_network = spec.boolean("hostNetwork", report).ok().flatten().unwrap_or(false);
    }
    if let Ok(Some(status)) = root.object("status", report) {
        if matches!(status.text("phase", report), Ok(Some("Succeeded" | "Failed"))) {
            return Ok(pod);
        }
        for entry in status.list("podIPs", report).unwrap_or_default() {
            pod.ips.extend(entry.get("ip").and_then(|ip| ip.as_ip(report).ok()));
        }
        if pod.ips.is_empty() {
            pod.ips.extend(status.get("podIP").and_then(|ip| ip.as_ip(report).ok()));
        }
    }
    Ok(pod)
}
