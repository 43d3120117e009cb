//! The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and the cluster's name server.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlb_testnode::address;
use netlb_testnode::process::{Place, Process, Stop};

use crate::certificates::Authority;
use crate::daemon::{Daemon, wait_for};
use crate::wires::{self, Folders, Host};

/// The API server's port.
const PORT: u16 = 6443;
/// That of the second one, which nobody knows.
const SECOND: u16 = 6444;
/// The Service address of the API server: the first of the range.
const KUBERNETES_V4: &str = "10.96.0.1";
/// The Service address of the cluster's name server.
pub const DNS_V4: &str = "10.96.0.10";
/// The cluster's own domain.
pub const DOMAIN: &str = "cluster.local";
/// How long the API server may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// The programs of the control plane.
pub struct ControlPlane {
    /// etcd; its data are in the control plane's memory.
    pub etcd: Daemon,
    /// kube-apiserver.
    pub api_server: Daemon,
    controller_manager: Daemon,
    scheduler: Daemon,
    dns: Daemon,
    api_server_command: ApiServer,
    logs: PathBuf,
    kubectl: Kubectl,
    host: Host,
}

/// kubectl on the control plane, as administrator. Clones are the same.
#[derive(Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    place: Place,
}

/// Makes the command of an API server on this port.
type ApiServer = Arc<dyn Fn(u16) -> Command + Send + Sync>;

/// Where clients reach the API server.
#[must_use]
pub fn server() -> String {
    at(PORT)
}

/// Where the second one is reached: see [`ControlPlane::start_second`].
#[must_use]
pub fn second() -> String {
    at(SECOND)
}

fn at(port: u16) -> String {
    format!("https://{}:{port}", wires::control_plane().v4)
}

impl ControlPlane {
    /// Starts etcd and the API server, waits until that is ready, and starts the others, which would else give up on a slow
    /// machine.
    ///
    /// # Errors
    /// Names the program that could not be started, or did not become ready.
    pub fn start(host: Host, bin: &Path, folders: &Folders, authority: &Authority, stop: &Stop) -> Result<Self> {
        let logs = folders.logs();
        let (place, own) = (&host.place, host.address);
        let program = |name: &str| bin.join(name);

        let etcd = program("etcd");
        let etcd = Daemon::start("etcd", place, &logs, move || {
            let mut command = Command::new(&etcd);
            // In memory, since a test cluster has nothing to lose and disks are slow.
            command.args(["--data-dir", "/run/etcd", "--quota-backend-bytes", "4294967296"]);
            command.args(["--logger", "zap", "--log-level", "warn"]);
            command.args(["--listen-client-urls", "http://127.0.0.1:2379"]);
            command.args(["--advertise-client-urls", "http://127.0.0.1:2379"]);
            command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
            command
        })?;

        let names =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
        let mut addresses: Vec<IpAddr> = own.both().to_vec();
        addresses.push("127.0.0.1".parse()?);
        addresses.push(KUBERNETES_V4.parse()?);
        let serving = authority.server("kube-apiserver", &names, &addresses)?;
        let kubelets = authority.client("kube-apiserver-kubelet", "kube-apiserver", Some("system:masters"))?;
        let (ca, accounts, public) = (authority.files(), authority.accounts_key(), authority.accounts_public_key());
        let api_server = program("kube-apiserver");
        let api_server_command: ApiServer = Arc::new(move |port| {
            let mut command = Command::new(&api_server);
            command.args(["--etcd-servers", "http://127.0.0.1:2379"]);
            command.args(["--advertise-address", &own.v4.to_string(), "--secure-port", &port.to_string()]);
            // The endpoints of its Service are those of the first.
            command.args((port != PORT).then_some("--endpoint-reconciler-type=none"));
            command.arg("--tls-cert-file").arg(&serving.certificate).arg("--tls-private-key-file").arg(&serving.key);
            command.arg("--client-ca-file").arg(&ca.certificate).arg("--cert-dir").arg("/run/kube-apiserver");
            command.args(["--service-account-issuer", "https://kubernetes.default.svc.cluster.local"]);
            command.arg("--service-account-key-file").arg(&public);
            command.arg("--service-account-signing-key-file").arg(&accounts);
            command.args(["--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"]);
            command.arg("--service-cluster-ip-range").arg(ranges(address::SERVICES_V4, address::SERVICES_V6));
            command.arg("--kubelet-certificate-authority").arg(&ca.certificate);
            command.arg("--kubelet-client-certificate").arg(&kubelets.certificate);
            command.arg("--kubelet-client-key").arg(&kubelets.key);
            command.args([
                "--kubelet-preferred-address-types",
                "InternalIP",
                "--allow-privileged",
                "--profiling=false",
            ]);
            command
        });
        let of_first = Arc::clone(&api_server_command);
        let api_server = Daemon::start("kube-apiserver", place, &logs, move || of_first(PORT))?;

        let admin = authority.kubeconfig("admin", &server(), "kubernetes-admin", Some("system:masters"))?;
        let kubectl = Kubectl { program: program("kubectl"), kubeconfig: admin.clone(), place: place.clone() };
        let ready = || Ok(kubectl.output(&["get", "--raw", "/readyz"], "", stop)?.is_ok());
        wait_for("the API server", PATIENCE, &[&etcd, &api_server], stop, ready)?;

        let kubeconfig = |user: &str| authority.kubeconfig(user, &server(), &format!("system:{user}"), None);
        let config = kubeconfig("kube-controller-manager")?;
        let (ca, accounts) = (authority.files(), authority.accounts_key());
        let controller_manager = program("kube-controller-manager");
        let controller_manager = Daemon::start("kube-controller-manager", place, &logs, move || {
            let mut command = Command::new(&controller_manager);
            command
                .arg("--kubeconfig")
                .arg(&config)
                .args(["--leader-elect=false", "--use-service-account-credentials"]);
            command.arg("--service-account-private-key-file").arg(&accounts).arg("--root-ca-file").arg(&ca.certificate);
            command
                .arg("--cluster-signing-cert-file")
                .arg(&ca.certificate)
                .arg("--cluster-signing-key-file")
                .arg(&ca.key);
            command.arg("--cert-dir").arg("/run/kube-controller-manager");
            // Which node has which pods is settled by the wires.
            command.arg("--allocate-node-cidrs=false");
            command.args(["--kube-api-qps", "200", "--kube-api-burst", "400"]);
            command
        })?;

        let config = kubeconfig("kube-scheduler")?;
        let scheduler = program("kube-scheduler");
        let scheduler = Daemon::start("kube-scheduler", place, &logs, move || {
            let mut command = Command::new(&scheduler);
            command.arg("--kubeconfig").arg(&config).arg("--leader-elect=false");
            command.arg("--cert-dir").arg("/run/kube-scheduler");
            command.args(["--kube-api-qps", "200", "--kube-api-burst", "400"]);
            command
        })?;

        let corefile = folders.of(&host).with_extension("corefile");
        fs::write(&corefile, corefile_text(&admin)).with_context(|| format!("cannot write {}", corefile.display()))?;
        let dns = program("coredns");
        let dns = Daemon::start("coredns", place, &logs, move || {
            let mut command = Command::new(&dns);
            command.arg("-conf").arg(&corefile);
            command
        })?;
        Ok(Self { etcd, api_server, controller_manager, scheduler, dns, api_server_command, logs, kubectl, host })
    }

    /// The programs, in the order in which they need each other.
    #[must_use]
    pub fn daemons(&self) -> [&Daemon; 5] {
        [&self.etcd, &self.api_server, &self.controller_manager, &self.scheduler, &self.dns]
    }

    /// Kills the API server, and what a real cluster's would lose with it: who leads by a lease ends without it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill9(&self) -> Result<()> {
        [&self.api_server, &self.controller_manager, &self.scheduler].into_iter().try_for_each(Daemon::kill9)
    }

    /// Starts again what [`ControlPlane::kill9`] has killed, and waits until the API server is ready.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn restart(&self, stop: &Stop) -> Result<()> {
        self.api_server.restart()?;
        self.wait(&server(), &self.api_server, stop)?;
        [&self.controller_manager, &self.scheduler].into_iter().try_for_each(Daemon::restart)
    }

    /// Starts another API server for the same etcd, at [`second`], and waits until it is ready: nobody asks it who does not name
    /// it. It ends when it is dropped.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_second(&self, stop: &Stop) -> Result<Daemon> {
        let command = Arc::clone(&self.api_server_command);
        let server = Daemon::start("kube-apiserver-2", &self.host.place, &self.logs, move || command(SECOND))?;
        self.wait(&second(), &server, stop)?;
        Ok(server)
    }

    fn wait(&self, url: &str, server: &Daemon, stop: &Stop) -> Result<()> {
        let question = ["--server", url, "get", "--raw", "/readyz"];
        let ready = || Ok(self.kubectl.output(&question, "", stop)?.is_ok());
        wait_for("the API server", PATIENCE, &[&self.etcd, server], stop, ready)
    }

    /// The host that the control plane runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The kubeconfig of a user who may do everything.
    #[must_use]
    pub fn admin(&self) -> &Path {
        &self.kubectl.kubeconfig
    }

    /// kubectl, as administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Kubectl {
    /// Runs it to its end and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, arguments: &[&str], input: &str, stop: &Stop) -> Result<String> {
        match self.output(arguments, input, stop)? {
            Ok(text) => Ok(text),
            Err(said) => bail!("`kubectl {}` failed: {said}", arguments.join(" ")),
        }
    }

    /// Starts it, with a pipe for what it prints.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        self.place.spawn("kubectl", command)
    }

    fn output(&self, arguments: &[&str], input: &str, stop: &Stop) -> Result<Result<String, String>> {
        let output = self.place.output("kubectl", self.command(arguments), input.as_bytes(), stop)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let said = || format!("{} ({})", text(&output.stderr), output.status);
        Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(said()) })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // Where kubectl keeps what it knows of the API.
        command.env("HOME", "/run");
        command
    }
}

/// Two ranges, as Kubernetes writes dual stack.
#[must_use]
pub fn ranges(v4: &str, v6: &str) -> String {
    format!("{v4},{v6}")
}

/// The name server knows the cluster's domain and nothing else: no other is within reach.
fn corefile_text(kubeconfig: &Path) -> String {
    let own = wires::control_plane();
    format!(
        ".:53 {{
    bind {} {}
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {}
        pods insecure
        ttl 5
    }}
    cache 5
}}
",
        own.v4,
        own.v6,
        kubeconfig.display()
    )
}
