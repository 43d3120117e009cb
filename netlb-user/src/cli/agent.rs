//! `netlb agent`: checks the machine, puts the parts together, and works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use crate::bpf::pins::{Capacities, KeptCapacity, Pins};
use crate::bpf::probe::Features;
use crate::config::configz::configz;
use crate::config::{Config, ConfigFile, Settings, Source};
use crate::delivery;
use crate::devices::select::Wishes;
use crate::devices::watch;
use crate::events::{self, EventSink, Teller};
use crate::health::{self, Feed, Health, Listen};
use crate::k8s::{Cluster, Folder, Snapshot, SourceFailure, SourceNews, Watcher};
use crate::metrics::{Metrics, Packets, Pages};
use crate::model::NodeName;
use crate::observe::sweep::Sweeper;
use crate::reconcile::{Event, Programs, Reconciler, Start};
use crate::runtime::lock::DirLock;
use crate::runtime::{ports, preflight, signals, telemetry};
use crate::store::KernelStore;

/// Where the API servers' addresses are kept, in the run directory.
const API_SERVERS: &str = "api-servers.json";

/// How often the host's filters are looked at.
const LOOK: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  netlb agent                                     in a pod: the cluster's API server, by service account
  netlb agent --api-server https://10.0.0.1:6443  the same where nothing serves the API server's own Service yet
  netlb agent --kubeconfig /etc/netlb/kubeconfig
  netlb agent --source ./objects --node-name node1
  netlb agent --config /etc/netlb/agent.yaml --delivery stack
  netlb agent --config /var/lib/kube-proxy/config.conf
  netlb agent --source ./objects --detached       fill the maps, attach nothing

Ending the agent (SIGTERM, SIGINT, even SIGKILL) changes nothing for traffic: programs, links and maps are pinned. A new agent with the same
--pin-path goes on from there; `netlb cleanup` removes them.";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct AgentArgs {
    /// YAML file with the settings below, named like the flags, or kube-proxy's own (KubeProxyConfiguration); a flag wins over the file. The
    /// agent ends when the file changes, to be started again
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let file = args.config.as_deref().map(ConfigFile::read).transpose()?.unwrap_or_default();
    let settings = args.settings.over(file.settings.clone());
    telemetry::init(settings.log_level.as_deref().unwrap_or("info")).map_err(anyhow::Error::msg)?;
    for note in &file.notes {
        tracing::info!("{note}");
    }
    let problems = preflight::problems();
    if !problems.is_empty() {
        for problem in problems {
            eprintln!("netlb: {problem}");
        }
        return Ok(ExitCode::FAILURE);
    }
    work(settings.check()?, args.config, file)?;
    Ok(ExitCode::SUCCESS)
}

fn work(config: Config, path: Option<PathBuf>, file: ConfigFile) -> anyhow::Result<()> {
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
    let notes: Vec<String> = kept.iter().map(keeps).chain(reserved).chain(lacks).chain(file.unknown).collect();
    for note in &notes {
        tracing::warn!("{note}");
    }
    let metrics = Metrics::new(Some(Packets::open(&pins)?))?;
    let kept: BTreeMap<&str, u32> = kept.iter().map(|kept| (kept.map, kept.kept)).collect();
    metrics.set_capacities(capacities.iter().map(|(map, wished)| (map, kept.get(map).copied().unwrap_or(wished))));
    tracing::info!("programs get onto devices by {}", programs.method().name());
    let wishes = Wishes {
        pod_interfaces: config.pod_interfaces.clone(),
        uplinks: config.devices.clone(),
        detector: config.detector.clone(),
        cookies: config.socket_accel,
    };
    let (source, api_servers) = (config.source.clone(), config.run_dir.join(API_SERVERS));
    let opened = events.clone();
    // Nobody listens any more once the agent ends.
    let pages = Pages {
        metrics: metrics.clone(),
        proxy_mode: config.proxy_mode.clone(),
        configz: configz(file.document, &config).to_string(),
    };
    let pages: health::Pages = Arc::new(move |question| pages.answer(question));
    let listen =
        Listen { healthz: config.healthz, probed: metrics.probed(), pages: config.metrics.map(|at| (at, pages)) };
    let health = Health::start(listen, health::TIMEOUT, health::system_clock(), move || {
        drop(opened.send(Event::Health));
    })
    .context("the thread that answers health checks cannot be started")?;
    let here = NodeName::new(&config.node_name);
    let asked = metrics.asked();
    let (sink, told) = events::channel();
    let sink = matches!(source, Source::Cluster(_)).then(|| Box::new(sink) as Box<dyn EventSink>);
    let start = Start {
        teller: Teller::new(sink),
        health: Feed::new(health.clone(), here.clone()),
        store: KernelStore::open(&pins)?,
        sweeper: Sweeper::open(&pins)?,
        wishes: wishes.clone(),
        metrics,
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
    let _config_watcher = path.map(|path| follow_config(path, file.text, events.clone())).transpose()?;
    let _followed = match source {
        Source::Folder(folder) => Followed::Folder(follow_source(folder, health, events)?),
        Source::Cluster(access) => {
            let tell = move |news| tell(news, &health, &events);
            Followed::Cluster(Cluster::follow(access, here, &api_servers, told, asked, tell)?)
        }
    };
    reconciler.run(&inbox)
}

fn say_start(config: &Config) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node_name,
        source = %config.source,
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

/// What goes on in the background until the agent ends.
enum Followed {
    Folder(#[expect(dead_code, reason = "works until it is dropped")] Watcher),
    Cluster(#[expect(dead_code, reason = "works until it is dropped")] Cluster),
}

/// Passes on what a source says.
fn tell(news: SourceNews, health: &Health, events: &Sender<Event>) {
    if !news.changes.is_empty() {
        // Here too: the loop may never come to hear of it.
        health.all_queued();
    }
    // Nobody listens any more once the agent ends.
    drop(events.send(Event::Source(news)));
}

/// Tells when the file of `--config` says something else than `known`. A file that is gone says nothing: it may be about to come back.
fn follow_config(path: PathBuf, known: String, events: Sender<Event>) -> anyhow::Result<Watcher> {
    // A ConfigMap's files change by a link beside them.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let look = move || {
        if std::fs::read_to_string(&path).is_ok_and(|now| now != known) {
            // Nobody listens any more once the agent ends.
            drop(events.send(Event::ConfigChanged));
        }
    };
    let first = look.clone();
    let watcher = Watcher::new(&folder, look).context("the file of --config cannot be watched")?;
    first();
    Ok(watcher)
}

/// Reads the source, now and whenever it changes, and tells what is different.
fn follow_source(source: PathBuf, health: Health, events: Sender<Event>) -> anyhow::Result<Watcher> {
    let reader =
        Arc::new(Mutex::new(Reader { folder: Folder::new(&source), last: None, failure: None, health, events }));
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
    failure: Option<SourceFailure>,
    health: Health,
    events: Sender<Event>,
}

impl Reader {
    fn read(&mut self) {
        let news = match self.folder.read() {
            Ok(snapshot) => {
                let failed = self.failure.take().is_some();
                if self.last.as_ref() == Some(&snapshot) && !failed {
                    return;
                }
                let changes = match &self.last {
                    Some(last) => snapshot.changes_since(last),
                    None => snapshot.changes_since(&Snapshot::default()),
                };
                let (problems, revision) = (snapshot.problems.clone(), snapshot.revision.clone());
                self.last = Some(snapshot);
                SourceNews { changes, problems, revision, failure: None }
            }
            Err(error) => {
                self.failure = Some(SourceFailure::again(error.to_string(), self.failure.as_ref()));
                let last = self.last.as_ref();
                SourceNews {
                    changes: Vec::new(),
                    problems: last.map(|last| last.problems.clone()).unwrap_or_default(),
                    revision: last.and_then(|last| last.revision.clone()),
                    failure: self.failure.clone(),
                }
            }
        };
        tell(news, &self.health, &self.events);
    }
}
