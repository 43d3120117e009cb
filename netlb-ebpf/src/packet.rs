//! The packet, as every hook and the host tests see it: typed views at offsets, and the few mutations a hook must do in its own way.
//!
//! Reading borrows the packet, changing it needs `&mut`: a view that outlives a mutation (where the kernel would invalidate the pointer) does not
//! compile.

use netlb_common::conntrack::CtKey;
use netlb_common::{Addr, checksum};

/// A header that may be viewed in place.
///
/// # Safety
/// The type must be `repr(C, packed)`, without padding, and every byte pattern must be a valid value.
pub unsafe trait Wire: Copy {}

macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $(pub $field:ident: $ty:ty,)* })*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy)]
        #[repr(C, packed)]
        pub struct $name { $(pub $field: $ty,)* }
        const _: () = assert!(core::mem::size_of::<$name>() == $size);
        // SAFETY: packed integers only.
        unsafe impl Wire for $name {}
    )* };
}

// Fields are native words that hold wire-order bytes: wide loads, and no byte loops in the kernel program.
wire! {
    /// Ethernet II. The two MACs (destination, source) as three words.
    pub struct Eth [14] { pub mac0: u32, pub mac1: u32, pub mac2: u32, pub ether_type: u16, }
    /// RFC 791.
    pub struct Ipv4 [20] { pub version_ihl: u8, pub tos: u8, pub len: u16, pub id: u16, pub frag: u16, pub ttl: u8, pub proto: u8, pub csum: u16, pub src: u32, pub dst: u32, }
    /// RFC 8200.
    pub struct Ipv6 [40] { pub first: u32, pub len: u16, pub next: u8, pub hops: u8, pub src_hi: u64, pub src_lo: u64, pub dst_hi: u64, pub dst_lo: u64, }
    /// The start every IPv6 extension header has (RFC 8200 section 4); length in units of 8 bytes, the first not counted.
    pub struct Extension [4] { pub next: u8, pub len: u8, pub data: u16, }
    /// RFC 9293. The ports as one word.
    pub struct Tcp [20] { pub ports: u32, pub seq: u32, pub ack: u32, pub offset: u8, pub flags: u8, pub window: u16, pub csum: u16, pub urgent: u16, }
    /// RFC 768.
    pub struct Udp [8] { pub ports: u32, pub len: u16, pub csum: u16, }
    /// RFC 792, RFC 4443.
    pub struct Icmp [8] { pub kind: u8, pub code: u8, pub csum: u16, pub rest: u32, }
    /// RFC 9260. What follows is the first chunk, whose type is its first byte.
    pub struct Sctp [13] { pub ports: u32, pub tag: u32, pub csum: u32, pub chunk: u8, }
    /// Any 32-bit word.
    pub struct Word [4] { pub value: u32, }
    /// Any 16-bit word.
    pub struct Half [2] { pub value: u16, }
}

impl Ipv4 {
    #[inline(always)]
    pub fn src(&self) -> Addr {
        Addr::v4(self.src)
    }

    #[inline(always)]
    pub fn dst(&self) -> Addr {
        Addr::v4(self.dst)
    }

    /// Header length in bytes; below 20 is malformed.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        (self.version_ihl & 0xf) as usize * 4
    }
}

impl Ipv6 {
    #[inline(always)]
    pub fn src(&self) -> Addr {
        Addr::v6(self.src_hi, self.src_lo)
    }

    #[inline(always)]
    pub fn dst(&self) -> Addr {
        Addr::v6(self.dst_hi, self.dst_lo)
    }
}

/// Bytes of an Ethernet header; every offset below counts from the start of the frame.
pub const ETH_LEN: usize = 14;

/// How an L4 checksum treats zero and the pseudo header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct L4 {
    /// UDP over IPv4: a field of zero means "no checksum" and stays; a sum that comes out as zero is sent as 0xffff (RFC 768).
    pub zero_is_none: bool,
    /// The addresses belong to an IPv6 header, which has no checksum of its own.
    pub v6: bool,
}

/// Where the node would forward a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hop {
    /// Out of this device (interface index).
    To(u32),
    /// Out of a device that takes no more than so many bytes; 0: it does not say.
    TooBig(u32),
    /// To the node itself.
    Local,
    /// Somewhere, but this hook cannot say where: its neighbour is not known yet.
    Unresolved,
    /// Nowhere.
    Nowhere,
}

/// A frame at a hook.
#[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
pub trait Packet {
    /// Bytes of the frame.
    fn len(&self) -> u32;

    /// Payload bytes of each segment if the frame is a GSO super-packet, else 0.
    fn gso_size(&self) -> u32;

    /// Makes the first `len` bytes (or the whole frame, if shorter) viewable.
    fn pull(&mut self, len: u32) -> bool;

    /// A view at an offset; `None` past the end.
    fn at<T: Wire>(&self, offset: usize) -> Option<&T>;

    /// A view to write through. The checksum of what is written here is the writer's business, save L4's.
    fn at_mut<T: Wire>(&mut self, offset: usize) -> Option<&mut T>;

    /// Repairs the L4 checksum field at `offset` after addresses changed by `addr` and L4 words by `content` (one's complement differences).
    /// Call it before headers are borrowed.
    fn fix_l4(&mut self, offset: usize, addr: u16, content: u16, l4: L4) -> bool;

    /// Sets the L4 checksum field at `offset` of a segment that was written anew at the place of an old one: `pseudo` is the sum of its pseudo
    /// header, `content` of its words with a zero field. Right also where the frame's checksum is left to the device.
    fn set_l4(&mut self, offset: usize, pseudo: u16, content: u16) -> bool;

    /// [`checksum::sctp_ports`], by way of what the hook's verifier bears.
    #[inline(always)]
    fn sctp_ports(changed: u32, len: u32) -> u32 {
        checksum::sctp_ports(changed, len)
    }

    /// Cuts the frame to `len` bytes.
    fn trim(&mut self, len: u32) -> bool;

    /// Asks the node's FIB for the way of a packet of `len` bytes with these addresses. The hook keeps what it needs for
    /// [`Verdict::route`](crate::verdict::Verdict::route).
    fn route(&mut self, src: Addr, dst: Addr, proto: u8, len: u32) -> Hop;

    /// A socket of the node sent the frame: it came in by no device.
    fn sent_here(&self) -> bool;

    /// Whether a socket of the node would get a packet with this tuple: one that is connected so, or takes it from anybody. The hook knows those of TCP
    /// and UDP.
    fn has_socket(&mut self, tuple: &CtKey) -> bool;

    /// Makes `room` bytes between the Ethernet header and what follows.
    fn insert_after_eth(&mut self, room: u32) -> bool;
}
