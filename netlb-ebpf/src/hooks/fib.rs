//! The node's forwarding table, asked from a hook, and its answer kept until the packet is sent.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_fib_lookup;
use netlb_common::Addr;
use netlb_ebpf::packet::Hop;

use crate::maps::{FIB, UPLINKS};

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
    // Ours, where the kernel does not tell the MTU: kept here rather than on the stack.
    /// Bytes of the IP packet.
    asked: u32,
    /// What the kernel answered, and what is made of it.
    answer: u32,
}

/// As the kernel knows the record.
const SIZE: i32 = 64;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

// BPF_FIB_LKUP_RET_*.
const SUCCESS: u32 = 0;
const NOT_FORWARDED: u32 = 4;
const NO_NEIGH: u32 = 7;
const FRAG_NEEDED: u32 = 8;

/// The kernel holds the packet's length against the narrowest part of the way, and says what fits (5.12). Else the agent sets 0: then the device's
/// own MTU decides, as the agent knows it of uplinks.
#[unsafe(no_mangle)]
static FIB_TELLS_MTU: Global<u32> = Global::new(1);

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
            if FIB_TELLS_MTU.load() == 0 {
                // TC does not look at it, and XDP would not say where the way begins.
                (fib.len, fib.asked) = (0, len);
            }
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
            bpf_fib_lookup(ctx, (&raw mut *fib).cast(), SIZE, 0)
        };
        // SAFETY: as above.
        let fib = unsafe { &mut *fib };
        let found = if FIB_TELLS_MTU.load() == 0 { fib.by_device(found as u32) } else { found as u32 };
        match found {
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

    /// The answer of a kernel that did not look at the length, or only at the frame's, made right by the MTU of the device; of one that is no uplink
    /// nothing is known (0).
    #[inline(always)]
    fn by_device(&mut self, found: u32) -> u32 {
        self.answer = found;
        if found != SUCCESS && found != NO_NEIGH && found != FRAG_NEEDED {
            return found;
        }
        // SAFETY: read at once.
        match unsafe { UPLINKS.get(&self.ifindex) } {
            Some(uplink) if self.asked > uplink.mtu => (self.len, self.answer) = (uplink.mtu as u16, FRAG_NEEDED),
            Some(_) if self.answer == FRAG_NEEDED => self.answer = SUCCESS,
            Some(_) => {}
            None => self.len = 0,
        }
        self.answer
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
