//! netlb on the nodes, as its users run it: a DaemonSet in kube-system whose pods ask the API server by their service account.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netlb_testnode::agent::PIN_PATH;
use serde_json::{Value, json};

use crate::control_plane;
use crate::images;
use crate::mounts;
use crate::node::Node;

/// The DaemonSet's name, its account's, and its container's.
pub const NAME: &str = "netlb";
/// Where it is.
pub const NAMESPACE: &str = "kube-system";
/// The label by which upstream's tests know what serves Services.
pub const LABEL: (&str, &str) = ("k8s-app", "kube-proxy");
/// Where an agent writes what it does, on its node.
pub const RUN_DIR: &str = "/run/netlb";
/// Where its own node's cgroup2 directory is, in the container.
const CGROUP: &str = "/cgroup";
/// What agents log: lists of objects, too.
const LOG: &str = "info,netlb_user::k8s=debug";

/// The account, and what it may do, as docs/api-server.md says it.
#[must_use]
pub fn rights() -> [Value; 3] {
    let read = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    [
        json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME},
            "rules": [
                read("", &["services", "nodes", "pods"]),
                read("discovery.k8s.io", &["endpointslices"]),
                read("networking.k8s.io", &["servicecidrs"]),
                {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        }),
    ]
}

/// The DaemonSet, with `--accel accel`.
#[must_use]
pub fn daemon_set(accel: &str) -> Value {
    let labels = json!({LABEL.0: LABEL.1});
    let arguments = [
        "agent".to_owned(),
        // Its Service's address is not served before an agent serves it.
        format!("--api-server={}", control_plane::server()),
        format!("--pin-path={PIN_PATH}"),
        format!("--run-dir={RUN_DIR}"),
        format!("--cgroup={CGROUP}"),
        format!("--accel={accel}"),
        format!("--log-level={LOG}"),
    ];
    let of_host =
        [("bpf", "/sys/fs/bpf", "/sys/fs/bpf"), ("run", RUN_DIR, RUN_DIR), ("cgroup", mounts::CGROUP, CGROUP)];
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": NAME,
                    "priorityClassName": "system-node-critical",
                    "tolerations": [{"operator": "Exists"}],
                    "hostNetwork": true,
                    // `--accel socket` looks for pods' network namespaces by their processes.
                    "hostPID": true,
                    "containers": [{
                        "name": NAME,
                        "image": images::NETLB,
                        "imagePullPolicy": "Never",
                        "args": arguments,
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "securityContext": {"privileged": true},
                        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 10256}, "periodSeconds": 2},
                        "volumeMounts": of_host.map(|(name, _, inside)| json!({"name": name, "mountPath": inside})),
                    }],
                    "volumes": of_host.map(|(name, outside, _)| json!({
                        "name": name,
                        "hostPath": {"path": outside, "type": "DirectoryOrCreate"},
                    })),
                },
            },
        },
    })
}

/// What the containers of the agent on `node` have printed, oldest first, each line with its time in front.
///
/// # Errors
/// When a log cannot be read. None is an empty text.
pub fn log(node: &Node) -> Result<String> {
    let mut files = Vec::new();
    for pod in entries(&node.pod_logs)? {
        let name = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&format!("{NAMESPACE}_{NAME}-")) {
            files.extend(entries(&pod.join(NAME))?);
        }
    }
    let texts: Result<Vec<String>> = files
        .iter()
        .map(|file| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display())))
        .collect();
    let mut texts = texts?;
    // Times of one clock, all of one length.
    texts.sort();
    Ok(texts.concat())
}

/// The last lines of [`log`], for people.
#[must_use]
pub fn log_tail(node: &Node, lines: usize) -> String {
    let text = log(node).unwrap_or_else(|error| format!("{error:#}"));
    let all: Vec<&str> = text.lines().collect();
    let tail = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    format!("the end of netlb's log on {}:\n{}", node.host.name, tail.join("\n"))
}

/// The paths in a folder; a folder that is not there is empty.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    entries.map(|entry| Ok(entry.with_context(|| format!("cannot read {}", folder.display()))?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_what_upstreams_tests_restart_and_may_do_what_is_documented() {
        let set = daemon_set("socket");
        assert_eq!(set.pointer("/spec/template/metadata/labels/k8s-app").unwrap(), "kube-proxy");
        let arguments = set.pointer("/spec/template/spec/containers/0/args").and_then(Value::as_array).unwrap();
        assert!(arguments.iter().any(|argument| argument == "--accel=socket"));
        let document = include_str!("../../../docs/api-server.md");
        let [_, role, binding] = rights();
        for rule in role.pointer("/rules").and_then(Value::as_array).unwrap() {
            let words = |field: &str| -> String {
                let words: Vec<&str> =
                    rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
                words.join(", ")
            };
            let line = format!("resources: [{}], verbs: [{}]", words("resources"), words("verbs"));
            assert!(document.contains(&line), "{line}");
        }
        assert_eq!(binding.pointer("/subjects/0/kind").unwrap(), "ServiceAccount");
    }
}
