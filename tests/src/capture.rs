//! What really arrives: frames taken from a pod's device, their checksums computed from scratch.
//!
//! A frame whose checksum was left to the device (`CHECKSUM_PARTIAL`, as veths pass it on) proves nothing: it is counted
//! apart and never counts as checked. Switch the tx offload of all senders off to have every frame checked.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use netlb_testnode::address::Family;
use netlb_testnode::link::Links;
use netlb_testnode::netns::NetNs;

use crate::packet::{ICMP, ICMPV6, RST, TCP, UDP, dissect, show, verify};

/// What a frame that netlb had a hand in is to its receiver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A TCP segment to a pod: the VIP was taken off on its way.
    TcpRequest,
    /// A TCP segment from a VIP: it was put back on its way.
    TcpAnswer,
    /// A RST from a VIP.
    Reset,
    UdpRequest,
    UdpAnswer,
    /// "Port unreachable" from a VIP.
    Unreachable,
    /// "Fragmentation needed" or "packet too big" that quotes a packet to a VIP.
    TooBig,
    /// "Time exceeded" that quotes a packet to a VIP.
    TimeExceeded,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::TcpRequest,
        Kind::TcpAnswer,
        Kind::Reset,
        Kind::UdpRequest,
        Kind::UdpAnswer,
        Kind::Unreachable,
        Kind::TooBig,
        Kind::TimeExceeded,
    ];
}

/// Frames of one kind and family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    /// Every checksum recomputed and right.
    pub checked: u64,
    /// Checksum left to the device: not checked.
    pub partial: u64,
}

/// What was captured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By kind and family.
    pub counts: BTreeMap<(Kind, Family), Count>,
    /// Frames that are wrong: the first few, layer by layer.
    pub wrong: Vec<String>,
    /// All that were wrong.
    pub wrong_count: u64,
    /// Bytes of the largest frame.
    pub largest: usize,
    /// Frames the kernel could not hand over because the tap was too slow.
    pub lost: u64,
}

/// Wrong frames that are kept for people to read.
const SHOWN: usize = 5;

impl Tally {
    /// Adds another tap's.
    pub fn add(&mut self, other: Tally) {
        for (key, count) in other.counts {
            let sum = self.counts.entry(key).or_default();
            sum.checked += count.checked;
            sum.partial += count.partial;
        }
        self.wrong.extend(other.wrong);
        self.wrong.truncate(SHOWN);
        self.wrong_count += other.wrong_count;
        self.largest = self.largest.max(other.largest);
        self.lost += other.lost;
    }

    /// Looks at one frame; `partial`: its checksum was left to the device.
    fn take(&mut self, frame: &[u8], partial: bool, services: &Services) {
        self.largest = self.largest.max(frame.len());
        let kind = classify(frame, services);
        if partial {
            if let Some(kind) = kind {
                self.counts.entry(kind).or_default().partial += 1;
            }
            return;
        }
        if let Err(error) = verify(frame) {
            self.wrong_count += 1;
            if self.wrong.len() < SHOWN {
                self.wrong.push(format!("{error}\n{}", show(frame)));
            }
        } else if let Some(kind) = kind {
            self.counts.entry(kind).or_default().checked += 1;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((kind, family), count) in &self.counts {
            writeln!(f, "{kind:?} {}: {} checked, {} left to the device", family.word(), count.checked, count.partial)?;
        }
        write!(f, "{} wrong, {} lost, largest {} bytes", self.wrong_count, self.lost, self.largest)?;
        self.wrong.iter().try_for_each(|wrong| write!(f, "\n{wrong}"))
    }
}

/// Tells Service addresses from others.
pub type Services = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// What a frame is to its receiver, if netlb had a hand in it.
fn classify(frame: &[u8], services: &Services) -> Option<(Kind, Family)> {
    let ip = dissect(frame).ok()?.ip?;
    let family = Family::of(ip.src);
    let from_vip = services(ip.src);
    let kind = match ip.proto {
        TCP if from_vip && frame.get(ip.l4 + 13)? & RST != 0 => Kind::Reset,
        TCP if from_vip => Kind::TcpAnswer,
        TCP => Kind::TcpRequest,
        UDP if from_vip => Kind::UdpAnswer,
        UDP => Kind::UdpRequest,
        ICMP | ICMPV6 => {
            // The destination of the quoted packet, from the frame that its bytes alone would make.
            let at = ip.l4 + 8 + if family == Family::Ipv4 { 16 } else { 24 };
            let quoted: IpAddr = match family {
                Family::Ipv4 => <[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into(),
                Family::Ipv6 => <[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?.into(),
            };
            if !services(quoted) {
                return None;
            }
            match (family, frame.get(ip.l4)?, frame.get(ip.l4 + 1)?) {
                (Family::Ipv4, 3, 3) | (Family::Ipv6, 1, 4) if from_vip => Kind::Unreachable,
                (Family::Ipv4, 3, 4) | (Family::Ipv6, 2, _) => Kind::TooBig,
                (Family::Ipv4, 11, 0) | (Family::Ipv6, 3, 0) => Kind::TimeExceeded,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((kind, family))
}

/// Frames that arrive at a device, looked at as they come.
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Tally>>>,
}

impl Tap {
    /// Starts looking at what arrives at `device` in a namespace. Frames that come after this returns are seen.
    ///
    /// # Errors
    /// When there is no such device or the caller is not root.
    pub fn start(net: &NetNs, device: &str, services: Services) -> Result<Self> {
        let index = Links::open(net)?.index(device)?;
        let socket = net.run(|| open(index))?.with_context(|| format!("cannot capture on {device}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("tap".into()).spawn(move || watch(&socket, &asked, &services))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends when nothing arrives any more, and returns what was seen.
    ///
    /// # Errors
    /// When reading failed.
    pub fn finish(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(tally)) => tally,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => bail!("this tap was finished before"),
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // Nobody asks for what it saw; a panic of it has been printed.
            thread.join().map(drop).unwrap_or_default();
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: the pointer and length are those of a live value.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length) })
        .map(drop)
}

fn open(index: u32) -> io::Result<OwnedFd> {
    // Protocol 0 takes nothing until bind() names protocol and device: no frame of another device slips in.
    // SAFETY: socket() takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just made, and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64_i32 << 20))?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &libc::timeval { tv_sec: 0, tv_usec: 50_000 })?;
    // SAFETY: sockaddr_ll is plain data for which all-zero bytes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    // SAFETY: the pointer and length are those of a live sockaddr_ll.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(&address).cast(), length) })?;
    Ok(socket)
}

fn watch(socket: &OwnedFd, stop: &AtomicBool, services: &Services) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match receive(socket, &mut buffer) {
            Ok(Some((length, partial))) => {
                ensure!(length <= buffer.len(), "a frame of {length} bytes does not fit the capture buffer");
                tally.take(buffer.get(..length).unwrap_or_default(), partial, services);
            }
            Ok(None) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                if stop.load(Ordering::SeqCst) {
                    tally.lost = lost(socket)?;
                    return Ok(tally);
                }
            }
            // The device is gone, with its pod: nothing will come any more.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error).context("cannot read captured frames"),
        }
    }
}

/// One frame: its length, and whether its checksum was left to the device. `None`: a frame that this namespace sent.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: sockaddr_ll is plain data for which all-zero bytes are a valid value.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    // As u64s: control messages want that alignment.
    let mut control = [MaybeUninit::<u64>::zeroed(); 16];
    // SAFETY: msghdr is plain data for which all-zero bytes are a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut from).cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap_or_default();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in the message is to a live value of the length beside it.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    if from.sll_pkttype == libc::PACKET_OUTGOING {
        return Ok(None);
    }
    // SAFETY: recvmsg() filled the message in; its control buffer is still live.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR returned lies whole inside the control buffer.
        let found = unsafe { *header };
        if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: a PACKET_AUXDATA message carries a tpacket_auxdata; it may lie unaligned.
            let auxiliary = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            return Ok(Some((length, auxiliary.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0)));
        }
        // SAFETY: as for CMSG_FIRSTHDR; the header is the message's own.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Err(io::Error::other("a captured frame came without PACKET_AUXDATA"))
}

fn lost(socket: &OwnedFd) -> Result<u64> {
    // SAFETY: tpacket_stats is plain data for which all-zero bytes are a valid value.
    let mut stats: libc::tpacket_stats = unsafe { mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tpacket_stats>())?;
    // SAFETY: the pointer and length are those of a live tpacket_stats.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            std::ptr::from_mut(&mut stats).cast(),
            &raw mut length,
        )
    })
    .context("cannot read the capture's statistics")?;
    Ok(stats.tp_drops.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{ACK, SYN, eth};

    fn services() -> Services {
        Arc::new(|address| address.to_string().starts_with("10.96."))
    }

    #[test]
    fn only_finished_and_right_frames_count_as_checked() {
        let good = eth().ip("10.96.0.1", "10.244.1.2").tcp(80, 4000, SYN | ACK).bytes();
        let mut bad = good.clone();
        bad[40] ^= 1;
        let mut tally = Tally::default();
        tally.take(&good, false, &services());
        tally.take(&good, true, &services());
        tally.take(&bad, false, &services());
        tally.take(&bad, true, &services());
        assert_eq!(tally.counts, BTreeMap::from([((Kind::TcpAnswer, Family::Ipv4), Count { checked: 1, partial: 2 })]));
        assert_eq!((tally.wrong_count, tally.wrong.len()), (1, 1));
    }

    #[test]
    fn frames_are_told_apart() {
        let of = |frame: &[u8]| classify(frame, &services()).map(|(kind, _)| kind);
        let to_vip = eth().ip("10.244.1.2", "10.96.0.1").udp(4000, 53).payload(b"hello world");
        let to_pod = eth().ip("10.244.1.2", "10.244.1.3").udp(4000, 53).payload(b"hello world");
        assert_eq!(of(&to_pod.bytes()), Some(Kind::UdpRequest));
        assert_eq!(of(&eth().ip("10.96.0.1", "10.244.1.2").tcp(80, 4000, RST).bytes()), Some(Kind::Reset));
        let quoting = |kind, code, from, quoted: &crate::packet::Frame| {
            eth().ip(from, "10.244.1.2").icmp(kind, code).quote(quoted, 36).bytes()
        };
        assert_eq!(of(&quoting(3, 3, "10.96.0.1", &to_vip)), Some(Kind::Unreachable));
        assert_eq!(of(&quoting(3, 4, "192.168.99.1", &to_vip)), Some(Kind::TooBig));
        assert_eq!(of(&quoting(11, 0, "10.244.1.1", &to_vip)), Some(Kind::TimeExceeded));
        assert_eq!(of(&quoting(3, 4, "192.168.99.1", &to_pod)), None);
    }
}
