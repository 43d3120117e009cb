//! What serves Services on the nodes: netlb, or the real kube-proxy to compare with.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use netlb_testnode::address;
use netlb_testnode::agent::{PIN_PATH, run_dir};
use serde_json::{Value, json};

use crate::certificates::Authority;
use crate::control_plane::{self, ranges};
use crate::daemon::Daemon;
use crate::node::{Node, search_path};
use crate::wires::Folders;

/// As whom netlb asks the API server.
const USER: &str = "netlb";

/// What serves Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// netlb's agent.
    Netlb,
    /// kube-proxy in nftables mode.
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
}

impl Proxy {
    /// All, the one that is meant if none is named first.
    pub const ALL: [Self; 3] = [Self::Netlb, Self::Nftables, Self::Iptables];

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Netlb => "netlb",
            Self::Nftables => "kube-proxy-nftables",
            Self::Iptables => "kube-proxy-iptables",
        }
    }
}

impl FromStr for Proxy {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|proxy| proxy.name() == name) {
            Some(proxy) => Ok(proxy),
            None => bail!("no proxy is called {name}; there are: {}", Self::ALL.map(Self::name).join(", ")),
        }
    }
}

/// What netlb may read, as docs/api-server.md says it.
#[must_use]
pub fn rights() -> [Value; 2] {
    let read = |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"]});
    let kind = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    [
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": USER},
            "rules": [
                read("", &["services", "nodes", "pods"]),
                read("discovery.k8s.io", &["endpointslices"]),
                read("networking.k8s.io", &["servicecidrs"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": USER},
            "roleRef": kind("ClusterRole", USER),
            "subjects": [kind("User", USER)],
        }),
    ]
}

/// Starts the proxy of `node`. `accel` is netlb's.
///
/// # Errors
/// When it cannot be started.
pub fn start(
    proxy: Proxy,
    accel: &str,
    node: &Node,
    bin: &Path,
    netlb: &Path,
    folders: &Folders,
    authority: &Authority,
) -> Result<Daemon> {
    match proxy {
        Proxy::Netlb => start_netlb(accel, node, netlb, folders, authority),
        Proxy::Nftables => start_kube_proxy("nftables", node, bin, folders, authority),
        Proxy::Iptables => start_kube_proxy("iptables", node, bin, folders, authority),
    }
}

fn start_netlb(accel: &str, node: &Node, netlb: &Path, folders: &Folders, authority: &Authority) -> Result<Daemon> {
    let host = &node.host;
    let kubeconfig = authority.kubeconfig(
        &format!("netlb-{}", host.name),
        &control_plane::server(),
        "netlb",
        Some("system:masters"),
    )?;
    let own = run_dir(&folders.run, node.number);
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let (netlb, name, cgroup, accel) =
        (netlb.to_owned(), host.name.clone(), host.cgroup.path().to_owned(), accel.to_owned());
    Daemon::start(&format!("netlb-{}", host.name), &host.place, &folders.logs(), move || {
        let mut command = Command::new(&netlb);
        command.arg("agent").arg("--kubeconfig").arg(&kubeconfig).args(["--node-name", &name]);
        command.args(["--pin-path", PIN_PATH]).arg("--cgroup").arg(&cgroup).arg("--run-dir").arg(&own);
        command.args(["--accel", &accel]);
        command
    })
}

fn start_kube_proxy(mode: &str, node: &Node, bin: &Path, folders: &Folders, authority: &Authority) -> Result<Daemon> {
    let host = &node.host;
    let kubeconfig = authority.kubeconfig(
        &format!("kube-proxy-{}", host.name),
        &control_plane::server(),
        "system:kube-proxy",
        None,
    )?;
    let config = folders.of(host).join("kube-proxy.json");
    let settings = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clusterCIDR": ranges(address::CLUSTER_V4, address::CLUSTER_V6),
        "hostnameOverride": host.name,
        "clientConnection": {"kubeconfig": kubeconfig},
        // These limits are the whole machine's, and may not be set from a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
    });
    fs::write(&config, settings.to_string()).with_context(|| format!("cannot write {}", config.display()))?;
    let (kube_proxy, path) = (bin.join("kube-proxy"), search_path(bin));
    Daemon::start(&format!("kube-proxy-{}", host.name), &host.place, &folders.logs(), move || {
        let mut command = Command::new(&kube_proxy);
        command.arg("--config").arg(&config).env("PATH", &path);
        command
    })
}
