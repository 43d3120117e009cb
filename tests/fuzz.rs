//! Fuzzing the core on the host, without root: random packets and worlds, and bytes without sense. Nothing panics or reads past the end, and a good
//! packet never comes out broken.
//!
//! `NETLB_SEED` chooses other packets than the committed ones.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use netlb_ebpf::verdict::Decision;
use netlb_tests::case::Hook;
use netlb_tests::harness::{self, Trial};
use netlb_tests::host::HostTables;
use netlb_tests::packet::{show, verify};
use netlb_tests::random::{Rng, Source};

const WORLDS: usize = 100;
const PACKETS: usize = 1000;

fn main() -> ExitCode {
    let seed = std::env::var("NETLB_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let told = move |result: Result<()>| result.map_err(|e| format!("NETLB_SEED={seed} runs it again: {e:#}"));
    harness::run(
        Ok(()),
        vec![
            Trial::new(format!("{} random packets: good ones come out good", WORLDS * PACKETS), move || {
                told(packets(seed))
            }),
            Trial::new(format!("{} frames without sense", WORLDS * PACKETS), move || told(noise(seed))),
        ],
    )
}

fn packets(seed: u64) -> Result<()> {
    let mut source = Source::new(seed);
    let (mut good, mut changed) = (0, 0);
    for _ in 0..WORLDS {
        let mut host = HostTables::new(source.world());
        for _ in 0..PACKETS {
            if let Some(jiffies) = source.wait() {
                host.age(jiffies);
            }
            let sent = source.packet();
            let (decision, frame) = host.run(sent.hook, &sent.frame, 0);
            if verify(&sent.frame).is_ok() && !matches!(decision, Decision::Drop(_)) {
                good += 1;
                changed += usize::from(frame != sent.frame);
                verify(&frame).map_err(anyhow::Error::msg).with_context(|| {
                    format!("{:?} {decision:?}\nin:\n{}\nout:\n{}", sent.hook, show(&sent.frame), show(&frame))
                })?;
                source.learn(&frame);
            }
        }
    }
    ensure!(
        good * 2 > WORLDS * PACKETS && changed * 20 > good,
        "{good} good packets, {changed} translated: too few to say anything"
    );
    Ok(())
}

fn noise(seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut source = Source::new(seed);
    let mut dropped = 0;
    for _ in 0..WORLDS {
        let mut host = HostTables::new(source.world());
        for _ in 0..PACKETS {
            let len = rng.below(160);
            let mut frame: Vec<u8> = (0..len).map(|_| rng.word() as u8).collect();
            // Otherwise nearly nothing would get past the first comparison.
            if len > 14 {
                let (kind, version) = rng.pick(&[([8, 0], 0x45), ([0x86, 0xdd], 0x60)]);
                frame.splice(12..15, [kind[0], kind[1], version]);
            }
            let hook = rng.pick(&[Hook::FromPod(12), Hook::ToPod, Hook::FromOutside, Hook::ToOutside]);
            let (decision, _) = host.run(hook, &frame, 0);
            dropped += usize::from(matches!(decision, Decision::Drop(_)));
        }
    }
    ensure!(dropped * 4 > WORLDS * PACKETS, "only {dropped} frames were refused as malformed");
    Ok(())
}
