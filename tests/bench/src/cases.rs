//! What is measured: worlds, and in each the packets that go through it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use netlb_bench_ebpf::{FRAME, Order, target};
use netlb_common::maps::capacity;

use crate::conntrack;
use crate::flows::{establish, establish_many, generators, to_server, to_service};
use crate::frame::{self, ACK, End, Expected, L4, SYN, Tuple, Vary};
use crate::machine;
use crate::production::{Production, Programs, Road};
use crate::world::{Family, Floor, Receiver, Run, Side, World};

/// Live flows of the cold-cache cases.
pub(crate) const MANY_FLOWS: u32 = 65_536;

/// Packets of a case in a round.
const PACKETS: u32 = 50_000;
/// The same where each packet opens a flow.
const NEW_PACKETS: u32 = 30_000;

/// Flows opened and answered in a round, in the cases with room in the maps.
const PAIRS: u32 = 4_096;

/// What a case is compared with: the row whose cost is "plain" for it, and the floor below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Against {
    pub(crate) floor: Option<&'static str>,
    pub(crate) plain: Option<&'static str>,
}

/// One row of the table.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) family: Family,
    pub(crate) against: Against,
    /// Index of its world.
    pub(crate) world: usize,
    pub(crate) packets: u32,
    generator: &'static str,
    side: Side,
    order: Order,
    /// `None`: nothing arrives in a pod (the drop floors), only counts are checked.
    expected: Option<Expected>,
    /// Empty the world's conntrack table before each run.
    empties_conntrack: bool,
    /// The case is half of a pair: index in [`Bench::pairs`], and which half.
    pair: Option<(usize, usize)>,
}

/// Two runs that belong together: the first opens flows, the second answers them. Each is a case of its own; whichever comes up first in a round
/// makes both runs.
struct Half {
    generator: &'static str,
    side: Side,
    order: Order,
    /// Done, and not yet collected by its case.
    done: Option<Run>,
}

/// All worlds and cases.
pub(crate) struct Bench<'a> {
    pub(crate) worlds: Vec<World>,
    pub(crate) cases: Vec<Case>,
    programs: &'a Programs,
    pairs: Vec<[Half; 2]>,
    /// Held: programs and maps of the worlds.
    _netlb: Vec<Production>,
}

/// Rows other rows are compared with.
pub(crate) mod row {
    pub(crate) const FLOOR_DROP: &str = "floor: generator, drop";
    pub(crate) const FLOOR_REDIRECT: &str = "floor: generator, redirect to veth";
    pub(crate) const FLOOR_REDIRECT_NEW: &str = "floor: the same, every packet another flow";
    pub(crate) const FLOOR_STACK: &str = "floor: XDP_PASS, TCX drop";
    pub(crate) const FLOOR_STACK_NEW: &str = "floor: the same, every packet another flow (TCP SYN)";
    pub(crate) const FLOOR_PEER: &str = "floor: XDP_PASS, TCX redirect_peer, TCX drop";
    pub(crate) const PLAIN: &str = "plain forwarding, one flow";
    pub(crate) const PLAIN_NEW: &str = "plain forwarding, every packet a new flow";
}

const FLOOR: Against = Against { floor: None, plain: None };

impl Bench<'_> {
    /// Runs a case over its packets.
    ///
    /// # Errors
    /// When the kernel refuses the run.
    pub(crate) fn run(&mut self, index: usize) -> Result<Run> {
        let case = self.cases.get_mut(index).context("no such case")?;
        let world = self.worlds.get_mut(case.world).context("a case without its world")?;
        if case.empties_conntrack {
            world.enter()?;
            conntrack::flush()?;
        }
        let Some((pair, half)) = case.pair else {
            return world.run(case.generator, &mut case.order, case.side, case.packets);
        };
        let halves = self.pairs.get_mut(pair).context("half a case without its pair")?;
        if halves.iter().all(|half| half.done.is_none()) {
            for half in halves.iter_mut() {
                half.done = Some(world.run(half.generator, &mut half.order, half.side, case.packets)?);
            }
        }
        halves.get_mut(half).and_then(|half| half.done.take()).context("a case ran twice in a round")
    }

    /// Sends one packet of each case, and judges what arrives: addresses, ports, TTL, checksums. Returns what is wrong.
    pub(crate) fn check(&mut self) -> Vec<String> {
        let Bench { worlds, cases, pairs, .. } = self;
        let mut wrong = Vec::new();
        for case in cases {
            let (Some(expected), Some(world)) = (case.expected, worlds.get_mut(case.world)) else { continue };
            let half = case.pair.and_then(|(pair, half)| pairs.get_mut(pair)?.get_mut(half));
            let order = half.map_or(&mut case.order, |half| &mut half.order);
            let result =
                world.sample(case.generator, order, case.side).and_then(|frame| frame::judge(&frame, expected));
            if let Err(error) = result {
                wrong.push(format!("{} ({}): {error:#}", case.name, case.family.name()));
            }
        }
        wrong
    }
}

/// The pieces of a case that differ between cases of one world.
struct Shape {
    name: &'static str,
    against: Against,
    tuple: Tuple,
    l4: L4,
    vary: Vary,
    side: Side,
    target: u32,
    arrives: Option<(Tuple, u8)>,
}

impl<'a> Bench<'a> {
    /// Builds every world, opens the flows that must be established, and lists the cases. `attempts`: how often each case may run.
    ///
    /// # Errors
    /// When something of it does not work.
    pub(crate) fn prepare(programs: &'a Programs, attempts: u32) -> Result<Self> {
        let mut bench =
            Bench { worlds: Vec::new(), cases: Vec::new(), programs, pairs: Vec::new(), _netlb: Vec::new() };
        bench.floors()?;
        bench.plain()?;
        bench.conntrack()?;
        bench.xdp()?;
        bench.first_packets(attempts)?;
        bench.many_flows()?;
        bench.tcx(Road::Redirect)?;
        bench.tcx(Road::Stack)?;
        machine::check_stop()?;
        Ok(bench)
    }

    fn add(&mut self, world: World, packets: impl Fn(&Shape) -> u32, shapes: Vec<(Family, Shape)>) -> Result<()> {
        let index = self.worlds.len();
        for (family, shape) in shapes {
            self.cases.push(case(&world, index, family, &shape, packets(&shape))?);
        }
        self.worlds.push(world);
        Ok(())
    }

    fn floors(&mut self) -> Result<()> {
        let world = World::new("floor xdp", Receiver::Xdp)?;
        let mut shapes = Vec::new();
        for family in Family::BOTH {
            let (tuple, l4) = (to_service(family), L4::Udp);
            let fixed = |name, target, arrives| Shape {
                name,
                against: FLOOR,
                tuple,
                l4,
                vary: Vary::Fixed,
                side: Side::Client,
                target,
                arrives,
            };
            shapes.push((family, fixed(row::FLOOR_DROP, target::DROP, None)));
            shapes.push((family, fixed(row::FLOOR_REDIRECT, target::REDIRECT, Some((tuple, 0)))));
            let new = Shape {
                vary: Vary::Count,
                l4: L4::Tcp(SYN),
                ..fixed(row::FLOOR_REDIRECT_NEW, target::REDIRECT, Some((tuple, 0)))
            };
            shapes.push((family, new));
        }
        self.add(world, |_| PACKETS, shapes)?;

        for (name, floor, rows) in [
            (
                "floor tcx drop",
                Floor::Drop,
                &[(row::FLOOR_STACK, Vary::Fixed), (row::FLOOR_STACK_NEW, Vary::Count)][..],
            ),
            ("floor tcx peer", Floor::Peer, &[(row::FLOOR_PEER, Vary::Fixed)][..]),
        ] {
            let mut world = World::new(name, Receiver::Tcx)?;
            world.attach_floor(floor)?;
            let mut shapes = Vec::new();
            for family in Family::BOTH {
                for (name, vary) in rows {
                    let l4 = if *vary == Vary::Count { L4::Tcp(SYN) } else { L4::Udp };
                    let tuple = to_service(family);
                    let arrives = Some((tuple, 0));
                    let target = target::STACK;
                    let shape =
                        Shape { name, against: FLOOR, tuple, l4, vary: *vary, side: Side::Client, target, arrives };
                    shapes.push((family, shape));
                }
            }
            self.add(world, |_| PACKETS, shapes)?;
        }
        Ok(())
    }

    fn plain(&mut self) -> Result<()> {
        let mut world = World::new("plain", Receiver::Tcx)?;
        world.meet_neighbours()?;
        let shapes = forwarded(row::PLAIN, Some(row::PLAIN_NEW));
        self.add(world, |_| PACKETS, shapes)
    }

    /// Two worlds, whose rules let pass what conntrack holds for established, and what it holds for new: what arrives proves it.
    fn conntrack(&mut self) -> Result<()> {
        let mut world = World::new("conntrack established", Receiver::Tcx)?;
        ruleset(&world, "ct state { new, established } accept")?;
        world.meet_neighbours()?;
        for family in Family::BOTH {
            meet(&mut world, family)?;
        }
        ruleset(&world, "ct state new drop; ct state established accept")?;
        self.add(world, |_| PACKETS, forwarded("plain forwarding + nf_conntrack, one flow", None))?;

        let mut world = World::new("conntrack new", Receiver::Tcx)?;
        world.meet_neighbours()?;
        ruleset(&world, "ct state established drop; ct state new accept")?;
        let room = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max")
            .context("cannot read nf_conntrack_max; the kernel needs nf_conntrack")?;
        let room: u32 = room.trim().parse().context("nf_conntrack_max is not a number")?;
        let packets = (room / 10 * 9).min(NEW_PACKETS);
        ensure!(packets >= 1000, "nf_conntrack_max is {room}, too small to measure new flows; raise it");
        let shapes = forwarded("", Some("plain forwarding + nf_conntrack, every packet a new flow"));
        let first = self.cases.len();
        self.add(world, |_| packets, shapes.into_iter().filter(|(_, shape)| !shape.name.is_empty()).collect())?;
        for case in self.cases.iter_mut().skip(first) {
            case.empties_conntrack = true;
        }
        Ok(())
    }

    fn xdp(&mut self) -> Result<()> {
        let mut world = World::new("netlb xdp", Receiver::Xdp)?;
        let mut netlb = Production::new(&mut world, Road::Xdp, self.programs)?;
        let shapes = netlb_shapes(&world, &mut netlb, Road::Xdp)?;
        self._netlb.push(netlb);
        self.add(world, new_or_known, shapes)
    }

    /// The first packet of a flow and its first answer, which moves it from `CT_NEW` to `CT`, while both have room.
    fn first_packets(&mut self, attempts: u32) -> Result<()> {
        for family in Family::BOTH {
            let mut world = World::new("netlb xdp, first packets", Receiver::Xdp)?;
            let netlb = Production::new(&mut world, Road::Xdp, self.programs)?;
            if !self.programs.detached {
                // The same packets, to see once that this is what they do.
                establish_many(&mut world, &netlb, family, PAIRS)?;
            }
            let packets = (capacity::CT / 10 * 9 / 2 - PAIRS) / (attempts + 2);
            let there = Shape {
                name: "netlb XDP, a flow's first packet, room in CT_NEW (UDP)",
                against: Against { floor: Some(row::FLOOR_REDIRECT_NEW), plain: Some(row::PLAIN_NEW) },
                tuple: to_service(family),
                l4: L4::Udp,
                vary: Vary::Count,
                side: Side::Client,
                target: target::PROGRAM,
                arrives: Some((to_server(family), 1)),
            };
            let back = Shape {
                name: "netlb XDP, a flow's first answer: to CT (UDP)",
                tuple: to_server(family).reversed(),
                side: Side::Server,
                arrives: Some((to_service(family).reversed(), 1)),
                ..there
            };
            let first = self.cases.len();
            self._netlb.push(netlb);
            self.add(world, |_| packets.min(PAIRS), vec![(family, there), (family, back)])?;
            let mut halves = Vec::new();
            for (half, case) in self.cases.iter_mut().skip(first).enumerate() {
                case.pair = Some((self.pairs.len(), half));
                // Behind the flows that are open already.
                let order = Order { state: u64::from(PAIRS), ..case.order };
                halves.push(Half { generator: case.generator, side: case.side, order, done: None });
            }
            self.pairs.extend(<[Half; 2]>::try_from(halves).ok());
        }
        Ok(())
    }

    fn many_flows(&mut self) -> Result<()> {
        for family in Family::BOTH {
            let mut world = World::new("netlb xdp, many flows", Receiver::Xdp)?;
            let netlb = Production::new(&mut world, Road::Xdp, self.programs)?;
            if !self.programs.detached {
                establish_many(&mut world, &netlb, family, MANY_FLOWS)?;
            }
            let shape = Shape {
                name: "netlb XDP, 65,536 live flows (UDP)",
                against: Against { floor: Some(row::FLOOR_REDIRECT_NEW), plain: Some(row::PLAIN) },
                tuple: to_service(family),
                l4: L4::Udp,
                vary: Vary::Shuffle { flows: MANY_FLOWS },
                side: Side::Client,
                target: target::PROGRAM,
                arrives: Some((to_server(family), 1)),
            };
            self._netlb.push(netlb);
            self.add(world, |_| PACKETS, vec![(family, shape)])?;
        }
        Ok(())
    }

    fn tcx(&mut self, road: Road) -> Result<()> {
        let name = if road == Road::Stack { "netlb tcx stack" } else { "netlb tcx redirect" };
        let mut world = World::new(name, Receiver::Tcx)?;
        let mut netlb = Production::new(&mut world, road, self.programs)?;
        world.meet_neighbours()?;
        let shapes = netlb_shapes(&world, &mut netlb, road)?;
        self._netlb.push(netlb);
        self.add(world, new_or_known, shapes)
    }
}

fn new_or_known(shape: &Shape) -> u32 {
    if shape.vary == Vary::Count { NEW_PACKETS } else { PACKETS }
}

/// The rows of one world with netlb, both families.
fn netlb_shapes(world: &World, netlb: &mut Production, road: Road) -> Result<Vec<(Family, Shape)>> {
    let names: [Option<&'static str>; 5] = match road {
        Road::Xdp => [
            Some("netlb XDP, established (UDP)"),
            Some("netlb XDP, established (TCP)"),
            Some("netlb XDP, answers (UDP)"),
            Some("netlb XDP, every packet a new flow (TCP SYN)"),
            None,
        ],
        Road::Redirect => [
            Some("netlb TCX redirect road, established (UDP)"),
            Some("netlb TCX redirect road, established (TCP)"),
            Some("netlb TCX redirect road, answers (UDP)"),
            Some("netlb TCX redirect road, every packet a new flow (TCP SYN)"),
            None,
        ],
        Road::Stack => [
            Some("netlb TCX stack road, established (UDP)"),
            None,
            Some("netlb TCX stack road, answers (UDP)"),
            Some("netlb TCX stack road, every packet a new flow (TCP SYN)"),
            Some("netlb TCX, pod to pod without a Service (UDP)"),
        ],
    };
    let [udp, tcp, answers, new, direct] = names;
    let (floor, new_floor, target) = match road {
        Road::Xdp => (row::FLOOR_REDIRECT, row::FLOOR_REDIRECT_NEW, target::PROGRAM),
        Road::Redirect => (row::FLOOR_PEER, row::FLOOR_PEER, target::STACK),
        Road::Stack => (row::FLOOR_STACK, row::FLOOR_STACK_NEW, target::STACK),
    };
    let mut shapes = Vec::new();
    for family in Family::BOTH {
        let known = Against { floor: Some(floor), plain: Some(row::PLAIN) };
        let there = |name, l4, vary, against| Shape {
            name,
            against,
            tuple: to_service(family),
            l4,
            vary,
            side: Side::Client,
            target,
            arrives: Some((to_server(family), 1)),
        };
        if let Some(name) = udp {
            establish(world, netlb, road, family, L4::Udp)?;
            shapes.push((family, there(name, L4::Udp, Vary::Fixed, known)));
        }
        if let Some(name) = tcp {
            establish(world, netlb, road, family, L4::Tcp(ACK))?;
            shapes.push((family, there(name, L4::Tcp(ACK), Vary::Fixed, known)));
        }
        if let Some(name) = answers {
            let shape = Shape {
                tuple: to_server(family).reversed(),
                side: Side::Server,
                arrives: Some((to_service(family).reversed(), 1)),
                ..there(name, L4::Udp, Vary::Fixed, known)
            };
            shapes.push((family, shape));
        }
        if let Some(name) = new {
            let against = Against { floor: Some(new_floor), plain: Some(row::PLAIN_NEW) };
            shapes.push((family, there(name, L4::Tcp(SYN), Vary::Count, against)));
        }
        if let Some(name) = direct {
            shapes.push((family, Shape { tuple: to_server(family), ..there(name, L4::Udp, Vary::Fixed, known) }));
        }
    }
    Ok(shapes)
}

/// Rows of worlds that only forward, from the client to the server's own address.
fn forwarded(known: &'static str, new: Option<&'static str>) -> Vec<(Family, Shape)> {
    let mut shapes = Vec::new();
    for family in Family::BOTH {
        let tuple = to_server(family);
        let shape = |name, l4, vary, floor, plain| Shape {
            name,
            against: Against { floor: Some(floor), plain: Some(plain) },
            tuple,
            l4,
            vary,
            side: Side::Client,
            target: target::STACK,
            arrives: Some((tuple, 1)),
        };
        shapes.push((family, shape(known, L4::Udp, Vary::Fixed, row::FLOOR_STACK, row::PLAIN)));
        if let Some(new) = new {
            shapes.push((family, shape(new, L4::Tcp(SYN), Vary::Count, row::FLOOR_STACK_NEW, row::PLAIN_NEW)));
        }
    }
    shapes
}

fn case(world: &World, index: usize, family: Family, shape: &Shape, packets: u32) -> Result<Case> {
    let (device, other) = match shape.side {
        Side::Client => (world.client, world.server),
        Side::Server => (world.server, world.client),
    };
    let back = shape.side == Side::Server;
    let first: [u8; FRAME] = frame::build(device.mac, device.pod_mac, shape.tuple, shape.l4)?;
    let order = frame::order(&first, shape.l4, shape.vary, back, shape.target, other.index);
    let (out, answer) = generators(family);
    let generator = match (shape.l4, back, family) {
        (L4::Udp, false, _) => out,
        (L4::Udp, true, _) => answer,
        (L4::Tcp(_), false, Family::V4) => "tcp4_out",
        (L4::Tcp(_), false, Family::V6) => "tcp6_out",
        (L4::Tcp(_), true, _) => bail!("there is no generator of TCP answers"),
    };
    let varies = match (shape.vary, back) {
        (Vary::Fixed, _) => None,
        (Vary::Sweep { .. } | Vary::Shuffle { .. } | Vary::Count, false) => Some(End::Source),
        (Vary::Sweep { .. } | Vary::Shuffle { .. } | Vary::Count, true) => Some(End::Destination),
    };
    let expected = shape.arrives.map(|(tuple, hops)| Expected { tuple, varies, hops });
    let (name, against, side) = (shape.name, shape.against, shape.side);
    Ok(Case {
        name,
        family,
        against,
        world: index,
        packets,
        generator,
        side,
        order,
        expected,
        empties_conntrack: false,
        pair: None,
    })
}

/// One packet each way, so that conntrack holds the fixed flow for established.
fn meet(world: &mut World, family: Family) -> Result<()> {
    let (there, back) = generators(family);
    for (generator, side, tuple) in
        [(there, Side::Client, to_server(family)), (back, Side::Server, to_server(family).reversed())]
    {
        let device = world.device(side);
        let frame = frame::build(device.mac, device.pod_mac, tuple, L4::Udp)?;
        let mut order = frame::order(&frame, L4::Udp, Vary::Fixed, side == Side::Server, target::STACK, 0);
        let run = world.run(generator, &mut order, side, 1)?;
        ensure!(run.received == 1, "a packet that opens a conntrack entry was lost");
    }
    Ok(())
}

/// Replaces the node's forward rules, which are what switches conntrack on.
fn ruleset(world: &World, rules: &str) -> Result<()> {
    world.enter()?;
    // `destroy` is newer than the nft of some distributions: add, then flush.
    let text = format!(
        "add table inet bench\nadd chain inet bench forward {{ type filter hook forward priority 0; policy accept; }}\nflush chain inet bench forward\n{}\n",
        rules
            .split(';')
            .map(|rule| format!("add rule inet bench forward {}", rule.trim()))
            .collect::<Vec<_>>()
            .join("\n")
    );
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start nft; install the package nftables")?;
    nft.stdin.take().context("nft has no input")?.write_all(text.as_bytes()).context("cannot write to nft")?;
    let status = nft.wait().context("cannot wait for nft")?;
    ensure!(status.success(), "nft refused the conntrack rules ({status}); the kernel needs nf_tables with nft_ct");
    Ok(())
}
