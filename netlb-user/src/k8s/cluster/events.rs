//! Writing Events (events.k8s.io/v1), one after the other, beside all else that is asked.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc::Receiver;

use super::server::Server;
use super::trouble::Trouble;
use crate::events::Event;
use crate::model::{Kind, NodeName};

/// Longest name of an object, and what stands behind it in an Event's name: a dot and 16 digits.
const MAX_NAME: usize = 253 - 17;

/// Writes what comes until nobody is left to send. What cannot be written is not tried again; why is said once.
pub(super) async fn write(server: Rc<Server>, mut inbox: Receiver<Event>, here: NodeName) {
    let mut said: Option<Trouble> = None;
    while let Some(event) = inbox.recv().await {
        // Without it the Event is there, but `kubectl describe` does not find it.
        let uid = server.uid(&object_path(&event)).await.unwrap_or_default();
        let namespace = if event.namespace.is_empty() { "default" } else { &event.namespace };
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        let now = SystemTime::now();
        match server.create(&path, &body(&event, &uid, &here, now)).await {
            Ok(()) => said = None,
            Err(trouble) => {
                if said.as_ref() != Some(&trouble) {
                    tracing::warn!(
                        "Events about what cannot be programmed are not written: {trouble}; grant create on events in events.k8s.io; `netlb status` has the problems"
                    );
                }
                said = Some(trouble);
            }
        }
    }
}

/// API version and plural of a kind.
fn api(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Namespace => ("v1", "namespaces"),
        Kind::Node => ("v1", "nodes"),
        Kind::Pod => ("v1", "pods"),
        Kind::Service => ("v1", "services"),
        Kind::ServiceCidr => ("networking.k8s.io/v1", "servicecidrs"),
        Kind::NetworkPolicy => ("networking.k8s.io/v1", "networkpolicies"),
        Kind::EndpointSlice => ("discovery.k8s.io/v1", "endpointslices"),
    }
}

fn object_path(event: &Event) -> String {
    let (version, plural) = api(event.kind);
    let root = if version.contains('/') { "apis" } else { "api" };
    let name = &event.name;
    if event.namespace.is_empty() {
        format!("/{root}/{version}/{plural}/{name}")
    } else {
        format!("/{root}/{version}/namespaces/{}/{plural}/{name}", event.namespace)
    }
}

fn body(event: &Event, uid: &str, here: &NodeName, now: SystemTime) -> Value {
    let nanos = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    // Names are ASCII; a name must not end in a dot or a dash.
    let base = event.name.get(..MAX_NAME).unwrap_or(&event.name).trim_end_matches(['.', '-']);
    let mut regarding = json!({ "apiVersion": api(event.kind).0, "kind": event.kind.name(), "name": event.name });
    for (key, value) in [("namespace", event.namespace.as_str()), ("uid", uid)] {
        if !value.is_empty() {
            regarding[key] = json!(value);
        }
    }
    let namespace = if event.namespace.is_empty() { "default" } else { &event.namespace };
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{base}.{nanos:016x}"), "namespace": namespace },
        "eventTime": micro_time(now),
        "reportingController": "netlb",
        "reportingInstance": format!("netlb-{here}").chars().take(128).collect::<String>(),
        "action": "Program",
        "reason": event.reason.word(),
        "regarding": regarding,
        "note": event.note,
        "type": "Warning",
    })
}

/// Kubernetes' MicroTime: UTC, with all six digits.
fn micro_time(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let second = at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default();
    format!("{}.{:06}Z", second.trim_end_matches('Z'), at.microsecond())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::events::Reason;

    #[test]
    fn bodies_are_what_the_api_server_takes() {
        let event = |kind, namespace: &str, name: &str| Event {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            reason: Reason::FailedToStartServiceHealthcheck,
            note: "no".to_owned(),
        };
        let now = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042);
        let here = NodeName::new("n1");
        let web = event(Kind::Service, "shop", "web");
        let want = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": "web.17979cfe362aa410", "namespace": "shop" },
            "eventTime": "2023-11-14T22:13:20.000042Z",
            "reportingController": "netlb",
            "reportingInstance": "netlb-n1",
            "action": "Program",
            "reason": "FailedToStartServiceHealthcheck",
            "regarding": { "apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web", "uid": "u1" },
            "note": "no",
            "type": "Warning",
        });
        assert_eq!(body(&web, "u1", &here, now), want);
        let cidr = event(Kind::ServiceCidr, "", &format!("{}-.{}", "c".repeat(235), "d".repeat(10)));
        let made = body(&cidr, "", &here, now);
        assert_eq!(made["metadata"]["namespace"], "default");
        assert_eq!(made["metadata"]["name"].as_str().map(str::len), Some(235 + 17), "{made}");
        assert!(made["regarding"].get("uid").is_none() && made["regarding"].get("namespace").is_none(), "{made}");
        assert_eq!(object_path(&web), "/api/v1/namespaces/shop/services/web");
        assert_eq!(object_path(&event(Kind::Node, "", "n1")), "/api/v1/nodes/n1");
        let slice = event(Kind::EndpointSlice, "shop", "web-x");
        assert_eq!(object_path(&slice), "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-x");
    }
}
