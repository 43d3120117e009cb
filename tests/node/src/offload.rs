//! Switching a device's checksum offload, by the ethtool ioctl.

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

use crate::netns::NetNs;

const ETHTOOL_STXCSUM: u32 = 0x17;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches checksum computing by the (pretended) hardware of `device` on or off. Off, the stack writes finished sums into
/// every packet it sends there; on, a veth's packets carry partial sums that nothing ever finishes.
///
/// # Errors
/// When there is no such device or it has no such switch.
pub fn set_tx_checksum(net: &NetNs, device: &str, on: bool) -> Result<()> {
    net.run(|| ethtool(device, ETHTOOL_STXCSUM, u32::from(on)))?
        .with_context(|| format!("cannot switch the tx checksum offload of {device}"))
}

fn ethtool(device: &str, command: u32, data: u32) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: ifreq is plain data for which all-zero bytes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: the request outlives the call, its name ends in a zero (checked above) and its data points to a live
    // value of the size this command reads.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, std::ptr::from_mut(&mut request)) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
