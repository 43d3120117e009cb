//! The loop: what changed → world → plan → maps, and word of it.
//!
//! One thread does all the work, so that there is one order of events; others only bring news: the source, the devices, the host's filters, a signal.
//! A round drains the news, attaches to new devices, plans, writes, and reports. What a round could not write is in the next round's plan.

mod programs;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netlb_common::backend::state;
use netlb_common::config::flags;
use netlb_common::proto;

use crate::bpf::probe;
use crate::config::{Config, Source};
use crate::delivery::{self, Delivery, Findings, Road};
use crate::devices::scan::scan;
use crate::devices::select::Wishes;
use crate::devices::{Picture, watch::ScanFailed};
use crate::devices::{node_addresses, uplinks};
use crate::events::Teller;
use crate::health::{self, Addresses};
use crate::k8s::{SourceFailure, SourceNews};
use crate::metrics::{self, Metrics};
use crate::model::{Change, HostState, NodeName, NodeSpec, PodAddresses, PodDevice, Problem};
use crate::netlink::Netlink;
use crate::observe::sockets::{self, UdpBackend};
use crate::observe::sweep::{Sweep, Sweeper, UdpPorts};
use crate::plan::{Controller, MapOp, NodeConfig, Plan};
use crate::runtime::ports::Ports;
use crate::runtime::random;
use crate::store::{KernelStore, MapStore as _};

pub use programs::Programs;
use report::Report;

/// Between two sweeps over conntrack.
const SWEEP: Duration = Duration::from_secs(10);
/// While removed backends wait to be freed.
const SWEEP_SOON: Duration = Duration::from_secs(2);
/// Links are looked after even if nothing changed: somebody may have taken ours off.
const REASSERT: Duration = Duration::from_secs(1);
/// A failed write is tried again after this, then twice as long, up to [`RETRY_LONGEST`].
const RETRY: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Programs wait this long for the first state of the source, so that no Service is half there when they first run.
const FIRST_STATE: Duration = Duration::from_secs(5);
/// With nothing else to do.
const IDLE: Duration = Duration::from_secs(3600);

/// What another thread has to say.
#[derive(Debug)]
pub enum Event {
    /// What the source says now, or why it cannot be read.
    Source(SourceNews),
    Devices(Result<Picture, ScanFailed>),
    /// What the host's stack has a say in, and what its forwarding lacks.
    Host(Findings, Vec<String>),
    /// A health port was opened or closed, or could not be.
    Health,
    /// The file of `--config` is another now.
    ConfigChanged,
    /// The agent shall end.
    End(&'static str),
}

/// The agent's one worker.
pub struct Reconciler {
    config: Config,
    controller: Controller,
    store: KernelStore,
    programs: Programs,
    sweeper: Sweeper,
    netlink: Netlink,
    wishes: Wishes,
    snat: Ports,
    /// A clock that does not go backwards, from the agent's start.
    began: Instant,
    netns_cookie: u64,
    seed: u32,
    hz: u32,

    source_problems: Vec<Problem>,
    source_failure: Option<SourceFailure>,
    /// The state of the source that the controller knows, and the last whose plan was written whole.
    revision: Option<String>,
    applied: Option<String>,
    /// The source has been read to its end at least once.
    read_whole: bool,
    /// And so were the devices and the host, and programs were on every hook: all that somebody who waits may rely on.
    synced: bool,
    devices: Option<Picture>,
    scan_failure: Option<String>,
    /// Pods of this node whose device was looked for once.
    looked_for: BTreeSet<IpAddr>,
    /// This node as the picture of devices and its Node object show it.
    primary: PodAddresses,
    host: Option<HostState>,
    delivery: Option<Delivery>,
    forwarding_gaps: Vec<String>,

    /// Writes of the last plan that failed, in words.
    failed: Vec<String>,
    retry: Duration,
    retry_at: Option<Duration>,
    sweep: Option<Sweep>,
    sweep_at: Duration,
    reassert_at: Duration,
    /// Sockets that could not be destroyed: said once.
    sockets_note: Option<String>,
    health: health::Feed,
    metrics: metrics::Feed,
    /// Writes were tried since a round began.
    wrote: bool,
    sweep_began: Instant,
    report: Report,
}

/// What the reconciler begins with.
pub struct Start {
    pub config: Config,
    pub programs: Programs,
    pub store: KernelStore,
    pub sweeper: Sweeper,
    pub wishes: Wishes,
    pub health: health::Feed,
    pub metrics: Metrics,
    pub teller: Teller,
    /// Source ports of masqueraded flows.
    pub snat: Ports,
    /// Said in the status as long as the agent lives.
    pub notes: Vec<String>,
}

impl Reconciler {
    /// Reads what the maps hold and makes ready to go on from there.
    ///
    /// # Errors
    /// If the maps cannot be read, or the node cannot be told about.
    pub fn new(start: Start) -> anyhow::Result<Self> {
        let Start { config, programs, store, sweeper, wishes, health, metrics, teller, snat, notes } = start;
        let restored = store.read()?;
        let old = restored.config;
        let hz = programs
            .clock()
            .map(|clock| clock.hz())
            .or(old.map(|config| config.hz))
            .filter(|hz| *hz != 0)
            .ok_or_else(|| anyhow::anyhow!("{}", programs.failure().unwrap_or("the kernel's HZ is not known")))?;
        let mut controller = Controller::new(&restored, store.capacity());
        controller.set_node_name(Some(NodeName::new(&config.node_name)));
        controller.set_scheduler(config.scheduler);
        tracing::info!(
            frontends = restored.frontends.len(),
            "maps are {}",
            if old.is_some() { "taken over from an agent before this one" } else { "new" }
        );
        let report = Report::new(&config, notes, teller);
        Ok(Reconciler {
            netlink: Netlink::open(libc::NETLINK_ROUTE)?,
            netns_cookie: probe::netns_cookie(&config.cgroup)?,
            // Any seed for the flow hash will do, so long as nobody outside can guess it.
            seed: old.map_or_else(|| random::number() as u32, |config| config.seed),
            hz,
            config,
            controller,
            store,
            programs,
            sweeper,
            wishes,
            snat,
            began: Instant::now(),
            source_problems: Vec::new(),
            source_failure: None,
            revision: None,
            applied: None,
            read_whole: false,
            synced: false,
            devices: None,
            scan_failure: None,
            looked_for: BTreeSet::new(),
            primary: PodAddresses::default(),
            host: None,
            delivery: None,
            forwarding_gaps: Vec::new(),
            failed: Vec::new(),
            retry: RETRY,
            retry_at: None,
            sweep: None,
            sweep_at: SWEEP_SOON,
            reassert_at: REASSERT,
            sockets_note: None,
            health,
            metrics: metrics::Feed::new(metrics),
            wrote: false,
            sweep_began: Instant::now(),
            report,
        })
    }

    /// Works until an [`Event::End`], or until nobody is left to bring news.
    ///
    /// # Errors
    /// If the run directory cannot be written: nobody would know what the agent does. After an [`Event::ConfigChanged`]: whoever started the agent
    /// shall start it again.
    pub fn run(mut self, events: &Receiver<Event>) -> anyhow::Result<()> {
        self.want_programs(false);
        self.report()?;
        loop {
            let mut round = Round::default();
            match events.recv_timeout(self.pause()) {
                Ok(event) => self.hear(event, &mut round),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => round.end = Some("nothing left to follow"),
            }
            // A burst is one round.
            while let Ok(event) = events.try_recv() {
                self.hear(event, &mut round);
            }
            if let Some(why) = round.end {
                tracing::info!(
                    "{why}: the agent ends; programs, maps and their Services stay (remove them with `netlb cleanup`)"
                );
                return Ok(());
            }
            if round.config_changed {
                anyhow::bail!(
                    "the file of --config has changed: the agent ends, to be started again with it; programs, maps and their Services stay"
                );
            }
            if self.round(round) {
                self.report()?;
            }
        }
    }

    /// Until something is due.
    fn pause(&self) -> Duration {
        if self.sweep.is_some() || self.may_attach() && self.programs.is_pending() {
            return Duration::ZERO;
        }
        [self.plan_due(), Some(self.sweep_at), Some(self.reassert_at), self.report.due()]
            .into_iter()
            .flatten()
            .min()
            .map_or(IDLE, |at| at.saturating_sub(self.now()))
    }

    /// When to plan although nothing new is known.
    fn plan_due(&self) -> Option<Duration> {
        self.retry_at.or_else(|| self.controller.due())
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn hear(&mut self, event: Event, round: &mut Round) {
        round.news = true;
        match event {
            Event::Source(news) => {
                if !news.changes.is_empty() {
                    self.health.queued();
                    round.source = true;
                }
                round.changes.extend(news.changes);
                self.source_problems = news.problems;
                self.revision = news.revision;
                match (&self.source_failure, &news.failure) {
                    (None, None) => {}
                    (Some(_), None) => tracing::info!("the source can be followed again"),
                    (Some(before), Some(now)) if before.reason == now.reason => {}
                    (_, Some(now)) => tracing::warn!("{}; what the source said before holds", now.reason),
                }
                self.source_failure = news.failure;
            }
            Event::Devices(Ok(picture)) => {
                self.scan_failure = None;
                self.see(picture);
                round.devices = true;
            }
            Event::Devices(Err(ScanFailed(error))) => {
                let reason = format!("the node's devices cannot be listed: {error}");
                if self.scan_failure.as_ref() != Some(&reason) {
                    tracing::warn!("{reason}; those known before are kept, it is tried again");
                }
                self.scan_failure = Some(reason);
            }
            Event::Host(findings, gaps) => self.choose_road(&findings, gaps),
            // The report asks for it.
            Event::Health => {}
            Event::ConfigChanged => round.config_changed = true,
            Event::End(why) => round.end = Some(why),
        }
    }

    /// Takes in a look around, and says which uplinks come and go.
    fn see(&mut self, picture: Picture) {
        let was: BTreeSet<&str> = self.devices.iter().flat_map(uplink_names).collect();
        let is: BTreeSet<&str> = uplink_names(&picture).collect();
        for name in is.difference(&was) {
            tracing::info!("{name} is an uplink");
        }
        for name in was.difference(&is) {
            tracing::info!("{name} is no uplink any more");
        }
        if is.is_empty() && (self.devices.is_none() || !was.is_empty()) {
            tracing::warn!(
                "no device is an uplink: Services are not served to the outside; see `netlb status`, or name uplinks with --devices"
            );
        }
        self.devices = Some(picture);
    }

    fn choose_road(&mut self, findings: &Findings, gaps: Vec<String>) {
        for gap in gaps.iter().filter(|gap| !self.forwarding_gaps.contains(gap)) {
            tracing::warn!("{gap}");
        }
        self.forwarding_gaps = gaps;
        let delivery = delivery::decide(self.config.delivery, findings);
        if self.delivery.as_ref() != Some(&delivery) {
            tracing::info!("new flows to pods of this node take the {} road: {}", delivery.road.name(), delivery.why);
        }
        self.delivery = Some(delivery);
    }

    /// One round of work; true if there may be something to report.
    fn round(&mut self, round: Round) -> bool {
        let now = self.now();
        let began = Instant::now();
        self.wrote = false;
        let (source, knew_all) = (round.source, self.read_whole);
        if source {
            self.metrics.heard(self.controller.world(), &round.changes);
        }
        let reassert = now >= self.reassert_at;
        let mut attached = false;
        if round.devices || reassert {
            self.want_programs(reassert);
            attached = self.attach();
        }
        if round.news || self.plan_due().is_some_and(|at| at <= now) {
            self.read_whole |= round.changes.iter().any(|change| matches!(change, Change::Synced));
            self.know_host();
            self.controller.set_node(self.node());
            let devices = if round.devices { self.pod_devices() } else { None };
            self.plan_and_write(round.changes, devices.as_ref());
            if round.source {
                self.look_for_new_pods();
            }
            // What the source says of this node is known by now.
            self.know_host();
            self.controller.set_node(self.node());
            self.plan_and_write(Vec::new(), None);
        }
        attached |= self.attach();
        let in_step = self.failed.is_empty() && self.programs.is_settled();
        self.synced |= in_step && self.read_whole && self.devices.is_some() && self.delivery.is_some();
        if in_step {
            self.applied.clone_from(&self.revision);
        }
        if source || self.wrote {
            self.metrics.synced(began.elapsed(), self.read_whole && !knew_all);
        }
        if in_step && self.read_whole {
            self.health.applied(self.controller.world());
            self.metrics.applied();
        } else if self.read_whole || matches!(self.config.source, Source::Folder(_)) {
            // While the API server has said nothing yet, there is nothing to apply: the proxy is well, as kube-proxy is.
            self.health.queued();
        }
        let swept = self.sweep();
        let names = self.report.due().is_some_and(|at| at <= now);
        round.news || attached || swept || names
    }

    /// Plans and writes until there is nothing more to write, or something fails.
    fn plan_and_write(&mut self, changes: Vec<Change>, devices: Option<&BTreeMap<u32, PodDevice>>) {
        let (mut changes, mut devices) = (changes, devices);
        loop {
            let plan = self.controller.update(std::mem::take(&mut changes), devices.take(), self.now());
            let touched = self.controller.take_touched();
            self.health.learned(self.controller.world(), touched);
            if plan.is_empty() {
                (self.retry, self.retry_at) = (RETRY, None);
                self.failed.clear();
                return;
            }
            let gone = self.udp_backends_to_go(&plan);
            let began = Instant::now();
            let applied = self.controller.apply(&plan, &mut self.store);
            self.wrote = true;
            self.metrics.written(&applied);
            tracing::debug!(writes = applied.done, failed = applied.failed.len(), took = ?began.elapsed(), "maps written");
            self.close_sockets(&gone);
            if !applied.failed.is_empty() {
                self.retry_at = Some(self.now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY_LONGEST);
                self.failed = applied.failed.iter().map(|(_, error)| error.to_string()).collect();
                return;
            }
        }
    }

    /// UDP backends that the plan removes.
    fn udp_backends_to_go(&self, plan: &Plan) -> BTreeSet<UdpBackend> {
        let shadow = self.controller.shadow();
        plan.ops()
            .filter_map(|op| match op {
                MapOp::SetBackend { id, value } if value.state == state::REMOVED && value.proto == proto::UDP => {
                    let before = shadow.backend_state(*id);
                    (before != state::REMOVED).then_some(UdpBackend { addr: value.addr, port: value.port })
                }
                MapOp::SetBackend { .. }
                | MapOp::SetConfig(_)
                | MapOp::SetEndpoint { .. }
                | MapOp::SetEndpointByAddr { .. }
                | MapOp::DeleteEndpointByAddr { .. }
                | MapOp::SetEndpointByIfindex { .. }
                | MapOp::DeleteEndpointByIfindex { .. }
                | MapOp::ClearBackendFlows { .. }
                | MapOp::SetSlots { .. }
                | MapOp::SetFrontend { .. }
                | MapOp::DeleteFrontend { .. }
                | MapOp::SetSourceRange { .. }
                | MapOp::DeleteSourceRange { .. }
                | MapOp::SetUplink { .. }
                | MapOp::DeleteUplink { .. }
                | MapOp::SetClient { .. }
                | MapOp::DeleteClient { .. } => None,
            })
            .collect()
    }

    fn close_sockets(&mut self, gone: &BTreeSet<UdpBackend>) {
        match sockets::destroy(gone, self.sweeper.sockets()) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "closed connected UDP sockets whose backend went"),
            Err(error) => {
                let note = format!(
                    "connected UDP sockets of this node whose backend goes cannot be closed: {error}; use a kernel with CONFIG_INET_DIAG_DESTROY, or restart such clients"
                );
                if self.sockets_note.is_none() {
                    tracing::warn!("{note}");
                }
                self.sockets_note = Some(note);
            }
        }
    }

    fn node(&self) -> NodeConfig {
        let mut bits = self.config.masquerade.flags(self.config.masquerade_all);
        if self.delivery.as_ref().is_some_and(|d| d.road == Road::Redirect) {
            bits |= flags::REDIRECT;
        }
        if self.config.socket_accel {
            bits |= flags::SOCKET_ALL;
        }
        let rule = self.config.detector.rule(self.node_object().map_or(&[], |node| &node.pod_cidrs));
        NodeConfig {
            netns_cookie: self.netns_cookie,
            hz: self.hz,
            flags: bits,
            seed: self.seed,
            node4: self.primary.v4,
            node6: self.primary.v6,
            snat_first: u32::from(self.snat.first),
            snat_count: self.snat.count(),
            pods: rule.pods,
            pod_cidrs: rule.cidrs,
        }
    }

    /// Works out anew which addresses are the node's, once its devices are known.
    fn know_host(&mut self) {
        let Some(picture) = &self.devices else { return };
        let object = self.node_object().into_iter().flat_map(|node| &node.addresses);
        let named: Vec<IpAddr> = self.config.bind_address.iter().chain(object).copied().collect();
        let primary = node_addresses::primary(picture, &named);
        let host = node_addresses::host_state(picture, &self.config.nodeport_addresses, primary);
        if primary != self.primary {
            let words: Vec<String> = primary.v4.iter().chain(&primary.v6).map(ToString::to_string).collect();
            tracing::info!(primary = %words.join(" "), "the node's addresses");
        }
        let everywhere = self.config.nodeport_addresses.are_all();
        self.health.health().set_addresses(if everywhere {
            Addresses::All
        } else {
            Addresses::These(host.node_port_addresses.clone())
        });
        self.primary = primary;
        if self.host.as_ref() != Some(&host) {
            self.controller.set_host(&host);
            self.host = Some(host);
        }
    }

    /// What the cluster says of this node.
    fn node_object(&self) -> Option<&NodeSpec> {
        self.controller.world().nodes().find(|node| *node.name.0 == *self.config.node_name)
    }

    fn pod_devices(&self) -> Option<BTreeMap<u32, PodDevice>> {
        let pods = &self.devices.as_ref()?.pods;
        Some(pods.iter().map(|(ifindex, found)| (*ifindex, found.device.clone())).collect())
    }

    /// May programs run? Not before the first state of the source is in new maps: a Service's address must not look like nobody's.
    fn may_attach(&self) -> bool {
        self.read_whole || self.programs.attached_before() || self.now() >= FIRST_STATE
    }

    /// Says anew where programs belong; `again`: to look also where they were.
    fn want_programs(&mut self, again: bool) {
        if again {
            self.reassert_at = self.now() + REASSERT;
        }
        self.programs.want(self.devices.as_ref(), again);
    }

    /// A slice of attaching, if there is something to attach; true if that changed anything.
    fn attach(&mut self) -> bool {
        self.may_attach() && self.programs.is_pending() && self.programs.attach_some()
    }

    /// A pod of this node that no device is known for may have come a moment ago: looks once, so that a state of the source is reported as
    /// applied only when its pods are attached.
    fn look_for_new_pods(&mut self) {
        let world = self.controller.world();
        let here: BTreeSet<IpAddr> = world
            .pods()
            .filter(|pod| !pod.host_network && pod.node.as_ref().is_some_and(|node| *node.0 == *self.config.node_name))
            .flat_map(|pod| pod.ips.iter().copied())
            .collect();
        let known: BTreeSet<IpAddr> = self
            .devices
            .iter()
            .flat_map(|seen| seen.pods.values())
            .flat_map(|found| found.device.addrs.iter().copied())
            .collect();
        let missing: BTreeSet<IpAddr> = here.difference(&known).copied().collect();
        let news = missing.difference(&self.looked_for).next().is_some();
        self.looked_for = missing;
        if !news {
            return;
        }
        if let Ok(picture) = scan(&mut self.netlink, &self.wishes)
            && self.devices.as_ref() != Some(&picture)
        {
            self.see(picture);
            self.want_programs(false);
            let devices = self.pod_devices();
            self.plan_and_write(Vec::new(), devices.as_ref());
        }
    }

    /// Begins a sweep when it is time, or does a step of the one under way; true at its end.
    fn sweep(&mut self) -> bool {
        let Some(clock) = self.programs.clock() else {
            self.sweep_at = self.now() + SWEEP;
            return false;
        };
        if self.sweep.is_none() {
            let now = self.began.elapsed();
            if now < self.sweep_at {
                return false;
            }
            let candidates = self.controller.begin_sweep();
            let shadow = self.controller.shadow();
            let udp = UdpPorts::new(&shadow.frontends, shadow.backends.values());
            self.sweep = Some(self.sweeper.begin(candidates, udp));
            self.sweep_began = Instant::now();
        }
        let Some(sweep) = &mut self.sweep else { return false };
        let swept = match self.sweeper.step(sweep, clock) {
            Ok(None) => return false,
            Ok(Some(swept)) => Some(swept),
            Err(error) => {
                tracing::warn!(
                    "the sweep over conntrack ended early: {error}; the datapath does not need it, it is tried again"
                );
                None
            }
        };
        self.sweep = None;
        let mut waiting = false;
        if let Some(swept) = swept {
            if swept.deleted > 0 {
                tracing::debug!(deleted = swept.deleted, "conntrack swept");
            }
            self.metrics.swept(self.sweep_began.elapsed(), &swept);
            self.report.conntrack = swept.conntrack;
            waiting = !swept.unnamed.is_empty();
            self.controller.release(swept.unnamed);
        }
        let still = self.controller.shadow().backends.values().any(|b| b.state == state::REMOVED);
        self.sweep_at = self.began.elapsed() + if still && waiting { SWEEP_SOON } else { SWEEP };
        true
    }

    fn report(&mut self) -> io::Result<()> {
        let mut report = std::mem::take(&mut self.report);
        let result = report.write(self);
        self.report = report;
        result
    }
}

/// What a round begins with.
#[derive(Default)]
struct Round {
    changes: Vec<Change>,
    /// Something was heard at all.
    news: bool,
    source: bool,
    devices: bool,
    config_changed: bool,
    end: Option<&'static str>,
}

fn uplink_names(picture: &Picture) -> impl Iterator<Item = &str> {
    uplinks::uplinks(&picture.others).map(|(_, uplink)| uplink.name.as_str())
}
