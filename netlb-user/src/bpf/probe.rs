//! What the running kernel has, found by trying it: programs of a few instructions, loaded and thrown away. Distributions carry patches back, so
//! that a version says little.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::LazyLock;

use super::sys::{self, AttachType, Instruction};

/// Program types of `enum bpf_prog_type`.
const SCHED_CLS: u32 = 3;
const CGROUP_SOCK_ADDR: u32 = 18;

/// Helpers of `enum bpf_func_id`.
const MAP_UPDATE_ELEM: i32 = 2;
const L4_CSUM_REPLACE: i32 = 11;
const GET_NETNS_COOKIE: i32 = 122;
const CHECK_MTU: i32 = 163;
const SET_RETVAL: i32 = 187;

/// Flags of bpf_l4_csum_replace: BPF_F_PSEUDO_HDR, and BPF_F_IPV6.
const PSEUDO_HEADER: i32 = 0x10;
const CSUM_IPV6: i32 = 0x80;

/// What differs between the kernels that netlb runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// `bpf_set_retval` (5.18): connect() can fail with another error than EPERM.
    pub set_retval: bool,
    /// BPF_F_IPV6 of `bpf_l4_csum_replace` (6.16, and patched into older ones): sums that a device made of IPv6 frames stay right.
    pub csum_ipv6: bool,
    /// `bpf_fib_lookup` says the MTU of a way that a packet does not fit (5.12).
    pub fib_mtu: bool,
}

impl Features {
    /// The running kernel's, asked once.
    pub fn of_kernel() -> Features {
        static ASKED: LazyLock<Features> = LazyLock::new(|| Features {
            set_retval: has_set_retval(),
            csum_ipv6: has_csum_ipv6(),
            fib_mtu: has_fib_mtu(),
        });
        *ASKED
    }

    /// What is missing here and can be noticed, in words.
    pub fn notes(self) -> Vec<String> {
        let retval = "this kernel has no bpf_set_retval (5.18): on the node itself, connect() to a Service without endpoints fails with EPERM \
                      (\"Operation not permitted\") instead of ECONNREFUSED; pods are not concerned";
        (!self.set_retval).then(|| retval.to_owned()).into_iter().collect()
    }
}

fn has_set_retval() -> bool {
    let program = [Instruction::set(1, 0), Instruction::call(SET_RETVAL), Instruction::set(0, 1), Instruction::EXIT];
    sys::program_load(CGROUP_SOCK_ADDR, AttachType::Connect4 as u32, &program).is_ok()
}

fn has_csum_ipv6() -> bool {
    let add = [(2, 40), (3, 0), (4, 1), (5, PSEUDO_HEADER | CSUM_IPV6)]
        .map(|(register, value)| Instruction::set(register, value));
    let end = [Instruction::call(L4_CSUM_REPLACE), Instruction::EXIT];
    let program: Vec<Instruction> = add.into_iter().chain(end).collect();
    let answer = sys::program_load(SCHED_CLS, 0, &program).and_then(|fd| sys::test_run(fd.as_fd(), &mut [0; 64]));
    matches!(answer, Ok(0))
}

/// The helper `bpf_check_mtu` came in the same series.
fn has_fib_mtu() -> bool {
    let [frame, offset] = Instruction::stack(3, -8);
    let program = [
        Instruction::set(2, 0),
        Instruction::store_word64(-8, 2),
        frame,
        offset,
        Instruction::set(4, 0),
        Instruction::set(5, 0),
        Instruction::call(CHECK_MTU),
        Instruction::EXIT,
    ];
    sys::program_load(SCHED_CLS, 0, &program).is_ok()
}

/// The cookie by which the kernel tells network namespaces apart, of the calling thread's. Before 5.14 sockets do not tell it: then a program on
/// `cgroup`, below which this process must be, reads it from a connect() of ours.
///
/// # Errors
/// The kernel's.
pub fn netns_cookie(cgroup: &Path) -> io::Result<u64> {
    match sys::netns_cookie() {
        Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => cookie_by_program(cgroup),
        result => result,
    }
}

fn cookie_by_program(cgroup: &Path) -> io::Result<u64> {
    let map = sys::array_create(8)?;
    let program = sys::program_load(CGROUP_SOCK_ADDR, AttachType::Connect4 as u32, &store_cookie(&map))?;
    let directory = std::fs::File::open(cgroup)?;
    // Gone with the descriptor.
    let _link = sys::link_create(program.as_fd(), directory.as_raw_fd() as u32, AttachType::Connect4, 0)?;
    // For UDP this only sets the peer's address: no packet leaves. Whether it succeeds is another's matter.
    let _ = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.connect((Ipv4Addr::LOCALHOST, 9));
    let mut cookie = [0; 8];
    // SAFETY: key and value are as long as the map's.
    unsafe { sys::map_lookup(map.as_fd(), &[0; 4], &mut cookie)? };
    match u64::from_ne_bytes(cookie) {
        0 => Err(io::Error::other(format!(
            "this kernel tells a network namespace's cookie only to sockets below --cgroup {}: run netlb in a cgroup below it",
            cgroup.display()
        ))),
        cookie => Ok(cookie),
    }
}

/// The cookie of the context's socket into the first element.
fn store_cookie(map: &OwnedFd) -> Vec<Instruction> {
    let [map, rest] = Instruction::map(1, map.as_fd());
    vec![
        Instruction::call(GET_NETNS_COOKIE),
        Instruction::store_word64(-8, 0),
        Instruction::store_zero32(-12),
        Instruction::stack(2, -12)[0],
        Instruction::stack(2, -12)[1],
        Instruction::stack(3, -8)[0],
        Instruction::stack(3, -8)[1],
        map,
        rest,
        Instruction::set(4, 0),
        Instruction::call(MAP_UPDATE_ELEM),
        Instruction::set(0, 1),
        Instruction::EXIT,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_said() {
        let whole = Features { set_retval: true, csum_ipv6: true, fib_mtu: true };
        assert!(whole.notes().is_empty());
        let old = Features { set_retval: false, csum_ipv6: false, fib_mtu: false };
        let notes = old.notes();
        assert!(notes.len() == 1 && notes[0].contains("EPERM"), "{notes:?}");
    }
}
