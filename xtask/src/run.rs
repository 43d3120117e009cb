//! `cargo xtask run`: a node without a cluster, and the proof that it works.

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use netlb_testnode::control::{Control, Request};
use netlb_testnode::manifests::{self, Manifests};
use netlb_testnode::objects::ObjectKey;
use netlb_testnode::proof::{self, Report};
use netlb_testnode::{AgentOptions, Helper, PodNetwork, Stop, TestNode, frontends};

use crate::{build, preflight, setup, sh, show, sudo};

/// Arguments of `run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files or folders of Kubernetes YAML; the folder `examples` if not said
    #[arg(long, num_args = 1.., value_name = "PATH")]
    manifests: Vec<PathBuf>,
    /// How pods are joined to their node
    #[arg(long, value_enum, default_value = "bridge")]
    pod_network: Style,
    /// How packets for local pods are delivered
    #[arg(long, default_value = "auto", value_parser = ["auto", "stack", "redirect"])]
    delivery: String,
    /// What may be faster than the packet path
    #[arg(long, default_value = "none", value_parser = ["none", "socket"])]
    accel: String,
    /// Prove it again with the agents restarted with the other value of --accel, and compare
    #[arg(long, conflicts_with = "detached")]
    compare_accel: bool,
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(netlb_testnode::address::MAX_NODES)))]
    nodes: u8,
    /// End after the proof, also in a terminal
    #[arg(long)]
    once: bool,
    /// Load the programs without attaching them: the proof must fail then
    #[arg(long)]
    detached: bool,
    /// Write the proof to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Whether pods and uplinks leave checksums to hardware
    #[arg(long, value_enum, default_value = "on")]
    tx_checksum: OnOff,
    /// Whether netfilter sees bridged packets; on for the bridge style if not said
    #[arg(long, value_enum)]
    bridge_netfilter: Option<OnOff>,
    /// Keep the agents' logs and the source folder: in target/testnode-ID
    #[arg(long)]
    keep_logs: bool,
    /// Everything is built already; set when the program starts itself again as root
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Style {
    Bridge,
    Routed,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

/// Starts the node, proves it, and stays if somebody is looking.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if !args.built {
        build::agent(&setup::setup()?)?;
        sudo::become_root(true)?;
    }
    preflight::check()?;
    let stop = Stop::default();
    let handler = stop.clone();
    ctrlc::set_handler(move || handler.request()).context("cannot listen for Ctrl-C")?;

    let paths = if args.manifests.is_empty() { vec![sh::root().join("examples")] } else { args.manifests.clone() };
    let input = manifests::read(&paths)?;

    let node = start(&args, &stop)?;
    let result = drive(&node, &args, input);
    if args.keep_logs {
        keep(&node)?;
    }
    drop(node);
    match result {
        Err(_) if stop.requested() => {
            println!("\nInterrupted; everything is removed.");
            Ok(ExitCode::FAILURE)
        }
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(error),
    }
}

fn start(args: &Args, stop: &Stop) -> Result<TestNode> {
    let style = match args.pod_network {
        Style::Bridge => PodNetwork::Bridge,
        Style::Routed => PodNetwork::Routed,
    };
    let mut builder = TestNode::builder()
        .pod_network(style)
        .nodes(args.nodes)
        .tx_checksum(args.tx_checksum == OnOff::On)
        .helper(Helper::own(crate::HELPER)?)
        .netlb(sh::root().join("target/release/netlb"))
        .stop(stop.clone());
    if let Some(on) = args.bridge_netfilter {
        builder = builder.bridge_netfilter(on == OnOff::On);
    }
    let node = builder.start()?;
    println!("Run {}: {} node(s), in network namespaces of their own.", node.id(), node.nodes().len());
    Ok(node)
}

/// Everything between the node's start and its end. Says whether the proof succeeded.
fn drive(node: &TestNode, args: &Args, input: Manifests) -> Result<bool> {
    let (revision, notes) = node.put(with_client(input))?;
    for note in notes {
        println!("note: {note}");
    }
    println!("{} pods are running; their source is {}", node.pods().len(), node.source_path().display());

    let options = AgentOptions {
        delivery: args.delivery.clone(),
        accel: args.accel.clone(),
        detached: args.detached,
        ..AgentOptions::default()
    };
    let agents = node.start_agents(&options).and_then(|_| node.wait_applied(revision));
    node.stop().check()?;
    match &agents {
        Ok(()) => println!("netlb has applied revision {revision}."),
        Err(error) => println!("netlb does not work: {error:#}"),
    }

    println!("\nServices:\n{}", show::services(&frontends::frontends(&node.cluster())));
    let say = |round: &str| println!("Asking every Service {round} …");
    let mut report = proof::prove(node, say)?;
    if !args.detached && args.accel == "none" {
        report.failures.extend(proof::wrong_road(&args.delivery, node.nodes().len(), &report.clients));
        report.ok = report.failures.is_empty();
    }
    if let Err(error) = agents {
        report.ok = false;
        report.failures.insert(0, format!("netlb does not work: {error:#}"));
    }
    if args.compare_accel {
        let with = if args.accel == "none" { "socket" } else { "none" };
        println!("The same with --accel {with}:");
        node.restart_agents(&AgentOptions { accel: with.to_owned(), ..options })?;
        node.wait_applied(revision)?;
        let second = proof::prove(node, say)?;
        let compared = proof::compare(&args.accel, &report.clients, with, &second.clients);
        report.failures.extend(second.failures.iter().map(|failure| format!("--accel {with}: {failure}")));
        report.failures.extend(compared.differences.clone());
        report.compared = Some(compared);
        report.ok = report.failures.is_empty();
    }
    conclude(&report);
    if let Some(path) = &args.report {
        write_report(path, &report)?;
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if terminal && !args.once {
        stay(node)?;
    }
    Ok(report.ok)
}

/// The manifests, and a pod to send requests from, unless they bring one of that name.
fn with_client(mut input: Manifests) -> Manifests {
    let own: BTreeSet<ObjectKey> = input.objects.iter().filter_map(|object| ObjectKey::of(object).ok()).collect();
    let mut client = Manifests::default();
    client.parse("client", proof::CLIENT_POD);
    input
        .objects
        .extend(client.objects.into_iter().filter(|object| ObjectKey::of(object).is_ok_and(|key| !own.contains(&key))));
    input
}

fn conclude(report: &Report) {
    println!("\n{}", show::proof(report));
    for check in &report.health_checks {
        println!("{}", show::health(check));
    }
    for name in &report.not_enforced {
        println!("not enforced yet: {name}");
    }
    for problem in &report.problems {
        println!("problem: {}", show::problem(problem));
    }
    for client in &report.clients {
        match client.forwarded {
            Some(packets) => println!("from {}: the host forwarded {packets} packets", client.client),
            None => println!("from {}: bridged past netfilter, the host cannot say which road", client.client),
        }
    }
    if let Some(compared) = &report.compared {
        let (accel, with, rows) = (&compared.accel, &compared.with, compared.rows);
        match compared.differences.len() {
            0 => {
                println!("--accel {accel} and --accel {with}: the same backends, refusals and sources in {rows} rows.")
            }
            count => println!("--accel {accel} and --accel {with}: {count} of {rows} rows differ."),
        }
    }
    if report.ok {
        let sent: u32 = report.clients.iter().flat_map(|client| &client.requests).map(|row| row.sent).sum();
        println!(
            "All right: {sent} requests, every Service answered through every backend that is to serve, and through no other; refusals, drops and sources are as they should be, and netlb's counters agree."
        );
    } else {
        println!("Not right:\n{}", show::failures(report));
    }
}

fn write_report(path: &Path, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report).context("cannot turn the report into JSON")?;
    fs::write(path, text + "\n").with_context(|| format!("cannot write the report to {}", path.display()))
}

/// Plays kubelet until Ctrl-C.
fn stay(node: &TestNode) -> Result<()> {
    let control = Control::open(node.folder())?;
    println!("The node stays until Ctrl-C. In another terminal, try:");
    for command in [
        "exec client -- curl http://web/",
        "netlb service list",
        "netlb backend list",
        "netlb drops",
        "netlb trace --from client --to web",
        "scale web 5",
        "kill web",
    ] {
        println!("  cargo xtask {command}");
    }
    let mut running: Vec<bool> = node.agents().iter().map(|agent| agent.is_running()).collect();
    while !node.stop().requested() {
        control.poll(|request| answer(node, &request))?;
        for key in node.look_after_pods()? {
            println!("{key} died and was replaced.");
        }
        for (agent, running) in node.agents().iter().zip(&mut running) {
            if *running && !agent.is_running() {
                *running = false;
                println!("The agent ended: {}", agent.log_tail(20));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("\nRemoving everything.");
    Ok(())
}

fn answer(node: &TestNode, request: &Request) -> Result<String> {
    match request {
        Request::Scale { workload, replicas } => {
            node.scale(workload, *replicas)?;
            let revision = node.settle()?;
            let text = format!("{workload} has {replicas} pods, and every agent has applied revision {revision}.");
            println!("{text}");
            Ok(text)
        }
        Request::Kill { pod } => {
            let pod = node.pod(pod)?;
            pod.kill()?;
            Ok(format!("{} is killed.", pod.key()))
        }
    }
}

/// Copies what the run's folder holds of interest to where builds leave theirs.
fn keep(node: &TestNode) -> Result<()> {
    let to = sh::root().join("target").join(format!("testnode-{}", node.id()));
    let copy = |from: &Path, to: &Path| -> Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            if path.is_file() {
                fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
            }
        }
        Ok(())
    };
    copy(node.folder(), &to)
        .and_then(|()| copy(&node.source_path(), &to.join("source")))
        .with_context(|| format!("cannot keep the logs in {}", to.display()))?;
    println!("Logs and source are kept in {}.", to.display());
    Ok(())
}
