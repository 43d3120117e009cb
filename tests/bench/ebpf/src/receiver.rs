//! The receivers: count and drop TCP and UDP, at XDP or TCX; all else (ARP, neighbour discovery) passes, so that namespaces stay alive.
#![allow(unreachable_pub, reason = "the kernel reaches entry points by their section")]

use aya_ebpf::helpers::bpf_redirect_peer;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use netlb_bench_ebpf::{FRAME_WORDS, Order};

use crate::generator::ORDER;
use crate::view::at;

/// Packets received.
#[map]
static RECEIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The packet that [`Order::sample`] asked for.
#[map]
static SAMPLE: Array<[u64; FRAME_WORDS]> = Array::with_max_entries(1, 0);

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;
const UDP: u8 = 17;

#[inline(always)]
pub(crate) fn count() {
    if let Some(received) = RECEIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter.
        unsafe { *received += 1 };
    }
}

/// Counts a TCP or UDP packet, and keeps a copy if one was asked for; false for all else.
#[inline(always)]
fn receive(data: u32, end: u32) -> bool {
    let Some(ether_type) = at::<u16>(data, end, 12) else { return false };
    // SAFETY: `at` checked the bounds.
    let offset = match unsafe { ether_type.read_unaligned() } {
        IPV4 => 23,
        IPV6 => 20,
        _ => return false,
    };
    let Some(proto) = at::<u8>(data, end, offset) else { return false };
    // SAFETY: as above.
    if !matches!(unsafe { *proto }, TCP | UDP) {
        return false;
    }
    count();
    if let Some(order) = ORDER.get_ptr_mut(0) {
        keep(order, data, end);
    }
    true
}

#[inline(always)]
fn keep(order: *mut Order, data: u32, end: u32) {
    // SAFETY: the map's only value; `at` checked the frame's bounds.
    unsafe {
        if (*order).sample == 0 {
            return;
        }
        let (Some(frame), Some(sample)) = (at::<[u64; FRAME_WORDS]>(data, end, 0), SAMPLE.get_ptr_mut(0)) else {
            return;
        };
        let (from, to) = (frame.cast::<u64>(), sample.cast::<u64>());
        let mut i = 0;
        while i < FRAME_WORDS {
            to.add(i).write(from.add(i).read_unaligned());
            i += 1;
        }
        (*order).sample = 0;
    }
}

/// In a pod, for frames that a redirect at XDP brings.
#[xdp]
pub fn sink_xdp(ctx: XdpContext) -> u32 {
    // SAFETY: the context is valid for the run of the program.
    let (data, end) = unsafe { ((*ctx.ctx).data, (*ctx.ctx).data_end) };
    if receive(data, end) { XDP_DROP } else { XDP_PASS }
}

/// In a pod, for packets of the stack; and as a floor at the device where they enter.
#[classifier]
pub fn sink_tcx(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid for the run of the program.
    let (data, end) = unsafe { ((*ctx.skb.skb).data, (*ctx.skb.skb).data_end) };
    if receive(data, end) { TC_DROP } else { TC_NEXT }
}

/// Floor: a packet that is only redirected into the namespace behind a device.
#[classifier]
pub fn floor_peer(ctx: TcContext) -> i32 {
    // SAFETY: as above.
    let (data, end) = unsafe { ((*ctx.skb.skb).data, (*ctx.skb.skb).data_end) };
    let (Some(ether_type), Some(order)) = (at::<u16>(data, end, 12), ORDER.get(0)) else { return TC_NEXT };
    // SAFETY: `at` checked the bounds; scalar arguments.
    match unsafe { ether_type.read_unaligned() } {
        IPV4 | IPV6 if order.device != 0 => unsafe { bpf_redirect_peer(order.device, 0) as i32 },
        _ => TC_NEXT,
    }
}
