//! What the agent was asked to do: flags and a file of the same names, put together and checked once.

pub mod configz;
pub mod kube_proxy;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use netlb_common::maps::capacity;
use serde::{Deserialize, Serialize};

use crate::bpf::attach::Method;
use crate::delivery::Mode;
use crate::devices::detector::{self, Detector, Masquerade};
use crate::devices::node_addresses::NodePortAddresses;
use crate::health;
use crate::k8s::Access;
use crate::model::{Cidr, Family, Scheduler};
use crate::runtime::mounts;
use crate::runtime::ports::Ports;
use kube_proxy::KubeProxyConfiguration;

/// Where pins are if nobody says otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/netlb";
/// Where status, names and lock are if nobody says otherwise.
pub const RUN_DIR: &str = "/run/netlb";

/// What `/proxyMode` answers if nobody says otherwise.
const PROXY_MODE: &str = "netlb";

/// The API server's default for `--service-node-port-range`.
const NODE_PORTS: Ports = Ports { first: 30_000, last: 32_767 };

/// Largest map netlb makes: ids have room in 32 bits, memory has not.
const MOST_ENTRIES: u32 = 1 << 24;

/// Every setting there is, each by flag or in the file of `--config`; a flag wins over the file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of Kubernetes objects (YAML or JSON) that say what there is
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,

    /// Credentials for the API server that says what there is [default, without --source: the pod's service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The API server's real address, not its Service's, which may wait for netlb [default: as the credentials say]
    #[arg(long, value_name = "URL")]
    pub api_server: Option<String>,

    /// This node's name in the cluster [default: $NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,

    /// Folder on a bpf file system for maps and links, which outlive the agent [default: /sys/fs/bpf/netlb]
    #[arg(long, value_name = "DIR")]
    pub pin_path: Option<PathBuf>,

    /// Folder for status.json, names.json and api-servers.json [default: /run/netlb]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Cgroup (version 2) whose sockets are translated at connect() [default: the cgroup2 mount]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Names of uplinks, with *, separated by commas: these and no others [default: found by routes and addresses]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub devices: Option<Vec<String>>,

    /// Addresses that serve NodePorts, separated by commas: ranges, primary (the node's own of each family), localhost [default: primary]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub nodeport_addresses: Option<Vec<String>>,

    /// Whose address a masqueraded flow shows [default: auto]
    #[arg(long, value_enum, value_name = "MODE")]
    pub masquerade: Option<Masquerade>,

    /// Masquerade whatever goes to a cluster IP
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub masquerade_all: Option<bool>,

    /// Whose packets count as a pod's, for masquerade and externalTrafficPolicy
    #[arg(long, value_enum, value_name = "MODE")]
    pub detect_local_mode: Option<detector::Mode>,

    /// Addresses of all pods, one range a family, for --detect-local-mode ClusterCIDR
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cluster_cidr: Option<Vec<String>>,

    /// Bridge of the pods, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// How names of pods' devices begin, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// How a backend is chosen where a Service does not say: random, rr, wrr, sh or lc [default: random]
    #[arg(long, value_name = "WORD")]
    pub scheduler: Option<String>,

    /// The API server's range of NodePorts: masquerade keeps clear of it [default: 30000-32767]
    #[arg(long, value_name = "FIRST-LAST")]
    pub service_node_port_range: Option<String>,

    /// Names of pods' devices, with *, separated by commas [default: every veth to another namespace that is no uplink]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub pod_interfaces: Option<Vec<String>>,

    /// Accelerators on top of the complete per-packet path
    #[arg(long, value_enum, value_name = "WHAT")]
    pub accel: Option<Accel>,

    /// How packets reach pods of this node [default: auto]
    #[arg(long, value_enum, value_name = "MODE")]
    pub delivery: Option<Mode>,

    /// Where /healthz and /livez answer: ADDRESS, ADDRESS:PORT or none [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<String>,

    /// Where /metrics, /proxyMode and /configz answer: ADDRESS, ADDRESS:PORT or none [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<String>,

    /// What /proxyMode answers, for checks that want to hear a mode of kube-proxy's [default: netlb]
    #[arg(long, value_name = "WORD")]
    pub proxy_mode: Option<String>,

    /// The address that counts as this node's primary one of its family, if it has it [default: the Node object's, else an uplink's]
    #[arg(long, value_name = "ADDRESS")]
    pub bind_address: Option<IpAddr>,

    /// How devices get their programs, instead of the best way the kernel has: for tests and for faults in one of them
    #[arg(long, value_enum, value_name = "METHOD", hide = true)]
    pub attach: Option<Method>,

    /// Load and fill the maps, attach no program
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub detached: Option<bool>,

    /// error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Frontends that fit: a Service takes one a family, and one a port and family [default: 65536]
    #[arg(long, value_name = "N")]
    pub max_services: Option<u32>,

    /// Backends that fit, counted once a Service port [default: 131072]
    #[arg(long, value_name = "N")]
    pub max_backends: Option<u32>,

    /// Conntrack entries of answered flows that fit; a flow takes two [default: 262144]
    #[arg(long, value_name = "N")]
    pub max_conntrack: Option<u32>,
}

/// `--accel`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Socket hooks act on the sockets of the node only
    #[default]
    None,
    /// …and on those of its pods
    Socket,
    /// Not built yet
    Xdp,
    /// Not built yet
    All,
}

/// Who says what there is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A folder of manifests.
    Folder(PathBuf),
    /// An API server.
    Cluster(Access),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Folder(path) => write!(f, "folder {}", path.display()),
            Source::Cluster(access) => write!(f, "API server ({access})"),
        }
    }
}

/// The settings, complete and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub source: Source,
    pub node_name: String,
    pub pin_path: PathBuf,
    pub run_dir: PathBuf,
    pub cgroup: PathBuf,
    pub devices: Vec<String>,
    pub pod_interfaces: Vec<String>,
    pub nodeport_addresses: NodePortAddresses,
    pub masquerade: Masquerade,
    pub masquerade_all: bool,
    pub detector: Detector,
    pub node_ports: Ports,
    pub scheduler: Scheduler,
    /// Socket hooks act on pods' sockets too.
    pub socket_accel: bool,
    pub delivery: Mode,
    /// Where `/healthz` and `/livez` answer.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics`, `/proxyMode` and `/configz` answer.
    pub metrics: Option<SocketAddr>,
    /// What `/proxyMode` answers.
    pub proxy_mode: String,
    /// Primary address of its family, if the node has it.
    pub bind_address: Option<IpAddr>,
    /// `None`: the best the kernel has.
    pub attach: Option<Method>,
    pub detached: bool,
    pub max_services: u32,
    pub max_backends: u32,
    pub max_conntrack: u32,
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("--config {path}: {reason}; fields are named like flags, e.g. `max-services: 1000`")]
    File { path: String, reason: String },
    #[error("--config {path}: {reason}")]
    Document { path: String, reason: String },
    #[error(
        "no source: name the API server's credentials with --kubeconfig FILE, or run in a pod with a service account, or name a folder of Kubernetes objects with --source DIR (in the file of --config: `kubeconfig:`, `source:`)"
    )]
    NoSource,
    #[error("--source and --{flag} are two sources; name one")]
    TwoSources { flag: &'static str },
    #[error("--kubeconfig {path} is not a file; make it, or name another")]
    KubeconfigIsNoFile { path: String },
    #[error("no node name: name the node with --node-name NAME")]
    NoNodeName,
    #[error("--source {path} is not a folder; make it, or name another")]
    SourceIsNoFolder { path: String },
    #[error("--accel {what} is not built yet; use none or socket")]
    NotBuilt { what: &'static str },
    #[error(
        "--nodeport-addresses {word} is no range of addresses; use ranges like 10.0.0.0/8 (one address: 10.0.0.7/32), primary or localhost"
    )]
    NodePortAddress { word: String },
    #[error("--{flag} {value} is no address; write one like 0.0.0.0:{port} or [::1]:{port}, or none")]
    NoAddress { flag: &'static str, value: String, port: u16 },
    #[error("--scheduler {word} is none; use random, rr, wrr, sh or lc")]
    Scheduler { word: String },
    #[error("--service-node-port-range {text} is no range of ports; use e.g. 30000-32767")]
    NodePortRange { text: String },
    #[error("--detect-local-mode {mode} needs --{flag}")]
    DetectorNeeds { mode: &'static str, flag: &'static str },
    #[error(
        "--cluster-cidr {word} is no range of addresses, or the second of its family; use one a family, e.g. 10.244.0.0/16,fd00:244::/48"
    )]
    ClusterCidr { word: String },
    #[error("--{flag} {value} is out of range; use 1 to {MOST_ENTRIES}")]
    OutOfRange { flag: &'static str, value: u32 },
    #[error(
        "no cgroup2 file system is mounted; mount one (`mount -t cgroup2 none /sys/fs/cgroup`) or name its folder with --cgroup"
    )]
    NoCgroup,
    #[error("--cgroup {path} is not a folder of a cgroup2 file system; name one below a cgroup2 mount")]
    NotACgroup { path: String },
}

/// What the file of `--config` says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ConfigFile {
    /// As it was read.
    pub text: String,
    pub settings: Settings,
    /// If it is kube-proxy's.
    pub document: Option<KubeProxyConfiguration>,
    /// What is accepted and does nothing, a line each.
    pub notes: Vec<String>,
    /// What is no field of kube-proxy's, a line each.
    pub unknown: Vec<String>,
}

impl ConfigFile {
    /// Reads the file: settings of netlb's own, or kube-proxy's configuration.
    ///
    /// # Errors
    /// If it cannot be read, is not YAML, is another object, has a value that cannot be, or (netlb's own) a field that is none: with the field's
    /// name and line.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let document = |reason| ConfigError::Document { path: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| document(e.to_string()))?;
        if !kube_proxy::is_one(&text).map_err(document)? {
            let error = |reason| ConfigError::File { path: path.display().to_string(), reason };
            let settings = Settings::parse(&text).map_err(error)?;
            return Ok(ConfigFile { text, settings, ..ConfigFile::default() });
        }
        let kube_proxy::Read { document, settings, notes, unknown } = kube_proxy::read(&text).map_err(document)?;
        let named = |line: String| format!("--config {}: {line}", path.display());
        let (notes, unknown) = (notes.into_iter().map(named).collect(), unknown.into_iter().map(named).collect());
        Ok(ConfigFile { text, settings, document: Some(document), notes, unknown })
    }
}

impl Settings {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Settings::default());
        }
        serde_norway::from_str(text).map_err(|e| e.to_string())
    }

    /// These settings, and where they say nothing `below`'s. Who names one kind of source wants no other.
    #[must_use]
    pub fn over(self, below: Settings) -> Settings {
        let (folder, server) = (self.source.is_some(), self.kubeconfig.is_some() || self.api_server.is_some());
        Settings {
            source: self.source.or(below.source.filter(|_| !server)),
            kubeconfig: self.kubeconfig.or(below.kubeconfig.filter(|_| !folder)),
            api_server: self.api_server.or(below.api_server.filter(|_| !folder)),
            node_name: self.node_name.or(below.node_name),
            pin_path: self.pin_path.or(below.pin_path),
            run_dir: self.run_dir.or(below.run_dir),
            cgroup: self.cgroup.or(below.cgroup),
            devices: self.devices.or(below.devices),
            pod_interfaces: self.pod_interfaces.or(below.pod_interfaces),
            nodeport_addresses: self.nodeport_addresses.or(below.nodeport_addresses),
            masquerade: self.masquerade.or(below.masquerade),
            masquerade_all: self.masquerade_all.or(below.masquerade_all),
            detect_local_mode: self.detect_local_mode.or(below.detect_local_mode),
            cluster_cidr: self.cluster_cidr.or(below.cluster_cidr),
            pod_bridge_interface: self.pod_bridge_interface.or(below.pod_bridge_interface),
            pod_interface_name_prefix: self.pod_interface_name_prefix.or(below.pod_interface_name_prefix),
            scheduler: self.scheduler.or(below.scheduler),
            service_node_port_range: self.service_node_port_range.or(below.service_node_port_range),
            accel: self.accel.or(below.accel),
            delivery: self.delivery.or(below.delivery),
            healthz_bind_address: self.healthz_bind_address.or(below.healthz_bind_address),
            metrics_bind_address: self.metrics_bind_address.or(below.metrics_bind_address),
            proxy_mode: self.proxy_mode.or(below.proxy_mode),
            bind_address: self.bind_address.or(below.bind_address),
            attach: self.attach.or(below.attach),
            detached: self.detached.or(below.detached),
            log_level: self.log_level.or(below.log_level),
            max_services: self.max_services.or(below.max_services),
            max_backends: self.max_backends.or(below.max_backends),
            max_conntrack: self.max_conntrack.or(below.max_conntrack),
        }
    }

    /// Fills in the defaults and checks everything.
    ///
    /// # Errors
    /// The first setting that cannot be.
    pub fn check(self) -> Result<Config, ConfigError> {
        let detector = self.detector()?;
        let source = source(self.source, self.kubeconfig, self.api_server)?;
        // As kubelet names its Node.
        let named = || std::env::var("NODE_NAME").ok().filter(|name| !name.trim().is_empty());
        let node_name = self.node_name.or_else(named).or_else(host_name).map(|name| name.trim().to_lowercase());
        let node_name = node_name.filter(|name| !name.is_empty()).ok_or(ConfigError::NoNodeName)?;
        let scheduler = match self.scheduler {
            Some(word) => Scheduler::parse(&word).ok_or(ConfigError::Scheduler { word })?,
            None => Scheduler::default(),
        };
        let node_ports = match self.service_node_port_range {
            Some(text) => Ports::parse(&text).ok_or(ConfigError::NodePortRange { text })?,
            None => NODE_PORTS,
        };
        let socket_accel = match self.accel.unwrap_or_default() {
            Accel::None => false,
            Accel::Socket => true,
            Accel::Xdp => return Err(ConfigError::NotBuilt { what: "xdp" }),
            Accel::All => return Err(ConfigError::NotBuilt { what: "all" }),
        };
        let cgroup = match self.cgroup {
            Some(path) => path,
            None => mounts::cgroup2().ok().flatten().ok_or(ConfigError::NoCgroup)?,
        };
        if !is_cgroup2(&cgroup) {
            return Err(ConfigError::NotACgroup { path: cgroup.display().to_string() });
        }
        let entries = |flag, value: Option<u32>, default| match value.unwrap_or(default) {
            value @ 1..=MOST_ENTRIES => Ok(value),
            value => Err(ConfigError::OutOfRange { flag, value }),
        };
        Ok(Config {
            source,
            node_name,
            pin_path: self.pin_path.unwrap_or_else(|| PIN_PATH.into()),
            run_dir: self.run_dir.unwrap_or_else(|| RUN_DIR.into()),
            cgroup,
            devices: self.devices.unwrap_or_default(),
            pod_interfaces: self.pod_interfaces.unwrap_or_default(),
            nodeport_addresses: NodePortAddresses::parse(&self.nodeport_addresses.unwrap_or_default())
                .map_err(|word| ConfigError::NodePortAddress { word })?,
            masquerade: self.masquerade.unwrap_or_default(),
            masquerade_all: self.masquerade_all.unwrap_or(false),
            detector,
            node_ports,
            scheduler,
            socket_accel,
            delivery: self.delivery.unwrap_or_default(),
            healthz: listen_address(
                "healthz-bind-address",
                self.healthz_bind_address.as_deref(),
                (Ipv4Addr::UNSPECIFIED, health::PORT),
            )?,
            metrics: listen_address(
                "metrics-bind-address",
                self.metrics_bind_address.as_deref(),
                (Ipv4Addr::LOCALHOST, health::PAGES_PORT),
            )?,
            proxy_mode: self.proxy_mode.unwrap_or_else(|| PROXY_MODE.to_owned()),
            bind_address: self.bind_address,
            attach: self.attach,
            detached: self.detached.unwrap_or(false),
            max_services: entries("max-services", self.max_services, capacity::FRONTENDS)?,
            max_backends: entries("max-backends", self.max_backends, capacity::BACKENDS)?,
            max_conntrack: entries("max-conntrack", self.max_conntrack, capacity::CT)?,
        })
    }
}

fn source(folder: Option<PathBuf>, kubeconfig: Option<PathBuf>, server: Option<String>) -> Result<Source, ConfigError> {
    match (folder, kubeconfig) {
        (Some(_), Some(_)) => Err(ConfigError::TwoSources { flag: "kubeconfig" }),
        (Some(_), None) if server.is_some() => Err(ConfigError::TwoSources { flag: "api-server" }),
        (Some(folder), None) if folder.is_dir() => Ok(Source::Folder(folder)),
        (Some(folder), None) => Err(ConfigError::SourceIsNoFolder { path: folder.display().to_string() }),
        (None, Some(file)) if !file.is_file() => {
            Err(ConfigError::KubeconfigIsNoFile { path: file.display().to_string() })
        }
        (None, Some(file)) => Ok(Source::Cluster(Access { kubeconfig: Some(file), server })),
        (None, None) if Access::in_cluster() => Ok(Source::Cluster(Access { kubeconfig: None, server })),
        (None, None) => Err(ConfigError::NoSource),
    }
}

/// An address to listen on; one without a port gets the default's.
fn listen_address(
    flag: &'static str,
    value: Option<&str>,
    (default, port): (Ipv4Addr, u16),
) -> Result<Option<SocketAddr>, ConfigError> {
    match value {
        None => Ok(Some(SocketAddr::from((default, port)))),
        Some("" | "none") => Ok(None),
        Some(value) => {
            let bare = || value.parse().ok().map(|addr: IpAddr| SocketAddr::new(addr, port));
            let address = value.parse().ok().or_else(bare);
            address.map(Some).ok_or_else(|| ConfigError::NoAddress { flag, value: value.to_owned(), port })
        }
    }
}

impl Settings {
    /// The mode with what it needs. As for kube-proxy, --cluster-cidr alone means ClusterCIDR, and what another mode needs counts for nothing.
    fn detector(&self) -> Result<Detector, ConfigError> {
        let mode = match (self.detect_local_mode, &self.cluster_cidr) {
            (Some(mode), _) => mode,
            (None, Some(_)) => detector::Mode::ClusterCidr,
            (None, None) => detector::Mode::Known,
        };
        let needs = |mode, flag| ConfigError::DetectorNeeds { mode, flag };
        let name =
            |name: &Option<String>, mode, flag| name.clone().filter(|name| !name.is_empty()).ok_or(needs(mode, flag));
        Ok(match mode {
            detector::Mode::Known => Detector::Known,
            detector::Mode::ClusterCidr => {
                let ranges = cluster_cidrs(self.cluster_cidr.as_deref().unwrap_or_default())?;
                if ranges.is_empty() {
                    return Err(needs("ClusterCIDR", "cluster-cidr"));
                }
                Detector::Cidrs(ranges)
            }
            detector::Mode::NodeCidr => Detector::NodeCidrs,
            detector::Mode::BridgeInterface => {
                Detector::Bridge(name(&self.pod_bridge_interface, "BridgeInterface", "pod-bridge-interface")?)
            }
            detector::Mode::InterfaceNamePrefix => Detector::Prefix(name(
                &self.pod_interface_name_prefix,
                "InterfaceNamePrefix",
                "pod-interface-name-prefix",
            )?),
            detector::Mode::None => Detector::None,
        })
    }
}

/// At most one range a family.
fn cluster_cidrs(words: &[String]) -> Result<Vec<Cidr>, ConfigError> {
    let mut ranges: Vec<Cidr> = Vec::new();
    for word in words.iter().map(|word| word.trim()).filter(|word| !word.is_empty()) {
        let range = Cidr::parse(word);
        let fits = |range: &Cidr| ranges.iter().all(|r| Family::of(r.addr) != Family::of(range.addr));
        ranges.push(range.filter(fits).ok_or_else(|| ConfigError::ClusterCidr { word: word.to_owned() })?);
    }
    Ok(ranges)
}

fn host_name() -> Option<String> {
    Some(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned())
}

fn is_cgroup2(path: &Path) -> bool {
    use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file =
            Settings::parse("max-services: 10\nmax-backends: 20\npod-interfaces: [cali*, eth9]\ndelivery: stack\n")
                .expect("good YAML");
        let flags = Settings { max_services: Some(11), ..Settings::default() };
        let both = flags.over(file);
        assert_eq!((both.max_services, both.max_backends, both.max_conntrack), (Some(11), Some(20), None));
        assert_eq!(both.pod_interfaces, Some(vec!["cali*".to_owned(), "eth9".to_owned()]));
        assert_eq!(both.delivery, Some(Mode::Stack));
        assert_eq!(Settings::parse("").expect("empty is fine"), Settings::default());
        let cluster = || Settings::parse("kubeconfig: /k\napi-server: https://a\n").expect("good YAML");
        let folder = Settings { source: Some("/objects".into()), ..Settings::default() };
        let settings = folder.clone().over(cluster());
        assert_eq!((settings.source, settings.kubeconfig, settings.api_server), (folder.source.clone(), None, None));
        assert_eq!(cluster().over(folder), cluster());
    }

    #[test]
    fn a_field_that_is_none_is_named_with_its_line() {
        let error = Settings::parse("source: /x\nmax-servces: 10\n").expect_err("misspelt");
        assert!(error.contains("max-servces") && error.contains("line 2"), "{error}");
        let error = Settings::parse("max-services: many\n").expect_err("not a number");
        assert!(error.contains("max-services") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn the_health_ports_address() {
        let of = |text: Option<&str>| {
            let default = (Ipv4Addr::UNSPECIFIED, health::PORT);
            listen_address("healthz-bind-address", text, default).map(|at| at.map(|at| at.to_string()))
        };
        assert_eq!(of(None).expect("the default"), Some("0.0.0.0:10256".to_owned()));
        for (text, want) in [
            ("127.0.0.1", Some("127.0.0.1:10256")),
            ("127.0.0.1:80", Some("127.0.0.1:80")),
            ("::", Some("[::]:10256")),
            ("[::1]:81", Some("[::1]:81")),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(of(Some(text)).expect(text).as_deref(), want, "{text}");
        }
        let error = of(Some("localhost:80")).expect_err("a name").to_string();
        assert!(
            error.starts_with("--healthz-bind-address localhost:80 is no address; write one like 0.0.0.0:10256"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let good =
            || Settings { source: Some(dir.path().to_owned()), node_name: Some("n".to_owned()), ..Settings::default() };
        let say = |settings: Settings| settings.check().expect_err("refused").to_string();
        for way in ["--source DIR", "--kubeconfig FILE", "service account"] {
            assert!(say(Settings::default()).contains(way), "{way}");
        }
        let kubeconfig = Some("/nowhere".into());
        assert!(say(Settings { kubeconfig: kubeconfig.clone(), ..good() }).contains("--source and --kubeconfig"));
        assert!(say(Settings { kubeconfig, ..Settings::default() }).contains("--kubeconfig /nowhere is not a file"));
        let api_server = Some("https://10.0.0.1".to_owned());
        assert!(say(Settings { api_server, ..good() }).contains("--source and --api-server"));
        assert!(say(Settings { accel: Some(Accel::Xdp), ..good() }).contains("--accel xdp is not built yet"));
        assert!(say(Settings { source: Some("/nowhere".into()), ..good() }).contains("not a folder"));
        let nodeport_addresses = Some(vec!["10.0.0.7".to_owned()]);
        assert!(say(Settings { nodeport_addresses, ..good() }).contains("one address: 10.0.0.7/32"));
        let scheduler = Some("wlc".to_owned());
        assert!(say(Settings { scheduler, ..good() }).contains("use random, rr, wrr, sh or lc"));
        let service_node_port_range = Some("32767-30000".to_owned());
        assert!(say(Settings { service_node_port_range, ..good() }).contains("e.g. 30000-32767"));
        let cgroup = Some(dir.path().to_owned());
        assert!(say(Settings { cgroup, ..good() }).contains("below a cgroup2 mount"));
    }

    #[test]
    fn the_file_of_kube_proxy_is_told_from_our_own() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("config.conf");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("writable");
            ConfigFile::read(&path)
        };
        let own = read("max-services: 10\n").expect("our own");
        assert_eq!((own.settings.max_services, own.document), (Some(10), None));
        assert_eq!(own.text, "max-services: 10\n");
        let theirs = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let file = read(&format!("{theirs}hostnameOverride: Node7\nmax-services: 10\n")).expect("kube-proxy's");
        assert_eq!((file.settings.node_name.as_deref(), file.settings.max_services), (Some("Node7"), None));
        let at = format!("--config {}: max-services (line 4)", path.display());
        assert!(file.unknown.len() == 1 && file.unknown[0].starts_with(&at), "{:?}", file.unknown);
        for (text, words) in [
            ("apiVersion: v1\nkind: ConfigMap\n", "this is v1 ConfigMap"),
            ("kind: KubeProxyConfiguration\n", "(no apiVersion)"),
            ("max-services: many\n", "fields are named like flags"),
        ] {
            let error = read(text).expect_err("another object").to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = read(&format!("{theirs}clusterCIDR: [a]\n")).expect_err("no text").to_string();
        assert!(error.contains("clusterCIDR") && error.contains("line 3"), "{error}");
        assert!(ConfigFile::read(&dir.path().join("none")).is_err());
    }

    #[test]
    fn detectors_need_what_they_go_by() {
        let text = |text: &str| Some(text.to_owned());
        let mode = |mode| Settings { detect_local_mode: Some(mode), ..Settings::default() };
        let ranges = |list: &str| Some(list.split(',').map(str::to_owned).collect::<Vec<_>>());
        let both: Vec<Cidr> = ["10.244.0.0/16", "fd00:244::/48"].iter().filter_map(|t| Cidr::parse(t)).collect();
        for (settings, want) in [
            (Settings::default(), Detector::Known),
            (
                Settings { cluster_cidr: ranges("10.244.0.0/16, fd00:244::/48"), ..Settings::default() },
                Detector::Cidrs(both),
            ),
            (Settings { cluster_cidr: ranges("10.244.0.0/16"), ..mode(detector::Mode::None) }, Detector::None),
            (mode(detector::Mode::NodeCidr), Detector::NodeCidrs),
            (
                Settings { pod_bridge_interface: text("cni0"), ..mode(detector::Mode::BridgeInterface) },
                Detector::Bridge("cni0".to_owned()),
            ),
            (
                Settings { pod_interface_name_prefix: text("cali"), ..mode(detector::Mode::InterfaceNamePrefix) },
                Detector::Prefix("cali".to_owned()),
            ),
        ] {
            assert_eq!(settings.detector().expect("good"), want);
        }
        for (settings, word) in [
            (mode(detector::Mode::ClusterCidr), "needs --cluster-cidr"),
            (mode(detector::Mode::BridgeInterface), "needs --pod-bridge-interface"),
            (mode(detector::Mode::InterfaceNamePrefix), "needs --pod-interface-name-prefix"),
            (Settings { cluster_cidr: ranges("10.244.0.0/16,10.245.0.0/16"), ..Settings::default() }, "10.245.0.0/16"),
            (
                Settings { cluster_cidr: ranges("10.244.0.0"), ..Settings::default() },
                "--cluster-cidr 10.244.0.0 is no range",
            ),
        ] {
            let error = settings.detector().expect_err("refused").to_string();
            assert!(error.contains(word), "{error}");
        }
        let file = Settings::parse("detect-local-mode: NodeCIDR\nmasquerade: kube-proxy\n").expect("good YAML");
        assert_eq!(
            (file.detect_local_mode, file.masquerade),
            (Some(detector::Mode::NodeCidr), Some(Masquerade::KubeProxy))
        );
    }
}
