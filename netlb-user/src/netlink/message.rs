//! Netlink's wire format: messages in a datagram, attributes in a message (RFC 3549; lengths and numbers in host order, everything aligned to 4).

use std::io;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
/// In an answer: the dump was disturbed by a change.
const NLM_F_DUMP_INTR: u16 = 0x10;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Bits of an attribute's type that are not its number: nested, network byte order.
const TYPE_FLAGS: u16 = 0xc000;

fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// A request under construction.
pub struct Request {
    bytes: Vec<u8>,
    flags: u16,
}

impl Request {
    /// Of a message type, with the family's fixed header.
    pub fn new(kind: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(header);
        bytes.resize(align(bytes.len()), 0);
        Request { bytes, flags: NLM_F_REQUEST }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.bytes, kind, value);
        self
    }

    /// Adds an attribute that consists of others.
    #[must_use]
    pub fn with_all(self, kind: u16, values: &[(u16, &[u8])]) -> Self {
        let mut nested = Vec::new();
        for (kind, value) in values {
            push(&mut nested, *kind, value);
        }
        self.with(kind, &nested)
    }

    /// Asks for the answer here too, of what the kernel otherwise tells the listeners of a group only.
    #[must_use]
    pub fn echoed(mut self) -> Self {
        self.flags |= NLM_F_ECHO;
        self
    }

    /// Asks to make the object if it is not there; one that is there is changed.
    #[must_use]
    pub fn creating(mut self) -> Self {
        self.flags |= NLM_F_CREATE;
        self
    }

    /// Asks to make the object, and to leave one that is there alone (EEXIST).
    #[must_use]
    pub fn creating_new(mut self) -> Self {
        self.flags |= NLM_F_CREATE | NLM_F_EXCL;
        self
    }

    pub(super) fn dump(mut self) -> Self {
        self.flags |= NLM_F_DUMP;
        self
    }

    pub(super) fn acknowledged(mut self) -> Self {
        self.flags |= NLM_F_ACK;
        self
    }

    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = (ATTRIBUTE_HEADER + value.len()) as u16;
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(align(bytes.len()), 0);
}

/// One message of a datagram.
pub(super) struct Message<'a> {
    pub(super) sequence: u32,
    pub(super) interrupted: bool,
    pub(super) payload: Payload<'a>,
}

pub(super) enum Payload<'a> {
    Done,
    /// An errno; 0 acknowledges.
    Error(i32),
    /// Type, and what follows the netlink header.
    Data(u16, &'a [u8]),
}

/// The messages of a datagram.
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) fn new(datagram: &'a [u8]) -> Self {
        Messages { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<Message<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let Some((message, kind)) = self.take() else {
                self.rest = &[];
                return Some(Err(io::Error::other("a netlink message from the kernel is cut short")));
            };
            if kind != NLMSG_NOOP {
                return Some(Ok(message));
            }
        }
    }
}

impl<'a> Messages<'a> {
    fn take(&mut self) -> Option<(Message<'a>, u16)> {
        let len = u32_at(self.rest, 0)? as usize;
        let bytes = self.rest.get(..len).filter(|_| len >= HEADER)?;
        self.rest = self.rest.get(align(len)..).unwrap_or_default();
        let kind = u16_at(bytes, 4)?;
        let payload = &bytes[HEADER..];
        let payload = match kind {
            NLMSG_DONE => match i32_at(payload, 0) {
                // A dump may end with an error.
                Some(error) if error < 0 => Payload::Error(-error),
                _ => Payload::Done,
            },
            NLMSG_ERROR => Payload::Error(i32_at(payload, 0)?.saturating_neg()),
            _ => Payload::Data(kind, payload),
        };
        let interrupted = u16_at(bytes, 6)? & NLM_F_DUMP_INTR != 0;
        Some((Message { sequence: u32_at(bytes, 8)?, interrupted, payload }, kind))
    }
}

/// The attributes that follow a family's fixed header of `header` bytes.
pub fn attributes(payload: &[u8], header: usize) -> Attributes<'_> {
    Attributes { rest: payload.get(align(header)..).unwrap_or_default() }
}

/// Type and value of each attribute. Ends at the first that is cut short.
#[derive(Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u16_at(self.rest, 0)? as usize;
        let kind = u16_at(self.rest, 2)? & !TYPE_FLAGS;
        let value = self.rest.get(ATTRIBUTE_HEADER..len)?;
        self.rest = self.rest.get(align(len)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// Value of the first attribute of a type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// Value of the first attribute of a type, as a native u32.
    pub fn u32(&self, kind: u16) -> Option<u32> {
        u32_at(self.get(kind)?, 0)
    }

    /// Value of the first attribute of a type, as a text that ends in NUL.
    pub fn text(&self, kind: u16) -> Option<String> {
        let value = self.get(kind)?;
        let text = value.split(|b| *b == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_a_message() {
        let bytes =
            Request::new(18, &[1, 2, 3, 4, 5]).with(3, b"eth0\0").with(9, &7u32.to_ne_bytes()).dump().finish(42);
        assert_eq!(bytes.len() % 4, 0);
        let messages: Vec<_> = Messages::new(&bytes).map(|m| m.expect("whole")).collect();
        let [message] = messages.as_slice() else { panic!("one message") };
        assert_eq!((message.sequence, message.interrupted), (42, false));
        let Payload::Data(kind, payload) = message.payload else { panic!("data") };
        assert_eq!((kind, &payload[..5]), (18, &[1, 2, 3, 4, 5][..]));
        let attributes = attributes(payload, 5);
        assert_eq!(attributes.text(3).as_deref(), Some("eth0"));
        assert_eq!(attributes.u32(9), Some(7));
        assert_eq!(attributes.get(4), None);
        assert_eq!(u16_at(&bytes, 6), Some(NLM_F_REQUEST | NLM_F_DUMP));
    }

    fn raw(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut request = Request::new(kind, payload);
        request.flags = flags;
        request.finish(1)
    }

    #[test]
    fn errors_acknowledgements_and_ends() {
        let mut datagram = raw(NLMSG_NOOP, 0, &[]);
        datagram.extend(raw(NLMSG_ERROR, 0, &(-1i32).to_ne_bytes()));
        datagram.extend(raw(NLMSG_ERROR, 0, &0i32.to_ne_bytes()));
        datagram.extend(raw(NLMSG_DONE, NLM_F_DUMP_INTR, &0i32.to_ne_bytes()));
        datagram.extend(raw(NLMSG_DONE, 0, &(-22i32).to_ne_bytes()));
        let seen: Vec<String> = Messages::new(&datagram)
            .map(|m| {
                let m = m.expect("whole");
                match m.payload {
                    Payload::Error(e) => format!("error {e}"),
                    Payload::Done => format!("done {}", m.interrupted),
                    Payload::Data(kind, _) => format!("data {kind}"),
                }
            })
            .collect();
        assert_eq!(seen, ["error 1", "error 0", "done true", "error 22"]);
    }

    #[test]
    fn whatever_is_cut_short_ends_the_walk() {
        let whole = Request::new(16, &[0; 16]).with(1, &[9; 6]).finish(1);
        for len in 0..whole.len() {
            let cut = Messages::new(&whole[..len]).next();
            assert!(len == 0 && cut.is_none() || cut.is_some_and(|m| m.is_err()), "{len}");
        }
        assert_eq!(attributes(&[8, 0, 1, 0, 1, 2, 3], 0).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0], 0).count(), 0);
        assert_eq!(attributes(&[1, 2], 16).count(), 0);
    }
}
