//! A real API server beside a test node, on the host outside of it: etcd, kube-controller-manager, and kube-apiserver twice. One is the agent's,
//! and may be killed, stopped and started; the other is the test's and the controllers', so that the world goes on meanwhile.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use netlb_testcluster::certificates::{Authority, Files};
use netlb_testcluster::daemon::{Daemon, wait_for};
use netlb_testcluster::{etcd, programs};
use netlb_testnode::TestNode;
use netlb_testnode::address;
use netlb_testnode::process::Place;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How long the API server may take to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// The agent's API server, and the other one.
const PORTS: [u16; 2] = [6443, 6444];
/// Requests under way at a time, when many are made.
const AT_ONCE: usize = 32;

/// The control plane. Dropped, nothing of it is left.
pub struct ControlPlane {
    /// The agent's API server.
    pub server: Daemon,
    _manager: Daemon,
    other: Daemon,
    etcd: Daemon,
    authority: Authority,
    place: Place,
    admin: PathBuf,
}

/// The folder of the programs, if they are built.
///
/// # Errors
/// Says which one is missing.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("this test is in no target folder")?;
    let folder = programs::folder(target);
    let mains = programs::CONTROL_PLANE.iter().map(programs::Program::name);
    for name in mains.chain(["etcd"]) {
        ensure!(folder.join(name).is_file(), "there is no {name} in {}", folder.display());
    }
    Ok(folder)
}

impl ControlPlane {
    /// Starts everything and waits until objects can be made.
    ///
    /// # Errors
    /// Names what does not start, with the end of its log.
    pub fn start(node: &TestNode) -> Result<Self> {
        let (bin, folder) = (programs()?, node.folder().join("control-plane"));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let place = node.outside().place.clone();
        let authority = Authority::create(folder.join("pki"))?;
        let names = ["kubernetes", "kubernetes.default.svc"];
        let addresses: Vec<IpAddr> =
            vec![address::OUTSIDE.v4.into(), Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(10, 96, 0, 1).into()];
        let serving = authority.server("kube-apiserver", &names, &addresses)?;
        let accounts = Files { certificate: authority.accounts_public_key(), key: authority.accounts_key() };
        let admin = authority.kubeconfig("admin", &url(PORTS[1]), "admin", Some("system:masters"))?;

        let (program, data) = (bin.join("etcd"), folder.join("etcd"));
        let etcd = Daemon::start("etcd", &place, &folder, move || etcd_command(&program, &data))?;
        let server = |port: u16, name: &str| {
            let (bin, serving) = (bin.join("kube-apiserver"), serving.clone());
            let (ca, accounts) = (authority.files(), accounts.clone());
            let own = folder.join(name);
            Daemon::start(name, &place, &folder, move || api_server(&bin, port, &serving, &ca, &accounts, &own))
        };
        let (first, other) = (server(PORTS[0], "kube-apiserver")?, server(PORTS[1], "kube-apiserver-2")?);
        let (program, config) = (bin.join("kube-controller-manager"), admin.clone());
        let (accounts, own) = (accounts.key, folder.join("manager"));
        let manager = Daemon::start("kube-controller-manager", &place, &folder, move || {
            let mut command = Command::new(&program);
            command.arg("--kubeconfig").arg(&config).arg("--service-account-private-key-file").arg(&accounts);
            command.args(["--leader-elect=false", "--kube-api-qps", "200", "--kube-api-burst", "400"]);
            // Nodes have no kubelet here: nobody may think them dead.
            command.args(["--controllers", "*,-node-lifecycle-controller", "--cert-dir"]).arg(&own);
            command
        })?;
        let plane = Self { server: first, _manager: manager, other, etcd, authority, place, admin };
        plane.wait()?;
        Ok(plane)
    }

    /// Waits until both API servers are ready.
    ///
    /// # Errors
    /// When a program ends before, or after two minutes.
    pub fn wait(&self) -> Result<()> {
        let daemons = [&self.etcd, &self.server, &self.other];
        let ready = || -> Result<bool> {
            for port in PORTS {
                let file = self.kubeconfig("ready", "admin", Some("system:masters"), port)?;
                if self.ask_by(&file, "GET", "/readyz", None).is_err() {
                    return Ok(false);
                }
            }
            // Made by the API server itself, somewhat after its start.
            Ok(self.ask("GET", "/api/v1/namespaces/default", None).is_ok())
        };
        wait_for("the API server", PATIENCE, &daemons, &netlb_testnode::process::Stop::default(), ready)
    }

    /// A kubeconfig for the agent's API server.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn agent(&self, user: &str) -> Result<PathBuf> {
        self.kubeconfig(user, user, None, PORTS[0])
    }

    fn kubeconfig(&self, file: &str, user: &str, group: Option<&str>, port: u16) -> Result<PathBuf> {
        self.authority.kubeconfig(&format!("{file}-{port}"), &url(port), user, group)
    }

    /// Runs `f` with an administrator's client, where the API server is.
    ///
    /// # Errors
    /// Those of `f`.
    fn with<T: Send>(&self, file: &Path, f: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
        self.place.net().run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let config = Kubeconfig::read_from(file)?;
                let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
                f(Client::try_from(config)?).await
            })
        })?
    }

    /// Asks the API as administrator. A body is a patch of type `merge-patch` for PATCH, and an object else.
    ///
    /// # Errors
    /// What the API server says.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.ask_by(&self.admin, method, path, body)
    }

    fn ask_by(&self, file: &Path, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.with(file, async |client| ask(&client, method, path, body).await)
    }

    /// Makes an object, or changes it to this.
    ///
    /// # Errors
    /// What the API server says.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        self.with(&self.admin, async |client| apply(&client, object, "").await)
    }

    /// Sets an object's status, as a kubelet or a cloud's controller does.
    ///
    /// # Errors
    /// What the API server says.
    pub fn set_status(&self, object: &Value, status: &Value) -> Result<Value> {
        let patch = json!({"status": status});
        self.ask("PATCH", &format!("{}/status", path_of(object)?), Some(&patch))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// What the API server says.
    pub fn delete(&self, object: &Value) -> Result<()> {
        // A pod without a kubelet would wait for it.
        self.ask("DELETE", &format!("{}?gracePeriodSeconds=0", path_of(object)?), None).map(drop)
    }

    /// Applies many objects, several at a time.
    ///
    /// # Errors
    /// The first thing the API server refuses.
    pub fn apply_all(&self, objects: Vec<Value>) -> Result<()> {
        self.with(&self.admin, async |client| {
            let mut under_way: JoinSet<Result<Value>> = JoinSet::new();
            for object in objects {
                if under_way.len() >= AT_ONCE {
                    under_way.join_next().await.context("none under way")???;
                }
                let client = client.clone();
                under_way.spawn(async move { apply(&client, &object, "").await });
            }
            while let Some(done) = under_way.join_next().await {
                done??;
            }
            Ok(())
        })
    }

    /// Makes etcd forget all history.
    ///
    /// # Errors
    /// What etcd says.
    pub fn compact(&self) -> Result<()> {
        etcd::compact(self.place.net())
    }

    /// Tries until `check` succeeds, for as long as a healthy agent could need.
    ///
    /// # Errors
    /// The last error of `check`.
    pub fn eventually<T>(&self, what: &str, mut check: impl FnMut() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match check() {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("in vain waited until {what}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

fn url(port: u16) -> String {
    format!("https://{}:{port}", address::OUTSIDE.v4)
}

fn etcd_command(program: &Path, data: &Path) -> Command {
    let mut command = Command::new(program);
    let client = format!("http://127.0.0.1:{}", etcd::PORT);
    command.arg("--data-dir").arg(data).args(["--unsafe-no-fsync", "--log-level", "error"]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
    command
}

fn api_server(program: &Path, port: u16, serving: &Files, ca: &Files, accounts: &Files, own: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--etcd-servers", &format!("http://127.0.0.1:{}", etcd::PORT)]);
    command.args(["--advertise-address", &address::OUTSIDE.v4.to_string(), "--secure-port", &port.to_string()]);
    // The endpoints of its Service are those of the agent's server.
    command.args(if port == PORTS[0] { [].as_slice() } else { &["--endpoint-reconciler-type=none"] });
    command.arg("--tls-cert-file").arg(&serving.certificate).arg("--tls-private-key-file").arg(&serving.key);
    command.arg("--client-ca-file").arg(&ca.certificate).arg("--cert-dir").arg(own);
    command.args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"]);
    command.arg("--service-account-key-file").arg(&accounts.certificate);
    command.arg("--service-account-signing-key-file").arg(&accounts.key);
    command.args(["--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount"]);
    command.args(["--service-cluster-ip-range", &format!("{},{}", address::SERVICES_V4, address::SERVICES_V6)]);
    command.args(["--profiling=false", "--shutdown-delay-duration=0s"]);
    command
}

async fn ask(client: &Client, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let request = Request::builder().method(method).uri(path).header("Content-Type", kind);
    let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
    let text = client.request_text(request.body(body)?).await.with_context(|| format!("{method} {path}"))?;
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn apply(client: &Client, object: &Value, what: &str) -> Result<Value> {
    let path = format!("{}{what}?fieldManager=netlb-tests&force=true", path_of(object)?);
    // JSON is YAML.
    let request = Request::builder().method("PATCH").uri(&path).header("Content-Type", "application/apply-patch+yaml");
    let request = request.body(object.to_string().into_bytes())?;
    client.request(request).await.with_context(|| format!("PATCH {path}"))
}

/// Where an object of a kind that tests use is.
fn path_of(object: &Value) -> Result<String> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (kind, name) = (text("/kind").unwrap_or_default(), text("/metadata/name").context("an object has a name")?);
    let version = text("/apiVersion").context("an object has an apiVersion")?;
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let namespace = text("/metadata/namespace").unwrap_or("default");
    Ok(match kind {
        "Service" => format!("{root}/namespaces/{namespace}/services/{name}"),
        "EndpointSlice" => format!("{root}/namespaces/{namespace}/endpointslices/{name}"),
        "Pod" => format!("{root}/namespaces/{namespace}/pods/{name}"),
        "Node" => format!("{root}/nodes/{name}"),
        "ServiceCIDR" => format!("{root}/servicecidrs/{name}"),
        "ClusterRole" => format!("{root}/clusterroles/{name}"),
        "ClusterRoleBinding" => format!("{root}/clusterrolebindings/{name}"),
        other => bail!("no test needs a {other}"),
    })
}
