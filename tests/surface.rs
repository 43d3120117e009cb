//! What stands in kube-proxy's place beside the packets: its configuration file, and the pages on port 10249, over a running node.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use netlb_common::abi::ABI_VERSION;
use netlb_common::maps::capacity;
use netlb_testnode::PodNetwork;
use netlb_testnode::address::Family;
use netlb_testnode::wire::Transport::Tcp;
use netlb_tests::harness::{self, Trial};
use netlb_tests::http::{Response, ask};
use netlb_tests::need::{Need, need};
use netlb_tests::rig::{Rig, Style};
use netlb_tests::sockets::{self, expect_errno};
use netlb_tests::traffic::WORLD;
use nix::errno::Errno;
use prometheus_parse::{LineInfo, Scrape, Value};
use serde_json::{Value as Json, json};

const ACTOR: &str = env!("CARGO_BIN_EXE_netlb-actor");

const STYLE: Style =
    Style { pods: PodNetwork::Routed, delivery: "auto", accel: "none", bridge_netfilter: false, tx_checksum: true };

/// A Service that prefers nothing, with one endpoint elsewhere.
const FAR: &str = "
apiVersion: v1
kind: Service
metadata: {name: far, namespace: default}
spec: {clusterIP: 10.96.9.60, internalTrafficPolicy: Local, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: far-1
  namespace: default
  labels: {kubernetes.io/service-name: far}
addressType: IPv4
endpoints: [{addresses: ['10.244.2.77'], nodeName: node2}]
ports: [{name: http, port: 8080, protocol: TCP}]
";

/// What is asked of a rig.
type Check = fn(&Rig) -> Result<()>;

fn main() -> ExitCode {
    let rig = std::rc::Rc::new(std::cell::LazyCell::new(|| Rig::start(STYLE, ACTOR, WORLD)));
    let trials: [(&str, Check); 6] = [
        ("pages are answered to those who read, and to nobody else", pages),
        ("every line of /metrics can be parsed, and says what `netlb status` says", parse),
        ("counters move when Services come, go and are used", counters),
        ("network programming latency is told once a change, from the time in its annotation", latency),
        ("probes of the health port are counted by status", probes),
        ("a Service with endpoints only elsewhere counts as one without local endpoints", no_local),
    ];
    let shared = trials.map(|(name, check)| {
        let rig = std::rc::Rc::clone(&rig);
        Trial::new(name, move || {
            let rig = (*rig).as_ref().map_err(|error| format!("no rig: {error:#}"))?;
            check(rig).map_err(|error| format!("{error:#}\n{}", rig.agent.log_tail(15)))
        })
    });
    let mut trials: Vec<Trial<'_>> = shared.into();
    trials.push(Trial::new(
        "kube-proxy's file is taken as it is, and a change of it ends the agent, not its traffic",
        || config_file().map_err(|error| format!("{error:#}")),
    ));
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

/// Asks on the port of the pages, on the node.
fn page(rig: &Rig, method: &str, path: &str) -> Result<Response> {
    let at = "127.0.0.1:10249".parse()?;
    rig.node.node(1)?.net().run(|| ask(at, method, path))?
}

/// Every series by its name and labels; of histograms, count and sum.
type Series = BTreeMap<String, f64>;

/// All that /metrics says. Fails on a line that is none of Prometheus' text format.
fn scrape(rig: &Rig) -> Result<Series> {
    let response = page(rig, "GET", "/metrics")?;
    ensure!(response.status == 200, "{response:?}");
    ensure!(response.header("Content-Type") == Some("text/plain; version=0.0.4; charset=utf-8"), "{response:?}");
    let bad = response.body.lines().find(|line| match LineInfo::parse(line) {
        LineInfo::Sample { value, .. } => value.parse::<f64>().is_err(),
        LineInfo::Doc { .. } | LineInfo::Type { .. } => false,
        LineInfo::Empty | LineInfo::Ignored => true,
    });
    ensure!(bad.is_none(), "cannot understand {bad:?}");
    let scrape = Scrape::parse(response.body.lines().map(|line| Ok(line.to_owned())))?;
    let mut series = Series::new();
    for sample in scrape.samples {
        let value = match &sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => *value,
            // Their sums and counts stand beside them.
            Value::Histogram(_) | Value::Summary(_) => continue,
        };
        let labels = if sample.labels.is_empty() { String::new() } else { format!("{{{}}}", sample.labels) };
        let name = format!("{}{labels}", sample.metric);
        ensure!(series.insert(name.clone(), value).is_none(), "{name} is there twice");
    }
    Ok(series)
}

fn value(series: &Series, name: &str) -> Result<f64> {
    series.get(name).copied().with_context(|| format!("no {name} among {:?}", series.keys()))
}

fn pages(rig: &Rig) -> Result<()> {
    for (path, kind, body) in [
        ("/healthz", "text/plain; charset=utf-8", "ok"),
        ("/healthz?verbose", "text/plain; charset=utf-8", "ok"),
        ("/proxyMode", "text/plain; charset=utf-8", "netlb"),
    ] {
        let response = page(rig, "GET", path)?;
        ensure!(response.status == 200 && response.body == body, "{path}: {response:?}");
        ensure!(response.header("Content-Type") == Some(kind), "{path}: {response:?}");
        ensure!(response.header("X-Content-Type-Options") == Some("nosniff"), "{path}: {response:?}");
        let head = page(rig, "HEAD", path)?;
        ensure!(head.status == 200 && head.body.is_empty(), "HEAD {path}: {head:?}");
        ensure!(head.header("Content-Length") == Some(&*body.len().to_string()), "HEAD {path}: {head:?}");
    }
    for path in ["/metrics", "/healthz", "/proxyMode", "/configz"] {
        for method in ["POST", "PUT", "DELETE"] {
            let response = page(rig, method, path)?;
            ensure!(
                response.status == 405 && response.header("Allow") == Some("GET, HEAD"),
                "{method} {path}: {response:?}"
            );
        }
    }
    for path in ["/", "/metrics/", "/livez", "/debug/pprof/"] {
        ensure!(page(rig, "GET", path)?.status == 404, "{path} is answered");
    }
    let response = page(rig, "GET", "/configz")?;
    ensure!(response.header("Content-Type") == Some("application/json"), "{response:?}");
    let all: Json = serde_json::from_str(&response.body)?;
    let kube_proxy = &all["kubeproxy.config.k8s.io"];
    for (field, value) in [
        ("apiVersion", json!("kubeproxy.config.k8s.io/v1alpha1")),
        ("kind", json!("KubeProxyConfiguration")),
        ("hostnameOverride", json!("node1")),
        ("healthzBindAddress", json!("0.0.0.0:10256")),
        ("metricsBindAddress", json!("127.0.0.1:10249")),
        ("nodePortAddresses", json!(["primary"])),
        ("mode", json!("netlb")),
    ] {
        ensure!(kube_proxy[field] == value, "{field}: {}", kube_proxy[field]);
    }
    ensure!(all["netlb"]["delivery"] == "auto", "{}", all["netlb"]);
    let status = rig.agent.status()?.context("no status")?;
    ensure!(status["health"]["metrics"] == "127.0.0.1:10249", "{}", status["health"]);
    Ok(())
}

fn parse(rig: &Rig) -> Result<()> {
    rig.settle()?;
    let status = rig.agent.status()?.context("no status")?;
    let count = |field: &str| status[field].as_f64().with_context(|| format!("no {field}"));
    let series = scrape(rig)?;
    let build = format!("netlb_build_info{{abi=\"{ABI_VERSION}\",version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    let devices = status["devices"].as_array().context("no devices")?.len() as f64;
    for (name, wanted) in [
        ("netlb_ready", 1.0),
        ("netlb_synced", 1.0),
        ("netlb_source_connected", 1.0),
        ("netlb_services", count("services")?),
        ("netlb_devices{attached=\"true\",kind=\"pod\"}", devices),
        ("netlb_devices{attached=\"true\",kind=\"uplink\"}", 1.0),
        ("netlb_programs{state=\"pending\"}", 0.0),
        ("netlb_problems{kind=\"Service\"}", 0.0),
        ("netlb_map_capacity{map=\"CT\"}", f64::from(capacity::CT)),
        (&build, 1.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 0.0),
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family=\"IPv6\"}", 0.0),
    ] {
        let found = value(&series, name)?;
        ensure!((found - wanted).abs() < f64::EPSILON, "{name} is {found}, not {wanted}");
    }
    let backends =
        value(&series, "netlb_backends{state=\"active\"}")? + value(&series, "netlb_backends{state=\"draining\"}")?;
    ensure!(
        (backends - count("backends")?).abs() < f64::EPSILON,
        "{backends} backends, status says {}",
        status["backends"]
    );
    let revision: f64 = status["revision"].as_str().context("no revision")?.trim().parse()?;
    ensure!(value(&series, "netlb_revision_applied")? >= revision, "the revision is older than {revision}");
    let frontends = value(&series, "netlb_frontends")?;
    ensure!(
        frontends > 0.0 && frontends == value(&series, "netlb_map_entries{map=\"FRONTENDS\"}")?,
        "{frontends} frontends"
    );
    // Dashboards take these from every process.
    for name in
        ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"]
    {
        ensure!(value(&series, name)? > 0.0, "{name} is 0");
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    for family in ["IPv4", "IPv6"] {
        let queued = value(
            &series,
            &format!("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"{family}\"}}"),
        )?;
        let last =
            value(&series, &format!("kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"{family}\"}}"))?;
        ensure!(0.0 < queued && queued <= last && last <= now, "queued at {queued}, in effect at {last}, now {now}");
        let full = value(
            &series,
            &format!("kubeproxy_sync_full_proxy_rules_duration_seconds_count{{ip_family=\"{family}\"}}"),
        )?;
        ensure!((full - 1.0).abs() < f64::EPSILON, "{full} full rounds");
    }
    Ok(())
}

/// How much series have grown, after something was done.
fn growth(rig: &Rig, names: &[&str], work: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
    let before = scrape(rig)?;
    work()?;
    let after = scrape(rig)?;
    names.iter().map(|name| Ok(value(&after, name)? - value(&before, name)?)).collect()
}

fn counters(rig: &Rig) -> Result<()> {
    let names = [
        "netlb_services",
        "netlb_frontends",
        "netlb_backends{state=\"active\"}",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    ];
    let rounds = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";
    let writes = "netlb_map_writes_total{result=\"done\"}";
    let before = scrape(rig)?;
    rig.node.write_raw("counted.yaml", Some(&stamped(8080, "2001-01-01T00:00:00Z")))?;
    rig.settle()?;
    let after = scrape(rig)?;
    let mut moved = Vec::new();
    for name in names {
        moved.push(value(&after, name)? - value(&before, name)?);
    }
    // A Service with one port is served at its address, and at the port on it.
    ensure!(moved == [1.0, 2.0, 1.0, 1.0, 1.0], "{names:?} grew by {moved:?}");
    for name in [rounds, writes] {
        ensure!(value(&after, name)? > value(&before, name)?, "{name} did not grow");
    }

    let vip = rig.frontend("web", Family::Ipv4, 80)?;
    let flows = growth(rig, &["netlb_packets_total{reason=\"new_flow\",result=\"went_on\"}"], || {
        rig.inside("client", || sockets::ask(Tcp, vip, "count me")).map(drop)
    })?;
    ensure!(flows == [1.0], "one connection counted as {flows:?}");
    let undefined = rig.frontend("web", Family::Ipv4, 80)?.ip();
    let refused = growth(rig, &["netlb_packets_total{reason=\"undefined_port\",result=\"refused\"}"], || {
        let result = rig.inside("client", || sockets::tcp(None, (undefined, 4).into()));
        expect_errno(result.map(drop), Errno::ECONNREFUSED, "a port that is not served")
    })?;
    ensure!(refused.iter().all(|grown| *grown >= 1.0), "a refusal counted as {refused:?}");

    rig.node.write_raw("broken.yaml", Some("apiVersion: v1\nkind: Service\nmetadata: {name: broken}\nspec: {clusterIP: nowhere, ports: [{port: 80}]}\n"))?;
    rig.settle()?;
    ensure!(value(&scrape(rig)?, "netlb_problems{kind=\"Service\"}")? >= 1.0, "a broken Service is no problem");
    rig.node.write_raw("broken.yaml", None)?;
    rig.node.write_raw("counted.yaml", None)?;
    rig.settle()?;
    let end = scrape(rig)?;
    for name in ["netlb_services", "netlb_frontends", "netlb_problems{kind=\"Service\"}"] {
        ensure!(value(&end, name)? == value(&before, name)?, "{name} stays at {}", value(&end, name)?);
    }
    Ok(())
}

/// A Service with one endpoint and a slice that says when it changed.
fn stamped(port: u16, stamp: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: stamped, namespace: default}}\nspec: {{clusterIP: 10.96.9.50, ports: [{{name: http, port: 80}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: stamped-1\n  namespace: default\n  labels: {{kubernetes.io/service-name: stamped}}\n  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{stamp}'}}\naddressType: IPv4\nendpoints: [{{addresses: ['10.244.2.78'], nodeName: node2}}]\nports: [{{name: http, port: {port}, protocol: TCP}}]\n"
    )
}

/// Now, as the endpoint controllers write it.
fn stamp() -> Result<String> {
    let now = time::OffsetDateTime::from(SystemTime::now());
    Ok(now.format(&time::format_description::well_known::Rfc3339)?)
}

fn latency(rig: &Rig) -> Result<()> {
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    let sum = "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"}";
    let other = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"}";
    let names = [count, sum, other];
    let write = |text: Option<&str>| -> Result<Vec<f64>> {
        growth(rig, &names, || {
            rig.node.write_raw("stamped.yaml", text)?;
            rig.settle()
        })
    };
    let first = stamp()?;
    let grown = write(Some(&stamped(8080, &first)))?;
    ensure!(grown[0] == 1.0 && grown[1] > 0.0 && grown[2] == 0.0, "{names:?} grew by {grown:?}");
    let grown = write(Some(&(stamped(8080, &stamp()?))))?;
    ensure!(grown[0] == 0.0, "another time, and the same endpoints: {grown:?}");
    let grown = write(Some(&(stamped(8081, &stamp()?))))?;
    ensure!(grown[0] == 1.0, "another port: {grown:?}");
    let grown = write(Some(&(stamped(8082, "2001-01-01T00:00:00Z"))))?;
    ensure!(grown[0] == 0.0, "a time before the agent's own: {grown:?}");
    let grown = write(None)?;
    ensure!(grown[0] == 0.0, "a slice that goes: {grown:?}");
    Ok(())
}

fn probes(rig: &Rig) -> Result<()> {
    let net = rig.node.node(1)?.net();
    let probe = |path: &str| net.run(|| ask("127.0.0.1:10256".parse()?, "GET", path))?;
    let names = [
        "kubeproxy_proxy_healthz_total{code=\"200\"}",
        "kubeproxy_proxy_livez_total{code=\"200\"}",
        "kubeproxy_proxy_healthz_total{code=\"503\"}",
    ];
    let grown = growth(rig, &names, || {
        ensure!(probe("/healthz")?.status == 200 && probe("/healthz")?.status == 200);
        ensure!(probe("/livez")?.status == 200 && probe("/elsewhere")?.status == 404);
        Ok(())
    })?;
    ensure!(grown == [2.0, 1.0, 0.0], "{names:?} grew by {grown:?}");
    Ok(())
}

fn no_local(rig: &Rig) -> Result<()> {
    let gauge = |policy: &str, family: &str| -> Result<f64> {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        value(&scrape(rig)?, &format!("{name}{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}}"))
    };
    ensure!(gauge("internal", "IPv4")? == 0.0, "it is not 0 to begin with");
    rig.node.write_raw("far.yaml", Some(FAR))?;
    rig.settle()?;
    ensure!(gauge("internal", "IPv4")? == 1.0, "the Service does not count");
    ensure!(gauge("internal", "IPv6")? == 0.0 && gauge("external", "IPv4")? == 0.0, "it counts elsewhere too");
    rig.node.write_raw("far.yaml", None)?;
    rig.settle()?;
    ensure!(gauge("internal", "IPv4")? == 0.0, "it counts though it is gone");
    Ok(())
}

fn config_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.conf");
    let write = |mode: &str| -> Result<()> {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmetricsBindAddress: 127.0.0.1\nclusterCIDR: 10.244.0.0/16,fd00:10:244::/48\niptables: {{syncPeriod: 30s}}\nudpIdleTimeout: 250ms\nmode: {mode}\n"
        );
        replace(&path, &text)
    };
    write("iptables")?;
    let name = path.display().to_string();
    let rig = Rig::start_with(STYLE, ACTOR, WORLD, &["--config", &name, "--proxy-mode", "iptables"])?;
    let check = || -> Result<()> {
        let log = rig.agent.log_tail(200);
        for words in [
            "iptables.syncPeriod (\"30s\") is accepted and does nothing",
            "udpIdleTimeout (line 6) is no field of KubeProxyConfiguration",
        ] {
            ensure!(log.contains(words), "the log does not say {words}:\n{log}");
        }
        ensure!(page(&rig, "GET", "/proxyMode")?.body == "iptables");
        let configz = || -> Result<Json> {
            Ok(serde_json::from_str::<Json>(&page(&rig, "GET", "/configz")?.body)?["kubeproxy.config.k8s.io"].take())
        };
        let shown = configz()?;
        ensure!(
            shown["clusterCIDR"] == "10.244.0.0/16,fd00:10:244::/48" && shown["detectLocalMode"] == "ClusterCIDR",
            "{shown}"
        );
        ensure!(shown["iptables"]["syncPeriod"] == "30s" && shown["iptables"]["masqueradeAll"] == false, "{shown}");
        let notes = rig.agent.status()?.context("no status")?["notes"].to_string();
        ensure!(notes.contains("udpIdleTimeout"), "the status does not say it: {notes}");

        // The same words again are no change; others end the agent, and nothing else.
        let pid = rig.agent.pid();
        write("iptables")?;
        rig.node.write_raw("far.yaml", Some(FAR))?;
        rig.settle()?;
        ensure!(rig.agent.is_running() && rig.agent.pid() == pid, "the agent ended though its file says the same");
        let before = rig.agent.netlb(&["dump", "--config-only"])?;
        let text = fs::read_to_string(&path)?;
        replace(&path, &(text + "iptables: {masqueradeAll: true}\n").replace("iptables: {syncPeriod: 30s}\n", ""))?;
        rig.eventually("the agent ends", || {
            ensure!(!rig.agent.is_running(), "it runs");
            Ok(())
        })?;
        let log = rig.agent.log_tail(3);
        ensure!(log.contains("the file of --config has changed"), "{log}");
        let vip = rig.frontend("web", Family::Ipv4, 80)?;
        rig.inside("client", || sockets::ask(Tcp, vip, "without an agent"))?;
        ensure!(rig.agent.netlb(&["dump", "--config-only"])? == before, "the maps changed");

        rig.agent.restart()?;
        rig.settle()?;
        ensure!(configz()?["iptables"]["masqueradeAll"] == true, "{}", configz()?);
        rig.inside("client", || sockets::ask(Tcp, vip, "with it again")).map(drop)
    };
    check().map_err(|error| anyhow!("{error:#}\n{}", rig.agent.log_tail(15)))
}

/// Replaces a file at once, as a ConfigMap's are.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path).with_context(|| path.display().to_string())
}
