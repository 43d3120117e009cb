//! Entry points: view, core, number. Names are `netlb_common::maps::program`'s.
#![allow(unreachable_pub, reason = "the kernel reaches entry points by their section")]

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use netlb_ebpf::{from_pod, socket, to_pod};

use crate::hooks::sock::{self, SockAddr};
use crate::hooks::tc::Skb;
use crate::hooks::xdp::Xdp;
use crate::kernel::KernelTables;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let mut skb = Skb(ctx.skb.skb);
    let ifindex = skb.ifindex();
    let verdict = from_pod::from_pod(&mut skb, &KernelTables, ifindex);
    skb.finish(verdict)
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let mut skb = Skb(ctx.skb.skb);
    let verdict = to_pod::to_pod(&mut skb, &KernelTables);
    skb.finish(verdict)
}

#[classifier]
pub fn from_outside(_ctx: TcContext) -> i32 {
    -1
}

#[classifier]
pub fn to_outside(_ctx: TcContext) -> i32 {
    -1
}

#[xdp]
pub fn xdp_from_outside(_ctx: XdpContext) -> u32 {
    2
}

#[xdp]
pub fn xdp_from_pod(ctx: XdpContext) -> u32 {
    let mut frame = Xdp(ctx.ctx);
    let ifindex = frame.ifindex();
    let verdict = from_pod::from_pod(&mut frame, &KernelTables, ifindex);
    frame.finish(verdict)
}

#[xdp]
pub fn xdp_to_pod(ctx: XdpContext) -> u32 {
    let mut frame = Xdp(ctx.ctx);
    let verdict = to_pod::to_pod(&mut frame, &KernelTables);
    frame.finish(verdict)
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
