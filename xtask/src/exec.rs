//! Commands about a live run: getting into its pods and nodes, asking it to change, and cleaning up after dead ones.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use netlb_testnode::agent::PIN_PATH;
use netlb_testnode::control::{self, Request};
use netlb_testnode::enter;
use netlb_testnode::state::{RunFile, TEST_NODES};

use crate::sudo;

#[derive(clap::Args)]
pub(crate) struct ExecArgs {
    /// Which run, if several live; the newest if not said
    #[arg(long)]
    run: Option<String>,
    /// A pod's name, or its Deployment's; `namespace/name` outside of `default`; or a host beyond the nodes, `outside` or `far`
    pod: String,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct NetlbArgs {
    /// Which run, if several live; the newest if not said
    #[arg(long)]
    run: Option<String>,
    /// Which node
    #[arg(long, default_value_t = 1)]
    node: u8,
    /// netlb's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct ScaleArgs {
    /// Which run, if several live; the newest if not said
    #[arg(long)]
    run: Option<String>,
    /// A Deployment or StatefulSet; `namespace/name` outside of `default`
    workload: String,
    /// How many pods
    replicas: u32,
}

#[derive(clap::Args)]
pub(crate) struct KillArgs {
    /// Which run, if several live; the newest if not said
    #[arg(long)]
    run: Option<String>,
    /// A pod's name, or its Deployment's
    pod: String,
}

/// Becomes the program, inside the pod or on the host outside.
pub(crate) fn exec(args: &ExecArgs) -> Result<ExitCode> {
    sudo::become_root(false)?;
    let (_, run) = find(args.run.as_deref())?;
    let folder = std::env::current_dir().ok();
    match (enter::find_pod(&run, &args.pod), run.hosts.iter().find(|host| host.name == args.pod)) {
        (Err(_), Some(host)) => enter::enter_host(host)?,
        (pod, _) => enter::enter_pod(pod?)?,
    }
    let (program, arguments) = args.command.split_first().context("no program is given")?;
    replace(Command::new(program).args(arguments), folder)
}

/// Becomes netlb, inside the node.
pub(crate) fn netlb(args: &NetlbArgs) -> Result<ExitCode> {
    sudo::become_root(false)?;
    let (_, run) = find(args.run.as_deref())?;
    let Some(node) = run.nodes.iter().find(|node| node.number == args.node) else {
        bail!("run {} has no node {}; it has {}", run.id, args.node, run.nodes.len());
    };
    let folder = std::env::current_dir().ok();
    enter::enter_node(node)?;
    let mut command = Command::new(&node.netlb);
    command.args(&args.arguments);
    let asks_help =
        args.arguments.iter().any(|word| matches!(word.as_str(), "-h" | "--help" | "help" | "-V" | "--version"));
    if !asks_help && !args.arguments.is_empty() {
        command.args(["--pin-path", PIN_PATH]).arg("--run-dir").arg(&node.run_dir);
    }
    replace(&mut command, folder)
}

/// Asks a run to scale a workload.
pub(crate) fn scale(args: &ScaleArgs) -> Result<ExitCode> {
    ask(args.run.as_deref(), &Request::Scale { workload: args.workload.clone(), replicas: args.replicas })
}

/// Asks a run to kill a pod.
pub(crate) fn kill(args: &KillArgs) -> Result<ExitCode> {
    ask(args.run.as_deref(), &Request::Kill { pod: args.pod.clone() })
}

/// Removes what dead runs left.
pub(crate) fn clean() -> Result<ExitCode> {
    sudo::become_root(false)?;
    let mut removed = TEST_NODES.clean(|_| Ok(Vec::new()))?;
    removed.extend(netlb_testcluster::state::clean()?);
    if removed.is_empty() {
        println!("Nothing to clean.");
    }
    for line in removed {
        println!("removed {line}");
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(id: Option<&str>, request: &Request) -> Result<ExitCode> {
    sudo::become_root(false)?;
    let (folder, _) = find(id)?;
    println!("{}", control::ask(&folder, request)?);
    Ok(ExitCode::SUCCESS)
}

/// The newest live run, or the one with this id.
fn find(id: Option<&str>) -> Result<(PathBuf, RunFile)> {
    let mut runs = TEST_NODES.live::<RunFile>()?;
    let known: Vec<String> = runs.iter().map(|(_, run)| run.id.clone()).collect();
    match id {
        None => runs.pop().context("no run is live; start one with `cargo xtask run` in another terminal"),
        Some(id) => runs
            .into_iter()
            .find(|(_, run)| run.id == id)
            .with_context(|| format!("no run {id} is live; live are: {}", known.join(", "))),
    }
}

/// Becomes `command`. Entering mounts moved us to the root folder; go back where the user stood, if that exists there.
fn replace(command: &mut Command, folder: Option<PathBuf>) -> Result<ExitCode> {
    if let Some(folder) = folder.filter(|folder| folder.is_dir()) {
        command.current_dir(folder);
    }
    let error = command.exec();
    bail!("cannot start {}: {error}", command.get_program().to_string_lossy())
}
