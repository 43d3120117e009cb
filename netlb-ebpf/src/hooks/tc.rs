//! TCX: a packet as `__sk_buff`.
//!
//! Addresses, ports, MACs and the IPv4 header sum are written directly. The L4 sum goes through `bpf_l4_csum_replace`: only the kernel knows
//! whether the field holds a finished sum or the pseudo header's (CHECKSUM_PARTIAL, every packet of a pod with offload), or whether the device
//! has summed the frame (CHECKSUM_COMPLETE).

use aya_ebpf::Global;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{
    bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
    bpf_skb_change_type, bpf_skb_pull_data,
};
use netlb_common::conntrack::CtKey;
use netlb_common::{Addr, Reason};
use netlb_ebpf::detour::Detour;
use netlb_ebpf::enter::Device;
use netlb_ebpf::packet::{Hop, L4, Packet, Wire};
use netlb_ebpf::parse::Parsed;
use netlb_ebpf::tables::Tables;
use netlb_ebpf::verdict::{Decision, Verdict};
use netlb_ebpf::{conntrack, enter, icmp, leave, refuse};

use crate::hooks::fib::Fib;
use crate::kernel::KernelTables;
use crate::maps::FIB;

/// On to the next program, then the stack (TCX_NEXT, also TC_ACT_UNSPEC).
const NEXT: i32 = -1;
const DROP: i32 = 2;
const PACKET_HOST: u32 = 0;

const PSEUDO_HEADER: u64 = 0x10;
const MARK_MANGLED_0: u64 = 0x20;
/// BPF_ADJ_ROOM_MAC.
const ROOM_AFTER_MAC: u32 = 1;

/// BPF_F_IPV6, from kernel 6.16; the agent sets 0 before that. It matters for frames that a device has summed (CHECKSUM_COMPLETE).
#[unsafe(no_mangle)]
static CSUM_IPV6: Global<u64> = Global::new(0x80);

/// Where at its device a program stands.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Ingress,
    Egress,
}

pub(crate) struct Skb(pub(crate) *mut __sk_buff);

impl Skb {
    #[inline(always)]
    fn field<T: Copy>(&self, at: impl FnOnce(*mut __sk_buff) -> *const T) -> T {
        // SAFETY: the kernel passes a valid context for the run of the program.
        unsafe { at(self.0).read() }
    }

    #[inline(always)]
    fn view<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.field(|skb| unsafe { &raw const (*skb).data }) as usize;
        let end = self.field(|skb| unsafe { &raw const (*skb).data_end }) as usize;
        let at = start + offset;
        if at + size_of::<T>() > end { None } else { Some(at as *mut T) }
    }

    #[inline(always)]
    fn replace(&mut self, offset: usize, by: u16, flags: u64) -> bool {
        // SAFETY: valid context; the helper checks offset and flags.
        unsafe { bpf_l4_csum_replace(self.0, offset as u32, 0, by as u64, flags) == 0 }
    }

    /// The device whose hook this is.
    #[inline(always)]
    pub(crate) fn device(&self, outside: bool) -> Device {
        let ifindex = self.field(|skb| unsafe { &raw const (*skb).ifindex });
        if outside { Device::uplink(ifindex) } else { Device::pod(ifindex) }
    }

    /// The frame carries a VLAN tag: it belongs to the device that takes the tag off.
    #[inline(always)]
    pub(crate) fn tagged(&self) -> bool {
        self.field(|skb| unsafe { &raw const (*skb).vlan_present }) != 0
    }

    /// The verdict as TCX wants it.
    #[inline(always)]
    pub(crate) fn finish(&mut self, verdict: Verdict, device: Device, side: Side) -> i32 {
        match verdict.decide() {
            Decision::Pass => NEXT,
            Decision::Drop(reason) => {
                KernelTables.count(reason);
                DROP
            }
            // Routes resolve these themselves.
            Decision::Refuse(..) | Decision::Open | Decision::Skip => DROP,
            // SAFETY: scalar arguments.
            Decision::Reflect if device.is_uplink() => unsafe { bpf_redirect(device.ifindex(), 0) as i32 },
            Decision::Reflect => self.deliver(device.ifindex()),
            Decision::Deliver(ifindex) => self.deliver(ifindex),
            Decision::Route(ifindex) => Self::route_out(ifindex, side),
        }
    }

    /// Out of a device, by the neighbour that the FIB named; the kernel finds its MAC, and waits for it if need be. At egress the frame has a route
    /// already, and one that waits would leave with the MAC of that route's neighbour: there the kernel is to look for a route again.
    #[inline(always)]
    fn route_out(ifindex: u32, side: Side) -> i32 {
        if matches!(side, Side::Egress) {
            // SAFETY: no next hop, of no length.
            return unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 };
        }
        let Some(fib) = FIB.get_ptr_mut(0) else { return DROP };
        // SAFETY: this CPU's own record; the helper is told the size of what it reads.
        unsafe {
            let hop = (*fib).next_hop();
            bpf_redirect_neigh(ifindex, hop.cast(), size_of::<[u32; 5]>() as i32, 0) as i32
        }
    }

    /// Into the namespace behind a veth. The frame may have been for the bridge's or gateway's MAC: before kernel 6.15 the redirect keeps that
    /// judgement, and the pod would drop it as somebody else's.
    #[inline(always)]
    fn deliver(&mut self, ifindex: u32) -> i32 {
        // SAFETY: valid context; scalar arguments.
        unsafe {
            let _ = bpf_skb_change_type(self.0, PACKET_HOST);
            bpf_redirect_peer(ifindex, 0) as i32
        }
    }
}

super::detours! {
    Skb __sk_buff { tc_unknown_entering tc_unknown_leaving tc_error_entering tc_error_leaving tc_has_socket tc_refuse }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.field(|skb| unsafe { &raw const (*skb).len })
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.field(|skb| unsafe { &raw const (*skb).gso_size })
    }

    #[inline(always)]
    fn pull(&mut self, len: u32) -> bool {
        let linear = self.field(|skb| unsafe { &raw const (*skb).data_end })
            - self.field(|skb| unsafe { &raw const (*skb).data });
        let len = len.min(self.len());
        // SAFETY: valid context; the helper checks the length.
        linear >= len || unsafe { bpf_skb_pull_data(self.0, len) == 0 }
    }

    #[inline(always)]
    fn at<T: Wire>(&self, offset: usize) -> Option<&T> {
        // SAFETY: `view` checked the bounds; `Wire` types take any bytes at any address.
        self.view(offset).map(|at| unsafe { &*at })
    }

    #[inline(always)]
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as above, and `&mut self` keeps it the only view.
        self.view(offset).map(|at| unsafe { &mut *at })
    }

    #[inline(always)]
    fn fix_l4(&mut self, offset: usize, addr: u16, content: u16, l4: L4) -> bool {
        let zero = if l4.zero_is_none { MARK_MANGLED_0 } else { 0 };
        let v6 = if l4.v6 { CSUM_IPV6.load() } else { 0 };
        let unchanged = |delta: u16| delta == 0 || delta == 0xffff;
        (unchanged(addr) || self.replace(offset, addr, PSEUDO_HEADER | zero | v6))
            && (unchanged(content) || self.replace(offset, content, zero))
    }

    #[inline(always)]
    fn set_l4(&mut self, offset: usize, pseudo: u16, content: u16) -> bool {
        // The writer left 0xffff in the field: minus zero where it holds the pseudo header's sum, the complement of zero where it holds a
        // finished sum. The kernel adds what belongs into each.
        self.replace(offset, pseudo, PSEUDO_HEADER) && self.replace(offset, content, 0)
    }

    #[inline(always)]
    fn sctp_ports(changed: u32, len: u32) -> u32 {
        super::sctp_ports(changed, len)
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> bool {
        // SAFETY: valid context; the helper checks the length.
        self.len() == len || unsafe { bpf_skb_change_tail(self.0, len, 0) == 0 }
    }

    #[inline(always)]
    fn route(&mut self, src: Addr, dst: Addr, proto: u8, len: u32) -> Hop {
        let ifindex = self.field(|skb| unsafe { &raw const (*skb).ifindex });
        Fib::ask(self.0.cast(), ifindex, src, dst, proto, len, true)
    }

    #[inline(always)]
    fn sent_here(&self) -> bool {
        // Where a packet came in, as its way through the stack, or past it, left it; 0 of what a socket sent.
        self.field(|skb| unsafe { &raw const (*skb).ingress_ifindex }) == 0
    }

    #[inline(always)]
    fn has_socket(&mut self, tuple: &CtKey) -> bool {
        super::has_socket(self.0.cast(), tuple)
    }

    #[inline(always)]
    fn insert_after_eth(&mut self, room: u32) -> bool {
        // SAFETY: valid context; the helper checks the length.
        unsafe { bpf_skb_adjust_room(self.0, room as i32, ROOM_AFTER_MAC, 0) == 0 }
    }
}
