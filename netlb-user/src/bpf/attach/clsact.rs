//! Devices' hooks by filters of the clsact qdisc, for kernels before 6.6, which have no TCX.
//!
//! A filter stays as long as its device: it needs no pin. netlb's are known by priority and handle, and nothing else is touched. A filter is
//! replaced in place, between two packets. The qdisc is made where there is none, and taken away with the last filter, whoever's it was.
//!
//! Within one priority the newest filter runs first, so that priority 1 is in front of all that was there before.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::{Attach, AttachError, Hook, Outcome, target_gone};
use crate::bpf::sys;
use crate::netlink::{Netlink, Request, attributes, retry};

/// Message types (uapi/linux/rtnetlink.h).
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// Attributes of qdiscs and filters.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Attributes of bpf filters (uapi/linux/pkt_cls.h).
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
/// The program's number is the verdict.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Where clsact is (TC_H_CLSACT), its number, and its two sides.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// `struct tcmsg`.
const TCMSG: usize = 20;

const ETH_P_ALL: u16 = 3;
const PRIORITY: u16 = 1;
/// "netlb" cannot be a number of 32 bits, "nlb" can; the last byte tells netlb's programs apart.
const HANDLE: u32 = u32::from_be_bytes([b'n', b'l', b'b', 0]);

/// [`Attach`] by filters; knows devices only.
pub(super) struct Filters {
    netlink: Netlink,
}

impl Filters {
    /// For the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Filters { netlink: Netlink::open(libc::NETLINK_ROUTE)? })
    }

    /// Id of the program in a hook's filter; `None` without one.
    fn program(&mut self, place: Place) -> io::Result<Option<u32>> {
        let answer = self.netlink.one(place.request(RTM_GETTFILTER));
        let Some(answer) = none_there(answer)?.flatten() else { return Ok(None) };
        let options = attributes(&answer, TCMSG).get(TCA_OPTIONS).unwrap_or_default();
        Ok(attributes(options, 0).u32(TCA_BPF_ID))
    }

    fn put(&mut self, place: Place, hook: Hook, program: BorrowedFd<'_>) -> io::Result<Outcome> {
        let there = self.program(place)?;
        if there == Some(sys::program_info(program)?.id) {
            return Ok(Outcome::Kept);
        }
        if there.is_none() {
            self.make_qdisc(place.ifindex).map_err(lacking)?;
        }
        let name = format!("netlb:{}\0", hook.program());
        let options: [(u16, &[u8]); 3] = [
            (TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
            (TCA_BPF_NAME, name.as_bytes()),
            (TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
        ];
        let request = place.request(RTM_NEWTFILTER).creating().with_all(TCA_OPTIONS, &options);
        self.netlink.one(request).map_err(lacking)?;
        Ok(if there.is_some() { Outcome::Replaced } else { Outcome::Created })
    }

    /// Makes sure that a device has clsact.
    fn make_qdisc(&mut self, ifindex: u32) -> io::Result<()> {
        let request = Request::new(RTM_NEWQDISC, &tcmsg(ifindex, CLSACT_HANDLE, CLSACT, 0)).with(TCA_KIND, b"clsact\0");
        match self.netlink.one(request.creating_new()) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            made => return made.map(drop),
        }
        // The older qdisc of that place has one side: it would take filters for egress, and run them at ingress.
        match self.qdisc(ifindex)?.as_deref() {
            Some("ingress") => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "the device has an ingress qdisc, which cannot stand beside clsact: replace it (tc qdisc replace dev DEVICE clsact)",
            )),
            _ => Ok(()),
        }
    }

    /// Kind of the qdisc that is in clsact's place.
    fn qdisc(&mut self, ifindex: u32) -> io::Result<Option<String>> {
        let answer = self.netlink.one(Request::new(RTM_GETQDISC, &tcmsg(ifindex, 0, CLSACT, 0)).echoed());
        Ok(none_there(answer)?.flatten().and_then(|answer| attributes(&answer, TCMSG).text(TCA_KIND)))
    }

    fn take_off(&mut self, place: Place) -> io::Result<bool> {
        // Asked before: without clsact and without the filter the kernel's answers to a deletion differ from version to version.
        if self.program(place)?.is_none() {
            return Ok(false);
        }
        let removed = none_there(self.netlink.one(place.request(RTM_DELTFILTER)))?.is_some();
        if self.is_unused(place.ifindex)? {
            let request = Request::new(RTM_DELQDISC, &tcmsg(place.ifindex, CLSACT_HANDLE, CLSACT, 0));
            none_there(self.netlink.one(request.with(TCA_KIND, b"clsact\0")))?;
        }
        Ok(removed)
    }

    /// A device has clsact, and no filter is left there.
    fn is_unused(&mut self, ifindex: u32) -> io::Result<bool> {
        if self.qdisc(ifindex)?.as_deref() != Some("clsact") {
            return Ok(false);
        }
        for parent in [INGRESS, EGRESS] {
            let netlink = &mut self.netlink;
            let mut filters = 0;
            let request = || Request::new(RTM_GETTFILTER, &tcmsg(ifindex, 0, parent, 0));
            retry(|| netlink.dump(request(), |_, _| filters += 1))?;
            if filters > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Devices that have clsact.
    fn devices(&mut self) -> io::Result<BTreeSet<u32>> {
        let netlink = &mut self.netlink;
        let mut found = BTreeSet::new();
        retry(|| {
            netlink.dump(Request::new(RTM_GETQDISC, &tcmsg(0, 0, 0, 0)), |_, answer| {
                let is_clsact = attributes(answer, TCMSG).text(TCA_KIND).as_deref() == Some("clsact");
                found.extend(ifindex_of(answer).filter(|_| is_clsact));
            })
        })?;
        Ok(found)
    }
}

impl Attach for Filters {
    fn ensure(&mut self, hook: Hook, program: BorrowedFd<'_>) -> Result<Outcome, AttachError> {
        let Some(place) = Place::of(hook) else { return Ok(Outcome::Gone) };
        match self.put(place, hook, program) {
            Err(e) if target_gone(&e) => Ok(Outcome::Gone),
            result => result.map_err(|e| AttachError::new(hook, "attaching by a filter of clsact", e)),
        }
    }

    fn remove(&mut self, hook: Hook) -> Result<bool, AttachError> {
        let Some(place) = Place::of(hook) else { return Ok(false) };
        match self.take_off(place) {
            Err(e) if target_gone(&e) => Ok(false),
            result => result.map_err(|e| AttachError::new(hook, "removing the filter of clsact", e)),
        }
    }

    fn hooks(&mut self) -> io::Result<Vec<Hook>> {
        let mut found = Vec::new();
        for ifindex in self.devices()? {
            for hook in Hook::of_device(ifindex) {
                if let Some(place) = Place::of(hook)
                    && self.program(place)?.is_some()
                {
                    found.push(hook);
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Where a hook's filter is.
#[derive(Clone, Copy)]
struct Place {
    ifindex: u32,
    parent: u32,
    handle: u32,
}

impl Place {
    /// `None` for what is on no device.
    fn of(hook: Hook) -> Option<Place> {
        let (ifindex, parent, number) = match hook {
            Hook::FromPod { ifindex } => (ifindex, INGRESS, 1),
            Hook::ToPod { ifindex } => (ifindex, EGRESS, 2),
            Hook::FromOutside { ifindex } => (ifindex, INGRESS, 3),
            Hook::ToOutside { ifindex } => (ifindex, EGRESS, 4),
            Hook::Socket(_) => return None,
        };
        Some(Place { ifindex, parent, handle: HANDLE | number })
    }

    fn request(self, kind: u16) -> Request {
        let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        Request::new(kind, &tcmsg(self.ifindex, self.handle, self.parent, info)).with(TCA_KIND, b"bpf\0")
    }
}

/// `struct tcmsg`, of any family.
fn tcmsg(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (at, word) in [(4, ifindex), (8, handle), (12, parent), (16, info)] {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn ifindex_of(answer: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(answer.get(4..8)?.try_into().ok()?))
}

/// ENOENT: no such qdisc or filter. EINVAL: the same, of a filter whose qdisc or chain is not there.
fn none_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// ENOENT from making something: the kernel does not know the kind.
fn lacking(e: io::Error) -> io::Error {
    if e.raw_os_error() == Some(libc::ENOENT) { io::Error::from_raw_os_error(libc::EOPNOTSUPP) } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_of_a_device_have_places_of_their_own() {
        let places: BTreeSet<(u32, u32)> =
            Hook::of_device(7).into_iter().filter_map(Place::of).map(|place| (place.parent, place.handle)).collect();
        assert_eq!(places.len(), 4);
        assert!(places.iter().all(|(_, handle)| handle & !0xff == HANDLE));
    }

    #[test]
    fn a_request_names_device_place_and_protocol() {
        let header = tcmsg(7, HANDLE | 1, INGRESS, 0x0001_0300);
        assert_eq!(ifindex_of(&header), Some(7));
        assert_eq!(header[16..], 0x0001_0300u32.to_ne_bytes());
        assert_eq!(ifindex_of(&header[..6]), None);
    }
}
