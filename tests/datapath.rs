//! The table of cases through the core on the host: no root, no kernel. And what no kernel can be brought to do on purpose.

use std::process::ExitCode;

use netlb_common::Reason;
use netlb_ebpf::verdict::Decision;
use netlb_tests::case::{Hook, Runner};
use netlb_tests::cases;
use netlb_tests::harness::{self, Trial};
use netlb_tests::host::HostTables;
use netlb_tests::packet::{SYN, eth};
use netlb_tests::world::World;

fn main() -> ExitCode {
    let cases = cases::all();
    let mut trials: Vec<Trial<'_>> = cases
        .iter()
        .map(|case| Trial::new(&case.name, || case.run(&mut HostTables::new(case.world.clone()))))
        .collect();
    trials.push(Trial::new("A new flow without room in CT_NEW is dropped, and leaves no half of itself", no_room));
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
