//! The programs under test: netlb's own object, unmodified, with ten Services in its maps.

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::{TcAttachType, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use netlb_bench_ebpf::FRAME;
use netlb_common::backend::{self, BackendValue};
use netlb_common::config::{self, Cidr, Config, MAX_CIDRS};
use netlb_common::conntrack::{CtKey, CtValue};
use netlb_common::endpoint::EndpointValue;
use netlb_common::frontend::{FrontendKey, FrontendValue, flags};
use netlb_common::maps::{self, name, program as names};
use netlb_common::{Addr, Port, proto};

use crate::world::{self, CLIENT_DEVICE, Device, Family, SERVER_DEVICE, World, program};

/// Port of the Service, TCP and UDP.
pub(crate) const SERVICE_PORT: u16 = 80;
/// Port of its backend.
pub(crate) const BACKEND_PORT: u16 = 8080;

/// Services in the maps; one is measured.
const SERVICES: u16 = 10;

/// Ids in `ENDPOINTS`.
const CLIENT: u32 = 1;
const SERVER: u32 = 2;

/// XDP verdicts a driven packet may have.
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// How netlb's programs sit in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// `xdp_from_pod` behind the generator; redirects.
    Xdp,
    /// `from_pod` and `to_pod` at TCX, the redirect road open.
    Redirect,
    /// `from_pod` and `to_pod` at TCX, the redirect road closed.
    Stack,
}

/// The kernel object under test.
pub(crate) struct Programs {
    /// ELF bytes, aligned as a `Vec`'s are.
    pub(crate) object: Vec<u8>,
    /// Load the programs, but put them nowhere.
    pub(crate) detached: bool,
}

/// One world's copy of the programs, with its own maps.
pub(crate) struct Production {
    object: Ebpf,
}

impl Production {
    /// Loads the object, fills its maps, and puts the programs in place, unless they are to stay detached. The calling thread is in the node's namespace afterwards.
    ///
    /// # Errors
    /// Names the program or map.
    pub(crate) fn new(world: &mut World, road: Road, programs: &Programs) -> Result<Self> {
        world.enter()?;
        let mut object = EbpfLoader::new().load(&programs.object).context("cannot read netlb's kernel object")?;
        world::xdp(&mut object, names::XDP_TO_POD)?;
        let from_pod = world::xdp(&mut object, names::XDP_FROM_POD)?;
        match road {
            _ if programs.detached => {}
            Road::Xdp => world.set_program(from_pod)?,
            Road::Redirect | Road::Stack => {
                for device in [CLIENT_DEVICE, SERVER_DEVICE] {
                    world::tcx(&mut object, names::FROM_POD, device, TcAttachType::Ingress)?;
                    world::tcx(&mut object, names::TO_POD, device, TcAttachType::Egress)?;
                }
            }
        }
        let mut production = Production { object };
        production.fill(world, road)?;
        Ok(production)
    }

    /// Runs an XDP program once over a frame that a device is said to have received.
    ///
    /// # Errors
    /// When the verdict is another than `want`.
    pub(crate) fn drive(&mut self, name: &str, device: Device, frame: &[u8; FRAME], want: u32) -> Result<()> {
        let context = world::context(device.index);
        let result = program::<Xdp>(&mut self.object, name)?
            .test_run(TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() })
            .with_context(|| format!("cannot run {name}"))?;
        ensure!(result.return_value == want, "{name} returned {} where {want} was expected", result.return_value);
        Ok(())
    }

    /// An entry of `CT` or `CT_NEW`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(crate) fn entry(&self, map: &'static str, key: &CtKey) -> Result<Option<CtValue>> {
        let map = self.object.map(map).ok_or_else(|| anyhow!("netlb's object has no map {map}"))?;
        match HashMap::<_, CtKey, CtValue>::try_from(map)?.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// All entries of `CT`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub(crate) fn established(&self) -> Result<Vec<(CtKey, CtValue)>> {
        let map = self.object.map(name::CT).ok_or_else(|| anyhow!("netlb's object has no map CT"))?;
        HashMap::<_, CtKey, CtValue>::try_from(map)?.iter().map(|entry| Ok(entry?)).collect()
    }

    fn fill(&mut self, world: &World, road: Road) -> Result<()> {
        self.check_contract()?;
        for (id, device) in [(CLIENT, world.client), (SERVER, world.server)] {
            self.set(name::ENDPOINTS, id, endpoint(device))?;
            self.insert(name::ENDPOINT_BY_IFINDEX, device.index, id)?;
        }
        let mut backend_id = 0;
        for family in Family::BOTH {
            for n in 0..64 {
                self.insert(name::ENDPOINT_BY_ADDR, Addr::from_ip(family.client(n)), CLIENT)?;
            }
            self.insert(name::ENDPOINT_BY_ADDR, Addr::from_ip(family.server()), SERVER)?;
            for service in 0..SERVICES {
                let vip = vip(family, service);
                self.insert(
                    name::FRONTENDS,
                    FrontendKey::address(vip),
                    FrontendValue { flags: flags::VIP, ..frontend(0, 0, 0) },
                )?;
                for proto in [proto::TCP, proto::UDP] {
                    backend_id += 1;
                    self.set(name::BACKENDS, backend_id, backend(family, proto, backend_id))?;
                    self.set(name::SLOTS, backend_id, backend_id)?;
                    let key = FrontendKey::new(vip, Port::new(SERVICE_PORT), proto);
                    self.insert(name::FRONTENDS, key, frontend(backend_id, backend_id, 1))?;
                }
            }
        }
        // Last, as the agent does it: from here on the programs act.
        self.set(name::CONFIG, 0, configuration(road))
    }

    /// The object's maps are those of the contract, else the records written here mean something else.
    fn check_contract(&self) -> Result<()> {
        for spec in maps::ALL {
            let map = self.object.map(spec.name).ok_or_else(|| anyhow!("netlb's object has no map {}", spec.name))?;
            let info = data(map)?.info()?;
            ensure!(
                (info.key_size(), info.value_size(), info.max_entries()) == (spec.key, spec.value, spec.capacity),
                "map {} of netlb's object has other sizes than the contract; rebuild both with `cargo xtask bench`",
                spec.name
            );
        }
        Ok(())
    }

    fn insert<K: Pod, V: Pod>(&mut self, map: &'static str, key: K, value: V) -> Result<()> {
        let found = self.object.map_mut(map).ok_or_else(|| anyhow!("netlb's object has no map {map}"))?;
        HashMap::<_, K, V>::try_from(found)?.insert(key, value, 0).with_context(|| format!("cannot write to {map}"))
    }

    fn set<V: Pod>(&mut self, map: &'static str, index: u32, value: V) -> Result<()> {
        let found = self.object.map_mut(map).ok_or_else(|| anyhow!("netlb's object has no map {map}"))?;
        Array::<_, V>::try_from(found)?.set(index, value, 0).with_context(|| format!("cannot write {map}[{index}]"))
    }
}

/// The plain map behind aya's typed variants.
fn data(map: &Map) -> Result<&MapData> {
    let (Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data)) =
        map
    else {
        bail!("a map of netlb's object is of a kind the contract does not have");
    };
    Ok(data)
}

fn vip(family: Family, service: u16) -> Addr {
    let first = Addr::from_ip(family.vip());
    // The last byte on the wire is the highest of the word.
    Addr { hi: first.hi, lo: first.lo + (u64::from(service) << 56) }
}

fn frontend(service: u32, slots: u32, count: u32) -> FrontendValue {
    FrontendValue {
        service,
        flags: 0,
        slots,
        count,
        outside_slots: slots,
        outside_count: count,
        affinity_s: 0,
        generation: 1,
    }
}

fn backend(family: Family, proto: u8, service: u32) -> BackendValue {
    BackendValue {
        addr: Addr::from_ip(family.server()),
        port: Port::new(BACKEND_PORT),
        state: backend::state::ACTIVE,
        proto,
        generation: 1,
        endpoint: SERVER,
        service,
        flags: backend::flags::ON_NODE | backend::flags::CLUSTER_LIST | backend::flags::LOCAL_LIST,
        pad: 0,
    }
}

fn endpoint(device: Device) -> EndpointValue {
    let [a, b, c, d, e, f] = device.pod_mac;
    let [g, h, i, j, k, l] = device.mac;
    let eth = [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes);
    EndpointValue { ifindex: device.index, generation: 1, mtu: 1500, bridge: 0, eth, flags: 0 }
}

fn configuration(road: Road) -> Config {
    let cidr = |family: Family, len: u8| {
        let addr = Addr::from_ip(family.vip());
        Cidr { net: addr.masked(len), mask: Addr::mask(len, addr.is_v4()) }
    };
    let mut cidrs = [Cidr { net: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED }; MAX_CIDRS];
    cidrs[0] = cidr(Family::V4, 16);
    cidrs[1] = cidr(Family::V6, 112);
    Config {
        netns_cookie: 0,
        // The most a kernel has: no entry expires in a run.
        hz: 1000,
        flags: if road == Road::Stack { 0 } else { config::flags::REDIRECT },
        seed: 0x6e65_746c,
        cidrs_used: 2,
        cidrs,
        ..bytemuck::Zeroable::zeroed()
    }
}
