//! A network namespace in which the kernel's FIB knows what [`World::hop`](crate::world::World::hop) says: an uplink and a narrow one, a default route
//! to a neighbour behind the first, narrower and missing ways.

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use netlb_common::proto;
use netlb_testnode::netns::{NetNs, sysctl};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use crate::world::{NARROW, NARROW_NETS, NARROW_ROUTES, NODE_V4, NODE_V6, NOWHERE, NodeSocket};

/// The uplinks' names.
const DEVICE: &str = "up0";
const NARROW_DEVICE: &str = "up1";

/// The next hop by the first uplink, by family.
const GATEWAYS: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
/// By the narrow one.
const NARROW_GATEWAYS: [&str; 2] = ["192.0.2.129", "2001:db8:3::1"];

/// The namespace; it goes with this value and the threads that entered it.
pub struct Outside {
    namespace: NetNs,
    /// Interface index of the uplink.
    pub ifindex: u32,
    /// Of the narrow one.
    pub narrow: u32,
}

impl Outside {
    /// Makes it.
    ///
    /// # Errors
    /// Without root, or if `ip` (iproute2) fails.
    pub fn new() -> Result<Self> {
        let namespace = NetNs::create()?;
        let [ifindex, narrow] = namespace.run(furnish)??;
        Ok(Outside { namespace, ifindex, narrow })
    }

    /// Opens a socket there; a TCP one waits for an answer that never comes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn socket(&self, wanted: &NodeSocket) -> Result<OwnedFd> {
        let NodeSocket { proto, local, peer } = *wanted;
        self.namespace.run(move || {
            let family = if local.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
            let kind = if proto == proto::TCP { SockType::Stream } else { SockType::Datagram };
            let made = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
            socket::bind(made.as_raw_fd(), &SockaddrStorage::from(local))?;
            match socket::connect(made.as_raw_fd(), &SockaddrStorage::from(peer)) {
                Ok(()) | Err(Errno::EINPROGRESS) => Ok(made),
                Err(error) => Err(error.into()),
            }
        })?
    }

    /// Takes the calling thread there, for good: a test run asks the FIB of the namespace of its caller.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self) -> Result<()> {
        self.namespace.enter()
    }
}

fn furnish() -> Result<[u32; 2]> {
    ip(&format!("link add {DEVICE} type veth peer name peer0"))?;
    ip(&format!("link add {NARROW_DEVICE} mtu {NARROW} type veth peer name peer1"))?;
    for device in ["lo", DEVICE, "peer0", NARROW_DEVICE, "peer1"] {
        ip(&format!("link set {device} up"))?;
    }
    sysctl("net/ipv4/ip_forward", "1")?;
    sysctl("net/ipv6/conf/all/forwarding", "1")?;
    ip(&format!("addr add {NODE_V4}/24 dev {DEVICE}"))?;
    ip(&format!("addr add {NODE_V6}/64 dev {DEVICE} nodad"))?;
    for (device, gateways) in [(DEVICE, GATEWAYS), (NARROW_DEVICE, NARROW_GATEWAYS)] {
        for gateway in gateways {
            ip(&format!("neigh add {gateway} lladdr 02:00:00:00:00:01 nud permanent dev {device}"))?;
        }
    }
    for gateway in GATEWAYS {
        ip(&format!("route add default via {gateway}"))?;
    }
    for (net, bits) in NARROW_ROUTES {
        let gateway = GATEWAYS[usize::from(net.contains(':'))];
        ip(&format!("route add {net}/{bits} via {gateway} mtu lock {NARROW}"))?;
    }
    for (net, bits) in NARROW_NETS {
        let gateway = NARROW_GATEWAYS[usize::from(net.contains(':'))];
        ip(&format!("route add {net}/{bits} via {gateway} dev {NARROW_DEVICE} onlink"))?;
    }
    for (net, bits) in NOWHERE {
        ip(&format!("route add unreachable {net}/{bits}"))?;
    }
    Ok([index(DEVICE)?, index(NARROW_DEVICE)?])
}

fn index(device: &str) -> Result<u32> {
    let name = std::ffi::CString::new(device)?;
    // SAFETY: a NUL-terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(std::io::Error::last_os_error()).with_context(|| format!("device {device}")),
        index => Ok(index),
    }
}

fn ip(arguments: &str) -> Result<()> {
    let done =
        Command::new("ip").args(arguments.split(' ')).output().context("running ip (Debian package iproute2)")?;
    ensure!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
