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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::document;

    const NODE: &str = "192.168.0.2";
    const CLIENT: &str = "10.0.0.2";
    const HERE: &str = "10.0.1.1:80";
    const ELSEWHERE: &str = "10.0.2.1:80";
    const VIP: &str = "172.30.0.1:80";

    /// A row with the two backends [`HERE`] and [`ELSEWHERE`].
    fn document(from: &str, expect: &str) -> Document {
        let text = format!(
            "source: {{file: f, test: t}}
config:
  nodeName: here
  nodeAddresses: [{NODE}/24]
  nodePortAddresses: []
  pods: [10.0.0.0/8]
  localDetector: 10.0.0.0/8
  masqueradeAll: false
objects: []
steps:
- line: 1
  objects:
  - kind: EndpointSlice
    ports: [{{port: 80}}]
    endpoints: [{{addresses: [10.0.1.1], nodeName: here}}, {{addresses: [10.0.2.1]}}]
  packets: [{{line: 1, name: n, from: {from}, to: '{VIP}', protocol: TCP, {expect}}}]
"
        );
        document::parse(&text).expect("a good document")
    }

    fn both(masquerade: bool) -> String {
        format!("expect: ['{HERE}', '{ELSEWHERE}'], masquerade: {masquerade}")
    }

    fn goes(from: &str, to: &str) -> Fate {
        Fate::Goes { from: SocketAddr::new(from.parse().expect("an address"), 1), to: to.parse().expect("an address") }
    }

    fn judge_all(document: &Document, kube_proxy: bool, fates: &[Fate]) -> Option<Judgement> {
        let step = &document.steps[0];
        judge(document, step, &step.packets[0], Setting { kube_proxy, redirect: false }, fates).ok()
    }

    #[test]
    fn every_backend_must_be_reached_and_no_other() {
        let document = document(CLIENT, &both(false));
        let (here, elsewhere) = (goes(CLIENT, HERE), goes(CLIENT, ELSEWHERE));
        assert_eq!(judge_all(&document, true, &[here, elsewhere]), Some(Judgement::AsKubeProxy));
        for wrong in [goes(CLIENT, VIP), goes(CLIENT, "10.0.1.1:81"), Fate::Refused, Fate::Dropped] {
            assert_eq!(judge_all(&document, true, &[here, elsewhere, wrong]), None, "{wrong:?}");
        }
        assert_eq!(judge_all(&document, true, &[here, here]), None);
        let mut unfair = vec![here; 80];
        unfair.push(elsewhere);
        assert_eq!(judge_all(&document, true, &unfair), None);
    }

    #[test]
    fn masquerade_is_as_the_row_says() {
        let plain = [goes(CLIENT, HERE), goes(CLIENT, ELSEWHERE)];
        let masqueraded = [goes(NODE, HERE), goes(NODE, ELSEWHERE)];
        let mixed = [goes(CLIENT, HERE), goes(NODE, ELSEWHERE)];
        for kube_proxy in [true, false] {
            let document = document(CLIENT, &both(false));
            assert_eq!(judge_all(&document, kube_proxy, &plain), Some(Judgement::AsKubeProxy));
            assert_eq!(judge_all(&document, kube_proxy, &masqueraded), None);
            assert_eq!(judge_all(&document, kube_proxy, &mixed), None);
        }
        let document = document(CLIENT, &both(true));
        assert_eq!(judge_all(&document, true, &masqueraded), Some(Judgement::AsKubeProxy));
        assert_eq!(judge_all(&document, true, &plain), None);
        assert_eq!(judge_all(&document, true, &mixed), None);
        // By default the backend here, and only that, sees the client.
        assert_eq!(judge_all(&document, false, &mixed), Some(Judgement::KeptClient));
        assert_eq!(judge_all(&document, false, &plain), None);
        assert_eq!(judge_all(&document, false, &masqueraded), None);
    }

    #[test]
    fn a_client_that_is_its_backend_is_masqueraded_whatever_the_row_says() {
        let document = document("10.0.1.1", &both(false));
        for source in ["172.30.0.1", NODE] {
            let fates = [goes(source, HERE), goes("10.0.1.1", ELSEWHERE)];
            assert_eq!(judge_all(&document, false, &fates), Some(Judgement::AsKubeProxy), "{source}");
        }
        assert_eq!(judge_all(&document, false, &[goes("10.0.1.1", HERE), goes("10.0.1.1", ELSEWHERE)]), None);
    }

    #[test]
    fn sockets_of_the_node_are_seen_under_an_address_of_the_node() {
        for masquerade in [true, false] {
            let document = document(NODE, &both(masquerade));
            let good = [goes(NODE, HERE), goes(NODE, ELSEWHERE)];
            assert_eq!(judge_all(&document, false, &good), Some(Judgement::AsKubeProxy));
            assert_eq!(judge_all(&document, true, &[goes(NODE, HERE), goes(CLIENT, ELSEWHERE)]), None);
        }
    }

    #[test]
    fn verdicts_are_told_apart() {
        let unchanged = goes(CLIENT, VIP);
        let all = [("REJECT", Fate::Refused), ("DROP", Fate::Dropped), ("NONE", unchanged)];
        for (verdict, _) in all {
            let document = document(CLIENT, &format!("expect: {verdict}"));
            for (other, fate) in all {
                assert_eq!(judge_all(&document, true, &[fate]).is_some(), verdict == other, "{verdict}, {fate:?}");
                assert_eq!(judge_all(&document, true, &[fate, goes(CLIENT, HERE)]), None);
            }
            assert_eq!(judge_all(&document, true, &[goes(NODE, VIP)]), None, "a changed source is a change");
        }
    }
}
