//! `netlb agent`: checks the machine, puts the parts together, and works.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::bpf::pins::{Capacities, KeptCapacity, Pins};
use crate::bpf::probe::Features;
use crate::config::{Config, Settings};
use crate::delivery;
use crate::devices::select::Wishes;
use crate::devices::watch;
use crate::health::{self, Feed, Health};
use crate::k8s::{Folder, Snapshot, Watcher};
use crate::model::NodeName;
use crate::observe::sweep::Sweeper;
use crate::reconcile::{Event, Programs, Reconciler, SourceNews, Start};
use crate::runtime::lock::DirLock;
use crate::runtime::{ports, preflight, signals, telemetry};
use crate::store::KernelStore;

/// How often the host's filters are looked at.
const LOOK: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  netlb agent --source ./objects --node-name node1
  netlb agent --config /etc/netlb/agent.yaml --delivery stack
  netlb agent --source ./objects --detached       fill the maps, attach nothing

Ending the agent (SIGTERM, SIGINT, even SIGKILL) changes nothing for traffic: programs, links and maps are pinned. A new agent with the same
--pin-path goes on from there; `netlb cleanup` removes them.";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct AgentArgs {
    /// YAML file with the settings below, named like the flags; a flag wins over the file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let file = args.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
    let settings = args.settings.over(file);
    telemetry::init(settings.log_level.as_deref().unwrap_or("info")).map_err(anyhow::Error::msg)?;
    let problems = preflight::problems();
    if !problems.is_empty() {
        for problem in problems {
            eprintln!("netlb: {problem}");
        }
        return Ok(ExitCode::FAILURE);
    }
    work(settings.check()?)?;
    Ok(ExitCode::SUCCESS)
}

fn work(config: Config) -> anyhow::Result<()> {
    let (events, inbox) = channel();
    // First of all: threads inherit which signals are blocked.
    let end = events.clone();
    signals::on_end(move |signal| drop(end.send(Event::End(signal))))?;

    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("--run-dir {}: make it writable or name another", config.run_dir.display()))?;
    let pins = Pins::new(&config.pin_path);
    pins.prepare()?;
    let _locks = (DirLock::take(pins.root())?, DirLock::take(&config.run_dir)?);
    say_start(&config);

    let capacities = Capacities::new(config.max_services, config.max_backends, config.max_conntrack);
    let (programs, kept) = Programs::load(&pins, &capacities, &config.cgroup, config.attach, config.detached)?;
    let (snat, reserved) = ports::take(config.node_ports, &config.run_dir);
    let lacks = Features::of_kernel().notes();
    let notes: Vec<String> = kept.iter().map(keeps).chain(reserved).chain(lacks).collect();
    for note in &notes {
        tracing::warn!("{note}");
    }
    tracing::info!("programs get onto devices by {}", programs.method().name());
    let wishes = Wishes {
        pod_interfaces: config.pod_interfaces.clone(),
        uplinks: config.devices.clone(),
        detector: config.detector.clone(),
        cookies: config.socket_accel,
    };
    let source = config.source.clone();
    let opened = events.clone();
    // Nobody listens any more once the agent ends.
    let health = Health::start(config.healthz, health::TIMEOUT, health::system_clock(), move || {
        drop(opened.send(Event::Health));
    })
    .context("the thread that answers health checks cannot be started")?;
    let here = NodeName::new(&config.node_name);
    let start = Start {
        health: Feed::new(health.clone(), here),
        store: KernelStore::open(&pins)?,
        sweeper: Sweeper::open(&pins)?,
        wishes: wishes.clone(),
        snat: snat.ports,
        config,
        programs,
        notes,
    };
    let reconciler = Reconciler::new(start)?;

    let devices = events.clone();
    watch::start(wishes, move |news| devices.send(Event::Devices(news)).is_ok())
        .context("the kernel's notifications about devices cannot be had")?;
    look_at_host(events.clone())?;
    let _watcher = follow_source(source, health, events)?;
    reconciler.run(&inbox)
}

fn say_start(config: &Config) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node_name,
        source = %config.source.display(),
        pins = %config.pin_path.display(),
        run_dir = %config.run_dir.display(),
        cgroup = %config.cgroup.display(),
        delivery = config.delivery.name(),
        socket_accel = config.socket_accel,
        detached = config.detached,
        max_services = config.max_services,
        max_backends = config.max_backends,
        max_conntrack = config.max_conntrack,
        "netlb agent starts"
    );
}

fn keeps(kept: &KeptCapacity) -> String {
    let KeptCapacity { map, kept, wished } = kept;
    format!(
        "map {map} keeps its {kept} entries, though {wished} are asked for: its content is worth more; `netlb cleanup` before the start gives it the new size"
    )
}

/// Looks at what the host's stack has a say in, again and again; speaks when it changed.
fn look_at_host(events: Sender<Event>) -> anyhow::Result<()> {
    let look = move || {
        let mut last = None;
        loop {
            let now = (delivery::look(), delivery::forwarding_gaps());
            if last.as_ref() != Some(&now) {
                let (findings, gaps) = now.clone();
                if events.send(Event::Host(findings, gaps)).is_err() {
                    return;
                }
                last = Some(now);
            }
            std::thread::sleep(LOOK);
        }
    };
    std::thread::Builder::new().name("host".to_owned()).spawn(look)?;
    Ok(())
}

/// Reads the source, now and whenever it changes, and tells what is different.
fn follow_source(source: PathBuf, health: Health, events: Sender<Event>) -> anyhow::Result<Watcher> {
    let reader =
        Arc::new(Mutex::new(Reader { folder: Folder::new(&source), last: None, failed: false, health, events }));
    let again = Arc::clone(&reader);
    let read = |reader: &Mutex<Reader>| reader.lock().unwrap_or_else(PoisonError::into_inner).read();
    let watcher = Watcher::new(&source, move || read(&again)).context("the source cannot be watched")?;
    read(&reader);
    Ok(watcher)
}

struct Reader {
    folder: Folder,
    last: Option<Snapshot>,
    /// The last reading failed: the next good one is told even if it says what was known.
    failed: bool,
    health: Health,
    events: Sender<Event>,
}

impl Reader {
    fn read(&mut self) {
        let event = match self.folder.read() {
            Ok(snapshot) => {
                if self.last.as_ref() == Some(&snapshot) && !std::mem::take(&mut self.failed) {
                    return;
                }
                let changes = match &self.last {
                    Some(last) => snapshot.changes_since(last),
                    None => snapshot.changes_since(&Snapshot::default()),
                };
                let news =
                    SourceNews { changes, problems: snapshot.problems.clone(), revision: snapshot.revision.clone() };
                self.last = Some(snapshot);
                // Here too: the loop may never come to hear of it.
                self.health.all_queued();
                Event::Source(news)
            }
            Err(error) => {
                self.failed = true;
                Event::SourceFailed(error.to_string())
            }
        };
        // Nobody listens any more once the agent ends.
        drop(self.events.send(event));
    }
}
