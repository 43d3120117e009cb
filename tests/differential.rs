//! Random packets and worlds: the core on the host and the loaded programs do the same, byte for byte, in verdict, counters and conntrack; and
//! what comes out of a good packet is a good packet.
//!
//! `NETLB_SEED` chooses other packets than the committed ones.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::{Reason, conntrack};
use netlb_tests::case::{Flow, Outcome, Runner, check_pairs, difference, line, names};
use netlb_tests::harness::{self, Trial};
use netlb_tests::host::HostTables;
use netlb_tests::kernel::{Entry, Kernel};
use netlb_tests::need::{Need, need};
use netlb_tests::packet::{show, verify};
use netlb_tests::random::{Sent, Source};

const WORLDS: usize = 50;
const PACKETS: usize = 400;
/// Packets after which the conntrack tables are compared.
const DUMP_EVERY: usize = 40;

fn main() -> ExitCode {
    let seed = std::env::var("NETLB_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let trial = |entry| {
        Trial::new(format!("{} random packets: host and {entry:?} do the same", WORLDS * PACKETS), move || {
            compare(entry, seed).map_err(|e| format!("seed {seed} (NETLB_SEED={seed} runs it again): {e:#}"))
        })
    };
    harness::run(need(&[Need::Root, Need::Btf]), vec![trial(Entry::Xdp), trial(Entry::Tc)])
}

/// What happened, so that a test of nothing shows.
#[derive(Default, Debug)]
struct Tally {
    passed: usize,
    rewritten: usize,
    delivered: usize,
    routed: usize,
    reflected: usize,
    dropped: usize,
    /// Good packets whose result was checked from scratch.
    verified: usize,
    /// Frames that the kernel's test run does not take.
    not_taken: usize,
}

fn compare(entry: Entry, seed: u64) -> Result<()> {
    let mut source = Source::new(seed);
    let mut tally = Tally::default();
    let mut kernel = None;
    let mut reasons = BTreeMap::new();
    for i in 0..WORLDS {
        let world = source.world();
        let kernel = match &mut kernel {
            Some(kernel) => kernel,
            none => none.insert(Kernel::load(entry, &world)?),
        };
        kernel.reset(&world)?;
        let mut host = HostTables::new(world);
        one_world(&mut source, &mut host, kernel, &mut tally).with_context(|| format!("world {i}"))?;
        for (reason, n) in Runner::counters(&host)? {
            *reasons.entry(reason).or_default() += n;
        }
    }
    println!("{entry:?}, seed {seed}: {tally:?}\n{}", names(&reasons));
    let sent = WORLDS * PACKETS;
    let Tally { passed, rewritten, delivered, routed, reflected, dropped, verified, not_taken } = tally;
    let rare = [passed, rewritten, delivered, routed, reflected, dropped].into_iter().min().unwrap_or(0);
    ensure!(rare * 50 >= sent, "one kind of verdict is hardly ever reached: the packets are not random enough");
    let rare =
        [(Reason::MASQUERADED, 200), (Reason::SLIPPED, 40), (Reason::FRAGMENT_FOLLOWED, 40), (Reason::PORT_MOVED, 1)];
    for (reason, times) in rare {
        let n = reasons.get(&reason.0).copied().unwrap_or(0);
        ensure!(n >= times, "{} only {n} times: the packets are not random enough", reason.name().unwrap_or("?"));
    }
    ensure!(verified * 2 >= sent, "only {verified} of {sent} packets were good ones");
    ensure!(not_taken * 20 <= sent, "{not_taken} of {sent} packets are not taken by the kernel's test run");
    Ok(())
}

fn one_world(source: &mut Source, host: &mut HostTables, kernel: &mut Kernel, tally: &mut Tally) -> Result<()> {
    let flows_before = kernel.backend_flows()?;
    for i in 0..PACKETS {
        if i % 20 == 19 {
            if let Some(world) = source.change(&host.world) {
                host.change(&|w| *w = world.clone())?;
                kernel.change(&|w| *w = world.clone())?;
            }
            if let Some(jiffies) = source.wait() {
                host.age(jiffies);
                kernel.age(jiffies)?;
            }
        }
        let sent = source.packet();
        if !kernel.takes(sent.hook, &sent.frame, 0) {
            tally.not_taken += 1;
            continue;
        }
        one_packet(source, host, kernel, &sent, tally)
            .with_context(|| format!("packet {i}, {:?}:\n{}", sent.hook, show(&sent.frame)))?;
        if i % DUMP_EVERY == DUMP_EVERY - 1 {
            same_flows(&host.flows()?, &kernel.flows()?).with_context(|| format!("after packet {i}"))?;
        }
    }
    let flows_after = kernel.backend_flows()?;
    let counted: BTreeMap<u32, u64> = flows_after
        .into_iter()
        .map(|(id, n)| (id, n - flows_before.get(&id).copied().unwrap_or(0)))
        .filter(|(_, n)| *n != 0)
        .collect();
    ensure!(counted == host.backend_flows(), "flows per backend: host {:?}, kernel {counted:?}", host.backend_flows());
    Ok(())
}

fn one_packet(
    source: &mut Source,
    host: &mut HostTables,
    kernel: &mut Kernel,
    sent: &Sent,
    tally: &mut Tally,
) -> Result<()> {
    let before = (Runner::counters(host)?, kernel.counters()?);
    let earliest = kernel.jiffies()?;
    let got = kernel.run(sent.hook, &sent.frame, 0)?.context("the kernel's test run refused the frame (EINVAL)")?;
    let theirs_counted = since(&before.1, &kernel.counters()?);
    host.now = clock_of(kernel, earliest, &theirs_counted)?;
    let (decision, frame) = host.run(sent.hook, &sent.frame, 0);
    let outcome = Outcome::from(decision);

    let theirs = || format!("kernel {:?}:\n{}", got.verdict, show(&got.frame));
    ensure!(got.verdict.is(outcome), "verdicts differ: host {decision:?}:\n{}\n{}", show(&frame), theirs());
    let macs = if outcome == Outcome::Route { 12 } else { 0 };
    if outcome != Outcome::Drop && got.frame.get(macs..) != frame.get(macs..) {
        bail!("frames differ: {}\nhost {decision:?}:\n{}\n{}", difference(&frame, &got.frame), show(&frame), theirs());
    }
    let counted = (since(&before.0, &Runner::counters(host)?), theirs_counted);
    ensure!(counted.0 == counted.1, "counters differ: host {}, kernel {}", names(&counted.0), names(&counted.1));
    ensure!(!counted.0.contains_key(&Reason::NO_SCRATCH.0), "{} must not happen here", names(&counted.0));

    match outcome {
        Outcome::Pass if frame == sent.frame => tally.passed += 1,
        Outcome::Pass => tally.rewritten += 1,
        Outcome::Deliver(_) => tally.delivered += 1,
        Outcome::Route => tally.routed += 1,
        Outcome::Reflect => tally.reflected += 1,
        Outcome::Drop => tally.dropped += 1,
    }
    if outcome != Outcome::Drop && verify(&sent.frame).is_ok() {
        verify(&frame)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("a good packet became a bad one:\n{}", show(&frame)))?;
        tally.verified += 1;
    }
    // What was rewritten can be answered; what was refused cannot.
    match outcome {
        Outcome::Pass | Outcome::Deliver(_) | Outcome::Route if frame != sent.frame => {
            source.learn(&sent.frame);
            source.learn(&frame);
        }
        Outcome::Reflect if counted.0.contains_key(&Reason::HAIRPIN.0) => source.learn(&frame),
        Outcome::Pass | Outcome::Deliver(_) | Outcome::Route | Outcome::Reflect | Outcome::Drop => {}
    }
    Ok(())
}

/// What the kernel's clock said while it processed a packet. The search for a source port begins by it: to find the same one, the host must read the
/// same time. A flow's entries are stamped with it, and nothing is stamped later.
fn clock_of(kernel: &Kernel, earliest: u32, counted: &BTreeMap<u8, u64>) -> Result<u32> {
    let moved = [Reason::MASQUERADED, Reason::PORT_MOVED].iter().any(|reason| counted.contains_key(&reason.0));
    if !moved || kernel.jiffies()? == earliest {
        return Ok(earliest);
    }
    let stamps = kernel.flows()?.into_iter().map(|flow| flow.value.seen.wrapping_sub(earliest));
    // Those from before are far off: the clock's numbers go round.
    let latest = stamps.filter(|late| *late < u32::MAX / 2).max().context("a new flow has no stamp")?;
    Ok(earliest.wrapping_add(latest))
}

fn since(before: &BTreeMap<u8, u64>, after: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    after
        .iter()
        .map(|(reason, n)| (*reason, n - before.get(reason).copied().unwrap_or(0)))
        .filter(|(_, n)| *n != 0)
        .collect()
}

/// Everything but the stamp is equal; stamps are stored at most every `REFRESH` jiffies, and the two clocks are read one after the other.
fn same_flows(host: &[Flow], kernel: &[Flow]) -> Result<()> {
    let table = |flows: &[Flow]| -> BTreeMap<(bool, CtKey), (CtValue, u32)> {
        flows.iter().map(|f| ((f.assured, f.key), (CtValue { seen: 0, ..f.value }, f.age))).collect()
    };
    let (ours, theirs) = (table(host), table(kernel));
    let find = |flows: &[Flow], key: &(bool, CtKey)| {
        flows.iter().find(|f| (f.assured, f.key) == *key).map_or("nothing".into(), line)
    };
    for key in ours.keys().chain(theirs.keys()) {
        let same = match (ours.get(key), theirs.get(key)) {
            (Some((a, age_a)), Some((b, age_b))) => a == b && age_a.abs_diff(*age_b) <= 2 * conntrack::REFRESH,
            _ => false,
        };
        ensure!(same, "conntrack differs:\nhost   {}\nkernel {}", find(host, key), find(kernel, key));
    }
    check_pairs(kernel).map_err(anyhow::Error::msg)
}
