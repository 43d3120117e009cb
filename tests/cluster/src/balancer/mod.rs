//! Load balancers, as a cloud would have them: each Service that asks for one gets an address of each of its families, which
//! leads to the nodes that say they serve it.
//!
//! A cloud's balancer stands beside the nodes and passes packets on as they are (`ipMode: VIP`); here it is a route on the
//! fabric, whose next hops are nodes. As upstream's service controller does it, a finalizer keeps a Service until its route is
//! gone. What is done is written to `balancer.log`.

mod plan;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netlb_testnode::process::{Process, Stop};
use netlb_testnode::{address, health};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::control_plane::Kubectl;
use crate::wires::Ways;
use plan::{Pool, Service, Write};

/// How often nodes are asked how they are, and failed writes are tried again.
const LOOK: Duration = Duration::from_millis(500);

/// The controller of load balancers; dropped, it stops.
pub struct Balancer {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Balancer {
    /// Starts the controller of a cluster with this many nodes.
    ///
    /// # Errors
    /// When its log cannot be made, or its thread not started.
    pub fn start(kubectl: &Kubectl, ways: Ways, nodes: u8, log: &Path) -> Result<Self> {
        let log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
        let stop = Stop::default();
        let mut controller = Controller {
            kubectl: kubectl.clone(),
            ways,
            nodes,
            log,
            stop: stop.clone(),
            pool: Pool::default(),
            services: BTreeMap::new(),
        };
        let thread = std::thread::Builder::new().name("balancer".to_owned());
        let thread = thread.spawn(move || controller.run()).context("cannot start the thread of the balancer")?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.stop.request();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread of the balancer died");
        }
    }
}

/// A line of `kubectl get --watch --output-watch-events`.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Service,
}

/// What the API server says of Services, from the first; it ends when the API server goes.
struct Watch {
    events: mpsc::Receiver<Event>,
    _process: Process,
}

/// A Service that has, or is to have, a load balancer.
struct Known {
    service: Service,
    /// Whether something may have to be written to it.
    stale: bool,
    addresses: Vec<IpAddr>,
    /// The nodes that its addresses lead to.
    nodes: Vec<u8>,
}

struct Controller {
    kubectl: Kubectl,
    ways: Ways,
    nodes: u8,
    log: File,
    stop: Stop,
    pool: Pool,
    /// By uid.
    services: BTreeMap<String, Known>,
}

impl Controller {
    fn run(&mut self) {
        // Nodes are asked from here.
        if let Err(error) = self.ways.net().enter() {
            return self.say(&format!("{error:#}"));
        }
        while !self.stop.requested() {
            match self.follow() {
                Ok(()) => self.say("the API server's list ended"),
                Err(error) => self.say(&format!("{error:#}")),
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Follows the API server until its watch ends, or until somebody says stop.
    fn follow(&mut self) -> Result<()> {
        let watch = Watch::start(&self.kubectl)?;
        let mut look = Instant::now();
        while !self.stop.requested() {
            match watch.events.recv_timeout(look.saturating_duration_since(Instant::now())) {
                Ok(event) => self.learn(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() >= look {
                self.look();
                look = Instant::now() + LOOK;
            }
            let stale: Vec<String> =
                self.services.iter().filter(|(_, known)| known.stale).map(|(uid, _)| uid.clone()).collect();
            for uid in stale {
                self.act(&uid);
            }
        }
        Ok(())
    }

    fn learn(&mut self, event: Event) {
        let uid = event.object.metadata.uid.clone();
        if event.kind == "DELETED" {
            self.withdraw(&uid);
            self.services.remove(&uid);
            return;
        }
        let known = self.services.entry(uid).or_insert_with(|| Known {
            service: event.object.clone(),
            stale: true,
            addresses: Vec::new(),
            nodes: Vec::new(),
        });
        known.service = event.object;
        known.stale = true;
    }

    /// Gives a Service the addresses that it is due, or takes them back, and writes to it what is to be written next.
    fn act(&mut self, uid: &str) {
        let Some(known) = self.services.get(uid) else { return };
        let addresses = if known.service.ready() { self.pool.addresses(&known.service) } else { Vec::new() };
        if addresses != known.addresses {
            self.lead(uid, &[]);
            if let Some(known) = self.services.get_mut(uid) {
                known.addresses.clone_from(&addresses);
            }
            if addresses.is_empty() {
                self.pool.release(uid);
            } else {
                self.look_at(uid);
            }
        }
        let Some(known) = self.services.get_mut(uid) else { return };
        let write = known.service.write(&addresses);
        known.stale = write.is_some();
        let Some(write) = write else { return };
        match patch(&self.kubectl, &known.service, &write, &self.stop) {
            // The watch brings what it is now, and with it the next step.
            Ok(()) => {
                known.stale = false;
                let name = known.service.name();
                self.say(&format!("{name}: {write:?}"));
            }
            Err(error) => self.say(&format!("{error:#}")),
        }
    }

    /// Asks nodes about every Service that has addresses, and leads traffic to those that are well.
    fn look(&mut self) {
        let served = self.services.iter().filter(|(_, known)| !known.addresses.is_empty());
        for uid in served.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            self.look_at(&uid);
        }
    }

    fn look_at(&mut self, uid: &str) {
        let Some(known) = self.services.get(uid) else { return };
        let port = known.service.health_port();
        let well = |node: &u8| {
            let at = SocketAddr::new(address::node(*node).v4.into(), port);
            health::get(at, "/healthz").is_ok_and(|(status, _)| status == 200)
        };
        let healthy: Vec<u8> = (1..=self.nodes).filter(well).collect();
        let nodes = known.service.nodes(&healthy, &known.nodes);
        self.lead(uid, &nodes);
    }

    /// Leads a Service's addresses to these nodes.
    fn lead(&mut self, uid: &str, nodes: &[u8]) {
        let Some(known) = self.services.get_mut(uid) else { return };
        if known.nodes == nodes {
            return;
        }
        let led = known.addresses.iter().try_for_each(|address| self.ways.lead(*address, nodes));
        known.nodes = nodes.to_vec();
        let text = match led {
            Ok(()) => format!("{}: {:?} lead to nodes {nodes:?}", known.service.name(), known.addresses),
            Err(error) => format!("{error:#}"),
        };
        self.say(&text);
    }

    /// Takes a Service's addresses back: they lead nowhere, and may be another's.
    fn withdraw(&mut self, uid: &str) {
        self.lead(uid, &[]);
        self.pool.release(uid);
    }

    fn say(&mut self, text: &str) {
        // A log that cannot be written must not stop what it is about.
        writeln!(self.log, "{text}").unwrap_or_default();
    }
}

impl Watch {
    fn start(kubectl: &Kubectl) -> Result<Self> {
        let mut process = kubectl.spawn(&[
            "get",
            "services",
            "--all-namespaces",
            "--watch",
            "--output-watch-events",
            "--output=json",
        ])?;
        let output = process.pipes().stdout.take().context("kubectl has no output")?;
        let (send, events) = mpsc::channel();
        std::thread::Builder::new()
            .name("balancer-watch".to_owned())
            .spawn(move || {
                let events = serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter::<Event>();
                // The end of the output, or of whoever listens, is the end of the thread.
                for event in events.map_while(Result::ok) {
                    if send.send(event).is_err() {
                        return;
                    }
                }
            })
            .context("cannot start the thread of the watch")?;
        Ok(Self { events, _process: process })
    }
}

fn patch(kubectl: &Kubectl, service: &Service, write: &Write, stop: &Stop) -> Result<()> {
    let metadata = &service.metadata;
    let (subresource, patch) = match write {
        Write::Finalizers(finalizers) => {
            let metadata = json!({"resourceVersion": metadata.resource_version, "finalizers": finalizers});
            (None, json!({"metadata": metadata}))
        }
        Write::Addresses(addresses) => {
            let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            (Some("--subresource=status"), json!({"status": {"loadBalancer": {"ingress": ingress}}}))
        }
    };
    let patch = patch.to_string();
    let mut arguments = vec!["patch", "service", &metadata.name, "--namespace", &metadata.namespace];
    arguments.extend(subresource);
    arguments.extend(["--type=merge", "--patch", &patch]);
    kubectl.run(&arguments, "", stop).map(drop)
}
