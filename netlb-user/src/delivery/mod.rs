//! Which road packets to pods of this node take: past the host's network stack (*redirect*), or through it (*stack*).
//!
//! The redirect road is open only where nothing in the host has a say in what passes: no policy engine of others in netfilter, no IPsec policy. A
//! CNI's plain rules (masquerade, dropping what conntrack calls invalid) do not count. What cannot be asked counts as a say.

pub mod legacy;
pub mod nftables;
pub mod xfrm;

use serde::{Deserialize, Serialize};

/// `--delivery`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Redirect where nothing in the host has a say, else the stack.
    #[default]
    Auto,
    /// Always through the host's stack.
    Stack,
    /// Always past it, for pods of this node.
    Redirect,
}

/// What netlb chose, and why: part of `netlb status`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Delivery {
    pub mode: Mode,
    pub road: Road,
    /// In words.
    pub why: String,
}

/// A road of the datapath.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Road {
    Stack,
    Redirect,
}

impl Mode {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Auto => "auto",
            Mode::Stack => "stack",
            Mode::Redirect => "redirect",
        }
    }
}

impl Road {
    /// As in `netlb status`.
    pub fn name(self) -> &'static str {
        match self {
            Road::Stack => "stack",
            Road::Redirect => "redirect",
        }
    }
}

/// Policy engines by the names they give their chains and tables. A CNI's or kube-proxy's own chains are not among them.
const ENGINES: [(&str, &str); 13] = [
    ("cali-", "Calico"),
    ("calico", "Calico"),
    ("CILIUM_", "Cilium"),
    ("KUBE-ROUTER", "kube-router"),
    ("KUBE-NWPLCY", "kube-router"),
    ("KUBE-POD-FW", "kube-router"),
    ("WEAVE-NPC", "Weave Net"),
    ("ANTREA-", "Antrea"),
    ("antrea", "Antrea"),
    ("AZURE-NPM", "Azure NPM"),
    ("kube-network-policies", "kube-network-policies"),
    ("kindnet-network-policies", "kindnet"),
    ("ROMANA-", "Romana"),
];

/// The engine that a chain or table belongs to.
pub fn engine(name: &str) -> Option<&'static str> {
    ENGINES.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, engine)| *engine)
}

/// What the host's stack was asked, and answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// First foreign engine with the name that gave it away, or why it could not be told.
    pub engine: Option<Say>,
    /// IPsec policies, or why they could not be counted.
    pub xfrm: Option<Say>,
}

/// Something in the host has a say, or may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Say {
    Engine { engine: &'static str, name: String },
    Policies(usize),
    Unknown(String),
}

/// Asks the kernel, in the calling thread's network namespace.
pub fn look() -> Findings {
    Findings { engine: foreign_engine(), xfrm: xfrm_say() }
}

fn foreign_engine() -> Option<Say> {
    let names = match nftables::names() {
        Ok(names) => names,
        Err(e) => return Some(Say::Unknown(format!("nftables cannot be listed: {e}"))),
    };
    if let Some(found) = names.into_iter().find_map(named) {
        return Some(found);
    }
    match legacy::names() {
        Ok(names) => names.into_iter().find_map(named),
        Err(e) => Some(Say::Unknown(format!("legacy iptables cannot be listed: {e}"))),
    }
}

fn named(name: String) -> Option<Say> {
    engine(&name).map(|engine| Say::Engine { engine, name })
}

fn xfrm_say() -> Option<Say> {
    match xfrm::policies() {
        Ok(0) => None,
        Ok(count) => Some(Say::Policies(count)),
        Err(e) => Some(Say::Unknown(format!("IPsec policies cannot be listed: {e}"))),
    }
}

/// The road for a mode, given what was found.
pub fn decide(mode: Mode, findings: &Findings) -> Delivery {
    let say = findings.engine.as_ref().or(findings.xfrm.as_ref());
    let words = say.map(|say| match say {
        Say::Engine { engine, name } => format!("{engine} filters in netfilter ({name})"),
        Say::Policies(count) => format!("{count} IPsec policies"),
        Say::Unknown(why) => why.clone(),
    });
    let (road, why) = match (mode, words) {
        (Mode::Stack, _) => (Road::Stack, "asked for by --delivery stack".to_owned()),
        (Mode::Redirect, None) => (Road::Redirect, "asked for by --delivery redirect".to_owned()),
        (Mode::Redirect, Some(words)) => {
            (Road::Redirect, format!("asked for by --delivery redirect; what it passes by: {words}"))
        }
        (Mode::Auto, None) => (Road::Redirect, "no foreign policy engine in netfilter, no IPsec policy".to_owned()),
        (Mode::Auto, Some(words)) => (Road::Stack, format!("{words}; --delivery redirect would pass it by")),
    };
    Delivery { mode, road, why }
}

/// What the host's own forwarding lacks for the stack road and for traffic between nodes, in words; empty if nothing.
pub fn forwarding_gaps() -> Vec<String> {
    let off =
        |key: &str| std::fs::read_to_string(format!("/proc/sys/net/{key}")).is_ok_and(|value| value.trim() == "0");
    [
        ("ipv4/ip_forward", "net.ipv4.ip_forward", "IPv4"),
        ("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", "IPv6"),
    ]
    .into_iter()
    .filter(|(key, _, _)| off(key))
    .map(|(_, name, family)| {
        format!(
            "{name} is 0: the host forwards no {family} packets between pods and nodes; set it to 1 (CNIs usually do)"
        )
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_known_by_their_names_and_plain_cnis_are_none() {
        for (name, want) in [
            ("cali-FORWARD", Some("Calico")),
            ("KUBE-ROUTER-FORWARD", Some("kube-router")),
            ("KUBE-NWPLCY-ABCD", Some("kube-router")),
            ("WEAVE-NPC-DEFAULT", Some("Weave Net")),
            ("CILIUM_FORWARD", Some("Cilium")),
            ("kube-network-policies", Some("kube-network-policies")),
            ("FORWARD", None),
            ("CNI-FORWARD", None),
            ("KUBE-SERVICES", None),
            ("KUBE-FORWARD", None),
            ("kube-proxy", None),
            ("FLANNEL-FWD", None),
            ("netlb-testnode", None),
            ("", None),
        ] {
            assert_eq!(engine(name), want, "{name}");
        }
    }

    #[test]
    fn auto_redirects_only_where_nothing_has_a_say() {
        let calico = Say::Engine { engine: "Calico", name: "cali-FORWARD".to_owned() };
        let quiet = Findings::default();
        let engine = Findings { engine: Some(calico), xfrm: None };
        let ipsec = Findings { engine: None, xfrm: Some(Say::Policies(2)) };
        let unknown =
            Findings { engine: Some(Say::Unknown("nftables cannot be listed: EPERM".to_owned())), xfrm: None };
        for (mode, findings, road, why) in [
            (Mode::Auto, &quiet, Road::Redirect, "no foreign policy engine"),
            (Mode::Auto, &engine, Road::Stack, "Calico filters in netfilter (cali-FORWARD)"),
            (Mode::Auto, &ipsec, Road::Stack, "2 IPsec policies"),
            (Mode::Auto, &unknown, Road::Stack, "EPERM"),
            (Mode::Stack, &quiet, Road::Stack, "--delivery stack"),
            (Mode::Redirect, &quiet, Road::Redirect, "--delivery redirect"),
            (Mode::Redirect, &engine, Road::Redirect, "what it passes by: Calico"),
        ] {
            let delivery = decide(mode, findings);
            assert_eq!((delivery.mode, delivery.road), (mode, road));
            assert!(delivery.why.contains(why), "{}", delivery.why);
        }
    }
}
