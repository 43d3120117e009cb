//! kube-proxy's truth tables against netlb: what must become of a packet, by documents that say which objects there are.
//!
//! - [`document`]: the files; [`variants`]: the same over other protocols.
//! - [`site`]: the node of a document, as network namespaces; [`listeners`]: where its sockets' connections end.
//! - [`machine`]: the loaded programs and their maps; [`agent`]: from objects to maps, by the agent's own rooms.
//! - [`settings`]: how netlb is set.
//! - [`journey`]: the way of a packet.
//! - [`judge`]: whether that is what the row says.

pub mod agent;
pub mod document;
pub mod journey;
pub mod judge;
pub mod listeners;
pub mod machine;
pub mod settings;
pub mod site;
pub mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};

use agent::Agent;
use document::{Document, Expect, Origin, Packet, Step};
use journey::Fate;
use judge::Judgement;
use listeners::Listeners;
use machine::Machine;
use settings::Setting;
use site::Site;

use crate::puppet::Puppet;

/// Packets sent for each backend of a row that goes to several, and for one that goes nowhere.
const TRIES: usize = 40;

/// The first source port used.
const FIRST_PORT: u16 = 10_000;

/// Rows, by what came of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// By where their packets come from.
    pub rows: BTreeMap<Origin, u64>,
    pub passed: u64,
    /// Those that pass although a backend on this node sees the client where kube-proxy masquerades.
    pub kept_clients: u64,
}

impl Tally {
    /// Adds another's rows.
    pub fn add(&mut self, other: &Tally) {
        for (origin, rows) in &other.rows {
            *self.rows.entry(*origin).or_default() += rows;
        }
        self.passed += other.passed;
        self.kept_clients += other.kept_clients;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |origin| self.rows.get(&origin).copied().unwrap_or_default();
        let all: u64 = self.rows.values().sum();
        write!(
            f,
            "{all} rows ({} from pods, {} from outside, {} by sockets of the node), {} passed",
            of(Origin::Pod),
            of(Origin::Outside),
            of(Origin::Node),
            self.passed
        )?;
        if self.kept_clients > 0 {
            let kept = self.kept_clients;
            write!(f, "; in {kept} of them a backend on this node sees the client where kube-proxy masquerades")?;
        }
        Ok(())
    }
}

/// Runs a document on its site: its steps one after the other, then each later one alone. `actor` is the program `netlb-actor`.
///
/// # Errors
/// Tells all rows that fail.
pub fn check(
    machine: &mut Machine,
    site: &Site,
    document: &Document,
    setting: Setting,
    actor: &Path,
) -> (Tally, Result<()>) {
    let mut tally = Tally::default();
    for packet in document.packets() {
        *tally.rows.entry(document.origin(packet.from)).or_default() += 1;
    }
    let result = site.node.run(|| {
        let mut run = Run::new(machine, site, document, setting, actor)?;
        run.in_turn(&mut tally)?;
        run.each_alone()?;
        run.end()
    });
    (tally, result.flatten())
}

/// A document under way.
struct Run<'a> {
    machine: &'a mut Machine,
    site: &'a Site,
    document: &'a Document,
    setting: Setting,
    sockets: Option<(Puppet, Listeners)>,
    port: u16,
    /// What netlb says of the objects, to be shown with failures.
    problems: BTreeSet<String>,
    failures: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(
        machine: &'a mut Machine,
        site: &'a Site,
        document: &'a Document,
        setting: Setting,
        actor: &Path,
    ) -> Result<Self> {
        let by_sockets = document.packets().any(|packet| document.origin(packet.from) == Origin::Node);
        let sockets = by_sockets.then(|| Ok::<_, anyhow::Error>((site.puppet(actor)?, site.listen(document)?)));
        let sockets = sockets.transpose()?;
        Ok(Run {
            machine,
            site,
            document,
            setting,
            sockets,
            port: FIRST_PORT,
            problems: BTreeSet::new(),
            failures: Vec::new(),
        })
    }

    fn in_turn(&mut self, tally: &mut Tally) -> Result<()> {
        let mut agent = Agent::start(self.machine, self.site, self.document, self.setting)?;
        for step in &self.document.steps {
            self.show(&mut agent, step)?;
            for packet in &step.packets {
                if let Some(judgement) = self.row(step, packet, "") {
                    tally.passed += 1;
                    tally.kept_clients += u64::from(judgement == Judgement::KeptClient);
                }
            }
        }
        Ok(())
    }

    fn each_alone(&mut self) -> Result<()> {
        for step in self.document.steps.iter().skip(1) {
            let mut agent = Agent::start(self.machine, self.site, self.document, self.setting)?;
            self.show(&mut agent, step)?;
            for packet in &step.packets {
                self.row(step, packet, ", alone");
            }
        }
        Ok(())
    }

    fn show(&mut self, agent: &mut Agent, step: &Step) -> Result<()> {
        self.problems.extend(agent.show(self.document, step)?);
        Ok(())
    }

    fn row(&mut self, step: &Step, packet: &Packet, how: &str) -> Option<Judgement> {
        let judged =
            self.fates(packet).and_then(|fates| judge::judge(self.document, step, packet, self.setting, &fates));
        match judged {
            Ok(judgement) => Some(judgement),
            Err(error) => {
                let Packet { line, name, from, to, protocol, .. } = packet;
                self.failures.push(format!("line {line}{how}, {name:?}: {from} to {to} {protocol:?}: {error:#}"));
                None
            }
        }
    }

    fn fates(&mut self, packet: &Packet) -> Result<Vec<Fate>> {
        let backends = match &packet.expect {
            Expect::Backends(backends) => backends.len(),
            Expect::Verdict(_) => 1,
        };
        let mut fates = Vec::new();
        for _ in 0..TRIES * backends {
            self.port = self.port.checked_add(1).unwrap_or(FIRST_PORT);
            fates.push(match (self.document.origin(packet.from), &mut self.sockets) {
                (Origin::Node, Some((puppet, listeners))) => journey::connect(puppet, listeners, packet)?,
                (Origin::Node, None) => bail!("there is no socket to begin with"),
                (Origin::Pod | Origin::Outside, _) => {
                    journey::send(self.machine, self.site, self.document, packet, self.port)?
                }
            });
        }
        Ok(fates)
    }

    fn end(self) -> Result<()> {
        if self.failures.is_empty() {
            return Ok(());
        }
        let problems = self.problems.iter().map(|problem| format!("netlb's problem: {problem}"));
        bail!("{}", self.failures.into_iter().chain(problems).collect::<Vec<_>>().join("\n"))
    }
}
