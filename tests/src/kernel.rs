//! The loaded programs as a runner: packets go through BPF_PROG_TEST_RUN, a world's tables into the real maps.
//!
//! Nothing is attached. A packet of a test run always arrives on `lo`: the runner ties that index to the pod the case means. The kernel's clock
//! cannot be set, so time passes by moving the stamps of entries into the past.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use netlb_common::affinity::{AffinityKey, AffinityValue};
use netlb_common::backend::BackendValue;
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::fragment::{FragmentKey, FragmentValue};
use netlb_common::frontend::{FrontendKey, FrontendValue};
use netlb_common::maps::{name, program};
use netlb_common::source_range::SourceRangeKey;
use netlb_common::uplink::UplinkValue;
use netlb_common::{Addr, Reason};

use crate::case::{Flow, Got, Hook, Refused, Runner, Seen};
use crate::outside::Outside;
use crate::world::{HZ, NARROW_UPLINK, UPLINK, World};

/// Which programs run the packets. XDP knows no egress on uplinks: there it is TC's program in both cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Xdp,
    Tc,
}

/// Interface index of `lo` in every network namespace.
const LO: u32 = 1;

/// Capacities small enough to clear quickly; `CT_NEW` still takes a flow for each port.
const CAPACITIES: &[(&str, u32)] = &[
    (name::FRONTENDS, 256),
    (name::SLOTS, 4_096),
    (name::BACKENDS, 256),
    (name::BACKEND_FLOWS, 256),
    (name::BACKEND_LOAD, 256),
    (name::TURNS, 4_096),
    (name::ENDPOINTS, 64),
    (name::CT, 16_384),
    (name::CT_NEW, 131_072),
];

/// Bytes a test run takes in one linear frame, below its page with headroom and tailroom.
pub const MAX_FRAME: usize = 3_400;

/// The programs, loaded into maps of their own.
pub struct Kernel {
    ebpf: Ebpf,
    entry: Entry,
    world: World,
    outside: Outside,
    /// The node's, open.
    sockets: Vec<OwnedFd>,
}

impl Kernel {
    /// Loads one pair of programs with the maps of `world`.
    ///
    /// # Errors
    /// If this build holds no object, or the kernel refuses it.
    pub fn load(entry: Entry, world: &World) -> anyhow::Result<Self> {
        let bytes = netlb_user::bpf::object::bytes()?;
        let mut loader = EbpfLoader::new();
        for (map, entries) in CAPACITIES {
            loader.map_max_entries(map, *entries);
        }
        if let Some(entries) = world.ct_capacity {
            loader.map_max_entries(name::CT, entries);
        }
        netlb_user::bpf::loader::set_globals(&mut loader);
        let mut ebpf = loader.load(bytes).context("loading the kernel object")?;
        let programs = match entry {
            Entry::Xdp => [program::XDP_FROM_POD, program::XDP_TO_POD, program::XDP_FROM_OUTSIDE],
            Entry::Tc => [program::FROM_POD, program::TO_POD, program::FROM_OUTSIDE],
        };
        for name in programs.into_iter().chain([program::TO_OUTSIDE, program::CLOCK]) {
            load_program(&mut ebpf, name)?;
        }
        let outside = Outside::new().context("making a namespace with an uplink")?;
        let mut kernel = Kernel { ebpf, entry, world: World::new(), outside, sockets: Vec::new() };
        kernel.reset(world)?;
        Ok(kernel)
    }

    /// Forgets every flow and session, and writes another world.
    ///
    /// # Errors
    /// If a map cannot be written, or the world wants another capacity than the maps have.
    pub fn reset(&mut self, world: &World) -> anyhow::Result<()> {
        clear::<CtKey, CtValue>(&mut self.ebpf, name::CT)?;
        clear::<CtKey, CtValue>(&mut self.ebpf, name::CT_NEW)?;
        clear::<AffinityKey, AffinityValue>(&mut self.ebpf, name::AFFINITY)?;
        clear::<FragmentKey, FragmentValue>(&mut self.ebpf, name::FRAGMENTS)?;
        let (blocks, ids) = (self.world.slots.keys(), self.world.backends.keys());
        zero(&mut self.ebpf, name::TURNS, blocks)?;
        zero(&mut self.ebpf, name::BACKEND_LOAD, ids)?;
        self.write(world)?;
        let now = self.jiffies()?;
        let mut flows = hash::<CtKey, CtValue>(&mut self.ebpf, name::CT_NEW)?;
        for (key, value) in &world.flows {
            flows.insert(key, CtValue { seen: now.wrapping_sub(value.seen), ..*value }, 0)?;
        }
        Ok(())
    }

    /// Writes what differs from the world written last.
    fn write(&mut self, world: &World) -> anyhow::Result<()> {
        let old = std::mem::replace(&mut self.world, world.clone());
        let ebpf = &mut self.ebpf;
        sync_hash::<FrontendKey, FrontendValue>(ebpf, name::FRONTENDS, &old.frontends, &world.frontends)?;
        sync_hash::<Addr, u32>(ebpf, name::ENDPOINT_BY_ADDR, &old.endpoint_by_addr, &world.endpoint_by_addr)?;
        sync_array::<u32>(ebpf, name::SLOTS, &old.slots, &world.slots, 0)?;
        sync_array::<BackendValue>(ebpf, name::BACKENDS, &old.backends, &world.backends, bytemuck::Zeroable::zeroed())?;
        sync_array::<EndpointValue>(
            ebpf,
            name::ENDPOINTS,
            &old.endpoints,
            &world.endpoints,
            bytemuck::Zeroable::zeroed(),
        )?;
        let uplinks = |world: &World| {
            let Outside { ifindex, narrow, .. } = self.outside;
            let devices = [(LO, UPLINK), (ifindex, UPLINK), (narrow, NARROW_UPLINK)];
            devices.into_iter().filter_map(|(device, name)| Some((device, *world.uplinks.get(&name)?))).collect()
        };
        sync_hash::<u32, UplinkValue>(ebpf, name::UPLINKS, &uplinks(&old), &uplinks(world))?;
        let mut ranges: LpmTrie<&mut MapData, [u32; 5], u32> = LpmTrie::try_from(map(ebpf, name::SOURCE_RANGES)?)?;
        let trie_key = |key: &SourceRangeKey| {
            let [prefix, data @ ..] = bytemuck::cast::<SourceRangeKey, [u32; 6]>(*key);
            Key::new(prefix, data)
        };
        for key in old.source_ranges.difference(&world.source_ranges) {
            ranges.remove(&trie_key(key))?;
        }
        world.source_ranges.iter().try_for_each(|key| ranges.insert(&trie_key(key), 1, 0))?;
        let mut config: Array<&mut MapData, netlb_common::config::Config> = Array::try_from(map(ebpf, name::CONFIG)?)?;
        config.set(0, world.config, 0)?;
        if old.sockets != world.sockets {
            // First all gone: the same port may be wanted again.
            self.sockets.clear();
            self.sockets = world.sockets.iter().map(|wanted| self.outside.socket(wanted)).collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Ties `lo` to the pod behind a device of the world.
    fn arrive(&mut self, ifindex: u32) -> anyhow::Result<()> {
        let pod = self.world.endpoint_by_ifindex.get(&ifindex).copied();
        let mut devices = hash::<u32, u32>(&mut self.ebpf, name::ENDPOINT_BY_IFINDEX)?;
        match pod {
            Some(pod) => devices.insert(LO, pod, 0)?,
            None => remove(&mut devices, &LO)?,
        }
        Ok(())
    }

    /// The kernel's jiffies, low 32 bits.
    ///
    /// # Errors
    /// If the `clock` program cannot be run.
    pub fn jiffies(&self) -> anyhow::Result<u32> {
        let program: &Xdp = self.ebpf.program(program::CLOCK).context("no program clock")?.try_into()?;
        let mut out = [0; 64];
        program.test_run(TestRunOptions {
            data_in: Some(&[0; 64]),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        Ok(u32::from_ne_bytes([out[0], out[1], out[2], out[3]]))
    }

    /// Runs a frame, as [`Runner::send`]; `None`: the kernel refused the frame itself (EINVAL).
    ///
    /// # Errors
    /// If the program cannot be run for another reason, or returned a number that no hook returns.
    pub fn run(&mut self, hook: Hook, frame: &[u8], gso: u32) -> anyhow::Result<Option<Got>> {
        if let Hook::FromPod(ifindex) = hook {
            self.arrive(ifindex)?;
        }
        let mut out = vec![0; frame.len() + 256];
        let ctx = sk_buff(gso);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: (gso != 0).then_some(ctx.as_slice()),
            ..TestRunOptions::default()
        };
        self.outside.enter()?;
        let result = match (self.entry, hook) {
            (Entry::Xdp, Hook::FromPod(_)) => xdp(&self.ebpf, program::XDP_FROM_POD)?.test_run(options),
            (Entry::Xdp, Hook::ToPod) => xdp(&self.ebpf, program::XDP_TO_POD)?.test_run(options),
            (Entry::Tc, Hook::FromPod(_)) => tc(&self.ebpf, program::FROM_POD)?.test_run(options),
            (Entry::Xdp, Hook::FromOutside) => xdp(&self.ebpf, program::XDP_FROM_OUTSIDE)?.test_run(options),
            (Entry::Tc, Hook::ToPod) => tc(&self.ebpf, program::TO_POD)?.test_run(options),
            (Entry::Tc, Hook::FromOutside) => tc(&self.ebpf, program::FROM_OUTSIDE)?.test_run(options),
            (Entry::Xdp | Entry::Tc, Hook::ToOutside) => tc(&self.ebpf, program::TO_OUTSIDE)?.test_run(options),
        };
        let result = match result {
            Ok(result) => result,
            Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        out.truncate(result.data_size_out as usize);
        let verdict = match (self.entry.at(hook), result.return_value) {
            (Entry::Xdp, 1) => Seen::Drop,
            (Entry::Xdp, 2) => Seen::Pass,
            (Entry::Xdp, 3) => Seen::Reflect,
            (Entry::Xdp, 4) => Seen::Redirect,
            (Entry::Tc, 2) => Seen::Drop,
            (Entry::Tc, 7) => Seen::Redirect,
            // TCX_NEXT, -1.
            (Entry::Tc, u32::MAX) => Seen::Pass,
            (entry, other) => bail!("{entry:?} returned {other}, which no hook of netlb returns"),
        };
        Ok(Some(Got { verdict, frame: out }))
    }

    /// Flows counted per backend.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn backend_flows(&self) -> anyhow::Result<BTreeMap<u32, u64>> {
        let flows: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map_ref(&self.ebpf, name::BACKEND_FLOWS)?)?;
        let mut found = BTreeMap::new();
        for id in 0..flows.len() {
            let sum: u64 = flows.get(&id, 0)?.iter().sum();
            if sum != 0 {
                found.insert(id, sum);
            }
        }
        Ok(found)
    }

    /// Sessions, with the age of each in jiffies.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn affinities(&self) -> anyhow::Result<Vec<(AffinityKey, AffinityValue)>> {
        entries(&self.ebpf, name::AFFINITY)
    }

    /// Whether a test run of this entry takes a frame; what it does not take is EINVAL, whatever the program.
    pub fn accepts(entry: Entry, frame: &[u8], gso: u32) -> bool {
        if frame.len() < 14 || frame.len() > MAX_FRAME {
            return false;
        }
        match entry {
            // An XDP frame has no segments.
            Entry::Xdp => gso == 0,
            Entry::Tc => match u16::from_be_bytes([frame[12], frame[13]]) {
                0x0800 => frame.len() >= 34,
                0x86dd => frame.len() >= 54,
                _ => true,
            },
        }
    }
}

impl Entry {
    /// The kind of the program that runs packets of a hook.
    fn at(self, hook: Hook) -> Entry {
        if hook == Hook::ToOutside { Entry::Tc } else { self }
    }
}

impl Runner for Kernel {
    fn takes(&self, hook: Hook, frame: &[u8], gso: u32) -> bool {
        Kernel::accepts(self.entry.at(hook), frame, gso)
    }

    fn send(&mut self, hook: Hook, frame: &[u8], gso: u32) -> Result<Got, Refused> {
        match self.run(hook, frame, gso) {
            Ok(Some(got)) => Ok(got),
            Ok(None) => Err(Refused("the kernel's test run refused the frame (EINVAL)".into())),
            Err(e) => Err(Refused(format!("{e:#}"))),
        }
    }

    fn wait(&mut self, seconds: u32) -> anyhow::Result<()> {
        self.age(seconds * HZ)
    }

    fn change(&mut self, change: &dyn Fn(&mut World)) -> anyhow::Result<()> {
        let mut world = self.world.clone();
        change(&mut world);
        self.write(&world)
    }

    fn counters(&self) -> anyhow::Result<BTreeMap<u8, u64>> {
        let counters: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(map_ref(&self.ebpf, name::COUNTERS)?)?;
        let mut found = BTreeMap::new();
        for (reason, ..) in Reason::ALL {
            found.insert(reason.0, counters.get(&u32::from(reason.0), 0)?.iter().sum());
        }
        Ok(found)
    }

    fn flows(&self) -> anyhow::Result<Vec<Flow>> {
        let now = self.jiffies()?;
        let mut found = Vec::new();
        for (assured, name) in [(true, name::CT), (false, name::CT_NEW)] {
            let mut tier: Vec<Flow> = entries::<CtKey, CtValue>(&self.ebpf, name)?
                .into_iter()
                .map(|(key, value)| Flow { assured, key, age: now.wrapping_sub(value.seen), value })
                .collect();
            tier.sort_by_key(|flow| flow.key);
            found.extend(tier);
        }
        Ok(found)
    }
}

impl Kernel {
    /// Moves every stamp into the past.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn age(&mut self, jiffies: u32) -> anyhow::Result<()> {
        for name in [name::CT, name::CT_NEW] {
            rewrite::<CtKey, CtValue>(&mut self.ebpf, name, |v| v.seen = v.seen.wrapping_sub(jiffies))?;
        }
        rewrite::<FragmentKey, FragmentValue>(&mut self.ebpf, name::FRAGMENTS, |v| {
            v.seen = v.seen.wrapping_sub(jiffies)
        })?;
        rewrite::<AffinityKey, AffinityValue>(&mut self.ebpf, name::AFFINITY, |v| v.seen = v.seen.wrapping_sub(jiffies))
    }
}

/// Loads one program of an object into the kernel.
///
/// # Errors
/// If there is no such program, or the verifier refuses it; of its log the last lines are kept.
pub fn load_program(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let loaded = match name {
        program::FROM_POD | program::TO_POD | program::FROM_OUTSIDE | program::TO_OUTSIDE => {
            <&mut SchedClassifier>::try_from(program)?.load()
        }
        program::XDP_FROM_POD | program::XDP_TO_POD | program::XDP_FROM_OUTSIDE | program::CLOCK => {
            <&mut Xdp>::try_from(program)?.load()
        }
        _ => <&mut aya::programs::CgroupSockAddr>::try_from(program)?.load(),
    };
    loaded.map_err(|e| {
        let log = format!("{e:#?}");
        let last: Vec<&str> = log.split("\\n").flat_map(str::lines).collect();
        anyhow::anyhow!("the kernel refuses program {name}: {}", last[last.len().saturating_sub(30)..].join("\n"))
    })
}

fn xdp<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn tc<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a SchedClassifier> {
    Ok(ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// A `struct __sk_buff` (uapi/linux/bpf.h) that says the frame is one of segments.
fn sk_buff(gso: u32) -> [u8; 192] {
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut ctx = [0; 192];
    ctx[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&2u32.to_ne_bytes());
    ctx[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso.to_ne_bytes());
    ctx
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Map> {
    ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
}

fn map_ref<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a Map> {
    ebpf.map(name).with_context(|| format!("the object has no map {name}"))
}

fn hash<'a, K: Pod, V: Pod>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<HashMap<&'a mut MapData, K, V>> {
    Ok(HashMap::try_from(map(ebpf, name)?)?)
}

fn entries<K: Pod, V: Pod>(ebpf: &Ebpf, name: &str) -> anyhow::Result<Vec<(K, V)>> {
    let map: HashMap<&MapData, K, V> = HashMap::try_from(map_ref(ebpf, name)?)?;
    Ok(map.iter().collect::<Result<_, _>>()?)
}

fn rewrite<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str, change: impl Fn(&mut V)) -> anyhow::Result<()> {
    let all = entries::<K, V>(ebpf, name)?;
    let mut map = hash::<K, V>(ebpf, name)?;
    for (key, mut value) in all {
        change(&mut value);
        map.insert(key, value, 0)?;
    }
    Ok(())
}

fn clear<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<()> {
    let all = entries::<K, V>(ebpf, name)?;
    let mut map = hash::<K, V>(ebpf, name)?;
    all.iter().try_for_each(|(key, _)| remove(&mut map, key))
}

/// Removing what is not there is fine.
fn remove<K: Pod, V: Pod>(map: &mut HashMap<&mut MapData, K, V>, key: &K) -> anyhow::Result<()> {
    match map.remove(key) {
        Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn sync_hash<K: Pod + Ord, V: Pod>(
    ebpf: &mut Ebpf,
    name: &str,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> anyhow::Result<()> {
    let mut map = hash::<K, V>(ebpf, name)?;
    for key in old.keys().filter(|key| !new.contains_key(key)) {
        remove(&mut map, key)?;
    }
    new.iter().try_for_each(|(key, value)| Ok(map.insert(key, value, 0)?))
}

/// Writes zero under these indices of an array of counts.
fn zero<'i>(ebpf: &mut Ebpf, name: &str, indices: impl Iterator<Item = &'i u32>) -> anyhow::Result<()> {
    let mut map: Array<&mut MapData, u32> = Array::try_from(self::map(ebpf, name)?)?;
    for index in indices {
        map.set(*index, 0, 0)?;
    }
    Ok(())
}

fn sync_array<V: Pod>(
    ebpf: &mut Ebpf,
    name: &str,
    old: &BTreeMap<u32, V>,
    new: &BTreeMap<u32, V>,
    zero: V,
) -> anyhow::Result<()> {
    let mut map: Array<&mut MapData, V> = Array::try_from(self::map(ebpf, name)?)?;
    for id in old.keys().filter(|id| !new.contains_key(id)) {
        map.set(*id, zero, 0)?;
    }
    new.iter().try_for_each(|(id, value)| Ok(map.set(*id, *value, 0)?))
}
