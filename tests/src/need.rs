//! What a test needs of the machine, and what happens where it is missing.
//!
//! A test that cannot run is ignored, with the reason. With `NETLB_REQUIRE=all`, as CI sets it, it fails instead, save for what
//! `tests/lacks.txt` lists: the committed list of what the build machine's kernel, or an older one, does not have.

use std::fs;
use std::process::Command;

use netlb_user::bpf::probe::Features;

use crate::control_plane;

/// A property of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Rights to load programs and to make network namespaces.
    Root,
    /// A kernel that describes its types: /sys/kernel/btf/vmlinux.
    Btf,
    /// LLVM's disassembler, with its bpf target.
    Objdump,
    /// Kubernetes' control plane, built.
    ControlPlane,
    /// A kernel that tells programs the MTU of a route.
    RouteMtu,
}

/// One `name: reason` a line; `#` starts a comment.
const LACKS: &str = include_str!("../lacks.txt");

impl Need {
    /// As it stands in `tests/lacks.txt`.
    pub fn name(self) -> &'static str {
        match self {
            Need::Root => "root",
            Need::Btf => "btf",
            Need::Objdump => "llvm-objdump",
            Need::ControlPlane => "control-plane",
            Need::RouteMtu => "route-mtu",
        }
    }

    fn missing(self) -> Option<&'static str> {
        match self {
            Need::ControlPlane if control_plane::programs().is_ok() => None,
            Need::ControlPlane => {
                Some("no control plane is built: do `cargo xtask cluster build --only control-plane`")
            }
            // SAFETY: no arguments, cannot fail.
            Need::Root if unsafe { libc::geteuid() } == 0 => None,
            Need::Root => Some("needs root: run it with sudo"),
            Need::Btf if fs::metadata("/sys/kernel/btf/vmlinux").is_ok() => None,
            Need::Btf => Some("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): use a distribution kernel"),
            Need::Objdump => {
                let output = Command::new("llvm-objdump").arg("--version").output();
                let has = output.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("bpf"));
                if has { None } else { Some("llvm-objdump with a bpf target is not installed: apt install llvm") }
            }
            Need::RouteMtu if Features::of_kernel().fib_mtu => None,
            Need::RouteMtu => Some("route-mtu: before Linux 5.12 programs are not told the MTU of a route"),
        }
    }
}

/// Ok if the machine has all of it, else the reason to ignore the test.
///
/// # Panics
/// With `NETLB_REQUIRE=all`, if something is missing that the list of known lacks does not name.
pub fn need(needs: &[Need]) -> Result<(), String> {
    let Some((need, reason)) = needs.iter().find_map(|need| need.missing().map(|reason| (need, reason))) else {
        return Ok(());
    };
    let required = std::env::var("NETLB_REQUIRE").is_ok_and(|value| value == "all");
    assert!(
        !required || is_listed(need.name(), LACKS),
        "{reason} (NETLB_REQUIRE=all allows only what tests/lacks.txt lists)"
    );
    Err(reason.into())
}

fn is_listed(name: &str, list: &str) -> bool {
    list.lines().filter(|line| !line.starts_with('#')).any(|line| line.split(':').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::is_listed;

    #[test]
    fn a_lack_is_listed_by_its_whole_name() {
        let list = "# comment: no\nsctp: no such sockets\n";
        assert!(is_listed("sctp", list));
        assert!(!is_listed("sct", list) && !is_listed("# comment", list) && !is_listed("root", list));
    }
}
