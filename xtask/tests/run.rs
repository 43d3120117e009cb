//! `cargo xtask run` from the outside: the proof can fail, and nothing outlives a run, however it ends. Needs root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use netlb_testnode::state::{RunFile, TEST_NODES};

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Child {
    let mut all = vec!["run", "--built", "--once", "--detached"];
    all.extend(arguments);
    xtask(&all).spawn().expect("a run")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Waits until the run of this process has pods, and returns what it says of itself.
fn wait_for_pods(child: &Child) -> (PathBuf, RunFile) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        let live = TEST_NODES.live::<RunFile>().expect("the list of live runs");
        if let Some(found) = live.into_iter().find(|(_, run)| run.pid == child.id() && !run.pods.is_empty()) {
            return found;
        }
        sleep(Duration::from_millis(5));
    }
    panic!("run {} has no pods", child.id());
}

/// The network namespaces that processes are in.
fn namespaces() -> BTreeSet<PathBuf> {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| fs::read_link(entry.ok()?.path().join("ns/net")).ok())
        .collect()
}

fn group(run: &RunFile) -> PathBuf {
    TEST_NODES.cgroup(&run.id).expect("cgroup2")
}

fn processes(group: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, signal).expect("a signal");
}

#[test]
fn a_run_whose_programs_are_not_attached_fails_and_names_every_service() {
    for style in ["bridge", "routed"] {
        let output = run(&["--pod-network", style]).wait_with_output().expect("the run's end");
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let (_, wrong) = said.split_once("Not right:").expect("a list of what is wrong");
        for service in [
            "agent:http",
            "cache:cache",
            "cart",
            "door:http",
            "door:knock",
            "echo",
            "echo-v4",
            "echo-v6",
            "front:http",
            "gate:http",
            "gate:log",
            "names:dns",
            "names:dns-tcp",
            "planned:http",
            "shield:http",
            "shield:quic",
            "shop:http",
            "shop:metrics",
            "signal:diameter",
            "signal:diameter-tcp",
            "soon:http",
            "soon:news",
            "uplink:http",
            "web",
            "zonal:http",
        ] {
            assert!(wrong.contains(&format!("default/{service} (")), "{service} is not named in: {wrong}");
        }
    }
}

#[test]
fn the_report_says_what_was_sent_and_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let manifests = folder.path().join("one.yaml");
    fs::write(
        &manifests,
        "{kind: Service, metadata: {name: one}, spec: {selector: {a: b}, ports: [{port: 80}]}}\n---\n\
         {kind: Pod, metadata: {name: p, labels: {a: b}}, spec: {containers: [{name: c}]}}\n",
    )
    .expect("manifests");
    let path = |path: &Path| path.display().to_string();
    let output =
        run(&["--report", &path(&file), "--manifests", &path(&manifests)]).wait_with_output().expect("the run's end");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let report: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("the report")).expect("JSON");
    assert_eq!(report["ok"], false);
    let clients: Vec<_> = report["clients"].as_array().expect("clients").iter().map(|c| c["client"].clone()).collect();
    assert_eq!(clients, ["pod", "node", "backend", "outside", "far"]);
    for client in report["clients"].as_array().expect("clients") {
        let rows = client["requests"].as_array().expect("rows");
        // It has no address but its own, which the far host does not ask for.
        if client["client"] == "far" {
            assert!(rows.is_empty());
            continue;
        }
        let families: Vec<_> = rows.iter().map(|row| row["family"].clone()).collect();
        assert_eq!(families, ["ipv4", "ipv6"]);
        for row in rows {
            assert_eq!(
                (row["service"].as_str(), row["kind"].as_str(), row["port"].as_u64(), row["answered"].as_u64()),
                (Some("default/one"), Some("ClusterIP"), Some(80), Some(0))
            );
            assert_eq!(row["backends"].as_array().expect("backends").len(), 1);
            assert!(row["sent"].as_u64() > Some(0));
        }
    }
}

#[test]
fn two_runs_do_not_meet_and_leave_nothing() {
    let children = [run(&[]), run(&["--nodes", "2"])];
    let runs: Vec<_> = children.iter().map(wait_for_pods).collect();
    assert_ne!(runs[0].0, runs[1].0);
    for child in children {
        let output = child.wait_with_output().expect("the run's end");
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    }
    for (folder, run) in &runs {
        assert!(!folder.exists() && !group(run).exists());
    }
}

#[test]
fn a_signal_ends_a_run_and_nothing_is_left() {
    for kind in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGTERM] {
        let child = run(&[]);
        let (folder, file) = wait_for_pods(&child);
        let pids = processes(&group(&file));
        assert!(!pids.is_empty());
        signal(&child, kind);
        let output = child.wait_with_output().expect("the run's end");
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(!folder.exists() && !group(&file).exists());
        assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
    }
}

#[test]
fn kill_9_leaves_only_what_clean_removes_and_clean_spares_the_living() {
    let mut victim = run(&["--pod-network", "routed"]);
    let (folder, file) = wait_for_pods(&victim);
    let own: BTreeSet<PathBuf> = processes(&group(&file))
        .into_iter()
        .filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok())
        .collect();
    assert!(!own.is_empty());
    signal(&victim, nix::sys::signal::Signal::SIGKILL);
    victim.wait().expect("the run's end");
    // The kernel kills the children while the run's threads go; it has no duty to be done when the run is reaped.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !processes(&group(&file)).is_empty() && Instant::now() < deadline {
        sleep(Duration::from_millis(5));
    }
    assert_eq!(processes(&group(&file)), Vec::<u32>::new());
    assert!(namespaces().is_disjoint(&own));
    assert!(folder.exists() && group(&file).exists());

    let other = run(&[]);
    let (living, other_file) = wait_for_pods(&other);
    let cleaned = xtask(&["clean"]).output().expect("clean");
    assert!(cleaned.status.success(), "{}", text(&cleaned));
    assert!(text(&cleaned).contains(&format!("removed folder {}\n", folder.display())), "{}", text(&cleaned));
    assert!(!folder.exists() && !group(&file).exists());
    assert!(living.exists() && !processes(&group(&other_file)).is_empty());
    other.wait_with_output().expect("the run's end");
}
