//! Every program loads through the real loader, with what it sets for the running kernel: the first question on a kernel not yet tried.

use std::process::ExitCode;

use bytemuck::Zeroable;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::maps::{name, program};
use netlb_common::{Addr, Port, proto};
use netlb_testnode::netns::MountNs;
use netlb_tests::harness::{self, Trial};
use netlb_tests::need::{Need, need};
use netlb_user::bpf::loader;
use netlb_user::bpf::pins::{Capacities, Pins};
use netlb_user::bpf::probe::Features;
use netlb_user::bpf::table::Table;
use netlb_user::runtime::preflight::kernel_version;

fn main() -> ExitCode {
    let trials = program::ALL.map(|name| Trial::new(format!("{name} loads"), move || load(name)));
    let mut trials: Vec<Trial<'_>> = trials.into();
    trials.push(Trial::new("what the kernel has is found out", features));
    trials.push(Trial::new("what changed since it was read is not deleted", unchanged));
    harness::run(need(&[Need::Root, Need::Btf]), trials)
}

/// New kernels have everything, old ones lack what is said to come later. (Between the two, distributions patch.)
fn features() -> Result<(), String> {
    let version = kernel_version().ok_or("the kernel's version is not known")?;
    let found = Features::of_kernel();
    let right = (version < (6, 16) || found.csum_ipv6)
        && found.set_retval == (version >= (5, 18))
        && found.fib_mtu == (version >= (5, 12));
    if right { Ok(()) } else { Err(format!("kernel {version:?} has {found:?}")) }
}

fn load(name: &str) -> Result<(), String> {
    let mut loaded = loader::load_private(&Capacities::default()).map_err(|e| e.to_string())?;
    loaded.program(name).map(drop).map_err(|e| e.to_string())
}

/// A sweep reads thousands of entries, and then judges one after the other; a new flow may take the tuple of one meanwhile.
fn unchanged() -> Result<(), String> {
    let body = || -> anyhow::Result<()> {
        MountNs::create()?.enter()?;
        let pins = Pins::new("/sys/fs/bpf/netlb-load");
        let _loaded = loader::load(&pins, &Capacities::new(16, 16, 1_024))?;
        let table = Table::<CtKey, CtValue>::open(&pins, name::CT_NEW)?;
        let key = CtKey::new(Addr::v4(1), Addr::v4(2), Port::new(3), Port::new(4), proto::TCP);
        let old = CtValue { seen: 1, ..Zeroable::zeroed() };
        let new = CtValue { seen: 2, ..old };
        anyhow::ensure!(!table.delete_unchanged(&key, &old)?, "deleted what is not there");
        table.put(&key, &new)?;
        anyhow::ensure!(!table.delete_unchanged(&key, &old)?, "deleted a flow that came meanwhile");
        anyhow::ensure!(table.get(&key)?.is_some_and(|found| found.seen == 2), "the flow that came meanwhile is gone");
        anyhow::ensure!(table.delete_unchanged(&key, &new)? && table.get(&key)?.is_none(), "not deleted");
        Ok(())
    };
    // The mount namespace is the thread's.
    let done = std::thread::spawn(body).join().map_err(|_| "panicked")?;
    done.map_err(|error| format!("{error:#}"))
}
