//! Flows: which backend they keep, and that nothing of them is lost or mixed up.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netlb_common::Reason;
use netlb_testnode::address::Family;
use netlb_testnode::wire::Transport::{Tcp, Udp};
use nix::sys::socket::{setsockopt, sockopt};

use super::services::service_by_hand;
use crate::bulk;
use crate::rig::Rig;
use crate::sockets;

const MB: u64 = 1 << 20;

fn sticky(name: &str, seconds: u32) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: web}}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
  - {{name: syslog, port: 514, protocol: UDP, targetPort: syslog}}
"
    )
}

pub(super) fn affinity(rig: &Rig) -> Result<()> {
    rig.apply(&sticky("sticky", 3600))?;
    for family in Family::BOTH {
        for (transport, port) in [(Tcp, 80), (Udp, 514)] {
            let vip = rig.frontend("sticky", family, port)?;
            for client in ["client", "solo"] {
                // Without affinity, 24 requests would meet one of three backends with a probability below 1e-10.
                let seen: BTreeSet<SocketAddr> = rig.inside(client, || {
                    (0..24).map(|n| Ok(sockets::ask(transport, vip, &format!("request {n}"))?.server)).collect()
                })?;
                ensure!(seen.len() == 1, "{client}'s requests to {} {vip} were answered by {seen:?}", transport.word());
            }
        }
    }
    Ok(())
}

pub(super) fn affinity_ends(rig: &Rig) -> Result<()> {
    rig.apply(&sticky("brief", 1))?;
    let vip = rig.frontend("brief", Family::Ipv4, 80)?;
    let ask = || rig.inside("client", || Ok(sockets::ask(Tcp, vip, "again")?.server));
    let first = ask()?;
    // One of three backends each time: all alike by chance with a probability below 1e-8.
    for _ in 0..17 {
        // Not a bound on anything: idle for longer than the Service's timeout.
        std::thread::sleep(Duration::from_millis(1300));
        if ask()? != first {
            return Ok(());
        }
    }
    anyhow::bail!("the client kept {first} long after its session was over")
}

/// 20 MB in each direction and family, a pod to itself, and several transfers at once.
///
/// # Errors
/// When a transfer broke or a byte was wrong.
pub fn bulk(rig: &Rig) -> Result<()> {
    rig.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: bulk}\nspec: {containers: [{name: bulk}]}\n")?;
    let pod = rig.pod("bulk")?;
    let _server = bulk::Server::start(pod.net(), 7000)?;
    rig.apply(&service_by_hand("bulk", pod.addresses().both(), 7000))?;
    for family in Family::BOTH {
        let vip = rig.frontend("bulk", family, 80)?;
        rig.inside("client", || bulk::transfer(vip, 20 * MB, 20 * MB))?;
        // To itself, and both directions at once.
        rig.inside("bulk", || bulk::transfer(vip, 2 * MB, 2 * MB))?;
        std::thread::scope(|scope| -> Result<()> {
            let workers = [(6 * MB, 0), (0, 6 * MB), (0, 6 * MB)]
                .map(|(up, down)| scope.spawn(move || rig.inside("client", || bulk::transfer(vip, up, down))));
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a transfer panicked"))?)
        })?;
    }
    Ok(())
}

pub(super) fn two_vips(rig: &Rig) -> Result<()> {
    let twin = |name| {
        format!(
            "---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: solo}}
  ports:
  - {{name: http, port: 80, targetPort: 8080}}
  - {{name: dns, port: 53, protocol: UDP, targetPort: 5353}}
"
        )
    };
    rig.apply(&(twin("twin-a") + &twin("twin-b")))?;
    for family in Family::BOTH {
        let vips = |port| {
            Ok::<_, anyhow::Error>((rig.frontend("twin-a", family, port)?, rig.frontend("twin-b", family, port)?))
        };
        let (a, b) = vips(80)?;
        let (ports, moved) = rig.growth(Reason::PORT_MOVED, || {
            rig.inside("client", || {
                let (to_a, to_b) = (sockets::tcp(Some(9000), a)?, sockets::tcp(Some(9000), b)?);
                let mut ports = BTreeSet::new();
                for turn in 0..3 {
                    for (stream, name) in [(&to_a, "a"), (&to_b, "b")] {
                        ports.insert(sockets::ask_on(stream, &format!("{name} {turn}"))?.client.port());
                    }
                }
                Ok(ports)
            })
        })?;
        ensure!(ports.len() == 2 && moved == 1, "the pod saw two connections as {ports:?}, {moved} ports were moved");

        let (a, b) = vips(53)?;
        let (ports, moved) = rig.growth(Reason::PORT_MOVED, || {
            rig.inside("client", || {
                let (to_a, to_b) = (sockets::udp(Some(9000), a)?, sockets::udp(Some(9000), b)?);
                let mut ports = BTreeSet::new();
                for turn in 0..3 {
                    for (socket, name) in [(&to_a, "a"), (&to_b, "b")] {
                        ports.insert(sockets::ask_by(socket, &format!("{name} {turn}"))?.client.port());
                    }
                }
                Ok(ports)
            })
        })?;
        ensure!(ports.len() == 2 && moved == 1, "the pod saw two UDP flows as {ports:?}, {moved} ports were moved");
    }
    Ok(())
}

pub(super) fn port_reuse(rig: &Rig) -> Result<()> {
    const ROUNDS: u64 = 6;
    for family in Family::BOTH {
        let vip = rig.frontend("web", family, 80)?;
        // Closed by the server, in full.
        let (_, reopened) = rig.growth(Reason::REOPENED, || {
            (0..ROUNDS).try_for_each(|_| rig.inside("client", || get_and_close(9001, vip)))
        })?;
        ensure!(reopened == ROUNDS - 1, "{reopened} of {} connections were seen as new on old ports", ROUNDS - 1);
        // Broken off by the client, with RST.
        let (_, reopened) = rig.growth(Reason::REOPENED, || {
            (0..ROUNDS).try_for_each(|n| {
                rig.inside("client", || {
                    let stream = sockets::tcp(Some(9002), vip)?;
                    sockets::ask_on(&stream, &format!("round {n}"))?;
                    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
                    Ok(())
                })
            })
        })?;
        ensure!(reopened == ROUNDS - 1, "{reopened} of {} connections were seen as new on old ports", ROUNDS - 1);
    }
    Ok(())
}

/// An HTTP request whose connection the server closes.
fn get_and_close(port: u16, to: SocketAddr) -> Result<()> {
    let mut stream = sockets::tcp(Some(port), to)?;
    let host = match to.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    write!(stream, "GET /name HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").context("send")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("receive")?;
    ensure!(text.starts_with("HTTP/1.1 200"), "answered {text:?}");
    Ok(())
}
