//! Entry points: view, core, number. Names are `netlb_common::maps::program`'s.
#![allow(unreachable_pub, reason = "the kernel reaches entry points by their section")]

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use netlb_ebpf::enter::enter;
use netlb_ebpf::leave::leave;
use netlb_ebpf::socket;

use crate::hooks::sock::{self, SockAddr};
use crate::hooks::tc::{Side, Skb};
use crate::hooks::xdp::Xdp;
use crate::kernel::KernelTables;

/// A TC program: the route, whether its device is an uplink, and the side of it. At an uplink, a frame with a VLAN tag is left to the device that takes
/// the tag off.
macro_rules! classifiers {
    ($($name:ident $route:path, $outside:literal, $side:ident;)*) => { $(
        #[classifier]
        pub fn $name(ctx: TcContext) -> i32 {
            let mut skb = Skb(ctx.skb.skb);
            if $outside && skb.tagged() {
                return -1;
            }
            let device = skb.device($outside);
            let verdict = $route(&mut skb, &KernelTables, device);
            skb.finish(verdict, device, Side::$side)
        }
    )* };
}

classifiers! {
    from_pod enter, false, Ingress;
    to_pod leave, false, Egress;
    from_outside enter, true, Ingress;
    to_outside leave, true, Egress;
}

macro_rules! xdps {
    ($($name:ident $route:path, $outside:literal;)*) => { $(
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            let mut frame = Xdp(ctx.ctx);
            let device = frame.device($outside);
            let verdict = $route(&mut frame, &KernelTables, device);
            frame.finish(verdict)
        }
    )* };
}

xdps! {
    xdp_from_pod enter, false;
    xdp_to_pod leave, false;
    xdp_from_outside enter, true;
}

/// Writes jiffies64 and the monotonic clock (ns), native u64 each, over the first 16 bytes of its packet. Never attached: the agent runs it by
/// BPF_PROG_TEST_RUN to learn how many jiffies a second has.
#[xdp]
pub fn clock(ctx: XdpContext) -> u32 {
    if let Some(at) = Xdp(ctx.ctx).view::<[u64; 2]>(0) {
        // SAFETY: `view` checked the bounds.
        unsafe { at.write_unaligned([bpf_jiffies64(), bpf_ktime_get_ns()]) };
    }
    2
}

macro_rules! outgoing {
    ($($name:ident $attach:ident $v6:literal $datagram:literal;)*) => { $(
        #[cgroup_sock_addr($attach)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            sock::finish(socket::outgoing(&mut SockAddr::<$v6>(ctx.sock_addr), &KernelTables, $datagram))
        }
    )* };
}

macro_rules! incoming {
    ($($name:ident $attach:ident $v6:literal;)*) => { $(
        #[cgroup_sock_addr($attach)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            socket::incoming(&mut SockAddr::<$v6>(ctx.sock_addr), &KernelTables);
            1
        }
    )* };
}

outgoing! {
    connect4 connect4 false false;
    connect6 connect6 true false;
    sendmsg4 sendmsg4 false true;
    sendmsg6 sendmsg6 true true;
}

incoming! {
    recvmsg4 recvmsg4 false;
    recvmsg6 recvmsg6 true;
    getpeername4 getpeername4 false;
    getpeername6 getpeername6 true;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier proves that no path comes here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
