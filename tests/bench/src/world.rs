//! A world: a client pod, a node, a server pod, joined by two veths in network namespaces of their own.
//!
//! ```text
//!   client pod: eth0 ══ client0 │ node │ server0 ══ eth0 :server pod
//! ```
//! The generator makes frames *on* `client0` or `server0`, as if the pod behind it had sent them. Both pods have a receiver on `eth0`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, MapData, PerCpuArray, ProgramArray};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use netlb_bench_ebpf::{FRAME, FRAME_WORDS, Order, target};
use netlb_testnode::link::Links;
use netlb_testnode::netns::{NetNs, sysctl};

use crate::frame::Mac;
use crate::object;

/// Frames of a batch: below the 256 slots of a veth's ring.
const BATCH: u32 = 64;

/// The device names on the node.
pub(crate) const CLIENT_DEVICE: &str = "client0";
pub(crate) const SERVER_DEVICE: &str = "server0";
const POD_DEVICE: &str = "eth0";

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    fn pick(self, v4: [u8; 4], v6: [u16; 8]) -> IpAddr {
        match self {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(v4)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(v6)),
        }
    }

    fn prefix_len(self) -> u8 {
        match self {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    /// The client pod's address with flow address `n`, 0..64.
    pub(crate) fn client(self, n: u8) -> IpAddr {
        self.pick([10, 244, 1, 64 + n], [0xfd00, 0x244, 0, 1, 0, 0, 0, 64 + u16::from(n)])
    }

    /// The server pod's address.
    pub(crate) fn server(self) -> IpAddr {
        self.pick([10, 244, 2, 64], [0xfd00, 0x244, 0, 2, 0, 0, 0, 64])
    }

    /// The Service's address.
    pub(crate) fn vip(self) -> IpAddr {
        self.pick([10, 96, 0, 10], [0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10])
    }

    fn gateway(self, net: u8) -> IpAddr {
        self.pick([10, 244, net, 1], [0xfd00, 0x244, 0, u16::from(net), 0, 0, 0, 1])
    }
}

/// Where the receivers in the pods count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// For frames that a redirect at XDP brings: the veth must have NAPI, which an XDP program gives it.
    Xdp,
    /// For packets of the stack: no XDP in the pod, or each packet would first be copied into an XDP frame.
    Tcx,
}

/// Which of the node's two devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A program of the benchmark on the node's devices, at TCX ingress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Floor {
    /// Counts and drops.
    Drop,
    /// Redirects into the other pod.
    Peer,
}

/// The device on the node that leads to a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) name: &'static str,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    /// The pod's own.
    pub(crate) pod_mac: Mac,
}

/// Result of one run of the generator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// As the kernel timed it; it leaves out when the thread was scheduled away.
    pub(crate) ns_per_packet: f64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

pub(crate) struct World {
    pub(crate) name: &'static str,
    node: NetNs,
    // Held so that the namespaces live as long as the world.
    _pods: [NetNs; 2],
    pub(crate) client: Device,
    pub(crate) server: Device,
    bench: Ebpf,
    order: Array<MapData, Order>,
    received: PerCpuArray<MapData, u64>,
    sample: Array<MapData, [u64; FRAME_WORDS]>,
    targets: ProgramArray<MapData>,
}

impl World {
    /// Makes namespaces and devices, loads generator and receivers. The calling thread is inside the node's namespace afterwards.
    ///
    /// # Errors
    /// Names what failed.
    pub(crate) fn new(name: &'static str, receiver: Receiver) -> Result<Self> {
        let (node, client, server) = (NetNs::create()?, NetNs::create()?, NetNs::create()?);
        for net in [&node, &client, &server] {
            net.enter()?;
            // No duplicate address detection, no automatic addresses: nobody else is here.
            for name in ["all", "default"] {
                sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
                sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
                sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0")?;
            }
            Links::open(net)?.up("lo")?;
        }
        node.enter()?;
        sysctl("net/ipv4/ip_forward", "1")?;
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut links = Links::open(&node)?;
        let client_device = join(&mut links, CLIENT_DEVICE, &client, 1, |family| family.client(0))?;
        let server_device = join(&mut links, SERVER_DEVICE, &server, 2, Family::server)?;

        let mut bench = EbpfLoader::new().load(object::BENCH).context("cannot read the benchmark's kernel object")?;
        for name in
            ["udp4_out", "udp4_back", "tcp4_out", "udp6_out", "udp6_back", "tcp6_out", "floor_drop", "floor_redirect"]
        {
            xdp(&mut bench, name)?;
        }
        let pass = xdp(&mut bench, "pass")?;
        for device in [client_device, server_device] {
            pass.attach_to_if_index(device.index, XdpMode::Driver)
                .with_context(|| format!("cannot attach an XDP program to {}", device.name))?;
        }
        for pod in [&client, &server] {
            pod.enter()?;
            match receiver {
                Receiver::Xdp => {
                    let program = program::<Xdp>(&mut bench, "sink_xdp")?;
                    if program.fd().is_err() {
                        program.load().context("cannot load sink_xdp")?;
                    }
                    program
                        .attach(POD_DEVICE, XdpMode::Driver)
                        .context("cannot attach the receiver to a pod's eth0")?;
                }
                Receiver::Tcx => tcx(&mut bench, "sink_tcx", POD_DEVICE, TcAttachType::Ingress)?,
            }
        }
        node.enter()?;
        let mut take =
            |name: &str| bench.take_map(name).ok_or_else(|| anyhow!("the benchmark's object has no map {name}"));
        let order = Array::try_from(take("ORDER")?)?;
        let received = PerCpuArray::try_from(take("RECEIVED")?)?;
        let sample = Array::try_from(take("SAMPLE")?)?;
        let mut targets = ProgramArray::try_from(take("TARGETS")?)?;
        for (index, name) in [(target::DROP, "floor_drop"), (target::REDIRECT, "floor_redirect")] {
            targets.set(index, program::<Xdp>(&mut bench, name)?.fd()?, 0)?;
        }
        Ok(World {
            name,
            node,
            _pods: [client, server],
            client: client_device,
            server: server_device,
            bench,
            order,
            received,
            sample,
            targets,
        })
    }

    pub(crate) fn device(&self, side: Side) -> Device {
        match side {
            Side::Client => self.client,
            Side::Server => self.server,
        }
    }

    /// Moves the calling thread into the node's namespace: where test runs look for devices.
    pub(crate) fn enter(&self) -> Result<()> {
        self.node.enter()
    }

    /// Attaches one of the benchmark's own programs where packets of the client enter the node.
    pub(crate) fn attach_floor(&mut self, floor: Floor) -> Result<()> {
        let name = match floor {
            Floor::Drop => "sink_tcx",
            Floor::Peer => "floor_peer",
        };
        tcx(&mut self.bench, name, CLIENT_DEVICE, TcAttachType::Ingress)
    }

    /// Puts the program under test behind the generator.
    pub(crate) fn set_program(&mut self, program: &Xdp) -> Result<()> {
        self.targets.set(target::PROGRAM, program.fd()?, 0).context("cannot tail-call the program under test")
    }

    /// Lets the node's stack find both pods' hardware addresses, by a datagram to each.
    pub(crate) fn meet_neighbours(&mut self) -> Result<()> {
        self.enter()?;
        for family in Family::BOTH {
            let any = family.pick([0; 4], [0; 8]);
            for to in [family.client(0), family.server()] {
                let before = self.received()?;
                let socket = UdpSocket::bind((any, 0)).context("cannot open a socket on the node")?;
                socket.send_to(b"hello", (to, 9)).with_context(|| format!("cannot send to {to}"))?;
                if self.wait_received(before + 1)? != before + 1 {
                    bail!("world {}: a datagram from the node to {to} does not arrive", self.name);
                }
            }
        }
        Ok(())
    }

    /// Runs a generator over `packets` packets, and waits until the receiver has them.
    ///
    /// # Errors
    /// When the kernel refuses the run. Lost packets are no error here: the counts say it.
    pub(crate) fn run(&mut self, generator: &str, order: &mut Order, side: Side, packets: u32) -> Result<Run> {
        self.enter()?;
        self.order.set(0, *order, 0).context("cannot write ORDER")?;
        let before = self.received()?;
        let device = self.device(side).index;
        let context = context(device);
        let result = program::<Xdp>(&mut self.bench, generator)?
            .test_run(TestRunOptions {
                data_in: Some(&[0; FRAME]),
                ctx_in: Some(&context),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(packets)),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("world {}: cannot run the generator {generator}", self.name))?;
        let after = self.order.get(&0, 0)?;
        let sent = after.made - order.made;
        (order.made, order.state) = (after.made, after.state);
        let received = self.wait_received(before + sent)? - before;
        Ok(Run { ns_per_packet: result.duration.as_nanos() as f64, sent, received })
    }

    /// Sends one packet and returns it as it arrived.
    ///
    /// # Errors
    /// When it does not arrive.
    pub(crate) fn sample(&mut self, generator: &str, order: &mut Order, side: Side) -> Result<[u8; FRAME]> {
        order.sample = 1;
        let run = self.run(generator, order, side, 1);
        order.sample = 0;
        let run = run?;
        if run.received != 1 || self.order.get(&0, 0)?.sample != 0 {
            bail!("the packet did not arrive ({} counted)", run.received);
        }
        let words = self.sample.get(&0, 0)?;
        let mut frame = [0; FRAME];
        frame.copy_from_slice(bytemuck::bytes_of(&words));
        Ok(frame)
    }

    fn received(&self) -> Result<u64> {
        Ok(self.received.get(&0, 0)?.iter().sum())
    }

    /// The counter, once it has reached `count` or does not grow any more.
    fn wait_received(&self, count: u64) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_millis(200);
        loop {
            let now = self.received()?;
            if now >= count || Instant::now() > deadline {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// A `struct xdp_md` for a frame of [`FRAME`] bytes that arrives on a device.
pub(crate) fn context(device: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(FRAME as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&device.to_ne_bytes());
    context
}

/// Joins a pod to the node, and gives both ends their addresses.
fn join(
    links: &mut Links,
    name: &'static str,
    pod: &NetNs,
    net: u8,
    address: impl Fn(Family) -> IpAddr,
) -> Result<Device> {
    links.add_veth(name, None, 1500, POD_DEVICE, pod)?;
    let mut inside = Links::open(pod)?;
    for family in Family::BOTH {
        links.add_address(name, family.gateway(net), family.prefix_len())?;
        inside.add_address(POD_DEVICE, address(family), family.prefix_len())?;
    }
    inside.up(POD_DEVICE)?;
    links.up(name)?;
    Ok(Device { name, index: links.index(name)?, mac: links.mac(name)?, pod_mac: inside.mac(POD_DEVICE)? })
}

/// A program of an object, by its type.
pub(crate) fn program<'a, P>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = object.program_mut(name).ok_or_else(|| anyhow!("the object has no program {name}"))?;
    program.try_into().with_context(|| format!("program {name} is of another type"))
}

/// Loads an XDP program.
pub(crate) fn xdp<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = program::<Xdp>(object, name)?;
    program.load().with_context(|| format!("cannot load {name}"))?;
    Ok(program)
}

/// Loads a classifier, unless it is loaded, and attaches it to a device of the current namespace. The link lasts as long as the object.
pub(crate) fn tcx(object: &mut Ebpf, name: &str, device: &str, hook: TcAttachType) -> Result<()> {
    let program = program::<SchedClassifier>(object, name)?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("cannot load {name}"))?;
    }
    program
        .attach_with_options(device, hook, TcAttachOptions::TcxOrder(LinkOrder::default()))
        .with_context(|| format!("cannot attach {name} to {device}; TCX needs kernel 6.6"))?;
    Ok(())
}
