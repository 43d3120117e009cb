//! From a changed file to the changed datapath: the real agent, in namespaces of its own, scales one EndpointSlice up and down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use netlb_common::abi::ABI_VERSION;
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::maps::name;
use netlb_common::{Addr, Port, proto};
use netlb_testnode::cgroup::{self, Cgroup};
use netlb_testnode::link::Links;
use netlb_testnode::netns::{MountNs, NetNs};
use netlb_testnode::process::{Place, Process};
use netlb_testnode::state::{StateDir, TEST_NODES};
use serde::Serialize;

use crate::machine;
use crate::stats::quantile;
use crate::world::Family;

const CHANGES: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(10);
const PIN_PATH: &str = "/sys/fs/bpf/netlb";

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) median: f64,
    pub(crate) p90: f64,
    pub(crate) max: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Agent {
    pub(crate) changes: u32,
    pub(crate) map_ms: Times,
    pub(crate) status_ms: Times,
    /// Of each change, in order.
    pub(crate) map_samples: Vec<f64>,
    pub(crate) status_samples: Vec<f64>,
}

/// # Errors
/// When the agent does not start or does not apply a change.
pub(crate) fn measure(program: &Path) -> Result<Agent> {
    // The agent's mount namespace has another working directory.
    let Ok(program) = fs::canonicalize(program) else {
        bail!(
            "there is no agent at {}; do `cargo build --release -p netlb-user`, or leave it out with --only packets,maps",
            program.display()
        );
    };
    eprintln!("agent…");
    // A run like those of the test node: `cargo xtask clean` leaves a live one alone, and removes what a killed one left.
    let state = StateDir::create(TEST_NODES)?;
    let net = NetNs::create()?;
    Links::open(&net)?.up("lo")?;
    let mount = MountNs::create()?;
    let group = cgroup::mount_point()?.join(format!("{}{}", TEST_NODES.group, state.id()));
    let group = Arc::new(Cgroup::create(group)?);
    let (source, run) = (state.path().join("source"), state.path().join("run"));
    for path in [&source, &run] {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    replace(&source, "service.yaml", SERVICE)?;
    replace(&source, "endpointslice.yaml", &slice(3))?;
    replace(&source, "revision", "0\n")?;

    let place = Place::new("bench", net, Some(mount.clone()), Some(Arc::clone(&group)))?;
    let log = state.path().join("agent.log");
    let output = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = Command::new(program);
    command.arg("agent").arg("--source").arg(&source).args(["--node-name", "bench", "--pin-path", PIN_PATH]);
    command.arg("--run-dir").arg(&run).arg("--cgroup").arg(group.path());
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut agent = place.spawn("the agent", command)?;
    let result = mount.run(|| scale(&mut agent, &source, &run))?;
    agent.terminate(Duration::from_secs(2))?;
    result.with_context(|| format!("the agent's last words:\n{}", tail(&log)))
}

fn scale(process: &mut Process, source: &Path, run: &Path) -> Result<Agent> {
    await_revision(process, run, "0")?;
    let pin = PathBuf::from(PIN_PATH).join(format!("v{ABI_VERSION}/maps")).join(name::FRONTENDS);
    let map =
        Map::from_map_data(MapData::from_pin(&pin).with_context(|| format!("cannot open the pin {}", pin.display()))?)?;
    let map = HashMap::<_, FrontendKey, FrontendValue>::try_from(map)?;
    let key = FrontendKey::new(Addr::from_ip(Family::V4.vip()), Port::new(80), proto::TCP);
    let mut now = map.get(&key, 0).context("the agent says it applied the Service, but FRONTENDS does not have it")?;
    ensure!(now.count == 3, "FRONTENDS says {} endpoints where 3 were given", now.count);

    let (mut map_samples, mut status_samples) = (Vec::new(), Vec::new());
    for change in 1..=CHANGES {
        machine::check_stop()?;
        // At no fixed place in any timer of the agent.
        std::thread::sleep(Duration::from_millis(u64::from(60 + change * 37 % 50)));
        let endpoints = if now.count == 3 { 5 } else { 3 };
        let (slice, revision) = (prepare(source, "endpointslice.yaml", &slice(endpoints))?, change.to_string());
        let counter = prepare(source, "revision", &revision)?;
        let started = Instant::now();
        publish(&slice, source, "endpointslice.yaml")?;
        publish(&counter, source, "revision")?;
        while now.count != endpoints {
            if started.elapsed() > PATIENCE {
                bail!("change {change}: FRONTENDS does not change after {PATIENCE:?}");
            }
            now = map.get(&key, 0).with_context(|| format!("change {change}: the Service is gone from FRONTENDS"))?;
        }
        map_samples.push(started.elapsed().as_secs_f64() * 1e3);
        await_revision(process, run, &revision)?;
        status_samples.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Agent {
        changes: CHANGES,
        map_ms: times(&map_samples)?,
        status_ms: times(&status_samples)?,
        map_samples,
        status_samples,
    })
}

fn times(samples: &[f64]) -> Result<Times> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |q| quantile(&sorted, q).context("no change was measured");
    Ok(Times { median: at(0.5)?, p90: at(0.9)?, max: at(1.0)? })
}

fn await_revision(process: &mut Process, run: &Path, revision: &str) -> Result<()> {
    let path = run.join("status.json");
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait()? {
            bail!("the agent ended ({status})");
        }
        // The file is replaced whole; until the first it is not there.
        if let Ok(text) = fs::read_to_string(&path) {
            let status: serde_json::Value =
                serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
            let synced = status.get("synced").and_then(serde_json::Value::as_bool) == Some(true);
            if synced && status.get("revision").and_then(serde_json::Value::as_str) == Some(revision) {
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            bail!("{} does not report revision {revision} after {PATIENCE:?}", path.display());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Writes a file beside its place, to be renamed there.
fn prepare(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(format!(".{name}.new"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn publish(prepared: &Path, folder: &Path, name: &str) -> Result<()> {
    fs::rename(prepared, folder.join(name)).with_context(|| format!("cannot rename {}", prepared.display()))
}

fn replace(folder: &Path, name: &str, text: &str) -> Result<()> {
    publish(&prepare(folder, name, text)?, folder, name)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: bench, namespace: default}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  ports:
  - {name: web, port: 80, targetPort: 8080, protocol: TCP}
";

fn slice(endpoints: u32) -> String {
    let mut text = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: bench-1
  namespace: default
  labels: {kubernetes.io/service-name: bench}
addressType: IPv4
ports:
- {name: web, port: 8080, protocol: TCP}
endpoints:
"
    .to_owned();
    for n in 0..endpoints {
        text.push_str(&format!("- addresses: [10.244.2.{}]\n  conditions: {{ready: true}}\n", 64 + n));
    }
    text
}
