//! Checksums where they are final: every case of real traffic again with tx checksum offload off at pods and uplink, every
//! frame that arrives at a pod recomputed from its bytes. With the offload on, large frames must stay whole instead.

use std::cell::LazyCell;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Result, ensure};
use netlb_testnode::PodNetwork;
use netlb_testnode::address::Family;
use netlb_tests::capture::Kind;
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::traffic::{CASES, WORLD, large_frames};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

/// Frames of each kind and family that must have been checked for a style to pass.
fn at_least(kind: Kind, style: &Style) -> u64 {
    match kind {
        // 20 MB in segments that fit the MTU, and then some.
        Kind::TcpRequest | Kind::TcpAnswer => 15_000,
        Kind::UdpRequest | Kind::UdpAnswer => 50,
        Kind::Reset | Kind::Unreachable => 6,
        Kind::TooBig => 1,
        // Bridged packets meet no router.
        Kind::TimeExceeded if style.pods == PodNetwork::Bridge && !style.redirects() => 0,
        Kind::TimeExceeded => 2,
    }
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for style in Style::ALL.map(|style| Style { tx_checksum: false, ..style }) {
        let rig = Rc::new(LazyCell::new(move || {
            let rig = Rig::start(style, ACTOR, WORLD)?;
            rig.capture()?;
            anyhow::Ok(rig)
        }));
        let mut add = |name: &str, run: fn(&Rig) -> Result<()>| {
            let rig = Rc::clone(&rig);
            trials.push(Trial::new(format!("{}: {name}", style.name()), move || {
                let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
                run(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
            }));
        };
        for case in CASES.iter().filter(|case| (case.on)(&style)) {
            add(case.name, case.run);
        }
        add("and every frame that arrived had right checksums", all_right);
    }
    for style in Style::ALL.into_iter().filter(Style::redirects) {
        let name = format!("{}: with offload on, large frames of a bulk transfer arrive whole", style.name());
        trials.push(Trial::new(name, move || whole(style).map_err(|error| format!("{error:#}"))));
    }
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

fn all_right(rig: &Rig) -> Result<()> {
    let tally = rig.captured()?;
    // What the tap was too slow for was not checked, and is not counted as checked.
    ensure!(tally.wrong_count == 0, "{tally}");
    for kind in Kind::ALL {
        for family in Family::BOTH {
            let checked = tally.counts.get(&(kind, family)).map_or(0, |count| count.checked);
            let wanted = at_least(kind, &rig.style);
            ensure!(
                checked >= wanted,
                "{checked} frames {kind:?} {} were checked, not {wanted}:\n{tally}",
                family.word()
            );
        }
    }
    Ok(())
}

fn whole(style: Style) -> Result<()> {
    let rig = Rig::start(style, ACTOR, WORLD)?;
    rig.capture()?;
    large_frames(&rig)?;
    let tally = rig.captured()?;
    let most = usize::try_from(rig.node.wires().mtu)? + 14;
    ensure!(tally.wrong_count == 0, "{tally}");
    ensure!(tally.largest > most, "no frame was larger than {most} bytes: somebody cut them up\n{tally}");
    Ok(())
}
