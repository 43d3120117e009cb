//! The cluster as a whole: made in one call, gone when it is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use netlb_testnode::cgroup::Cgroup;
use netlb_testnode::process::Stop;
use netlb_testnode::state::StateDir;
use netlb_testnode::{address, topology};
use serde_json::{Value, json};

use crate::agents;
use crate::balancer::Balancer;
use crate::certificates::Authority;
use crate::cgroup1::Groups;
use crate::control_plane::{ControlPlane, DNS_V4};
use crate::daemon::{Daemon, wait_for};
use crate::node::Node;
use crate::proxy::{self, Proxy};
use crate::state::{CLUSTERS, ClusterFile, Disk, HostFile};
use crate::wires::{self, Fabric, Folders, Host};

/// How long nodes and Services may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes it has.
    pub nodes: u8,
    /// The folder of the cluster's programs.
    pub bin: PathBuf,
    /// Archives of images, in the order in which containerd wants them: see [`crate::images`].
    pub images: Vec<PathBuf>,
    /// The agent's program.
    pub netlb: PathBuf,
    /// A folder on a disk, for what containers are made of.
    pub disk: PathBuf,
    /// What serves Services.
    pub proxy: Proxy,
    /// netlb's `--accel`.
    pub accel: String,
    /// What ends all waiting early.
    pub stop: Stop,
}

/// A cluster that runs.
pub struct Cluster {
    // Fields drop in order: programs first, then the wires, the cgroups, and the folders last.
    _balancer: Balancer,
    proxies: Vec<Daemon>,
    nodes: Vec<Node>,
    control_plane: ControlPlane,
    client: Host,
    _fabric: Fabric,
    _cgroup: Cgroup,
    _groups: Groups,
    folders: Folders,
    _disk: Disk,
    state: StateDir,
    options: Options,
}

impl Cluster {
    /// Makes a cluster and waits until its nodes are ready and a Service answers on each. `say` is told how far it is.
    ///
    /// # Errors
    /// Names what could not be made or did not become ready, with the end of its log.
    pub fn start(options: Options, say: impl Fn(&str)) -> Result<Self> {
        let started = Instant::now();
        let say = |text: &str| say(&format!("{:5.1} s  {text}", started.elapsed().as_secs_f32()));
        let stop = options.stop.clone();
        let state = StateDir::create(CLUSTERS)?;
        let disk = Disk::create(&options.disk, &state)?;
        let folders = Folders { run: state.path().to_owned(), disk: disk.path().to_owned() };
        fs::create_dir(folders.logs()).with_context(|| format!("cannot make {}", folders.logs().display()))?;
        let names: Vec<String> = (1..=options.nodes).map(topology::name).collect();
        let group = format!("{}{}", CLUSTERS.group, state.id());
        let children: Vec<&str> = names.iter().map(String::as_str).collect();
        let groups = Groups::create(&group, &children)?;
        let cgroup = Cgroup::create(CLUSTERS.cgroup(state.id())?)?;

        let mut fabric = Fabric::create(options.nodes)?;
        let control_host = fabric.control_plane(&folders, &cgroup)?;
        let client = fabric.client(&folders, &cgroup)?;
        let mut hosts = Vec::new();
        for number in 1..=options.nodes {
            let host = fabric.node(number, &folders, &cgroup)?;
            let own = folders.of(&host);
            fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
            hosts.push((number, host));
        }
        let authority = Authority::create(folders.run.join("pki"))?;
        say("wires and certificates are made");

        let (bin, images) = (&options.bin, &options.images);
        let (nodes, control_plane) = std::thread::scope(|scope| {
            let (folders, authority, stop, group) = (&folders, &authority, &stop, &group);
            let starting: Vec<_> = hosts
                .into_iter()
                .map(|(number, host)| {
                    scope.spawn(move || -> Result<Node> {
                        let group = format!("/{group}/{}", host.name);
                        let node = Node::start(number, host, &group, bin, folders, authority, stop)?;
                        images.iter().try_for_each(|archive| node.import(archive, stop))?;
                        Ok(node)
                    })
                })
                .collect();
            let control_plane = ControlPlane::start(control_host, bin, folders, authority, stop);
            let control_plane = control_plane.and_then(|control_plane| {
                say("the API server is ready");
                control_plane.kubectl().run(
                    &["apply", "--server-side", "-f", "-"],
                    &objects(options.nodes).to_string(),
                    stop,
                )?;
                Ok(control_plane)
            });
            let nodes: Result<Vec<Node>> = starting
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread that starts a node died"))?)
                .collect();
            (nodes, control_plane)
        });
        let (control_plane, nodes) = (control_plane?, nodes?);
        say("containerd has the images on every node");

        let proxies = match options.proxy.mode() {
            Some(mode) => nodes
                .iter()
                .map(|node| proxy::start(mode, node, &options.bin, &folders, &authority))
                .collect::<Result<Vec<Daemon>>>()?,
            None => {
                let objects = agents::daemon_set(&options.accel).to_string();
                control_plane.kubectl().run(&["apply", "--server-side", "-f", "-"], &objects, &stop)?;
                Vec::new()
            }
        };
        let log = folders.logs().join("balancer.log");
        let balancer = Balancer::start(control_plane.kubectl(), fabric.ways()?, options.nodes, &log)?;
        let cluster = Self {
            _balancer: balancer,
            proxies,
            nodes,
            control_plane,
            client,
            _fabric: fabric,
            _cgroup: cgroup,
            _groups: groups,
            folders,
            _disk: disk,
            state,
            options,
        };
        cluster.wait(&authority, say)?;
        cluster.state.save(&cluster.file())?;
        Ok(cluster)
    }

    fn wait(&self, authority: &Authority, say: impl Fn(&str)) -> Result<()> {
        let stop = &self.options.stop;
        let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=120s"];
        let names: Vec<String> = self.nodes.iter().map(|node| format!("node/{}", node.host.name)).collect();
        arguments.extend(names.iter().map(String::as_str));
        let ready = self.control_plane.kubectl().run(&arguments, "", stop);
        // A node that ends says more than one that is waited for.
        self.check()?;
        ready.with_context(|| self.log_tails())?;
        say("the nodes are ready");

        let ca = authority.files().certificate;
        for (index, node) in self.nodes.iter().enumerate() {
            let answers = || {
                let mut command = Command::new("curl");
                command.args(["--silent", "--fail", "--max-time", "2", "--cacert"]).arg(&ca);
                command.arg("https://10.96.0.1/readyz");
                Ok(node.host.place.output("curl", command, b"", stop)?.status.success())
            };
            let what = format!("the Service kubernetes on {}", node.host.name);
            let proxy: Vec<&Daemon> = self.proxies.get(index).into_iter().collect();
            let served = wait_for(&what, PATIENCE, &proxy, stop, answers);
            if self.options.proxy == Proxy::Netlb {
                served.with_context(|| agents::log_tail(node, 15))?;
            } else {
                served?;
            }
        }
        say(&format!("the Service kubernetes answers on every node, by {}", self.options.proxy.name()));
        Ok(())
    }

    /// What the cluster is called.
    #[must_use]
    pub fn id(&self) -> &str {
        self.state.id()
    }

    /// The control plane.
    #[must_use]
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The nodes, in order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How it was asked to be.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Where its programs' logs are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.folders.logs()
    }

    /// The outside client.
    #[must_use]
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// Fails if one of the programs has ended by itself, with the end of its log.
    ///
    /// # Errors
    /// When one has ended.
    pub fn check(&self) -> Result<()> {
        self.daemons().try_for_each(Daemon::check)
    }

    fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        let nodes = self.nodes.iter().flat_map(Node::daemons);
        self.control_plane.daemons().into_iter().chain(nodes).chain(&self.proxies)
    }

    fn log_tails(&self) -> String {
        self.nodes.iter().map(|node| node.kubelet.log_tail(15)).collect::<Vec<_>>().join("\n")
    }

    /// Copies the programs' logs to `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for entry in fs::read_dir(self.folders.logs()).context("cannot read the folder of logs")? {
            let path = entry.context("cannot read the folder of logs")?.path();
            fs::copy(&path, folder.join(path.file_name().unwrap_or_default()))
                .with_context(|| format!("cannot keep {}", path.display()))?;
        }
        Ok(())
    }

    /// How other programs get into the cluster.
    #[must_use]
    pub fn file(&self) -> ClusterFile {
        let pid = std::process::id();
        let hosts = [self.control_plane.host()].into_iter().chain(self.nodes.iter().map(|node| &node.host));
        let host = |host: &Host| HostFile {
            name: host.name.clone(),
            net: PathBuf::from(format!("/proc/{pid}/fd/{}", host.place.net().descriptor())),
            mount: PathBuf::from(format!("/proc/{pid}/fd/{}", host.mounts.descriptor())),
            cgroup: host.cgroup.path().join("host"),
        };
        ClusterFile {
            id: self.id().to_owned(),
            nodes: self.options.nodes,
            pid,
            proxy: self.options.proxy.name().to_owned(),
            accel: self.options.accel.clone(),
            bin: self.options.bin.clone(),
            netlb: self.options.netlb.clone(),
            kubeconfig: self.control_plane.admin().to_owned(),
            logs: self.folders.logs(),
            hosts: hosts.chain([&self.client]).map(host).collect(),
        }
    }
}

/// Node `number`'s zone, one of three: with six nodes each has two.
fn zone(number: u8) -> String {
    format!("zone{}", (number.saturating_sub(1)) % 3 + 1)
}

/// What the cluster holds from the start: its nodes with their pods' networks and zones, the Service of its name server, and
/// what netlb may do.
fn objects(nodes: u8) -> Value {
    let own = wires::control_plane();
    let mut items: Vec<Value> = (1..=nodes)
        .map(|number| {
            let cidrs = address::pod_cidrs(number);
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": topology::name(number),
                    "labels": {
                        "topology.kubernetes.io/region": "region",
                        "topology.kubernetes.io/zone": zone(number),
                    },
                },
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            })
        })
        .collect();
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
        .map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": 53}));
    items.push(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {"clusterIP": DNS_V4, "ports": ports},
    }));
    items.push(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns-control-plane",
            "namespace": "kube-system",
            "labels": {
                "kubernetes.io/service-name": "kube-dns",
                "endpointslice.kubernetes.io/managed-by": "netlb-testcluster",
            },
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [own.v4], "conditions": {"ready": true}}],
        "ports": ports,
    }));
    items.extend(agents::rights());
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_pods_that_the_wires_lead_to() {
        let objects = objects(2);
        let second = objects.pointer("/items/1").unwrap();
        assert_eq!(second.pointer("/metadata/name").unwrap(), "node2");
        assert_eq!(second.pointer("/spec/podCIDRs").unwrap(), &json!(["10.244.2.0/24", "fd00:244:0:2::/64"]));
        assert_eq!(second.pointer("/spec/podCIDR").unwrap(), "10.244.2.0/24");
    }
}
