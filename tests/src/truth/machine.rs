//! The loaded programs, once for all documents: packets go through them by BPF_PROG_TEST_RUN, as if on a device of the calling thread's network
//! namespace; the socket hooks are attached to a cgroup of the run.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use bytemuck::{Pod, Zeroable};
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::maps::{name, program};
use netlb_common::socket::{SocketKey, SocketValue};
use netlb_testnode::cgroup::{self, Cgroup};
use netlb_testnode::netns::MountNs;
use netlb_testnode::state::{self, StateDir};
use netlb_user::bpf::attach::{Attach, Hook, Links, SocketHook};
use netlb_user::bpf::clock::JiffiesClock;
use netlb_user::bpf::loader::{self, Loaded};
use netlb_user::bpf::pins::{Capacities, Pins};
use netlb_user::bpf::table::Table;
use netlb_user::plan::MapOp;
use netlb_user::store::{KernelStore, MapStore};

const PIN_PATH: &str = "/sys/fs/bpf/netlb-truth";

/// What a program says of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    Pass,
    Drop,
    /// To a device, past the stack.
    Redirect,
}

/// Programs and maps.
pub struct Machine {
    loaded: Loaded,
    pub pins: Pins,
    pub cgroup: Arc<Cgroup>,
    /// Jiffies a second.
    pub hz: u32,
    _state: StateDir,
}

impl Machine {
    /// Loads everything. The calling thread gets a mount namespace with a bpffs of its own, for good.
    ///
    /// # Errors
    /// If the kernel refuses something, or the process is not root.
    pub fn start() -> Result<Self> {
        let state = StateDir::create(state::TEST_NODES)?;
        MountNs::create()?.enter()?;
        let group = cgroup::mount_point()?.join(format!("{}{}", state::TEST_NODES.group, state.id()));
        let group = Arc::new(Cgroup::create(group)?);
        let pins = Pins::new(PIN_PATH);
        let (mut loaded, _) = loader::load(&pins, &Capacities::new(1_024, 1_024, 65_536))?;
        for name in [program::FROM_POD, program::TO_POD, program::FROM_OUTSIDE, program::TO_OUTSIDE] {
            loaded.program(name)?;
        }
        let hz = JiffiesClock::new(loaded.program(program::CLOCK)?, None)?.hz();
        let mut links = Links::new(pins.clone(), Some(group.path().to_owned()));
        for hook in SocketHook::ALL.map(Hook::Socket) {
            links.ensure(hook, loaded.program(hook.program())?)?;
        }
        Ok(Machine { loaded, pins, cgroup: group, hz, _state: state })
    }

    /// Runs a frame through a program on a device.
    ///
    /// # Errors
    /// If the kernel refuses the frame, or the program returns a number that no hook returns.
    pub fn run(&mut self, name: &str, ifindex: u32, frame: &[u8]) -> Result<(Code, Vec<u8>)> {
        let program: &SchedClassifier =
            self.loaded.ebpf_mut().program(name).with_context(|| format!("no program {name}"))?.try_into()?;
        let mut out = vec![0; frame.len() + 256];
        let ctx = sk_buff(ifindex);
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&ctx),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        let code = match result.return_value {
            2 => Code::Drop,
            7 => Code::Redirect,
            // TCX_NEXT, -1.
            u32::MAX => Code::Pass,
            other => bail!("{name} returned {other}, which no hook of netlb returns"),
        };
        Ok((code, out))
    }

    /// Empties what an agent looks at when it starts, and what packets left.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn wipe(&self) -> Result<KernelStore> {
        let mut store = KernelStore::open(&self.pins)?;
        let tables = store.read()?;
        let mut ops = Vec::new();
        ops.extend(tables.frontends.into_keys().map(|key| MapOp::DeleteFrontend { key }));
        ops.extend(tables.endpoint_by_addr.into_keys().map(|addr| MapOp::DeleteEndpointByAddr { addr }));
        ops.extend(tables.endpoint_by_ifindex.into_keys().map(|ifindex| MapOp::DeleteEndpointByIfindex { ifindex }));
        ops.extend(tables.source_ranges.into_iter().map(|key| MapOp::DeleteSourceRange { key }));
        ops.extend(tables.uplinks.into_keys().map(|ifindex| MapOp::DeleteUplink { ifindex }));
        ops.extend(tables.clients.into_keys().map(|netns| MapOp::DeleteClient { netns }));
        ops.extend(tables.backends.into_keys().map(|id| MapOp::SetBackend { id, value: Zeroable::zeroed() }));
        ops.extend(tables.endpoints.into_keys().map(|id| MapOp::SetEndpoint { id, value: Zeroable::zeroed() }));
        ops.iter().try_for_each(|op| store.apply(op))?;
        forget::<CtKey, CtValue>(&self.pins, name::CT)?;
        forget::<CtKey, CtValue>(&self.pins, name::CT_NEW)?;
        forget::<AffinityKey, AffinityValue>(&self.pins, name::AFFINITY)?;
        forget::<SocketKey, SocketValue>(&self.pins, name::SOCKETS)?;
        Ok(store)
    }
}

/// Deletes every entry of a hash.
fn forget<K: Pod, V: Pod>(pins: &Pins, name: &'static str) -> Result<()> {
    let table = Table::<K, V>::open(pins, name)?;
    for (key, _) in table.entries()? {
        table.delete(&key)?;
    }
    Ok(())
}

/// A `struct __sk_buff` (uapi/linux/bpf.h) of a packet on a device.
fn sk_buff(ifindex: u32) -> [u8; 192] {
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    let mut ctx = [0; 192];
    for at in [INGRESS_IFINDEX, IFINDEX] {
        ctx[at..at + 4].copy_from_slice(&ifindex.to_ne_bytes());
    }
    ctx
}
