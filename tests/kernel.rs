//! The table of cases through the loaded programs, at XDP and at TC, by BPF_PROG_TEST_RUN. Nothing is attached.

use std::cell::RefCell;
use std::process::ExitCode;

use netlb_tests::case::{Case, Hook};
use netlb_tests::cases;
use netlb_tests::harness::{self, Trial};
use netlb_tests::kernel::{Entry, Kernel};
use netlb_tests::need::{Need, need};
use netlb_tests::world::World;

fn main() -> ExitCode {
    let cases = cases::all();
    let all = &cases;
    let loaded = [RefCell::new(None), RefCell::new(None)];
    let basics = need(&[Need::Root, Need::Btf]);
    let mut trials = Vec::new();
    for (entry, kernel) in [Entry::Xdp, Entry::Tc].into_iter().zip(&loaded) {
        for case in all.iter().filter(|case| takes_any(entry, case)) {
            let trial = Trial::new(format!("{entry:?}: {}", case.name), move || run(entry, case, kernel));
            // Programs are tried to find out, as root.
            trials.push(if basics.is_ok() { trial.if_met(need(case.needs)) } else { trial });
        }
        let refused = move || what_is_left_out_is_refused(entry, all);
        trials.push(Trial::new(format!("{entry:?}: the kernel refuses the frames that are left out here"), refused));
    }
    harness::run(basics, trials)
}

fn takes_any(entry: Entry, case: &Case) -> bool {
    case.frames().any(|(frame, gso)| Kernel::accepts(entry, &frame, gso))
}

/// What loading came to: it takes minutes under emulation, so that a refusal is not asked for again either.
type Loaded = RefCell<Option<Result<Kernel, String>>>;

/// One loaded object serves all cases of an entry, save those that want another capacity.
fn run(entry: Entry, case: &Case, loaded: &Loaded) -> Result<(), String> {
    let world = &case.world;
    if world.ct_capacity.is_some() {
        let mut own = Kernel::load(entry, world).map_err(|e| format!("{e:#}"))?;
        return case.run(&mut own);
    }
    let mut loaded = loaded.borrow_mut();
    let kernel = loaded.get_or_insert_with(|| Kernel::load(entry, &World::new()).map_err(|e| format!("{e:#}")));
    let kernel = kernel.as_mut().map_err(|e| e.clone())?;
    kernel.reset(world).map_err(|e| format!("{e:#}"))?;
    case.run(kernel)
}

/// A frame that this tier leaves out is one that the kernel's test run does not take, and no other. (GSO frames at XDP are not asked: an XDP
/// frame has no field that would say so.)
fn what_is_left_out_is_refused(entry: Entry, cases: &[Case]) -> Result<(), String> {
    let mut kernel = Kernel::load(entry, &World::new()).map_err(|e| format!("{e:#}"))?;
    let mut refused = 0;
    for (frame, gso) in cases.iter().flat_map(Case::frames) {
        if gso == 0 && !Kernel::accepts(entry, &frame, gso) {
            let got = kernel.run(Hook::ToPod, &frame, gso).map_err(|e| format!("{e:#}"))?;
            if let Some(got) = got {
                return Err(format!("a frame of {} bytes is taken after all: {got:?}", frame.len()));
            }
            refused += 1;
        }
    }
    // At XDP every case's frame is long enough.
    if (refused > 0) == (entry == Entry::Tc) { Ok(()) } else { Err(format!("{refused} frames were refused")) }
}
