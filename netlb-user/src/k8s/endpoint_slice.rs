//! EndpointSlice (discovery.k8s.io/v1).

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::meta::{ObjectMeta, annotation, is_label, only_known, weight};
use super::place::{Place, Report, Reported, quote};
use super::service::{HEADLESS, PROTOCOLS, unusable};
use crate::model::scheduler::MAX_WEIGHT;
use crate::model::{EndpointSpec, Family, NodeName, PortName, Protocol, ServiceName, SliceName, SlicePort, SliceSpec};

/// Ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Annotation of the endpoint controllers.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Annotation: the weight of its endpoints.
const WEIGHT: &str = "weight";

pub(super) fn convert(root: &Place<'_>, meta: ObjectMeta, report: &mut Report) -> Result<SliceSpec, Reported> {
    let types = &[("IPv4", Some(Family::V4)), ("IPv6", Some(Family::V6)), ("FQDN", None)];
    let Some(family) = root.choice("addressType", types, report)? else {
        return Err(report.field(root, "addressType", "is missing", "write IPv4 or IPv6"));
    };
    let Some(family) = family else {
        let message = "host names cannot be load-balanced to; the slice is not used";
        return Err(report.field(root, "addressType", message, "list addresses in a slice of type IPv4 or IPv6"));
    };
    let service = meta.labels.get(SERVICE_NAME).filter(|_| !meta.labels.contains_key(HEADLESS));
    let service = service.map(|name| ServiceName::new(&meta.namespace, name));
    let ports = root.list("ports", report)?;
    let ports = ports.iter().filter_map(|place| port(place, report).ok()).collect();
    let endpoints = root.list("endpoints", report)?;
    let endpoints = endpoints.iter().enumerate();
    let weight = slice_weight(root, &meta, report);
    let endpoint = |(index, place)| endpoint(place, index, family, report).ok();
    let endpoints = endpoints.filter_map(endpoint).map(|e| EndpointSpec { weight, ..e }).collect();
    let name = SliceName { namespace: meta.namespace, name: meta.name };
    Ok(SliceSpec { name, meta: meta.meta, service, family, ports, endpoints, last_change: last_change(root) })
}

/// When what last changed the slice happened. A text that is no time is as good as none: only a measurement goes by it.
fn last_change(root: &Place<'_>) -> Option<Duration> {
    let metadata = root.get("metadata")?;
    let annotations = metadata.get("annotations")?;
    let time = annotations.get(LAST_CHANGE)?;
    let at = OffsetDateTime::parse(time.word()?, &Rfc3339).ok()?;
    u64::try_from(at.unix_timestamp_nanos()).ok().map(Duration::from_nanos)
}

/// The weight of all endpoints of a slice.
fn slice_weight(root: &Place<'_>, meta: &ObjectMeta, report: &mut Report) -> Option<u32> {
    only_known(root, meta, &[WEIGHT], report);
    let text = meta.annotations.get(WEIGHT)?;
    let weight = weight(text);
    if weight.is_none() {
        let message = format!("{} is not a weight; 1 stands in for it", quote(text));
        annotation(root, WEIGHT, message, &format!("write a number from 0 to {MAX_WEIGHT}"), report);
    }
    weight
}

fn port(place: &Place<'_>, report: &mut Report) -> Result<SlicePort, Reported> {
    let name = place.text("name", report)?.unwrap_or("");
    if !name.is_empty() && !is_label(name) {
        let message = format!("{} is not a port name", quote(name));
        return Err(report.field(place, "name", message, "use at most 63 lower case letters, digits and '-'"));
    }
    let protocol = place.choice("protocol", PROTOCOLS, report)?.unwrap_or(Protocol::Tcp);
    let Some(port) = place.port("port", report)? else {
        return Err(report.field(place, "port", "is missing, so it leads nowhere", "write a number from 1 to 65535"));
    };
    Ok(SlicePort { name: PortName::new(name), protocol, port })
}

fn endpoint(place: &Place<'_>, index: usize, family: Family, report: &mut Report) -> Result<EndpointSpec, Reported> {
    let addresses = place.list("addresses", report)?;
    let Some(first) = addresses.first() else {
        return Err(report.field(place, "addresses", "is empty", "give the endpoint an address"));
    };
    let addr = first.as_ip(report)?;
    if Family::of(addr) != family {
        let message = format!("{addr} is not of the slice's addressType");
        return Err(report.place(first, message, "keep IPv4 and IPv6 in slices of their own"));
    }
    if let Some(fault) = unusable(addr) {
        return Err(report.place(first, format!("{addr} is {fault}"), "use the address of a pod or host"));
    }
    let conditions = place.object("conditions", report)?;
    let mut condition = |key, absent| -> Result<bool, Reported> {
        match &conditions {
            Some(conditions) => Ok(conditions.boolean(key, report)?.unwrap_or(absent)),
            None => Ok(absent),
        }
    };
    let (ready, serving) = (condition("ready", true)?, condition("serving", true)?);
    let terminating = condition("terminating", false)?;
    let node = place.text("nodeName", report).ok().flatten().map(NodeName::new);
    let hints = place.object("hints", report).ok().flatten();
    let target = place.object("targetRef", report).ok().flatten();
    let target = target.filter(|target| matches!(target.text("kind", report), Ok(Some("Pod"))));
    let pod = target.and_then(|target| target.text("name", report).ok().flatten().map(Arc::from));
    let mut names = |key| -> Vec<Arc<str>> {
        let Some(hints) = &hints else { return Vec::new() };
        let list = hints.list(key, report).unwrap_or_default();
        list.iter().filter_map(|hint| hint.text("name", report).ok().flatten().map(Arc::from)).collect()
    };
    Ok(EndpointSpec {
        index,
        addr,
        ready,
        serving,
        terminating,
        node,
        pod,
        weight: None,
        zone_hints: names("forZones"),
        node_hints: names("forNodes").into_iter().map(NodeName).collect(),
    })
}
