//! Datagrams larger than the wire: all fragments of each must reach one backend, and those of its answer the client.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netlb_testnode::address::Family;
use netlb_testnode::netns::NetNs;

use super::{door, outside, service};
use crate::rig::Rig;
use crate::sockets;

const LENGTH: usize = 8000;
const DATAGRAMS: u8 = 20;
/// Sockets a client and family: that all of them meet one of two backends by chance has a probability below 1e-4 for each.
const SOCKETS: u8 = 16;
const DOOR: u16 = 30_120;

/// Answers datagrams, whole and with its name in front, until dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(net: &NetNs, name: u8) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        // Serves both families: IPv4 clients show as mapped addresses.
        let socket = net.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 7000)))?.context("bind")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !flag.load(Ordering::SeqCst) {
                // A time-out is a look at the flag; other errors are about answers that nobody wanted.
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let mut answer = vec![name];
                answer.extend(buffer.get(..length).unwrap_or_default());
                socket.send_to(&answer, client).unwrap_or_default();
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // It only answers; a panic there has been printed and shows as a datagram without answer.
            thread.join().unwrap_or_default();
        }
    }
}

/// A datagram that no other is like.
fn datagram(socket: u8, number: u8) -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8 ^ socket.wrapping_mul(31) ^ number).collect()
}

/// Sends over one socket; returns the backend that answered all of it.
fn exchange(to: SocketAddr, number: u8) -> Result<u8> {
    let socket = sockets::udp(None, to)?;
    let mut backends = BTreeSet::new();
    let mut buffer = vec![0; 65_536];
    for turn in 0..DATAGRAMS {
        let sent = datagram(number, turn);
        socket.send(&sent).context("send")?;
        let length = socket.recv(&mut buffer).with_context(|| format!("the answer to datagram {turn} from {to}"))?;
        let answer = buffer.get(..length).unwrap_or_default();
        ensure!(answer.get(1..) == Some(sent.as_slice()), "datagram {turn} came back from {to} as another");
        backends.extend(answer.first());
    }
    ensure!(backends.len() == 1, "datagrams of one socket to {to} were answered by {} backends", backends.len());
    backends.pop_first().context("nobody answered")
}

pub(super) fn together(rig: &Rig) -> Result<()> {
    let _echoes = [("near", b'n'), ("remote", b'r')]
        .map(|(pod, name)| Echo::start(rig.pod(pod)?.net(), name))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    rig.apply(&service(rig, "large", &["near", "remote"], "UDP", DOOR)?)?;
    for family in Family::BOTH {
        let vip = rig.frontend("large", family, 80)?;
        let all = |to| (0..SOCKETS).map(move |number| exchange(to, number)).collect::<Result<BTreeSet<u8>>>();
        let from_pod = rig.inside("client", || all(vip)).context("from a pod")?;
        let from_outside = outside(rig, || all(door(family, DOOR))).context("from outside")?;
        let both = BTreeSet::from([b'n', b'r']);
        ensure!(from_pod == both && from_outside == both, "not every backend was met: {from_pod:?}, {from_outside:?}");
    }
    Ok(())
}
