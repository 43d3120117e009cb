//! Tables for people, JSON for programs. Nothing is printed that was not measured.

use anyhow::{Context, Result};
use serde::Serialize;

use crate::agent::Agent;
use crate::machine::Machine;
use crate::maps::Maps;
use crate::rounds::Packets;
use crate::stats::Spread;

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    packets: Option<Packets>,
    maps: Option<Maps>,
    agent: Option<Agent>,
    /// Why figures are missing or do not count.
    faults: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Report { machine, packets: None, maps: None, agent: None, faults: Vec::new() }
    }

    pub(crate) fn print_machine(&self) {
        let Machine { kernel, cpu, cpus, load, mitigations } = &self.machine;
        println!("kernel {kernel}, {cpus} × {cpu}, load {load}");
        for mitigation in mitigations {
            println!("  mitigation {mitigation}");
        }
    }

    pub(crate) fn packets(&mut self, packets: Packets) {
        println!(
            "\nns per packet: {} interleaved rounds on CPU {} ({} disturbed rounds {}), live frames of 80 bytes, batch 64",
            packets.rounds,
            packets.cpu,
            packets.disturbed,
            if packets.keep_disturbed { "AMONG THEM: worth little" } else { "left out" }
        );
        println!(
            "floor (drop, IPv4) before each round {}, after it {}\n",
            between(packets.floor_before),
            between(packets.floor_after)
        );
        println!(
            "{:<62} {:<6} {:>6} {:>6} {:>6} {:>10} {:>19} {:>10}",
            "", "", "median", "min", "max", "over floor", "× plain (min–max)", "packets"
        );
        for row in &packets.rows {
            let lost = if row.sent == row.ordered && row.received == row.sent { "" } else { "  LOST" };
            let plain = row.plain.map_or(String::new(), |p| format!("{:.2} ({:.2}–{:.2})", p.median, p.min, p.max));
            println!(
                "{:<62} {:<6} {:>6.0} {:>6.0} {:>6.0} {:>10} {:>19} {:>10}{lost}",
                row.name,
                row.family,
                row.ns.median,
                row.ns.min,
                row.ns.max,
                row.over_floor.map_or(String::new(), |f| format!("{:.0}", f.median)),
                plain,
                row.received,
            );
        }
        self.faults.extend(packets.faults());
        self.packets = Some(packets);
    }

    pub(crate) fn maps(&mut self, maps: Maps) {
        println!(
            "\nns per map operation, the floor taken off: least (median); capacity {}, {} entries",
            maps.capacity, maps.entries
        );
        println!(
            "{:<20} {:>4} {:>6} {:>16} {:>16} {:>9} {:>9} {:>22} {:>12}",
            "",
            "key",
            "value",
            "look-up, hot",
            "look-up, cold",
            "insert",
            "again",
            "insert+remove/evict",
            "bytes/entry"
        );
        for row in &maps.rows {
            // A preallocated map pays for its capacity, another for its entries.
            let bytes = if row.bytes_full == row.bytes_empty {
                format!("{:.0} (all)", row.bytes_full as f64 / f64::from(maps.capacity))
            } else {
                format!("{:.0}", (row.bytes_full - row.bytes_empty) as f64 / maps.entries as f64)
            };
            println!(
                "{:<20} {:>4} {:>6} {:>16} {:>16} {:>9.0} {:>9.0} {:>22} {:>12}",
                row.kind,
                row.key,
                row.value,
                tenths(row.hot),
                tenths(row.cold),
                row.fill,
                row.refill,
                tenths(row.churn),
                bytes
            );
        }
        self.maps = Some(maps);
    }

    pub(crate) fn agent(&mut self, agent: Agent) {
        println!("\nms from a file's rename to the change applied, {} changes of one EndpointSlice", agent.changes);
        println!("{:<40} {:>8} {:>8} {:>8}", "", "median", "p90", "max");
        for (name, times) in
            [("rename → map write seen", agent.map_ms), ("rename → revision in status.json", agent.status_ms)]
        {
            println!("{name:<40} {:>8.1} {:>8.1} {:>8.1}", times.median, times.p90, times.max);
        }
        self.agent = Some(agent);
    }

    /// # Errors
    /// Never for these types; the serialiser's word.
    pub(crate) fn json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the report as JSON")?;
        text.push('\n');
        Ok(text)
    }

    /// Makes the run fail.
    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }

    pub(crate) fn print_faults(&self) {
        for fault in &self.faults {
            eprintln!("FAILED: {fault}");
        }
    }

    pub(crate) fn faultless(&self) -> bool {
        self.faults.is_empty()
    }
}

fn between(spread: Spread) -> String {
    format!("{:.0} ns ({:.0}–{:.0})", spread.median, spread.min, spread.max)
}

fn tenths(spread: Spread) -> String {
    format!("{:.1} ({:.1})", spread.min, spread.median)
}
