//! Goldens of the way from YAML to maps: objects, steps and the expected tables in one file.
//!
//! A case is a YAML file whose comments say what happens:
//!
//! ```yaml
//! # A sentence: what this case shows.
//! #> capacity frontends=8
//! #> write web.yaml
//! apiVersion: v1
//! ...
//! #> devices
//! - {ifindex: 5, name: veth5, mac: "0a:00:00:00:00:05", addrs: [10.244.0.5]}
//! #> host
//! node_port_addresses: [192.168.0.2]
//! uplinks: [{ifindex: 2, name: eth0, addrs: [192.168.0.2]}]
//! #> remove web.yaml
//! #> sweep
//! #> expect
//! # address 10.96.0.1
//! # problem web.yaml: Service default/web ...
//! ```
//!
//! `write` and `remove` change a source folder, `devices` and `host` are what the agent discovered on its node (its name is node-1), `sweep` ends all flows to removed
//! backends; `expect` reads the folder, brings the maps there, and compares their dump, the problems and what is not enforced.
//! `UPDATE_EXPECT=1` writes what came out into the case instead: read the difference line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_user::k8s::{Folder, Snapshot};
use netlb_user::model::{Change, HostState, NodeName, PodAddresses, PodDevice, Uplink};
use netlb_user::plan::{Controller, NodeConfig};
use netlb_user::store::faulty::Faults;
use netlb_user::store::{Capacity, FaultyStore, MapStore, MemoryStore, Tables, dump};
use serde::Deserialize;

/// A case file.
pub struct Golden {
    pub path: PathBuf,
    /// The file's name without its ending.
    pub name: String,
    /// Lines before the first directive.
    head: Vec<String>,
    sections: Vec<Section>,
}

struct Section {
    directive: String,
    body: Vec<String>,
}

/// How the maps are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// Every write succeeds.
    Calm,
    /// Many writes fail, from this seed on; in the end none does.
    Faulty(u64),
    /// The agent restarts before every step, and knows the maps alone.
    Restarts,
}

/// All cases of a folder, by name.
pub fn load(folder: &Path) -> Result<Vec<Golden>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "yaml") {
            cases.push(Golden::read(path)?);
        }
    }
    ensure!(!cases.is_empty(), "{} holds no cases", folder.display());
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Golden {
    fn read(path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = path.file_stem().and_then(|stem| stem.to_str()).context("a case has a name")?.to_owned();
        let (mut head, mut sections) = (Vec::new(), Vec::<Section>::new());
        for line in text.lines() {
            if let Some(directive) = line.strip_prefix("#> ") {
                sections.push(Section { directive: directive.trim().to_owned(), body: Vec::new() });
            } else {
                sections.last_mut().map_or(&mut head, |section| &mut section.body).push(line.to_owned());
            }
        }
        let ends = sections.last().is_some_and(|section| section.directive == "expect");
        ensure!(ends, "{}: a case ends with `#> expect`", path.display());
        Ok(Golden { path, name, head, sections })
    }

    /// Runs the case; each expectation must be met. Answers with the number of writes that failed on the way.
    pub fn check(&self, weather: Weather) -> Result<u64> {
        let (found, failed) = self.run(weather)?;
        let expected = self.sections.iter().filter(|section| section.directive == "expect");
        for (step, (section, found)) in expected.zip(&found).enumerate() {
            let want: Vec<&str> = section.body.iter().map(String::as_str).filter(|line| !line.is_empty()).collect();
            let got: Vec<&str> = found.lines().collect();
            if want != got {
                bail!("{}, {weather:?}, expectation {}:\n{}", self.path.display(), step + 1, difference(&want, &got));
            }
        }
        Ok(failed)
    }

    /// Writes what comes out in calm weather into the case.
    pub fn bless(&self) -> Result<()> {
        let mut found = self.run(Weather::Calm)?.0.into_iter();
        let mut text: String = self.head.iter().map(|line| format!("{line}\n")).collect();
        for section in &self.sections {
            writeln!(text, "#> {}", section.directive)?;
            if section.directive == "expect" {
                text += &found.next().context("an expectation without a result")?;
            } else {
                text.extend(section.body.iter().map(|line| format!("{line}\n")));
            }
        }
        fs::write(&self.path, text).with_context(|| format!("writing {}", self.path.display()))
    }

    /// What comes out at each `expect`, as comment lines; and how many writes failed.
    fn run(&self, weather: Weather) -> Result<(Vec<String>, u64)> {
        let source = tempfile::tempdir()?;
        let mut capacity = Capacity::default();
        if let Some(section) = self.sections.first().filter(|s| s.directive.starts_with("capacity ")) {
            capacity = parse_capacity(&section.directive)?;
        }
        let mut node = Node::new(source.path(), capacity, weather);
        let mut found = Vec::new();
        for section in &self.sections {
            let body = || section.body.iter().map(|line| format!("{line}\n")).collect::<String>();
            match section.directive.split_once(' ').unwrap_or((&section.directive, "")) {
                ("capacity", _) => {}
                ("write", file) => fs::write(source.path().join(file), body())?,
                ("remove", file) => fs::remove_file(source.path().join(file))?,
                ("devices", _) => node.devices = parse_devices(&body())?,
                ("host", _) => node.host = parse_host(&body())?,
                ("sweep", _) => node.sweep = true,
                ("expect", _) => {
                    let report = node.step()?;
                    found.push(report.lines().map(|line| format!("# {line}\n")).collect());
                }
                (other, _) => bail!("{}: unknown directive {other}", self.path.display()),
            }
        }
        Ok((found, node.store.failed()))
    }
}

/// An agent without a kernel.
struct Node {
    source: PathBuf,
    folder: Folder,
    known: Snapshot,
    devices: BTreeMap<u32, PodDevice>,
    host: HostState,
    controller: Controller,
    store: FaultyStore<MemoryStore>,
    weather: Weather,
    sweep: bool,
    now: Duration,
}

impl Node {
    fn new(source: &Path, capacity: Capacity, weather: Weather) -> Self {
        Node {
            source: source.to_owned(),
            folder: Folder::new(source),
            known: Snapshot::default(),
            devices: BTreeMap::new(),
            host: HostState::default(),
            controller: controller(&Tables::default(), capacity),
            store: FaultyStore::new(MemoryStore::new(capacity), Faults::Never),
            weather,
            sweep: false,
            now: Duration::ZERO,
        }
    }

    /// Reads the source, brings the maps there, and reports.
    fn step(&mut self) -> Result<String> {
        // Long enough for every grace and rest to be over.
        self.now += Duration::from_secs(60);
        match self.weather {
            Weather::Calm => {}
            Weather::Faulty(seed) => {
                self.store.set_faults(Faults::Random { seed: seed + self.now.as_secs(), percent: 40 });
            }
            Weather::Restarts => {
                self.controller = controller(&self.store.read()?, self.store.capacity());
                self.known = Snapshot::default();
                self.folder = Folder::new(&self.source);
            }
        }
        self.controller.set_host(&self.host);
        let snapshot = self.folder.read()?;
        let changes = snapshot.changes_since(&self.known);
        self.known = snapshot;
        self.settle(changes)?;
        if std::mem::take(&mut self.sweep) {
            let removed = self.controller.begin_sweep();
            self.controller.release(removed);
            self.settle(Vec::new())?;
        }
        self.report()
    }

    fn settle(&mut self, changes: Vec<Change>) -> Result<()> {
        let mut changes = Some(changes);
        for round in 0..40 {
            if round == 20 {
                self.store.set_faults(Faults::Never);
            }
            let plan = self.controller.update(changes.take().unwrap_or_default(), Some(&self.devices), self.now);
            if plan.is_empty() {
                self.store.set_faults(Faults::Never);
                return Ok(());
            }
            self.controller.apply(&plan, &mut self.store);
        }
        Err(anyhow!("the agent does not come to rest"))
    }

    fn report(&self) -> Result<String> {
        let mut out = dump::dump(&self.store.read()?);
        let problems: BTreeSet<_> = self.known.problems.iter().cloned().chain(self.controller.problems()).collect();
        for problem in problems {
            writeln!(out, "problem {problem}")?;
        }
        for object in self.controller.not_enforced() {
            writeln!(out, "not enforced {object}")?;
        }
        if let Some(revision) = &self.known.revision {
            writeln!(out, "revision {revision}")?;
        }
        Ok(out)
    }
}

fn controller(restored: &Tables, capacity: Capacity) -> Controller {
    let mut controller = Controller::new(restored, capacity);
    let node4 = Some(IpAddr::V4(Ipv4Addr::new(192, 168, 0, 2)));
    controller.set_node(NodeConfig { netns_cookie: 1, hz: 250, seed: 1, node4, ..NodeConfig::default() });
    controller.set_node_name(Some(NodeName::new("node-1")));
    controller
}

fn parse_capacity(directive: &str) -> Result<Capacity> {
    let mut capacity = Capacity::default();
    for setting in directive.split_whitespace().skip(1) {
        let (name, value) = setting.split_once('=').with_context(|| format!("{setting} is not NAME=NUMBER"))?;
        let value = value.parse().with_context(|| format!("{setting} is not a number"))?;
        match name {
            "frontends" => capacity.frontends = value,
            "slots" => capacity.slots = value,
            "backends" => capacity.backends = value,
            "endpoints" => capacity.endpoints = value,
            "source-ranges" => capacity.source_ranges = value,
            _ => bail!("unknown capacity {name}"),
        }
    }
    Ok(capacity)
}

/// A device as cases write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    ifindex: u32,
    name: String,
    #[serde(default)]
    bridge: u32,
    mac: String,
    addrs: BTreeSet<IpAddr>,
}

fn parse_devices(yaml: &str) -> Result<BTreeMap<u32, PodDevice>> {
    let devices: Option<Vec<Device>> = serde_norway::from_str(yaml)?;
    let device = |d: Device| -> Result<(u32, PodDevice)> {
        let bytes: Vec<u8> = d.mac.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>()?;
        let pod_mac = bytes.try_into().map_err(|_| anyhow!("{} is not a MAC", d.mac))?;
        let host_mac = [0xee; 6];
        let Device { ifindex, name, bridge, addrs, .. } = d;
        Ok((ifindex, PodDevice { ifindex, name, mtu: 1500, bridge, pod_mac, host_mac, addrs, pod_source: false }))
    };
    devices.unwrap_or_default().into_iter().map(device).collect()
}

/// What an agent finds on its node, as cases write it.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Found {
    node_port_addresses: BTreeSet<IpAddr>,
    uplinks: Vec<Link>,
    clients: Vec<Client>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    ifindex: u32,
    name: String,
    #[serde(default)]
    addrs: Vec<IpAddr>,
    #[serde(default)]
    pod_source: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    netns: u64,
    addrs: Vec<IpAddr>,
}

fn parse_host(yaml: &str) -> Result<HostState> {
    let found: Option<Found> = serde_norway::from_str(yaml)?;
    let Found { node_port_addresses, uplinks, clients } = found.unwrap_or_default();
    let first = |addrs: &[IpAddr], v4: bool| addrs.iter().find(|addr| addr.is_ipv4() == v4).copied();
    let uplink = |link: Link| {
        let (v4, v6) = (first(&link.addrs, true), first(&link.addrs, false));
        (link.ifindex, Uplink { name: link.name, v4, v6, mtu: 1500, pod_source: link.pod_source })
    };
    let client = |client: Client| {
        let addrs = PodAddresses { v4: first(&client.addrs, true), v6: first(&client.addrs, false) };
        (client.netns, addrs)
    };
    Ok(HostState {
        node_port_addresses,
        uplinks: uplinks.into_iter().map(uplink).collect(),
        clients: clients.into_iter().map(client).collect(),
    })
}

/// Lines that are only in one of the two, in order, with what is the same in between.
fn difference(want: &[&str], got: &[&str]) -> String {
    // Longest common subsequence, by table: dumps are short.
    let mut length = vec![vec![0usize; got.len() + 1]; want.len() + 1];
    for (i, w) in want.iter().enumerate().rev() {
        for (j, g) in got.iter().enumerate().rev() {
            length[i][j] = if w == g { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, String::new());
    while i < want.len() || j < got.len() {
        if i < want.len() && j < got.len() && want[i] == got[j] {
            out += &format!("  {}\n", want[i]);
            (i, j) = (i + 1, j + 1);
        } else if i < want.len() && (j == got.len() || length[i + 1][j] >= length[i][j + 1]) {
            out += &format!("- {}\n", want[i]);
            i += 1;
        } else {
            out += &format!("+ {}\n", got[j]);
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_moved() {
        assert_eq!(difference(&["a", "b", "c"], &["a", "c", "d"]), "  a\n- b\n  c\n+ d\n");
    }
}
