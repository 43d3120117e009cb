//! XDP: a packet as `xdp_md`. Checksums are final here, and repaired by hand.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail};
use netlb_common::conntrack::CtKey;
use netlb_common::{Addr, Reason, checksum};
use netlb_ebpf::detour::Detour;
use netlb_ebpf::enter::Device;
use netlb_ebpf::packet::{Eth, Half, Hop, L4, Packet, Wire};
use netlb_ebpf::parse::Parsed;
use netlb_ebpf::tables::Tables;
use netlb_ebpf::verdict::{Decision, Verdict};
use netlb_ebpf::{conntrack, enter, icmp, leave, refuse};

use crate::hooks::fib::Fib;
use crate::kernel::KernelTables;
use crate::maps::FIB;

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;

pub(crate) struct Xdp(pub(crate) *mut xdp_md);

impl Xdp {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel passes a valid context for the run of the program.
        unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) }
    }

    /// The device the frame arrived on.
    #[inline(always)]
    pub(crate) fn device(&self, outside: bool) -> Device {
        // SAFETY: as above.
        let ifindex = unsafe { (*self.0).ingress_ifindex };
        if outside { Device::uplink(ifindex) } else { Device::pod(ifindex) }
    }

    #[inline(always)]
    pub(crate) fn view<T>(&self, offset: usize) -> Option<*mut T> {
        let (start, end) = self.bounds();
        let at = start + offset;
        if at + size_of::<T>() > end { None } else { Some(at as *mut T) }
    }

    /// The verdict as XDP wants it.
    #[inline(always)]
    pub(crate) fn finish(&mut self, verdict: Verdict) -> u32 {
        match verdict.decide() {
            Decision::Pass => PASS,
            Decision::Drop(reason) => {
                KernelTables.count(reason);
                DROP
            }
            // Routes resolve these themselves.
            Decision::Refuse(..) | Decision::Open | Decision::Skip => DROP,
            Decision::Reflect => TX,
            // SAFETY: scalar arguments.
            Decision::Deliver(ifindex) => unsafe { bpf_redirect(ifindex, 0) as u32 },
            Decision::Route(ifindex) => self.route_out(ifindex),
        }
    }

    /// Out of a device, to the neighbour that the FIB named.
    #[inline(always)]
    fn route_out(&mut self, ifindex: u32) -> u32 {
        let Some(fib) = FIB.get_ptr_mut(0) else { return DROP };
        // SAFETY: this CPU's own record.
        let [mac0, mac1, mac2] = unsafe { (*fib).macs() };
        let Some(eth) = self.at_mut::<Eth>(0) else { return DROP };
        (eth.mac0, eth.mac1, eth.mac2) = (mac0, mac1, mac2);
        // SAFETY: scalar arguments.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }
}

super::detours! {
    Xdp xdp_md { xdp_unknown_entering xdp_unknown_leaving xdp_error_entering xdp_error_leaving xdp_has_socket xdp_refuse }
}

impl Packet for Xdp {
    #[inline(always)]
    fn len(&self) -> u32 {
        let (start, end) = self.bounds();
        let len = end - start;
        // Read back through memory: otherwise LLVM folds later arithmetic into the pointers, which the verifier refuses ("R4 pointer arithmetic
        // with <<= operator prohibited", kernel 6.18, nightly 2026-05-19).
        // SAFETY: a local.
        unsafe { (&raw const len).read_volatile() as u32 }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn pull(&mut self, _len: u32) -> bool {
        true
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
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        if l4.zero_is_none && field.value == 0 {
            return true;
        }
        let sum = checksum::apply(field.value, checksum::add(addr, content));
        field.value = if l4.zero_is_none && sum == 0 { 0xffff } else { sum };
        true
    }

    #[inline(always)]
    fn set_l4(&mut self, offset: usize, pseudo: u16, content: u16) -> bool {
        let Some(field) = self.at_mut::<Half>(offset) else { return false };
        field.value = !checksum::add(pseudo, content);
        true
    }

    #[inline(always)]
    fn sctp_ports(changed: u32, len: u32) -> u32 {
        super::sctp_ports(changed, len)
    }

    #[inline(always)]
    fn trim(&mut self, len: u32) -> bool {
        let excess = self.len().wrapping_sub(len) as i32;
        // SAFETY: valid context; the helper checks the length.
        excess == 0 || unsafe { bpf_xdp_adjust_tail(self.0, -excess) == 0 }
    }

    #[inline(always)]
    fn route(&mut self, src: Addr, dst: Addr, proto: u8, len: u32) -> Hop {
        let ifindex = self.device(true).ifindex();
        Fib::ask(self.0.cast(), ifindex, src, dst, proto, len, false)
    }

    #[inline(always)]
    fn sent_here(&self) -> bool {
        // XDP has no hook where frames leave: what a test run takes for one came in by no device.
        true
    }

    #[inline(always)]
    fn has_socket(&mut self, tuple: &CtKey) -> bool {
        super::has_socket(self.0.cast(), tuple)
    }

    #[inline(always)]
    fn insert_after_eth(&mut self, room: u32) -> bool {
        let Some(eth) = self.at::<Eth>(0) else { return false };
        let eth = *eth;
        // SAFETY: valid context; the helper checks the headroom.
        if unsafe { bpf_xdp_adjust_head(self.0, -(room as i32)) } != 0 {
            return false;
        }
        let Some(front) = self.at_mut::<Eth>(0) else { return false };
        *front = eth;
        true
    }
}
