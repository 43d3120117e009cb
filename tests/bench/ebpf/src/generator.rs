//! The packet generator: writes a whole frame over whatever the recycled page holds, then hands it on.
#![allow(unreachable_pub, reason = "the kernel reaches entry points by their section")]

use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use netlb_bench_ebpf::{FRAME_WORDS, Order, PORT_BASE, PORT_BITS, target};

use crate::receiver;
use crate::view::at;

#[map]
pub(crate) static ORDER: Array<Order> = Array::with_max_entries(1, 0);
#[map]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(4, 0);

const ABORTED: u32 = 0;
const DROP: u32 = 1;
const PASS: u32 = 2;

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// `BACK`: the packet is an answer, and its destination varies.
#[inline(always)]
fn generate<const V6: bool, const TCP: bool, const BACK: bool>(ctx: &XdpContext) -> u32 {
    let Some(order) = ORDER.get_ptr_mut(0) else { return ABORTED };
    // SAFETY: the context is valid for the run of the program.
    let (data, end) = unsafe { ((*ctx.ctx).data, (*ctx.ctx).data_end) };
    let Some(frame) = at::<[u64; FRAME_WORDS]>(data, end, 0) else { return ABORTED };
    // SAFETY: the map's only value, which only this CPU uses; `at` checked the frame's bounds.
    unsafe {
        let words = frame.cast::<u64>();
        let template = (&raw const (*order).words).cast::<u64>();
        let mut i = 0;
        while i < FRAME_WORDS {
            words.add(i).write_unaligned(template.add(i).read());
            i += 1;
        }
        (*order).made += 1;
        if (*order).vary != 0 {
            let state = (*order).state.wrapping_mul((*order).factor).wrapping_add(1);
            (*order).state = state;
            let flow = state as u32 & (*order).mask;
            let port = (PORT_BASE | (flow as u16 & ((1 << PORT_BITS) - 1))).to_be();
            let host = (flow >> PORT_BITS) as u16 & 0x3f;
            let bytes = frame.cast::<u8>();
            let l4 = if V6 { 54 } else { 34 };
            // The last two bytes of the address that varies.
            let address = bytes.add(if V6 { 36 } else { 28 } + if BACK { l4 - if V6 { 38 } else { 30 } } else { 0 });
            let half = address.cast::<u16>();
            half.write_unaligned(half.read_unaligned() + (host << 8));
            bytes.add(l4 + if BACK { 2 } else { 0 }).cast::<u16>().write_unaligned(port);
            let varied = ((host as u32) << 8) + port as u32;
            let sum = !fold((*order).l4_sum + varied);
            let sum = if !TCP && sum == 0 { 0xffff } else { sum };
            bytes.add(l4 + if TCP { 16 } else { 6 }).cast::<u16>().write_unaligned(sum);
            if !V6 {
                bytes.add(24).cast::<u16>().write_unaligned(!fold((*order).ip_sum + ((host as u32) << 8)));
            }
        }
        match (*order).target {
            target::PROGRAM => TARGETS.tail_call(ctx, target::PROGRAM),
            target::DROP => TARGETS.tail_call(ctx, target::DROP),
            target::REDIRECT => TARGETS.tail_call(ctx, target::REDIRECT),
            _ => return PASS,
        }
    }
    ABORTED
}

macro_rules! generators {
    ($($name:ident $v6:literal $tcp:literal $back:literal;)*) => { $(
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            generate::<$v6, $tcp, $back>(&ctx)
        }
    )* };
}

generators! {
    udp4_out false false false;
    udp4_back false false true;
    tcp4_out false true false;
    udp6_out true false false;
    udp6_back true false true;
    tcp6_out true true false;
}

/// Floor: what a generated frame costs that goes nowhere.
#[xdp]
pub fn floor_drop(_ctx: XdpContext) -> u32 {
    receiver::count();
    DROP
}

/// Floor: what a generated frame costs that is only redirected to a device.
#[xdp]
pub fn floor_redirect(_ctx: XdpContext) -> u32 {
    let Some(order) = ORDER.get(0) else { return ABORTED };
    // SAFETY: scalar arguments.
    unsafe { bpf_redirect(order.device, 0) as u32 }
}

/// Attached to the device that frames are said to arrive on: the kernel wants an XDP program there.
#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    PASS
}
