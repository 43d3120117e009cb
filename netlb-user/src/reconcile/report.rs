//! Word of what the agent did: status.json and names.json, each written when it changed.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netlb_common::abi::ABI_VERSION;
use netlb_common::backend::state;

use super::Reconciler;
use crate::config::{Config, Source};
use crate::devices::detector::Detector;
use crate::events::{Reason, Teller};
use crate::metrics::Seen;
use crate::model::Problem;
use crate::observe::names;
use crate::observe::status::{self, Conntrack, DeviceStatus, Ready, SourceStatus, Status, UplinkStatus};
use crate::plan::Names;
use crate::runtime::preflight;

/// Names are written at once in worlds of at most so many Services; bigger ones wait a little.
const SMALL: usize = 2000;
/// How long bigger worlds' names may be old.
const NAMES: Duration = Duration::from_secs(1);

/// What was reported last.
#[derive(Default)]
pub(super) struct Report {
    pub(super) conntrack: Conntrack,
    teller: Teller,
    notes: Vec<String>,
    kernel: String,
    node: String,
    started: u64,
    status: Option<Status>,
    names: Option<Names>,
    names_at: Option<Duration>,
}

impl Report {
    pub(super) fn new(config: &Config, notes: Vec<String>, teller: Teller) -> Self {
        Report {
            notes,
            teller,
            kernel: preflight::kernel_release().unwrap_or_default(),
            node: config.node_name.clone(),
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            ..Report::default()
        }
    }

    /// When names that were held back are due.
    pub(super) fn due(&self) -> Option<Duration> {
        self.names_at
    }

    /// Writes what changed; names before the status, so that who waits for the status finds them.
    pub(super) fn write(&mut self, agent: &Reconciler) -> io::Result<()> {
        self.write_names(agent)?;
        let status = self.status(agent);
        agent.metrics.see(&Seen {
            status: &status,
            controller: &agent.controller,
            source_connected: agent.read_whole && agent.source_failure.is_none(),
            programs: agent.programs.count(),
        });
        let ports: BTreeSet<Problem> = agent.health.health().problems(agent.controller.world()).into_iter().collect();
        let reason = |problem: &Problem| {
            if ports.contains(problem) { Reason::FailedToStartServiceHealthcheck } else { Reason::NotProgrammed }
        };
        self.teller.tell(status.problems.iter().map(|problem| (reason(problem), problem)), agent.now());
        if self.status.as_ref() == Some(&status) {
            return Ok(());
        }
        status::write(&agent.config.run_dir, &status)?;
        let was = self.status.as_ref().map(|s| (s.ready.ready, s.synced));
        if was != Some((status.ready.ready, status.synced)) {
            say_ready(&status);
        }
        self.status = Some(status);
        Ok(())
    }

    fn write_names(&mut self, agent: &Reconciler) -> io::Result<()> {
        let now = agent.now();
        if agent.controller.compiled().services.len() > SMALL {
            let at = *self.names_at.get_or_insert(now + NAMES);
            if now < at {
                return Ok(());
            }
        }
        self.names_at = None;
        let all = agent.controller.names();
        if self.names.as_ref() != Some(&all) {
            names::write(&agent.config.run_dir, &all)?;
            self.names = Some(all);
        }
        Ok(())
    }

    fn status(&self, agent: &Reconciler) -> Status {
        let ready = ready(agent);
        let in_use = |s: u8| matches!(s, state::ACTIVE | state::DRAINING);
        let mut problems = agent.source_problems.clone();
        problems.extend(agent.controller.problems());
        let health = agent.health.health();
        problems.extend(health.problems(agent.controller.world()));
        problems.sort();
        problems.dedup();
        let mut notes = self.notes.clone();
        notes.extend(agent.forwarding_gaps.iter().cloned());
        notes.extend(agent.sockets_note.clone());
        notes.extend(no_node_cidrs(agent));
        notes.extend(self.conntrack.pressure());
        notes.extend(health.notes());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            kernel: self.kernel.clone(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: self.started,
            mode: if agent.programs.is_detached() { "detached" } else { "attached" }.to_owned(),
            synced: agent.synced,
            source: SourceStatus { from: agent.config.source.to_string(), failure: agent.source_failure.clone() },
            revision: agent.applied.clone(),
            ready,
            services: agent.controller.compiled().services.values().filter(|s| !s.ports.is_empty()).count(),
            backends: agent.controller.shadow().backends.values().filter(|b| in_use(b.state)).count(),
            problems,
            not_enforced: agent.controller.not_enforced(),
            delivery: agent.delivery.clone(),
            devices: devices(agent),
            uplinks: uplinks(agent),
            node_addresses: agent.primary.v4.into_iter().chain(agent.primary.v6).collect(),
            health: health.status(),
            node_port_addresses: agent.host.iter().flat_map(|host| host.node_port_addresses.clone()).collect(),
            snat_ports: agent.snat.to_string(),
            conntrack: self.conntrack,
            notes,
        }
    }
}

fn devices(agent: &Reconciler) -> Vec<DeviceStatus> {
    let found = agent.devices.iter().flat_map(|seen| seen.pods.values());
    found
        .map(|found| DeviceStatus {
            name: found.device.name.clone(),
            ifindex: found.device.ifindex,
            addrs: found.device.addrs.clone(),
            how: found.how.name().to_owned(),
            attached: agent.programs.is_on_pod(found.device.ifindex),
        })
        .collect()
}

fn uplinks(agent: &Reconciler) -> Vec<UplinkStatus> {
    let judged = agent.devices.iter().flat_map(|seen| &seen.others);
    judged
        .map(|(ifindex, judged)| UplinkStatus {
            name: judged.device.name.clone(),
            ifindex: *ifindex,
            addrs: judged.device.v4.iter().chain(&judged.device.v6).copied().collect(),
            mtu: judged.device.mtu,
            is_uplink: judged.is_uplink,
            why: judged.why.clone(),
            attached: agent.programs.is_on_uplink(*ifindex),
        })
        .collect()
}

/// A detector that waits for what the Node object does not say.
fn no_node_cidrs(agent: &Reconciler) -> Option<String> {
    let lacks = agent.node_object().is_none_or(|node| node.pod_cidrs.is_empty());
    (agent.config.detector == Detector::NodeCidrs && agent.read_whole && lacks).then(|| {
        format!(
            "--detect-local-mode NodeCIDR: Node {} has no spec.podCIDRs, so that nobody is told to be a pod; let the cluster give it some, or use another mode",
            agent.config.node_name
        )
    })
}

/// The first thing that keeps the node from balancing as it should.
fn ready(agent: &Reconciler) -> Ready {
    let attach_errors: Vec<&str> = agent.programs.errors().collect();
    let reason = if let Some(failure) = agent.programs.failure() {
        Some(format!("this netlb's programs cannot be used: {failure}"))
    } else if agent.programs.is_detached() {
        Some("started with --detached: no program is attached".to_owned())
    } else if let Some(failure) = agent.source_failure.as_ref().filter(|_| needs_source(agent)) {
        Some(failure.reason.clone())
    } else if !agent.read_whole {
        Some("the source has not been read whole yet".to_owned())
    } else if let Some(failure) = &agent.scan_failure {
        Some(failure.clone())
    } else if agent.devices.is_none() {
        Some("the node's devices have not been listed yet".to_owned())
    } else if !agent.synced {
        Some("programs are still being attached".to_owned())
    } else if let Some(error) = attach_errors.first() {
        Some((*error).to_owned())
    } else {
        agent.failed.first().map(|failed| format!("writes to the maps fail: {failed}"))
    };
    Ready { ready: reason.is_none(), reason: reason.unwrap_or_default() }
}

/// Does a source that cannot be read keep the node from balancing? A folder is somebody's on this node to mend. An API server comes and goes, and
/// until it is back the node goes by what it said: with it every node would cease to be ready at once.
fn needs_source(agent: &Reconciler) -> bool {
    !agent.read_whole || matches!(agent.config.source, Source::Folder(_))
}

fn say_ready(status: &Status) {
    if status.ready.ready {
        tracing::info!(
            services = status.services,
            backends = status.backends,
            devices = status.devices.len(),
            uplinks = status.uplinks.iter().filter(|uplink| uplink.is_uplink).count(),
            "ready: Services are in effect"
        );
    } else if status.synced {
        tracing::warn!("not ready: {}", status.ready.reason);
    } else {
        tracing::debug!("not ready yet: {}", status.ready.reason);
    }
}
