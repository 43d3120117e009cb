//! The table of cases through the core on the host: no root, no kernel. And what no kernel can be brought to do on purpose.

use std::process::ExitCode;

use netlb_common::Reason;
use netlb_ebpf::verdict::Decision;
use netlb_tests::case::{Hook, Runner};
use netlb_tests::cases;
use netlb_tests::harness::{self, Trial};
use netlb_tests::host::HostTables;
use netlb_tests::packet::{SYN, eth, show};
use netlb_tests::world::World;

fn main() -> ExitCode {
    let cases = cases::all();
    let mut trials: Vec<Trial<'_>> = cases
        .iter()
        .map(|case| Trial::new(&case.name, || case.run(&mut HostTables::new(case.world.clone()))))
        .collect();
    trials.push(Trial::new("A new flow without room in CT_NEW is dropped, and leaves no half of itself", no_room));
    trials.push(Trial::new("What is forwarded from a port of the node's is not taken for a socket's", forwarded));
    trials.push(Trial::new("Flows find the node's free ports while most are taken", crowded));
    harness::run(Ok(()), trials)
}

/// `CT_NEW` is an LRU map: in the kernel it makes room by itself, and fails only when memory does.
fn no_room() -> Result<(), String> {
    let mut host = HostTables::new(World::new().service("10.96.0.10:80/TCP", &["10.0.2.9:8080"]));
    host.new_is_full = true;
    let syn = eth().ip("10.0.1.2", "10.96.0.10").tcp(40_000, 80, SYN).bytes();
    let (decision, _) = host.run(Hook::FromPod(12), &syn, 0);
    let flows = host.flows().map_err(|e| format!("{e:#}"))?;
    if decision == Decision::Drop(Reason::CONNTRACK_FULL) && flows.is_empty() {
        Ok(())
    } else {
        Err(format!("{decision:?}, {} entries", flows.len()))
    }
}

/// A forwarded packet passes the hook of the uplink it leaves by. A test run of the kernel's tells nobody that it came in by a device before.
fn forwarded() -> Result<(), String> {
    let service = "10.96.0.10:80/TCP";
    let world = World::new().service(service, &["10.0.2.9:8080"]).node_port(service, 30_080);
    let mut host = HostTables::new(world);
    let syn = eth().ip("198.51.100.7", "192.0.2.10").tcp(40_000, 30_080, SYN).bytes();
    let (routed, translated) = host.run(Hook::FromOutside, &syn, 0);
    // Before the node has a socket on the same port, and after.
    for own in [false, true] {
        if own {
            host.forwarding = false;
            let (decision, moved) = host.run(Hook::ToOutside, &translated, 0);
            if decision != Decision::Pass || moved == translated {
                return Err(format!("{decision:?}, a socket's packet was not moved:\n{}", show(&moved)));
            }
        }
        host.forwarding = true;
        let (left, seen) = host.run(Hook::ToOutside, &translated, 0);
        if !matches!(routed, Decision::Route(_)) || left != Decision::Pass || seen != translated {
            return Err(format!("{routed:?}, then {left:?}:\n{}\n{}", show(&translated), show(&seen)));
        }
    }
    Ok(())
}

/// On the host the ports that are tried are the same each time; in the kernel, chance would have a say.
fn crowded() -> Result<(), String> {
    let service = "10.96.0.10:80/TCP";
    let mut world = World::new().service(service, &["10.0.2.9:8080"]).node_port(service, 30_080);
    world.config.snat_count = 4_096;
    let mut host = HostTables::new(world);
    for port in 40_000..42_800 {
        let syn = eth().ip("198.51.100.7", "192.0.2.10").tcp(port, 30_080, SYN).bytes();
        let (decision, _) = host.run(Hook::FromOutside, &syn, 0);
        if !matches!(decision, Decision::Route(_)) {
            return Err(format!("{decision:?} with {} of 4096 ports taken", port - 40_000));
        }
    }
    Ok(())
}
