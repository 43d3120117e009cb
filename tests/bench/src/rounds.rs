//! Rounds: all cases once, forwards, then backwards, and so on (ABBA), between two measurements of the floor. A round in which the floor moved or
//! the hypervisor took time does not count, and is run again.

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cases::{Bench, Case, row};
use crate::machine;
use crate::production::Programs;
use crate::stats::Spread;
use crate::world::Family;

/// How far the floor may move during a round, as a fraction.
const FLOOR_MOVES: f64 = 0.05;

/// Measured rows, in the order of the table.
#[derive(Debug, Serialize)]
pub(crate) struct Packets {
    pub(crate) cpu: usize,
    pub(crate) rounds: usize,
    /// Rounds in which the machine was disturbed.
    pub(crate) disturbed: usize,
    /// Disturbed rounds are among those that count.
    pub(crate) keep_disturbed: bool,
    /// ns per packet of the IPv4 drop floor, before and after each round that counts.
    pub(crate) floor_before: Spread,
    pub(crate) floor_after: Spread,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) family: &'static str,
    /// ns per packet.
    pub(crate) ns: Spread,
    /// ns per packet above the row's floor, round by round.
    pub(crate) over_floor: Option<Spread>,
    /// Times plain forwarding of the same packets, round by round.
    pub(crate) plain: Option<Spread>,
    /// Packets asked for, made by the generator, counted by the receiver.
    pub(crate) ordered: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// ns per packet of each round.
    pub(crate) samples: Vec<f64>,
}

/// Samples and counts of a case.
#[derive(Default)]
struct Tally {
    samples: Vec<f64>,
    ordered: u64,
    sent: u64,
    received: u64,
}

/// How to measure.
pub(crate) struct Plan {
    pub(crate) programs: Programs,
    /// Rounds that must count.
    pub(crate) rounds: u32,
    /// Disturbed rounds count too.
    pub(crate) keep_disturbed: bool,
}

/// Measures until enough rounds count.
///
/// # Errors
/// When a world cannot be built, a sample packet is not what it must be, or the machine is too restless.
pub(crate) fn measure(plan: &Plan) -> Result<Packets> {
    let started = std::time::Instant::now();
    // Namespaces and CPU belong to the thread that measures.
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("measure".to_owned()).spawn_scoped(scope, || on_cpu(plan, started));
        match thread.context("cannot start a thread")?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn on_cpu(plan: &Plan, started: std::time::Instant) -> Result<Packets> {
    let rounds = plan.rounds;
    let attempts = 3 * rounds;
    let mut bench = Bench::prepare(&plan.programs, attempts + 1)?;
    let cpu = machine::take_cpu()?;
    let wrong = bench.check();
    if !wrong.is_empty() {
        bail!("nothing is measured, because packets do not arrive as they must:\n  {}", wrong.join("\n  "));
    }
    eprintln!(
        "{} cases in {} worlds ready after {:.1} s",
        bench.cases.len(),
        bench.worlds.len(),
        started.elapsed().as_secs_f64()
    );
    let is_floor = |c: &Case| c.name == row::FLOOR_DROP && c.family == Family::V4;
    let floor = bench.cases.iter().position(is_floor).context("no floor case")?;

    let mut tallies: Vec<Tally> = bench.cases.iter().map(|_| Tally::default()).collect();
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let (mut kept, mut disturbed_rounds) = (0, 0);
    // The first round warms up: caches, neighbours, full LRU lists.
    for attempt in 0..=attempts {
        machine::check_stop()?;
        let stolen = machine::stolen_ticks(cpu)?;
        let first = floor_ns(&mut bench, floor)?;
        let mut round: Vec<Option<f64>> = vec![None; bench.cases.len()];
        let backwards = kept % 2 == 1;
        for step in 0..bench.cases.len() {
            let index = if backwards { bench.cases.len() - 1 - step } else { step };
            let run = bench.run(index)?;
            let (Some(case), Some(tally), Some(sample)) =
                (bench.cases.get(index), tallies.get_mut(index), round.get_mut(index))
            else {
                continue;
            };
            tally.ordered += u64::from(case.packets);
            tally.sent += run.sent;
            tally.received += run.received;
            *sample = Some(run.ns_per_packet);
        }
        let last = floor_ns(&mut bench, floor)?;
        if attempt == 0 {
            continue;
        }
        let moved = (last - first).abs() / first.min(last) > FLOOR_MOVES;
        let disturbed = moved || machine::stolen_ticks(cpu)? > stolen;
        if disturbed {
            disturbed_rounds += 1;
        }
        if !disturbed || plan.keep_disturbed {
            kept += 1;
            before.push(first);
            after.push(last);
            for (tally, sample) in tallies.iter_mut().zip(round) {
                tally.samples.extend(sample);
            }
        }
        eprint!("\rround {kept} of {rounds} ({disturbed_rounds} disturbed)  ");
        if kept == rounds as usize {
            break;
        }
    }
    eprintln!("— {:.0} s", started.elapsed().as_secs_f64());
    if kept < 4 {
        bail!(
            "only {kept} of {attempts} rounds were undisturbed: the machine is too busy to measure on; try again when it is idle"
        );
    }
    let (Some(floor_before), Some(floor_after)) = (Spread::of(&before), Spread::of(&after)) else {
        bail!("no floor was measured");
    };
    let rows = rows(&bench.cases, &tallies)?;
    Ok(Packets {
        cpu,
        rounds: kept,
        disturbed: disturbed_rounds,
        keep_disturbed: plan.keep_disturbed,
        floor_before,
        floor_after,
        rows,
    })
}

fn floor_ns(bench: &mut Bench<'_>, floor: usize) -> Result<f64> {
    // The least of three: one interrupt does not condemn a round.
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        least = least.min(bench.run(floor)?.ns_per_packet);
    }
    Ok(least)
}

fn rows(cases: &[Case], tallies: &[Tally]) -> Result<Vec<Row>> {
    let find = |name: Option<&'static str>, family: Family| {
        let name = name?;
        cases.iter().zip(tallies).find(|(c, _)| c.name == name && c.family == family).map(|(_, tally)| &tally.samples)
    };
    cases
        .iter()
        .zip(tallies)
        .map(|(case, tally)| {
            let pairs = |other: Option<&Vec<f64>>, with: fn(f64, f64) -> f64| {
                let values: Vec<f64> = tally.samples.iter().zip(other?).map(|(a, b)| with(*a, *b)).collect();
                Spread::of(&values)
            };
            Ok(Row {
                name: case.name,
                family: case.family.name(),
                ns: Spread::of(&tally.samples).with_context(|| format!("{} has no samples", case.name))?,
                over_floor: pairs(find(case.against.floor, case.family), |a, b| a - b),
                plain: pairs(find(case.against.plain, case.family), |a, b| a / b),
                ordered: tally.ordered,
                sent: tally.sent,
                received: tally.received,
                samples: tally.samples.clone(),
            })
        })
        .collect()
}

impl Packets {
    /// Rows whose packets did not all arrive.
    pub(crate) fn faults(&self) -> Vec<String> {
        let lost = self.rows.iter().filter(|row| row.sent != row.ordered || row.received != row.sent);
        lost.map(|row| {
            format!(
                "{} ({}): {} packets ordered, {} sent, {} received; its figures do not count",
                row.name, row.family, row.ordered, row.sent, row.received
            )
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, ordered: u64, sent: u64, received: u64) -> Row {
        let ns = Spread { median: 1.0, min: 1.0, max: 1.0 };
        let samples = vec![1.0];
        Row { name, family: "IPv4", ns, over_floor: None, plain: None, ordered, sent, received, samples }
    }

    #[test]
    fn a_row_counts_only_if_every_packet_arrived() {
        let floor = Spread { median: 1.0, min: 1.0, max: 1.0 };
        let rows =
            vec![row("whole", 10, 10, 10), row("lost", 10, 10, 9), row("short", 10, 9, 9), row("twice", 10, 10, 11)];
        let packets = Packets {
            cpu: 0,
            rounds: 1,
            disturbed: 0,
            keep_disturbed: false,
            floor_before: floor,
            floor_after: floor,
            rows,
        };
        assert_eq!(
            packets.faults(),
            [
                "lost (IPv4): 10 packets ordered, 10 sent, 9 received; its figures do not count",
                "short (IPv4): 10 packets ordered, 9 sent, 9 received; its figures do not count",
                "twice (IPv4): 10 packets ordered, 10 sent, 11 received; its figures do not count",
            ]
        );
    }
}
