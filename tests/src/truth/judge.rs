//! Whether what became of a row's packets is what the row says.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};

use super::document::{Document, Expect, Origin, Packet, Step, Verdict};
use super::journey::Fate;
use super::settings::Setting;

/// A row that passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    AsKubeProxy,
    /// Save that a backend on this node sees the client, where kube-proxy masquerades.
    KeptClient,
}

/// Judges all packets of a row together.
///
/// # Errors
/// Says what was expected, and what happened.
pub fn judge(document: &Document, step: &Step, packet: &Packet, setting: Setting, fates: &[Fate]) -> Result<Judgement> {
    let backends = match &packet.expect {
        Expect::Verdict(verdict) => {
            let unfit = fates.iter().find(|fate| !fits(document, packet, *verdict, fate));
            if let Some(fate) = unfit {
                bail!("expected {verdict:?}, got {fate:?}");
            }
            return Ok(Judgement::AsKubeProxy);
        }
        Expect::Backends(backends) => backends,
    };
    let mut reached: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    let mut judgement = Judgement::AsKubeProxy;
    for fate in fates {
        match fate {
            Fate::Goes { from, to } if backends.contains(to) => {
                *reached.entry(*to).or_default() += 1;
                if source(document, step, packet, setting, *from, *to)? == Judgement::KeptClient {
                    judgement = Judgement::KeptClient;
                }
            }
            Fate::Goes { .. } | Fate::Refused | Fate::Dropped => bail!("expected one of {backends:?}, got {fate:?}"),
        }
    }
    // Sockets choose by chance, packets by a hash of what is the same in each run.
    let fair = fates.len() / backends.len() / if document.origin(packet.from) == Origin::Node { 10 } else { 2 };
    let all = backends.iter().all(|backend| reached.get(backend).is_some_and(|count| *count >= fair));
    ensure!(all, "{} packets are to be shared equally among {backends:?}, they went to {reached:?}", fates.len());
    Ok(judgement)
}

/// Whether a fate is the verdict.
fn fits(document: &Document, packet: &Packet, verdict: Verdict, fate: &Fate) -> bool {
    match (verdict, fate) {
        (Verdict::Reject, Fate::Refused) | (Verdict::Drop, Fate::Dropped) => true,
        (Verdict::None, Fate::Goes { from, to }) => *to == packet.to && is_client(document, packet, *from),
        (Verdict::Reject | Verdict::Drop | Verdict::None, _) => false,
    }
}

/// Whether the source that a backend sees is the right one.
fn source(
    document: &Document,
    step: &Step,
    packet: &Packet,
    setting: Setting,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<Judgement> {
    if packet.from == to.ip() {
        // A row has one flag for all its backends: only where there is no other does it tell that the client itself is masqueraded.
        let masqueraded = from.ip() == packet.to.ip() || document.is_node(from.ip());
        ensure!(masqueraded, "{to} is the client, and sees {from} as its client");
        return Ok(Judgement::AsKubeProxy);
    }
    let keeps = !setting.kube_proxy && document.is_here(step, to.ip());
    if packet.masquerade && !keeps {
        ensure!(document.is_node(from.ip()), "expected an address of the node as the client of {to}, got {from}");
    } else {
        ensure!(is_client(document, packet, from), "expected {} as the client of {to}, got {from}", packet.from);
    }
    let changed = packet.masquerade && keeps && document.origin(packet.from) != Origin::Node;
    Ok(if changed { Judgement::KeptClient } else { Judgement::AsKubeProxy })
}

/// Whether a source is the client's own. A socket of the node takes any address that the node has.
fn is_client(document: &Document, packet: &Packet, from: SocketAddr) -> bool {
    match document.origin(packet.from) {
        Origin::Node => document.is_node(from.ip()),
        Origin::Pod | Origin::Outside => from.ip() == packet.from,
    }
}
