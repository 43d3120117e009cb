//! cgroup sock_addr: the destination of a socket call.
//!
//! The kernel restricts the width of context accesses: every word is read and written as u32.

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use netlb_common::{Addr, Port};
use netlb_ebpf::socket::{Answer, Destination};

const ALLOW: i32 = 1;
const REJECT: i32 = 0;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// The kernel has `bpf_set_retval` (5.18); else the agent sets 0, and what a hook rejects fails with EPERM.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u32> = Global::new(1);

/// `V6`: the socket speaks IPv6 (its destination may still be a v4-mapped address).
pub(crate) struct SockAddr<const V6: bool>(pub(crate) *mut bpf_sock_addr);

impl<const V6: bool> Destination for SockAddr<V6> {
    #[inline(always)]
    fn addr(&self) -> Addr {
        let ctx = self.0;
        // SAFETY: the kernel passes a valid context for the run of the program.
        unsafe {
            if V6 {
                let word = |i: usize| (&raw const (*ctx).user_ip6).cast::<u32>().add(i).read_volatile() as u64;
                Addr::v6(word(0) | word(1) << 32, word(2) | word(3) << 32)
            } else {
                Addr::v4((&raw const (*ctx).user_ip4).read_volatile())
            }
        }
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: as above.
        Port(unsafe { (&raw const (*self.0).user_port).read_volatile() } as u16)
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0).protocol).read_volatile() as u8 }
    }

    #[inline(always)]
    fn set(&mut self, addr: Addr, port: Port) {
        let ctx = self.0;
        // SAFETY: as above; these fields are writable at these hooks.
        unsafe {
            if V6 {
                let word = |i: usize| (&raw mut (*ctx).user_ip6).cast::<u32>().add(i);
                word(0).write_volatile(addr.hi as u32);
                word(1).write_volatile((addr.hi >> 32) as u32);
                word(2).write_volatile(addr.lo as u32);
                word(3).write_volatile((addr.lo >> 32) as u32);
            } else {
                (&raw mut (*ctx).user_ip4).write_volatile(addr.v4_word());
            }
            (&raw mut (*ctx).user_port).write_volatile(port.0 as u32);
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: valid context.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: valid context.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }
}

/// The answer as connect and sendmsg hooks want it.
#[inline(always)]
pub(crate) fn finish(answer: Answer) -> i32 {
    let errno = match answer {
        Answer::Allow => return ALLOW,
        Answer::Refused => ECONNREFUSED,
        Answer::Unreachable => EHOSTUNREACH,
    };
    if SET_RETVAL.load() != 0 {
        // SAFETY: scalar argument.
        unsafe { bpf_set_retval(-errno) };
    }
    REJECT
}
