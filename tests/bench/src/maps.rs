//! What the kernel's hash maps cost by key size, value size and kind: the figures behind the choice of conntrack's records and maps.
//!
//! Each figure is a run of a probe program (BPF_PROG_TEST_RUN, repeat mode, 64 operations a run) minus the same program without the map call.
//! Maps have conntrack's capacity; all are filled alike and measured in turns.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use netlb_bench_ebpf::{PROBE_UNROLL, Probe, SHUFFLE};
use netlb_common::maps::capacity;
use serde::Serialize;

use crate::stats::Spread;
use crate::world::program;
use crate::{machine, object};

/// Entries in the full maps: both directions of 65,536 flows. A power of two.
const ENTRIES: u64 = 131_072;
/// Operations of one measurement.
const OPERATIONS: u32 = 1 << 17;
const ROUNDS: u32 = 7;
/// Time for the kernel to take the memory of removed entries back.
const SETTLE: Duration = Duration::from_millis(200);

/// One map: its name in the object (lower case), and what it is.
struct Subject {
    name: &'static str,
    kind: &'static str,
    key: u32,
    value: u32,
}

const SUBJECTS: [Subject; 10] = [
    Subject { name: "hash_p_16_96", kind: "hash, preallocated", key: 16, value: 96 },
    Subject { name: "hash_p_40_96", kind: "hash, preallocated", key: 40, value: 96 },
    Subject { name: "hash_n_16_96", kind: "hash", key: 16, value: 96 },
    Subject { name: "hash_n_40_64", kind: "hash", key: 40, value: 64 },
    Subject { name: "hash_n_40_96", kind: "hash", key: 40, value: 96 },
    Subject { name: "hash_n_40_128", kind: "hash", key: 40, value: 128 },
    Subject { name: "lru_16_96", kind: "LRU hash", key: 16, value: 96 },
    Subject { name: "lru_40_64", kind: "LRU hash", key: 40, value: 64 },
    Subject { name: "lru_40_96", kind: "LRU hash", key: 40, value: 96 },
    Subject { name: "lru_40_128", kind: "LRU hash", key: 40, value: 128 },
];

/// A row of the table. ns per operation.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    /// Bytes.
    pub(crate) key: u32,
    /// Bytes.
    pub(crate) value: u32,
    /// Look-up of one and the same key.
    pub(crate) hot: Spread,
    /// Look-up among [`Maps::entries`] in an order no cache can guess.
    pub(crate) cold: Spread,
    /// Insertion of the entries into the empty map, once: the first time, and when they were all removed and memory has been used before.
    pub(crate) fill: f64,
    pub(crate) refill: f64,
    /// Insertion of a new key: with its later deletion in a plain hash, with the eviction of another in an LRU.
    pub(crate) churn: Spread,
    /// Bytes of kernel memory, as the kernel accounts for the map.
    pub(crate) bytes_empty: u64,
    pub(crate) bytes_full: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Maps {
    pub(crate) capacity: u32,
    pub(crate) entries: u64,
    pub(crate) rows: Vec<Row>,
}

/// Which keys a probe takes.
#[derive(Clone, Copy)]
enum Indexes {
    /// One and the same.
    One,
    /// Each once, those behind `after`.
    InOrder { after: u64 },
    /// The first [`ENTRIES`] (after index 0), in an order that no cache can guess.
    Shuffled,
}

struct Probes {
    object: Ebpf,
    state: Array<MapData, Probe>,
}

/// # Errors
/// When a program does not load, or an operation on a map fails.
pub(crate) fn measure() -> Result<Maps> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("measure".to_owned()).spawn_scoped(scope, on_cpu);
        match thread.context("cannot start a thread")?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn on_cpu() -> Result<Maps> {
    eprintln!("map probes…");
    let mut probes = Probes::load()?;
    let mut begun = Vec::new();
    machine::take_cpu()?;
    for subject in &SUBJECTS {
        let indexes = Indexes::InOrder { after: u64::MAX };
        let bytes_empty = probes.memory(subject)?;
        let floor = probes.run(&format!("probe_floor_{}", subject.key), indexes, ENTRIES as u32)?.0;
        let fill = probes.fill(subject, indexes)? - floor;
        probes.clear(subject)?;
        let refill = probes.fill(subject, indexes)? - floor;
        begun.push((bytes_empty, fill, refill));
    }
    let mut samples: Vec<[Vec<f64>; 3]> = SUBJECTS.iter().map(|_| Default::default()).collect();
    let mut full = Vec::new();
    for round in 0..=ROUNDS {
        machine::check_stop()?;
        let mut floor = |key: u32| -> Result<f64> {
            Ok(probes.run(&format!("probe_floor_{key}"), Indexes::Shuffled, OPERATIONS)?.0)
        };
        let floors = [(16, floor(16)?), (40, floor(40)?)];
        for (subject, samples) in SUBJECTS.iter().zip(&mut samples) {
            let floor = floors.iter().find(|(key, _)| *key == subject.key).map_or(0.0, |(_, ns)| *ns);
            let lookup = format!("lookup_{}", subject.name);
            for (indexes, samples) in [Indexes::One, Indexes::Shuffled].into_iter().zip(samples.iter_mut()) {
                let (ns, hits) = probes.run(&lookup, indexes, OPERATIONS)?;
                ensure!(hits == u64::from(OPERATIONS), "{lookup} found {hits} of {OPERATIONS} keys");
                if round > 0 {
                    samples.push(ns - floor);
                }
            }
        }
    }
    for subject in &SUBJECTS {
        full.push(probes.memory(subject)?);
    }
    // Last: it drives the LRU maps' entries out.
    for round in 0..=ROUNDS {
        machine::check_stop()?;
        let after = ENTRIES + u64::from(round * OPERATIONS);
        for (subject, samples) in SUBJECTS.iter().zip(&mut samples) {
            let floor = probes.run(&format!("probe_floor_{}", subject.key), Indexes::InOrder { after }, OPERATIONS)?.0;
            let churn = format!("churn_{}", subject.name);
            let (ns, hits) = probes.run(&churn, Indexes::InOrder { after }, OPERATIONS)?;
            ensure!(hits == u64::from(OPERATIONS), "{churn} did {hits} of {OPERATIONS} insertions");
            let [_, _, samples] = samples;
            if round > 0 {
                samples.push(ns - floor);
            }
        }
    }
    let rows = SUBJECTS
        .iter()
        .zip(&samples)
        .zip(begun.into_iter().zip(full))
        .map(|((subject, [hot, cold, churn]), ((bytes_empty, fill, refill), bytes_full))| {
            let spread =
                |samples: &[f64]| Spread::of(samples).ok_or_else(|| anyhow!("{} has no samples", subject.name));
            Ok(Row {
                kind: subject.kind,
                key: subject.key,
                value: subject.value,
                hot: spread(hot)?,
                cold: spread(cold)?,
                fill,
                refill,
                churn: spread(churn)?,
                bytes_empty,
                bytes_full,
            })
        })
        .collect::<Result<_>>()?;
    Ok(Maps { capacity: capacity::CT, entries: ENTRIES, rows })
}

impl Probes {
    fn load() -> Result<Self> {
        let names: Vec<String> = SUBJECTS.iter().map(|s| s.name.to_uppercase()).collect();
        let mut loader = EbpfLoader::new();
        for name in &names {
            loader.map_max_entries(name, capacity::CT);
        }
        let mut object = loader.load(object::BENCH).context("cannot read the benchmark's kernel object")?;
        for name in ["probe_floor_16".to_owned(), "probe_floor_40".to_owned()] {
            program::<Xdp>(&mut object, &name)?.load().with_context(|| format!("cannot load {name}"))?;
        }
        for subject in &SUBJECTS {
            for operation in ["fill", "clear", "lookup", "churn"] {
                let name = format!("{operation}_{}", subject.name);
                program::<Xdp>(&mut object, &name)?.load().with_context(|| format!("cannot load {name}"))?;
            }
        }
        let state = object.take_map("PROBE").ok_or_else(|| anyhow!("the benchmark's object has no map PROBE"))?;
        Ok(Probes { object, state: Array::try_from(state)? })
    }

    /// Does `operations` with a probe, and returns ns per operation and how many succeeded.
    fn run(&mut self, name: &str, indexes: Indexes, operations: u32) -> Result<(f64, u64)> {
        let (state, factor, mask) = match indexes {
            Indexes::One => (0, 1, 0),
            Indexes::InOrder { after } => (after, 1, u64::from(u32::MAX >> 4)),
            Indexes::Shuffled => (self.state.get(&0, 0)?.state, SHUFFLE, ENTRIES - 1),
        };
        self.state.set(0, Probe { state, factor, mask, hits: 0, sum: 0 }, 0)?;
        let result = program::<Xdp>(&mut self.object, name)?
            .test_run(TestRunOptions {
                data_in: Some(&[0; 64]),
                repeat: operations / PROBE_UNROLL,
                ..TestRunOptions::default()
            })
            .with_context(|| format!("cannot run {name}"))?;
        Ok((result.duration.as_nanos() as f64 / f64::from(PROBE_UNROLL), self.state.get(&0, 0)?.hits))
    }

    /// Inserts [`ENTRIES`] keys; ns per insertion.
    fn fill(&mut self, subject: &Subject, indexes: Indexes) -> Result<f64> {
        let (ns, hits) = self.run(&format!("fill_{}", subject.name), indexes, ENTRIES as u32)?;
        ensure!(hits == ENTRIES, "filling {} did {hits} of {ENTRIES} insertions", subject.name);
        Ok(ns)
    }

    /// Removes all entries, and gives the kernel time to take their memory back (RCU).
    fn clear(&mut self, subject: &Subject) -> Result<()> {
        let indexes = Indexes::InOrder { after: u64::MAX };
        let (_, hits) = self.run(&format!("clear_{}", subject.name), indexes, ENTRIES as u32)?;
        ensure!(hits == ENTRIES, "clearing {} did {hits} of {ENTRIES} removals", subject.name);
        std::thread::sleep(SETTLE);
        Ok(())
    }

    /// Bytes of kernel memory of a map (`memlock` of its descriptor).
    fn memory(&self, subject: &Subject) -> Result<u64> {
        let name = subject.name.to_uppercase();
        let map = self.object.map(&name).ok_or_else(|| anyhow!("the benchmark's object has no map {name}"))?;
        let (Map::HashMap(data) | Map::LruHashMap(data)) = map else {
            return Err(anyhow!("map {name} of the benchmark's object is no hash"));
        };
        let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        text.lines()
            .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
            .ok_or_else(|| anyhow!("{path} has no memlock"))
    }
}
