//! What a node looks like in the field: strict reverse path filter, connection tracking that drops what it does not
//! know, masquerading by the CNI, bridged packets shown to netfilter. None of it is a policy engine.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::address;
use crate::netns::{NetNs, sysctl};

/// Settings that every namespace of the topology gets before its first device.
///
/// # Errors
/// Names the setting that the kernel refused.
pub fn quiet_ipv6(net: &NetNs) -> Result<()> {
    net.run(|| -> Result<()> {
        for scope in ["all", "default"] {
            sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
            sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        Ok(())
    })?
}

/// Makes a namespace a router with strict reverse path filtering.
///
/// # Errors
/// Names the setting that the kernel refused.
pub fn router(net: &NetNs) -> Result<()> {
    net.run(|| -> Result<()> {
        sysctl("net/ipv4/ip_forward", "1")?;
        for scope in ["all", "default"] {
            sysctl(&format!("net/ipv6/conf/{scope}/forwarding"), "1")?;
            sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "1")?;
        }
        Ok(())
    })?
}

/// Answers every packet to a Service that comes in by `device` and that nobody has translated with "no route", so that clients
/// fail at once. Without a rule the kernel answers too, but only about one packet a second.
///
/// # Errors
/// Names the setting or rule that the kernel refused.
pub fn answer_strays(net: &NetNs, device: &str) -> Result<()> {
    net.run(|| -> Result<()> {
        // Which types count towards the limits: none; for IPv6, where the set cannot be empty, "packet too big" alone.
        sysctl("net/ipv4/icmp_ratemask", "0")?;
        sysctl("net/ipv6/icmp/ratemask", "2")
    })??;
    let (services_v4, services_v6) = (address::SERVICES_V4, address::SERVICES_V6);
    let (routed_v4, routed_v6) = (address::ROUTED_V4, address::ROUTED_V6);
    nft(
        net,
        &format!(
            "table inet strays {{
  chain prerouting {{
    type filter hook prerouting priority filter; policy accept;
    iifname {device} ip daddr {{ {services_v4}, {routed_v4} }} counter reject with icmp net-unreachable
    iifname {device} ip6 daddr {{ {services_v6}, {routed_v6} }} counter reject with icmpv6 no-route
  }}
}}
"
        ),
    )
}

/// Shows bridged packets to netfilter, or not; says whether the kernel has the switch.
///
/// # Errors
/// When the kernel has the switch and refuses.
pub fn bridge_netfilter(net: &NetNs, on: bool) -> Result<bool> {
    net.run(|| -> Result<bool> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            return Ok(false);
        }
        for table in ["iptables", "ip6tables"] {
            sysctl(&format!("net/bridge/bridge-nf-call-{table}"), if on { "1" } else { "0" })?;
        }
        Ok(true)
    })?
}

/// Loads what a plain CNI brings: FORWARD drops what connection tracking calls invalid, and what leaves the pod networks
/// takes the node's address.
///
/// # Errors
/// When `nft` is missing or refuses.
pub fn cni_rules(net: &NetNs, node: u8) -> Result<()> {
    nft(net, &cni_ruleset(node))
}

fn cni_ruleset(node: u8) -> String {
    let [pods_v4, pods_v6] = address::pod_cidrs(node);
    let (cluster_v4, cluster_v6) = (address::CLUSTER_V4, address::CLUSTER_V6);
    format!(
        "table inet cni {{
  counter forwarded {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    meta l4proto {{ tcp, udp }} counter name forwarded
    ct state invalid counter drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pods_v4} ip daddr != {{ {cluster_v4}, 224.0.0.0/4 }} counter masquerade
    ip6 saddr {pods_v6} ip6 daddr != {{ {cluster_v6}, ff00::/8 }} counter masquerade
  }}
}}
"
    )
}

/// How many TCP and UDP packets the host's FORWARD hook has seen since [`cni_rules`]: who asks twice knows which road
/// packets took. (Neighbour discovery, which a bridge floods on either road, is not among them.)
/// Bridged packets are among them only if [`bridge_netfilter`] shows them.
///
/// # Errors
/// When `nft` fails or prints something else.
pub fn forwarded(net: &NetNs) -> Result<u64> {
    let output = net
        .run(|| Command::new("nft").args(["--json", "list", "counter", "inet", "cni", "forwarded"]).output())?
        .context("cannot start nft")?;
    if !output.status.success() {
        bail!("nft does not show the counter: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).context("cannot understand nft")?;
    let objects = listing.get("nftables").and_then(|list| list.as_array()).context("nft listed nothing")?;
    objects
        .iter()
        .find_map(|object| object.pointer("/counter/packets")?.as_u64())
        .context("nft listed no counter called forwarded")
}

/// Runs an nft script inside the namespace.
///
/// # Errors
/// When `nft` is missing or refuses, with what it printed.
pub fn nft(net: &NetNs, script: &str) -> Result<()> {
    net.run(|| -> Result<()> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start nft; install the package nftables (`cargo xtask setup` does)")?;
        child.stdin.take().context("nft has no input")?.write_all(script.as_bytes()).context("cannot write to nft")?;
        let output = child.wait_with_output().context("cannot wait for nft")?;
        if !output.status.success() {
            bail!("nft refused the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    })?
}

#[cfg(test)]
mod tests {
    #[test]
    fn masquerade_leaves_pod_to_pod_alone() {
        let rules = super::cni_ruleset(2);
        assert!(rules.contains("ip saddr 10.244.2.0/24 ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } counter masquerade"));
        assert!(rules.contains("ct state invalid counter drop"));
    }
}
