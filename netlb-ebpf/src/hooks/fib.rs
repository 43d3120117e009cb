//! The node's forwarding table, asked from a hook, and its answer kept until the packet is sent.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_fib_lookup;
use netlb_common::Addr;
use netlb_ebpf::packet::Hop;

use crate::maps::FIB;

/// `struct bpf_fib_lookup` (uapi/linux/bpf.h) in words.
#[repr(C)]
pub(crate) struct Fib {
    family: u8,
    proto: u8,
    sport: u16,
    dport: u16,
    /// In: bytes of the IP packet. Out: the MTU of the way, where it does not fit.
    len: u16,
    /// In: the device the packet came from. Out: the one it leaves by.
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    /// In: the destination. Out: the next hop.
    dst: [u32; 4],
    vlan: u32,
    /// Source, then destination.
    macs: [u32; 3],
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// BPF_FIB_LKUP_RET_*.
const SUCCESS: i64 = 0;
const NOT_FORWARDED: i64 = 4;
const NO_NEIGH: i64 = 7;
const FRAG_NEEDED: i64 = 8;

impl Fib {
    /// Asks for the way of a packet; `neighbours`: this hook can wait for one to be found.
    #[inline(always)]
    pub(crate) fn ask(
        ctx: *mut c_void,
        ifindex: u32,
        src: Addr,
        dst: Addr,
        proto: u8,
        len: u32,
        neighbours: bool,
    ) -> Hop {
        let Some(fib) = FIB.get_ptr_mut(0) else { return Hop::Nowhere };
        // SAFETY: this CPU's own record, which nothing else refers to; the helper is told its size.
        let found = unsafe {
            let fib = &mut *fib;
            (fib.proto, fib.sport, fib.dport, fib.tos, fib.vlan) = (proto, 0, 0, 0, 0);
            fib.len = if len > 0xffff { 0xffff } else { len as u16 };
            fib.ifindex = ifindex;
            if dst.is_v4() {
                fib.family = AF_INET;
                fib.src[0] = src.v4_word();
                fib.dst[0] = dst.v4_word();
            } else {
                fib.family = AF_INET6;
                fib.src = words(src);
                fib.dst = words(dst);
            }
            bpf_fib_lookup(ctx, (&raw mut *fib).cast(), size_of::<Fib>() as i32, 0)
        };
        // SAFETY: as above.
        let fib = unsafe { &*fib };
        match found as i64 {
            SUCCESS => Hop::To(fib.ifindex),
            NO_NEIGH if neighbours => Hop::To(fib.ifindex),
            NO_NEIGH => Hop::Unresolved,
            FRAG_NEEDED => Hop::TooBig(fib.len as u32),
            // To an address of the node itself.
            NOT_FORWARDED => Hop::Local,
            // Unreachable, blackhole, prohibited, forwarding switched off, a malformed question.
            _ => Hop::Nowhere,
        }
    }

    /// Family and address of the next hop, as `bpf_redirect_neigh` takes them (`struct bpf_redir_neigh`): in place, where the family takes the last
    /// word of a source that is not needed any more.
    #[inline(always)]
    pub(crate) fn next_hop(&mut self) -> *mut [u32; 5] {
        self.src[3] = self.family as u32;
        (&raw mut self.src[3]).cast()
    }

    /// Both MACs as a frame has them, destination first.
    #[inline(always)]
    pub(crate) fn macs(&self) -> [u32; 3] {
        let [a, b, c] = self.macs;
        [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16]
    }
}

#[inline(always)]
fn words(addr: Addr) -> [u32; 4] {
    [addr.hi as u32, (addr.hi >> 32) as u32, addr.lo as u32, (addr.lo >> 32) as u32]
}
