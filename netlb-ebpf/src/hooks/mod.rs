//! One file a kind of hook: its view of a packet or socket, and the numbers its verdicts become.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock_tuple;
use aya_ebpf::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use netlb_common::conntrack::CtKey;
use netlb_common::proto;

pub(crate) mod fib;
pub(crate) mod sock;
pub(crate) mod tc;
pub(crate) mod xdp;

/// [`checksum::sctp_ports`](netlb_common::checksum::sctp_ports): thousands of steps.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sctp_ports(changed: u32, len: u32) -> u32 {
    netlb_common::checksum::sctp_ports(changed, len)
}

/// BPF_F_CURRENT_NETNS.
const THIS_NAMESPACE: u64 = u64::MAX;

/// [`Packet::has_socket`](netlb_ebpf::packet::Packet::has_socket): asks the kernel for the socket of a packet with this tuple, in the network namespace
/// of the hook's device. `ctx` is the hook's.
#[inline(always)]
pub(crate) fn has_socket(ctx: *mut c_void, tuple: &CtKey) -> bool {
    // `struct bpf_sock_tuple` (uapi/linux/bpf.h): addresses, then ports. Of IPv6 that is how the key begins.
    let mut v4 = [tuple.src.v4_word(), tuple.dst.v4_word(), tuple.ports()];
    let (at, size) = if tuple.dst.is_v4() {
        ((&raw mut v4).cast_const().cast(), size_of::<[u32; 3]>())
    } else {
        ((&raw const *tuple).cast::<bpf_sock_tuple>(), size_of::<[u32; 9]>())
    };
    // SAFETY: valid context; both tuples are as long as the size says. What a helper found is given back.
    unsafe {
        let socket = match tuple.proto() {
            proto::TCP => bpf_skc_lookup_tcp(ctx, at.cast_mut(), size as u32, THIS_NAMESPACE, 0),
            proto::UDP => bpf_sk_lookup_udp(ctx, at.cast_mut(), size as u32, THIS_NAMESPACE, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

/// [`Detour`](netlb_ebpf::detour::Detour)s of a hook as functions of their own in the object (global ones, in the kernel's words): the verifier walks
/// each once, for any arguments. The kernel knows a context by the name of its type.
macro_rules! detours {
    ($view:ident $context:ty {
        $unknown_entering:ident $unknown_leaving:ident $error_entering:ident $error_leaving:ident $has_socket:ident $refuse:ident
    }) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $unknown_entering(ctx: *mut $context, parsed: u64, device: u64) -> u64 {
            let (parsed, device) = (Parsed::from_word(parsed), Device::from_word(device));
            enter::unknown(&mut $view(ctx), &KernelTables, parsed, device).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $unknown_leaving(ctx: *mut $context, parsed: u64, device: u64) -> u64 {
            let (parsed, device) = (Parsed::from_word(parsed), Device::from_word(device));
            leave::unknown(&mut $view(ctx), &KernelTables, parsed, device).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_entering(ctx: *mut $context, parsed: u64) -> u64 {
            icmp::enter(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed)).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_leaving(ctx: *mut $context, parsed: u64) -> u64 {
            icmp::leave(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed)).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $has_socket(ctx: *mut $context) -> u64 {
            conntrack::has_socket(&mut $view(ctx), &KernelTables) as u64
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refuse(ctx: *mut $context, parsed: u64, reason: u32, mtu: u32) -> u64 {
            let reason = Reason(reason as u8);
            refuse::refuse(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed), reason, mtu as u16).word()
        }

        impl Detour for $view {
            #[inline(always)]
            fn unknown_entering<T: Tables>(&mut self, _: &T, parsed: Parsed, device: Device) -> Verdict {
                Verdict::from_word($unknown_entering(self.0, parsed.word(), device.word()))
            }

            #[inline(always)]
            fn unknown_leaving<T: Tables>(&mut self, _: &T, parsed: Parsed, device: Device) -> Verdict {
                Verdict::from_word($unknown_leaving(self.0, parsed.word(), device.word()))
            }

            #[inline(always)]
            fn error_entering<T: Tables>(&mut self, _: &T, parsed: Parsed) -> Verdict {
                Verdict::from_word($error_entering(self.0, parsed.word()))
            }

            #[inline(always)]
            fn error_leaving<T: Tables>(&mut self, _: &T, parsed: Parsed) -> Verdict {
                Verdict::from_word($error_leaving(self.0, parsed.word()))
            }

            #[inline(always)]
            fn has_awaiting_socket<T: Tables>(&mut self, _: &T) -> bool {
                $has_socket(self.0) != 0
            }

            #[inline(always)]
            fn refuse<T: Tables>(&mut self, _: &T, parsed: Parsed, reason: Reason, mtu: u16) -> Verdict {
                Verdict::from_word($refuse(self.0, parsed.word(), reason.0 as u32, mtu as u32))
            }
        }
    };
}
pub(crate) use detours;
