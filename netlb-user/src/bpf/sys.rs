//! The bpf(2) calls that aya has no (public) name for: links of every kind created and replaced the same way, batched look-ups, pins
//! inspected before they are trusted, a program run once.
//!
//! Layouts are those of `union bpf_attr` and `struct bpf_*_info` in uapi/linux/bpf.h; the kernel accepts a shorter attribute than its own and
//! treats the rest as zero.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bytemuck::{Pod, Zeroable};

mod command {
    pub(super) const MAP_CREATE: i64 = 0;
    pub(super) const MAP_LOOKUP: i64 = 1;
    pub(super) const MAP_UPDATE: i64 = 2;
    pub(super) const MAP_DELETE: i64 = 3;
    pub(super) const MAP_NEXT_KEY: i64 = 4;
    pub(super) const PROG_LOAD: i64 = 5;
    pub(super) const OBJ_PIN: i64 = 6;
    pub(super) const OBJ_GET: i64 = 7;
    pub(super) const PROG_TEST_RUN: i64 = 10;
    pub(super) const OBJ_GET_INFO: i64 = 15;
    pub(super) const PROG_QUERY: i64 = 16;
    pub(super) const MAP_LOOKUP_BATCH: i64 = 24;
    pub(super) const LINK_CREATE: i64 = 28;
    pub(super) const LINK_UPDATE: i64 = 29;
}

/// What a file descriptor from a pin is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectKind {
    Map,
    Program,
    Link,
    Other,
}

/// `struct bpf_map_info`, its first fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key: u32,
    pub value: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// `struct bpf_link_info`, its first fields, for TCX and cgroup links.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LinkInfo {
    pub kind: u32,
    pub id: u32,
    pub program: u32,
    pad: u32,
    /// TCX: interface index in the low half, 0 once the device is gone; cgroup: id of the cgroup, 0 once that is gone.
    pub target: u64,
}

/// `struct bpf_prog_info`, its first fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ProgramInfo {
    pub kind: u32,
    pub id: u32,
}

/// `bpf_attach_type` of the hooks netlb uses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum AttachType {
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Getpeername4 = 29,
    Getpeername6 = 30,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// BPF_F_BEFORE without a relative: in front of all others.
pub const FIRST: u32 = 1 << 3;

fn bpf<A: Pod>(command: i64, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is a live, initialised, padding-free (`Pod`) record of the size given. The pointers inside it are the callers' concern:
    // each says at its call why they are good.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned object.
///
/// # Errors
/// The kernel's: ENOENT without such a pin, EPERM without rights, EINVAL or EACCES if the path is not on a bpf file system.
pub fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    // The pointer is good: `path` outlives the call and ends in NUL.
    bpf(command::OBJ_GET, &mut ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(owned)
}

/// Pins an object.
///
/// # Errors
/// The kernel's: EEXIST if the name is taken, EPERM if the path is not on a bpf file system.
pub fn obj_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    // The pointer is good: `path` outlives the call and ends in NUL.
    bpf(command::OBJ_PIN, &mut ObjAttr { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 })
        .map(drop)
}

/// What kind of BPF object a descriptor is.
///
/// # Errors
/// If /proc is not mounted.
pub fn kind(fd: BorrowedFd<'_>) -> io::Result<ObjectKind> {
    let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let name = target.to_string_lossy();
    Ok(match name.as_ref() {
        "anon_inode:bpf-map" => ObjectKind::Map,
        "anon_inode:bpf-prog" => ObjectKind::Program,
        // The first when it comes from a pin, the second when it was just created.
        "anon_inode:bpf-link" | "anon_inode:bpf_link" => ObjectKind::Link,
        _ => ObjectKind::Other,
    })
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<I: Pod>(fd: BorrowedFd<'_>) -> io::Result<I> {
    let mut info = I::zeroed();
    // The pointer is good: `info` is writable for the length given and outlives the call; any bytes are a valid `I`.
    let mut attr =
        InfoAttr { fd: fd.as_raw_fd() as u32, len: size_of::<I>() as u32, info: std::ptr::from_mut(&mut info) as u64 };
    bpf(command::OBJ_GET_INFO, &mut attr)?;
    Ok(info)
}

/// # Errors
/// The kernel's; the descriptor must be a map's.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// # Errors
/// The kernel's; the descriptor must be a program's.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    info(program)
}

/// # Errors
/// The kernel's; the descriptor must be a link's.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads an element into `value`; false without one.
///
/// # Safety
/// `key` and `value` must be at least as long as the map's key and value (of all CPUs together in a per-CPU map).
///
/// # Errors
/// The kernel's.
pub(super) unsafe fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    absent_is_false(bpf(command::MAP_LOOKUP, &mut attr))
}

/// Writes an element.
///
/// # Safety
/// As for [`map_lookup`].
///
/// # Errors
/// The kernel's: E2BIG if the map is full or the index beyond it.
pub(super) unsafe fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(command::MAP_UPDATE, &mut attr).map(drop)
}

/// Deletes an element; false without one.
///
/// # Safety
/// `key` must be at least as long as the map's key.
///
/// # Errors
/// The kernel's.
pub(super) unsafe fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = ElementAttr { map: map.as_raw_fd() as u32, pad: 0, key: key.as_ptr() as u64, value: 0, flags: 0 };
    absent_is_false(bpf(command::MAP_DELETE, &mut attr))
}

/// The key after `last`, or the first one, into `next`; false at the end.
///
/// # Safety
/// `last` and `next` must be at least as long as the map's key.
///
/// # Errors
/// The kernel's.
pub(super) unsafe fn map_next_key(map: BorrowedFd<'_>, last: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: last.map_or(0, |key| key.as_ptr() as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    absent_is_false(bpf(command::MAP_NEXT_KEY, &mut attr))
}

fn absent_is_false(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a batched walk stands: opaque to us (a bucket or an index).
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    at: u64,
    begun: bool,
}

/// One step of a walk.
pub(super) enum Step {
    /// Elements read; more follow.
    More(usize),
    /// Elements read; these were the last.
    Last(usize),
    /// A bucket holds more elements than the buffers.
    TooSmall,
}

/// Reads up to `room` elements from `cursor` on.
///
/// # Safety
/// `keys` and `values` must have room for `room` keys and values of the map, and the map's key must be at most 8 bytes or the map a hash (whose
/// cursor is a bucket number of 4 bytes).
///
/// # Errors
/// The kernel's.
pub(super) unsafe fn map_lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [u8],
    values: &mut [u8],
    room: usize,
) -> io::Result<Step> {
    let from = cursor.at;
    let mut attr = BatchAttr {
        in_batch: if cursor.begun { std::ptr::from_ref(&from) as u64 } else { 0 },
        out_batch: std::ptr::from_mut(&mut cursor.at) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room as u32,
        map: map.as_raw_fd() as u32,
        elem_flags: 0,
        flags: 0,
    };
    match bpf(command::MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {
            cursor.begun = true;
            Ok(Step::More(attr.count as usize))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Step::Last(attr.count as usize)),
        Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => Ok(Step::TooSmall),
        Err(e) => Err(e),
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    /// Interface index for TCX, descriptor of the directory for a cgroup.
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program by a link: it stays as long as the descriptor or a pin of it.
///
/// # Errors
/// The kernel's: ENODEV if the device is gone, EINVAL if the kernel has no such hook.
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: AttachType, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: program.as_raw_fd() as u32,
        target,
        attach_type: attach_type as u32,
        flags,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    bpf(command::LINK_CREATE, &mut attr).map(owned)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
}

/// Does the kernel have TCX? Asks for the programs of loopback, which every network namespace has.
///
/// # Errors
/// The kernel's: EPERM without CAP_NET_ADMIN.
pub fn has_tcx() -> io::Result<bool> {
    const LOOPBACK: u32 = 1;
    let attach_type = AttachType::TcxIngress as u32;
    // No room is given for ids: the kernel only counts.
    let mut attr = QueryAttr { target: LOOPBACK, attach_type, ..QueryAttr::zeroed() };
    match bpf(command::PROG_QUERY, &mut attr) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts another program in a link's place, between two packets.
///
/// # Errors
/// The kernel's: ENOLINK or ENODEV if the link's target is gone.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link: link.as_raw_fd() as u32, program: program.as_raw_fd() as u32, flags: 0, old_program: 0 };
    bpf(command::LINK_UPDATE, &mut attr).map(drop)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct TestRunAttr {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a program once over `packet` and returns its verdict; the packet is changed as the program changed it.
///
/// # Errors
/// The kernel's.
pub fn test_run(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let input = packet.to_vec();
    // The pointers are good: both buffers outlive the call and have the lengths given.
    let mut attr = TestRunAttr {
        program: program.as_raw_fd() as u32,
        retval: 0,
        data_size_in: input.len() as u32,
        data_size_out: packet.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: packet.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
    };
    bpf(command::PROG_TEST_RUN, &mut attr)?;
    Ok(attr.retval)
}

/// One instruction (RFC 9669), of those that probes consist of.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one (little endian).
    registers: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    const FRAME: u8 = 10;
    pub(super) const EXIT: Instruction = Instruction::new(0x95, 0, 0, 0, 0);

    const fn new(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Self {
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        Instruction { code, registers, offset, value }
    }

    /// A register to a number.
    pub(super) const fn set(register: u8, value: i32) -> Self {
        Instruction::new(0xb7, register, 0, 0, value)
    }

    pub(super) const fn call(helper: i32) -> Self {
        Instruction::new(0x85, 0, 0, 0, helper)
    }

    /// A register to an address on the stack.
    pub(super) const fn stack(register: u8, offset: i32) -> [Self; 2] {
        [Instruction::new(0xbf, register, Self::FRAME, 0, 0), Instruction::new(0x07, register, 0, 0, offset)]
    }

    /// A register onto the stack, eight bytes.
    pub(super) const fn store_word64(offset: i16, register: u8) -> Self {
        Instruction::new(0x7b, Self::FRAME, register, offset, 0)
    }

    /// Zero onto the stack, four bytes.
    pub(super) const fn store_zero32(offset: i16) -> Self {
        Instruction::new(0x62, Self::FRAME, 0, offset, 0)
    }

    /// A register to a map: this takes two.
    pub(super) fn map(register: u8, map: BorrowedFd<'_>) -> [Self; 2] {
        const MAP_FD: u8 = 1;
        [Instruction::new(0x18, register, MAP_FD, 0, map.as_raw_fd()), Instruction::new(0, 0, 0, 0, 0)]
    }
}

/// The first fields of `BPF_PROG_LOAD`'s attribute.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ProgramAttr {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// Loads a program of a type and the attach type that it expects.
///
/// # Errors
/// The kernel's: EINVAL if it does not know something of it, EACCES if the verifier refuses it.
pub(super) fn program_load(kind: u32, attach_type: u32, code: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    // The pointers are good: both outlive the call, and the license ends in NUL.
    let mut attr = ProgramAttr {
        kind,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach_type,
        ..ProgramAttr::zeroed()
    };
    bpf(command::PROG_LOAD, &mut attr).map(owned)
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MapAttr {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
}

/// Makes an array of one element of `size` bytes.
///
/// # Errors
/// The kernel's.
pub(super) fn array_create(size: u32) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    bpf(command::MAP_CREATE, &mut MapAttr { kind: ARRAY, key: 4, value: size, entries: 1 }).map(owned)
}

/// The cookie by which the kernel tells network namespaces apart, of this thread's.
///
/// # Errors
/// The kernel's: ENOPROTOOPT before 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are live and of the sizes said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
