//! What serves Services on the nodes: netlb, or the real kube-proxy to compare with.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use netlb_testnode::address;
use serde_json::json;

use crate::certificates::Authority;
use crate::control_plane::{self, ranges};
use crate::daemon::Daemon;
use crate::node::{Node, search_path};
use crate::wires::Folders;

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

    /// The mode of a kube-proxy, which runs as a program beside kubelet; none is netlb's, which runs in pods: see
    /// [`crate::agents`].
    #[must_use]
    pub fn mode(self) -> Option<&'static str> {
        match self {
            Self::Netlb => None,
            Self::Nftables => Some("nftables"),
            Self::Iptables => Some("iptables"),
        }
    }

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

/// Starts kube-proxy on `node`; `mode` as its configuration calls it.
///
/// # Errors
/// When it cannot be started.
pub fn start(mode: &str, node: &Node, bin: &Path, folders: &Folders, authority: &Authority) -> Result<Daemon> {
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
