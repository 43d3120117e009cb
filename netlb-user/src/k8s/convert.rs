//! One document → the objects in it.

use std::sync::Arc;

use serde_json::Value;

use super::place::{Place, Report, Reported, printable, quote};
use super::{endpoint_slice, meta, namespace, network_policy, node, pod, service, service_cidr};
use crate::model::{Kind, Object, ObjectKey, Problem};

/// What a document gave.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Converted {
    pub objects: Vec<Object>,
    pub problems: Vec<Problem>,
    /// Something in it has no identity (kind, name): nothing can be said of what it replaces, as when a file is cut off in the middle.
    pub unidentified: bool,
}

/// An object whose name is known, from a source that names kinds and objects itself.
#[derive(Clone, PartialEq, Debug)]
pub struct Named {
    pub key: ObjectKey,
    /// `None`: it cannot be used.
    pub object: Option<Object>,
    pub problems: Vec<Problem>,
}

/// Converts an object of a kind that is known; what it says itself of its kind, if anything, must be that.
///
/// # Errors
/// Why nothing can be said of which object it is.
pub fn convert_named(value: &Value, kind: Kind) -> Result<Named, Vec<Problem>> {
    let mut report = Report::new(None, kind.name().to_owned());
    let root = Place::root(value);
    if !root.is_object() {
        report.place(&root, "is not an object", "ask the API server for objects");
        return Err(report.problems);
    }
    if let Some(said) = value.get("kind").filter(|said| said.as_str() != Some(kind.name())) {
        let message = format!("{} stands where a {} should", printable(&said.to_string()), kind.name());
        report.field(&root, "kind", message, "look at what answers in the API server's place");
        return Err(report.problems);
    }
    let Ok((namespace, name)) = meta::identity(&root, kind.is_namespaced(), &mut report) else {
        return Err(report.problems);
    };
    let key = ObjectKey { kind, namespace, name };
    let object = object(&root, kind, "", &mut report).ok().and_then(Result::ok);
    Ok(Named { key, object, problems: report.problems })
}

/// Kinds that netlb knows and does not need: API group ("" is the core), kind.
const IGNORED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Binding",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "ServiceAccount",
        ],
    ),
    ("apps", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"]),
    ("autoscaling", &["HorizontalPodAutoscaler"]),
    ("batch", &["CronJob", "Job"]),
    ("admissionregistration.k8s.io", &["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", &["APIService"]),
    ("coordination.k8s.io", &["Lease"]),
    ("events.k8s.io", &["Event"]),
    ("networking.k8s.io", &["IPAddress", "Ingress", "IngressClass"]),
    ("node.k8s.io", &["RuntimeClass"]),
    ("policy", &["PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
    ("scheduling.k8s.io", &["PriorityClass"]),
    ("storage.k8s.io", &["CSIDriver", "CSINode", "StorageClass", "VolumeAttachment"]),
];

/// Kinds netlb reads: API group, versions, kind.
const READ: &[(&str, &[&str], Kind)] = &[
    ("", &["v1"], Kind::Namespace),
    ("", &["v1"], Kind::Node),
    ("", &["v1"], Kind::Pod),
    ("", &["v1"], Kind::Service),
    ("discovery.k8s.io", &["v1"], Kind::EndpointSlice),
    ("networking.k8s.io", &["v1", "v1beta1"], Kind::ServiceCidr),
    ("networking.k8s.io", &["v1"], Kind::NetworkPolicy),
];

/// Converts a document: an object, or a list of objects. `file` and `place` ("document 3") tell where it stands, for messages.
pub fn convert(value: &Value, file: Option<Arc<str>>, place: &str) -> Converted {
    let mut out = Converted::default();
    convert_into(value, file, place, None, &mut out);
    out
}

/// `inherited`: apiVersion and kind of the entries of a typed list, which may leave out their own.
fn convert_into(
    value: &Value,
    file: Option<Arc<str>>,
    place: &str,
    inherited: Option<(&str, &str)>,
    out: &mut Converted,
) {
    let mut report = Report::new(file.clone(), place.to_owned());
    let root = Place::root(value);
    let (version, kind) = match type_of(&root, inherited, &mut report) {
        Ok(found) => found,
        Err(Reported) => {
            out.problems.append(&mut report.problems);
            out.unidentified = true;
            return;
        }
    };
    if let Some(element) = kind.strip_suffix("List").filter(|_| value.get("items").is_some()) {
        let inherited = if element.is_empty() { None } else { Some((version, element)) };
        match root.list("items", &mut report) {
            Ok(_) => {
                for (index, item) in value["items"].as_array().into_iter().flatten().enumerate() {
                    convert_into(item, file.clone(), &format!("{place} items[{index}]"), inherited, out);
                }
            }
            Err(Reported) => out.unidentified = true,
        }
        out.problems.append(&mut report.problems);
        return;
    }
    let (group, bare_version) = version.split_once('/').unwrap_or(("", version));
    if IGNORED.iter().any(|(of, kinds)| *of == group && kinds.contains(&kind)) {
        return;
    }
    let Some((_, versions, known)) = READ.iter().find(|(of, _, known)| *of == group && known.name() == kind) else {
        let named = value.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str);
        report.object = format!("{} {}", printable(kind), named.map_or_else(|| format!("({place})"), printable));
        let message = format!("{} of {} is not a kind netlb knows; it is not used", quote(kind), quote(version));
        report.field(&root, "kind", message, "leave it out, or correct apiVersion and kind");
        out.problems.append(&mut report.problems);
        return;
    };
    if !versions.contains(&bare_version) {
        let message = format!("{} is not a version of {kind} netlb knows", quote(version));
        report.object = format!("{kind} ({place})");
        report.field(&root, "apiVersion", message, &format!("write {}", join(group, versions)));
        out.problems.append(&mut report.problems);
        return;
    }
    match object(&root, *known, place, &mut report) {
        Ok(Ok(object)) => out.objects.push(object),
        // Named, but not usable.
        Ok(Err(Reported)) => {}
        Err(Reported) => out.unidentified = true,
    }
    out.problems.append(&mut report.problems);
}

fn join(group: &str, versions: &[&str]) -> String {
    let full = |version: &&str| if group.is_empty() { (*version).to_owned() } else { format!("{group}/{version}") };
    versions.iter().map(full).collect::<Vec<_>>().join(" or ")
}

fn type_of<'a>(
    root: &'a Place<'a>,
    inherited: Option<(&'a str, &'a str)>,
    report: &mut Report,
) -> Result<(&'a str, &'a str), Reported> {
    if !root.is_object() {
        return Err(report.place(root, "is not an object", "write apiVersion, kind and metadata"));
    }
    let missing = "write apiVersion and kind";
    let version = match (root.text("apiVersion", report)?, inherited) {
        (Some(version), _) | (None, Some((version, _))) => version,
        (None, None) => return Err(report.field(root, "apiVersion", "is missing", missing)),
    };
    let kind = match (root.text("kind", report)?, inherited) {
        (Some(kind), _) | (None, Some((_, kind))) => kind,
        (None, None) => return Err(report.field(root, "kind", "is missing", missing)),
    };
    Ok((version, kind))
}

/// Outer error: no identity. Inner: an object that cannot be used.
fn object(
    root: &Place<'_>,
    kind: Kind,
    place: &str,
    report: &mut Report,
) -> Result<Result<Object, Reported>, Reported> {
    report.object = format!("{} ({place})", kind.name());
    let (namespace, name) = match meta::identity(root, kind.is_namespaced(), report) {
        Ok(found) => found,
        // A name that is there but may not be is the author's, not a cut file's.
        Err(Reported) if root.has_name() => return Ok(Err(Reported)),
        Err(Reported) => return Err(Reported),
    };
    report.object = if kind.is_namespaced() {
        format!("{} {namespace}/{name}", kind.name())
    } else {
        format!("{} {name}", kind.name())
    };
    let meta = meta::rest(root, namespace, name, report);
    Ok(match kind {
        Kind::Namespace => Ok(Object::Namespace(namespace::convert(meta))),
        Kind::Node => node::convert(root, meta, report).map(Object::Node),
        Kind::ServiceCidr => service_cidr::convert(root, meta, report).map(Object::ServiceCidr),
        Kind::Pod => pod::convert(root, meta, report).map(Object::Pod),
        Kind::Service => service::convert(root, meta, report).map(Object::Service),
        Kind::EndpointSlice => endpoint_slice::convert(root, meta, report).map(Object::EndpointSlice),
        Kind::NetworkPolicy => Ok(network_policy::convert(meta)),
    })
}
