//! `cargo xtask conformance`: upstream's own end-to-end tests on a real cluster, and what became of them.

use std::fs::{self, File};
use std::io::{BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netlb_testcluster::conformance::{self, Outcome, Results, Selection};
use netlb_testcluster::programs::{self, E2E, KUBERNETES};
use netlb_testcluster::state::{CLUSTERS, ClusterFile};
use netlb_testcluster::{Proxy, wires};

use crate::cluster::interrupt::Interrupt;
use crate::cluster::{self, Shape, keeper};
use crate::sh;

/// How many specs run at a time, as upstream's own CI does it.
const AT_A_TIME: &str = "8";
/// How many nodes a cluster for the tests has if nobody says: some need three, each in a zone of its own.
const NODES: u8 = 3;
/// How often a run says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// Arguments of `conformance`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    shape: Shape,
    /// Only specs whose names match this regular expression (without `[sig-network] `), of those that may run
    #[arg(long, value_name = "RE", conflicts_with = "smoke")]
    focus: Option<String>,
    /// About ten specs, one of each kind
    #[arg(long)]
    smoke: bool,
    /// Write a page with the last whole run of every proxy, side by side; this one's specs are added to it if it left them out
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Everything is built already; set when the program starts itself again as root
    #[arg(long, hide = true)]
    built: bool,
}

/// Runs the tests in a live cluster of this shape, or else in one of its own.
pub(crate) fn conformance(args: &Args) -> Result<ExitCode> {
    let mut selection = Selection::committed()?;
    if let Some(pattern) = &args.focus {
        selection.narrow(pattern)?;
    }
    if args.smoke {
        selection.smoke()?;
    }
    cluster::prepare(args.built, args.shape.proxy)?;
    let interrupt = Interrupt::listen()?;
    let mut live = CLUSTERS.live::<ClusterFile>()?.into_iter().map(|(_, cluster)| cluster);
    let bin = programs::folder(&sh::root().join("target"));
    let fits = |file: &ClusterFile| {
        let (netlb, nodes) = (args.shape.proxy == Proxy::Netlb, args.shape.nodes);
        // Another checkout's cluster has another netlb.
        file.bin == bin
            && file.proxy == args.shape.proxy.name()
            && (!netlb || file.accel == args.shape.accel)
            && nodes.is_none_or(|nodes| file.nodes == nodes)
    };
    match live.rfind(fits) {
        Some(cluster) => {
            println!("Cluster {} is up and has {}: the tests run there.", cluster.id, cluster.proxy);
            run(args, &selection, &cluster, &interrupt)
        }
        None => {
            let shape = Shape { nodes: args.shape.nodes.or(Some(NODES)), ..args.shape.clone() };
            let Some(cluster) = cluster::start(&shape, &interrupt)? else { return Ok(ExitCode::FAILURE) };
            let result = run(args, &selection, &cluster, &interrupt);
            // Interrupted, the keeper has been asked already, and may be gone.
            keeper::end(cluster.pid, &Path::new(CLUSTERS.base).join(&cluster.id))
                .or_else(|error| if interrupt.asked() { Ok(()) } else { Err(error) })?;
            result
        }
    }
}

fn run(args: &Args, selection: &Selection, cluster: &ClusterFile, interrupt: &Interrupt) -> Result<ExitCode> {
    let column = match args.shape.proxy {
        Proxy::Netlb => format!("netlb --accel {}", args.shape.accel),
        proxy @ (Proxy::Nftables | Proxy::Iptables) => proxy.name().to_owned(),
    };
    let folder = sh::root().join("target/cluster/conformance");
    let own = folder.join(column.replace([' ', '-'], ""));
    fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let suite = Suite { cluster, folder: &own, interrupt };

    let all = suite.run("names", &["--dry-run".to_owned(), format!("--focus={}", r"\[sig-network\]")], None)?;
    let all: Vec<&str> =
        all.iter().filter(|(_, outcome)| *outcome == Outcome::Passed).map(|(name, _)| name.as_str()).collect();
    let (chosen, left_out) = selection.choose(args.shape.proxy, all);
    if chosen.is_empty() {
        bail!("no spec is chosen: all {} that were looked at are left out", left_out.len());
    }
    println!("{} specs run, {AT_A_TIME} at a time; {} are left out.", chosen.len(), left_out.len());
    let started = Instant::now();
    let (together, disruptive) = conformance::alone(&chosen);
    let mut report = Vec::new();
    for (name, procs, specs) in [("specs", AT_A_TIME, &together), ("disruptive", "1", &disruptive)] {
        if !specs.is_empty() {
            let options = [format!("--procs={procs}"), format!("--focus={}", conformance::focus(specs))];
            let all = suite.run(name, &options, Some(specs.len()))?;
            // A report names all specs there are: those of the other run were skipped.
            report.extend(all.into_iter().filter(|(name, _)| specs.contains(&name.as_str())));
        }
    }
    let results = Results::new(&column, &today()?, &chosen, left_out, &report);

    for (name, outcome) in &results.specs {
        match outcome {
            Outcome::Passed => {}
            Outcome::Failed(why) => println!("FAILED    {name}\n          {}", why.lines().next().unwrap_or_default()),
            Outcome::LeftOut(why) => println!("left out  {name}\n          {}", why.lines().next().unwrap_or_default()),
        }
    }
    let [passed, failed, left_out] = results.counts();
    println!("{column}: {left_out} left out; {} s; all of it in {}", started.elapsed().as_secs(), own.display());
    println!("{passed} passed, {failed} failed");
    let kept = folder.join(format!("{}.json", column.replace([' ', '-'], "")));
    if args.focus.is_none() && !args.smoke {
        save(&kept, &results)?;
    } else if kept.is_file() {
        let mut whole = read(&kept)?;
        let added = whole.complete(&results);
        save(&kept, &whole)?;
        println!("{added} specs that the last whole run left out are added to it.");
    }
    if let Some(page) = &args.report {
        write_page(page, &folder)?;
    }
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Upstream's suite, on the outside client of a cluster.
struct Suite<'a> {
    cluster: &'a ClusterFile,
    folder: &'a Path,
    interrupt: &'a Interrupt,
}

impl Suite<'_> {
    /// Runs ginkgo to its end and returns its report. It leaves `NAME.log` and `NAME.json`; `total` is what it is to run, if
    /// that takes long enough to say how far it is.
    fn run(&self, name: &str, options: &[String], total: Option<usize>) -> Result<Vec<(String, Outcome)>> {
        let report = self.folder.join(format!("{name}.json"));
        if report.exists() {
            fs::remove_file(&report).with_context(|| format!("cannot remove {}", report.display()))?;
        }
        let mut command = Command::new(std::env::current_exe().context("cannot find the running program")?);
        command.args(["cluster", "exec", "--cluster", &self.cluster.id, wires::CLIENT, "--", "ginkgo", "run"]);
        command.args(["--no-color", "--succinct", "--silence-skips", "--timeout=3h"]).args(options);
        command.arg(format!("--json-report={name}.json")).arg(format!("--junit-report={name}.xml"));
        command.arg(format!("--output-dir={}", self.folder.display())).arg(self.cluster.bin.join(E2E)).arg("--");
        command.args(["--provider=skeleton", "--disable-log-dump", &format!("--num-nodes={}", self.cluster.nodes)]);
        command.arg(format!("--kubeconfig={}", self.cluster.kubeconfig.display()));
        command.arg(format!("--kubectl-path={}", self.cluster.bin.join("kubectl").display()));
        command.current_dir(self.folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("cannot start ginkgo")?;
        self.interrupt.pass_to(child.id())?;
        let output = child.stdout.take().context("ginkgo has no output")?;
        watch(output, &self.folder.join(format!("{name}.log")), total)?;
        let status = child.wait().context("cannot wait for ginkgo")?;
        self.interrupt.forget(child.id());
        if self.interrupt.asked() {
            bail!("interrupted");
        }
        // Specs that fail make ginkgo fail, too: the report says more.
        let text = fs::read_to_string(&report)
            .with_context(|| format!("ginkgo ended ({status}) without a report; see {}", self.folder.display()))?;
        conformance::read_report(&text)
    }
}

/// Copies what ginkgo prints to a log, and says now and then how many of its specs have ended: it prints a dot for each.
fn watch(output: impl std::io::Read, log: &Path, total: Option<usize>) -> Result<()> {
    let mut log = File::create(log).with_context(|| format!("cannot make {}", log.display()))?;
    let (mut output, mut buffer) = (BufReader::new(output), [0; 4096]);
    let (started, mut reported, mut ended) = (Instant::now(), Instant::now(), 0);
    loop {
        let read = output.read(&mut buffer).context("cannot read ginkgo's output")?;
        let text = buffer.get(..read).unwrap_or_default();
        if text.is_empty() {
            return Ok(());
        }
        log.write_all(text).context("cannot write the log")?;
        // The first byte of a bullet in UTF-8 stands in no other character that ginkgo prints as often.
        ended += text.windows(3).filter(|bytes| *bytes == "•".as_bytes()).count();
        if let Some(total) = total.filter(|_| reported.elapsed() >= PROGRESS) {
            reported = Instant::now();
            println!("  {} s: about {ended} of {total} specs have ended", started.elapsed().as_secs());
        }
    }
}

fn save(path: &Path, results: &Results) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(results)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
}

/// Writes the page of all runs that are kept in `folder`.
fn write_page(page: &Path, folder: &Path) -> Result<()> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            runs.push(read(&path)?);
        }
    }
    runs.sort_by(|a, b| b.proxy.cmp(&a.proxy));
    fs::write(page, conformance::page(KUBERNETES, &runs))
        .with_context(|| format!("cannot write {}", page.display()))?;
    println!("The page is {}.", page.display());
    Ok(())
}

fn today() -> Result<String> {
    sh::read(Command::new("date").args(["-u", "+%F"])).context("`date` does not say which day it is")
}
