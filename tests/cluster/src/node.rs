//! A node: containerd and kubelet, on a host of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netlb_testnode::address;
use netlb_testnode::process::Stop;
use serde_json::json;

use crate::certificates::Authority;
use crate::control_plane::{self, DNS_V4, DOMAIN};
use crate::daemon::{Daemon, wait_for};
use crate::wires::{self, Folders, Host};

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where Debian keeps the plugins that make pods' networks.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";
/// How long containerd may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node's programs.
pub struct Node {
    /// Counts from 1.
    pub number: u8,
    /// Its namespaces.
    pub host: Host,
    /// Its container runtime.
    pub containerd: Daemon,
    /// Its kubelet.
    pub kubelet: Daemon,
    /// The folder of its pods' logs.
    pub pod_logs: PathBuf,
    ctr: PathBuf,
}

impl Node {
    /// Starts node `number` on `host`, whose groups of version one are called `group`: containerd, which kubelet needs to
    /// start, then kubelet.
    ///
    /// # Errors
    /// Names the program that could not be started, or did not answer in time.
    pub fn start(
        number: u8,
        host: Host,
        group: &str,
        bin: &Path,
        folders: &Folders,
        authority: &Authority,
        stop: &Stop,
    ) -> Result<Self> {
        let files = folders.of(&host);
        let network = files.join("cni");
        fs::create_dir_all(&network).with_context(|| format!("cannot make {}", network.display()))?;
        let write =
            |path: &Path, text: &str| fs::write(path, text).with_context(|| format!("cannot write {}", path.display()));
        write(&network.join("10-pods.conflist"), &network_config(number).to_string())?;

        let config = files.join("containerd.toml");
        write(&config, &containerd_config(&network))?;
        let containerd = bin.join("containerd");
        // containerd finds its shim, and the shim runc, by the path.
        let path = search_path(bin);
        let containerd =
            Daemon::start(&format!("containerd-{}", host.name), &host.place, &folders.logs(), move || {
                let mut command = Command::new(&containerd);
                command.arg("--config").arg(&config).env("PATH", &path);
                command
            })?;

        let name = host.name.clone();
        let ctr = bin.join("ctr");
        // The socket lies in a mount namespace of the node's own, so a program there asks.
        let answers = || Ok(run_ctr(&ctr, &host, &["version"], stop)?.is_ok());
        wait_for(&format!("containerd of {name}"), PATIENCE, &[&containerd], stop, answers)?;

        let serving = authority.server(&format!("kubelet-{name}"), &[&name], &host.address.both())?;
        let kubeconfig = authority.kubeconfig(
            &name,
            &control_plane::server(),
            &format!("system:node:{name}"),
            Some("system:nodes"),
        )?;
        let pod_logs = files.join("pods");
        let resolver = files.join("resolv.conf");
        write(&resolver, &format!("nameserver {}\n", wires::control_plane().v4))?;
        let config = files.join("kubelet.json");
        let settings = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"x509": {"clientCAFile": authority.files().certificate}},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": group,
            "clusterDNS": [DNS_V4],
            "clusterDomain": DOMAIN,
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "enforceNodeAllocatable": ["none"],
            // The disk is the machine's; how full it is says nothing about the cluster.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
            "failCgroupV1": false,
            "failSwapOn": false,
            "imageGCHighThresholdPercent": 100,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "makeIPTablesUtilChains": false,
            "podLogsDir": pod_logs,
            "protectKernelDefaults": true,
            "resolvConf": resolver,
            "tlsCertFile": serving.certificate,
            "tlsPrivateKeyFile": serving.key,
        });
        write(&config, &settings.to_string())?;
        let kubelet = bin.join("kubelet");
        let addresses = format!("{},{}", host.address.v4, host.address.v6);
        let kubelet = Daemon::start(&format!("kubelet-{name}"), &host.place, &folders.logs(), move || {
            let mut command = Command::new(&kubelet);
            command.arg("--config").arg(&config).arg("--kubeconfig").arg(&kubeconfig);
            command.args(["--hostname-override", &name, "--node-ip", &addresses]);
            command
        })?;
        Ok(Self { number, host, containerd, kubelet, pod_logs, ctr })
    }

    /// The node's programs.
    #[must_use]
    pub fn daemons(&self) -> [&Daemon; 2] {
        [&self.containerd, &self.kubelet]
    }

    /// Gives containerd the images in an archive.
    ///
    /// # Errors
    /// When containerd does not take them.
    pub fn import(&self, archive: &Path, stop: &Stop) -> Result<()> {
        let path = archive.display().to_string();
        let arguments = ["--namespace", "k8s.io", "images", "import", "--local", &path];
        match run_ctr(&self.ctr, &self.host, &arguments, stop)? {
            Ok(_) => Ok(()),
            Err(said) => bail!("containerd of {} does not take {path}: {said}", self.host.name),
        }
    }

    /// The process of a container, by its id.
    ///
    /// # Errors
    /// When there is none.
    pub fn pid(&self, container: &str, stop: &Stop) -> Result<u32> {
        let tasks = match run_ctr(&self.ctr, &self.host, &["--namespace", "k8s.io", "tasks", "list"], stop)? {
            Ok(tasks) => tasks,
            Err(said) => bail!("containerd of {} does not list its tasks: {said}", self.host.name),
        };
        let line = tasks.lines().find_map(|line| line.strip_prefix(container)?.split_whitespace().next());
        let pid = line.with_context(|| format!("there is no container {container} on {}", self.host.name))?;
        pid.parse().with_context(|| format!("ctr names the process {pid:?}"))
    }

    /// A file of the node's, as everybody finds it.
    ///
    /// # Errors
    /// When its kubelet does not run.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let pid = self.kubelet.pid().with_context(|| format!("{} does not run", self.kubelet.name()))?;
        Ok(PathBuf::from(format!("/proc/{pid}/root{path}")))
    }
}

fn run_ctr(ctr: &Path, host: &Host, arguments: &[&str], stop: &Stop) -> Result<Result<String, String>> {
    let mut command = Command::new(ctr);
    command.args(["--address", CONTAINERD_SOCKET]).args(arguments);
    let output = host.place.output("ctr", command, b"", stop)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

/// The cluster's programs, then the machine's.
#[must_use]
pub fn search_path(bin: &Path) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display())
}

/// How pods are joined to the node: a bridge, an address of each family, and host ports.
fn network_config(number: u8) -> serde_json::Value {
    let [v4, v6] = address::pod_cidrs(number);
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                // A pod may reach itself through a Service.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// Version 3 of containerd's configuration, as of containerd 2.
fn containerd_config(network: &Path) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
"#,
        network.display()
    )
}
