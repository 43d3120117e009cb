//! `cargo xtask cluster`: a real Kubernetes cluster in network namespaces.
//!
//! `up` starts a keeper, a process of its own that holds the cluster, and shows what it says until the cluster is ready;
//! `down` ends the keeper, and with it everything.

mod build;
mod go;
pub(crate) mod interrupt;
pub(crate) mod keeper;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use netlb_testcluster::state::{self, CLUSTERS, ClusterFile};
use netlb_testcluster::survive::{self, Trial};
use netlb_testcluster::{Cluster, Options, Proxy, images, node, programs};
use netlb_testnode::{Helper, Stop};

use crate::{HELPER, build as agent, preflight, setup, sh, sudo};

pub(crate) use build::{Part, build};
use interrupt::Interrupt;

/// What a node calls, and the Debian package each is in.
const PROGRAMS: [(&str, &str); 6] = [
    ("runc", "runc"),
    ("debootstrap", "debootstrap"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
];

/// How many nodes a cluster has if nobody says.
const NODES: u8 = 2;

/// What there is to do with a cluster.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a cluster, and leave it running
    Up(UpArgs),
    /// Remove clusters, and what killed ones left
    Down {
        /// This one; all if not said
        #[arg(long)]
        cluster: Option<String>,
    },
    /// Make a cluster with netlb, and see that load through Services notices neither killed agents nor an API server that is away
    Survive(SurviveArgs),
    /// Run a program on a host of a cluster: `cargo xtask cluster exec control-plane -- kubectl get pods -A`
    Exec(ExecArgs),
    /// Build its programs from Go modules: target/cluster/bin
    Build {
        /// Build these alone
        #[arg(long, value_enum)]
        only: Option<build::Part>,
    },
    /// Hold a cluster until a signal says to end; `up` starts it
    #[command(hide = true)]
    Keep(Shape),
}

/// How a cluster is to be.
#[derive(clap::Args, Clone)]
pub(crate) struct Shape {
    /// What serves Services: netlb, kube-proxy-nftables or kube-proxy-iptables
    #[arg(long, default_value = "netlb")]
    pub(crate) proxy: Proxy,
    /// What may be faster than netlb's packet path
    #[arg(long, default_value = "none", value_parser = ["none", "socket"])]
    pub(crate) accel: String,
    /// How many nodes; if not said, two, and three for `conformance`
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: Option<u8>,
}

#[derive(clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    shape: Shape,
    /// Everything is built already; set when the program starts itself again as root
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(clap::Args)]
pub(crate) struct SurviveArgs {
    /// What may be faster than netlb's packet path
    #[arg(long, default_value = "none", value_parser = ["none", "socket"])]
    accel: String,
    /// Connections that stay open
    #[arg(long, default_value_t = 200, value_name = "N")]
    open: usize,
    /// New connections a second
    #[arg(long, default_value_t = 500, value_name = "N")]
    new: u32,
    /// How long the API server is away, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    away: u64,
    /// Everything is built already; set when the program starts itself again as root
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(clap::Args)]
pub(crate) struct ExecArgs {
    /// Which cluster, if several live; the newest if not said
    #[arg(long)]
    cluster: Option<String>,
    /// `control-plane`, `node1`, `node2`… or `client`
    host: String,
    /// The program and its arguments; the cluster's own programs and netlb are found, kubectl is the administrator
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Carries a command out.
pub(crate) fn cluster(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up(&args),
        Command::Down { cluster } => down(cluster.as_deref()),
        Command::Survive(args) => survive(&args),
        Command::Exec(args) => exec(&args),
        Command::Build { only } => build(only).map(|()| ExitCode::SUCCESS),
        Command::Keep(shape) => keeper::keep(options(&shape)?),
    }
}

/// Builds and installs what is missing, and becomes root.
pub(crate) fn prepare(built: bool, proxy: Proxy) -> Result<()> {
    if !built {
        build(None)?;
        setup::packages(&PROGRAMS)?;
        if !Path::new(node::CNI_PLUGINS).join("bridge").is_file() {
            setup::install(vec!["containernetworking-plugins"])?;
        }
        if proxy == Proxy::Netlb {
            agent::agent(&setup::setup()?)?;
        }
        sudo::become_root(true)?;
    }
    preflight::check()
}

/// Where everything is that a cluster is made of.
pub(crate) fn options(shape: &Shape) -> Result<Options> {
    let target = sh::root().join("target");
    let (bin, netlb) = (programs::folder(&target), target.join("release/netlb"));
    let mut archives = vec![images::build(&target, &bin)?];
    if shape.proxy == Proxy::Netlb {
        archives.push(images::netlb(&target, &netlb)?);
    }
    Ok(Options {
        nodes: shape.nodes.unwrap_or(NODES),
        images: archives,
        bin,
        netlb,
        disk: target.join("cluster/run"),
        proxy: shape.proxy,
        accel: shape.accel.clone(),
        stop: Stop::default(),
    })
}

fn up(args: &UpArgs) -> Result<ExitCode> {
    prepare(args.built, args.shape.proxy)?;
    let Some(cluster) = start(&args.shape, &Interrupt::listen()?)? else { return Ok(ExitCode::FAILURE) };
    println!("Cluster {} is up. Try:", cluster.id);
    for command in ["exec control-plane -- kubectl get nodes,pods -A -o wide", "exec node1 -- ip address", "down"] {
        println!("  cargo xtask cluster {command}");
    }
    println!("Its programs' logs are in {}.", cluster.logs.display());
    Ok(ExitCode::SUCCESS)
}

/// Starts a keeper with a cluster; if it does not become ready, the keeper has said why.
pub(crate) fn start(shape: &Shape, interrupt: &Interrupt) -> Result<Option<ClusterFile>> {
    let Some(pid) = keeper::start(shape, interrupt)? else { return Ok(None) };
    let clusters = CLUSTERS.live::<ClusterFile>()?;
    let cluster = clusters.into_iter().map(|(_, cluster)| cluster).find(|cluster| cluster.pid == pid);
    cluster.context("the cluster was ready, and is gone again").map(Some)
}

/// Holds a cluster of its own while it is tried.
fn survive(args: &SurviveArgs) -> Result<ExitCode> {
    let shape = Shape { proxy: Proxy::Netlb, accel: args.accel.clone(), nodes: None };
    prepare(args.built, shape.proxy)?;
    let options = options(&shape)?;
    let stop = options.stop.clone();
    ctrlc::set_handler(move || stop.request()).context("cannot listen for signals")?;
    let say = |text: &str| println!("{text}");
    let trial = Trial { open: args.open, a_second: args.new, away: Duration::from_secs(args.away) };
    let cluster = Cluster::start(options, say)?;
    survive::survive(&cluster, &Helper::own(HELPER)?, &trial, say)?;
    Ok(ExitCode::SUCCESS)
}

fn down(id: Option<&str>) -> Result<ExitCode> {
    sudo::become_root(false)?;
    let chosen = match id {
        None => CLUSTERS.live::<ClusterFile>()?,
        Some(_) => vec![find(id)?],
    };
    for (folder, cluster) in &chosen {
        keeper::end(cluster.pid, folder)?;
        println!("Cluster {} is gone.", cluster.id);
    }
    let left = state::clean()?;
    for line in &left {
        println!("removed {line}");
    }
    if chosen.is_empty() && left.is_empty() {
        println!("No cluster is up.");
    }
    Ok(ExitCode::SUCCESS)
}

fn exec(args: &ExecArgs) -> Result<ExitCode> {
    sudo::become_root(false)?;
    let (_, cluster) = find(args.cluster.as_deref())?;
    let folder = std::env::current_dir().ok();
    cluster.host(&args.host)?.enter()?;
    let (program, arguments) = args.command.split_first().context("no program is given")?;
    let mut command = process::Command::new("env");
    let netlb = cluster.netlb.parent().map(Path::display);
    command.arg(format!("PATH={}:{}", node::search_path(&cluster.bin), netlb.context("netlb is in no folder")?));
    command.arg(format!("KUBECONFIG={}", cluster.kubeconfig.display())).arg(program).args(arguments);
    // Entering the mounts moved us to the root folder; go back where the user stood, if that exists there.
    if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
        command.current_dir(folder);
    }
    bail!("cannot start {program}: {}", command.exec())
}

/// The newest live cluster, or the one with this id.
pub(crate) fn find(id: Option<&str>) -> Result<(PathBuf, ClusterFile)> {
    let mut clusters = CLUSTERS.live::<ClusterFile>()?;
    let known: Vec<String> = clusters.iter().map(|(_, cluster)| cluster.id.clone()).collect();
    match id {
        None => clusters.pop().context("no cluster is up; make one with `cargo xtask cluster up`"),
        Some(id) => clusters
            .into_iter()
            .find(|(_, cluster)| cluster.id == id)
            .with_context(|| format!("there is no cluster {id}; up are: {}", known.join(", "))),
    }
}
