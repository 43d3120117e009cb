//! Load through Services while netlb's agents are killed, and while the API server is away: no connection may notice, and when it is
//! over the maps must be what a fresh agent would make of the objects.

mod clients;
mod maps;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netlb_testnode::Helper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::Cluster;
use crate::etcd;
use clients::Clients;
use maps::{Agent, Fresh};
use world::World;

/// How much load, and how long.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Connections that stay open; half from a pod by ClusterIP, half from outside by NodePort.
    pub open: usize,
    /// New ones a second, the same way.
    pub a_second: u32,
    /// How long the API server is away.
    pub away: Duration,
}

/// How long an agent may take to come back, or a fresh one to begin.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the load goes on before and after what happens to it.
const CALM: Duration = Duration::from_secs(5);
/// How soon after its lists an agent's maps must be right.
const SOON: Duration = Duration::from_secs(1);
/// How often something that has no event of its own is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Carries `trial` out in a cluster with netlb, and says what was measured. `helper` plays the clients.
///
/// # Errors
/// Names what noticed, or what the maps lack.
pub fn survive(cluster: &Cluster, helper: &Helper, trial: &Trial, say: impl Fn(&str)) -> Result<()> {
    let started = Instant::now();
    let say = |text: &str| say(&format!("{:5.1} s  {text}", started.elapsed().as_secs_f32()));
    let stop = &cluster.options().stop;
    let world = World::create(cluster)?;
    let agents: Vec<Agent<'_>> = cluster.nodes().iter().map(|node| Agent::new(cluster, node)).collect();
    let refused = agents.iter().map(Agent::lost).collect::<Result<Vec<_>>>()?;
    let clients = Clients::start(&world, helper, trial)?;
    clients.wait_until_open(trial.open, PATIENCE)?;
    say(&format!("{} connections are open, {} a second come and go", trial.open, trial.a_second));
    clients.endure(CALM, stop)?;

    let before = agents.iter().map(Agent::dump).collect::<Result<Vec<_>>>()?;
    let sent_again = clients.sent_again();
    let (pids, killed) = (agents.iter().map(Agent::pid).collect::<Result<Vec<_>>>()?, Instant::now());
    for pid in &pids {
        let pid = Pid::from_raw(i32::try_from(*pid).context("process id out of range")?);
        kill(pid, Signal::SIGKILL).with_context(|| format!("cannot kill the agent, process {pid}"))?;
    }
    for (agent, pid) in agents.iter().zip(&pids) {
        clients
            .endure_until(PATIENCE, stop, &format!("the agent of {} is back", agent.name()), || agent.is_back(*pid))?;
    }
    say(&format!("both agents were killed (SIGKILL) and are back after {:.1} s", killed.elapsed().as_secs_f32()));
    clients.endure(CALM, stop)?;
    for (agent, before) in agents.iter().zip(&before) {
        let now = agent.dump()?;
        ensure!(now == *before, "the maps of {} differ:\n{}", agent.name(), maps::difference(before, &now));
    }
    say(&format!("no client noticed; {} segments were sent again", clients.sent_again() - sent_again));

    let (listed, sent_again) = (agents.iter().map(Agent::lists).collect::<Result<Vec<_>>>()?, clients.sent_again());
    let away = Instant::now();
    cluster.control_plane().kill9()?;
    let expected = while_away(cluster, &world, &agents)?;
    say("the API server is away; objects were changed past it, and etcd has forgotten the history");
    clients.endure(trial.away.saturating_sub(away.elapsed()), stop)?;
    let gone = away.elapsed();
    let soonest: Result<Vec<(Duration, String)>> = std::thread::scope(|scope| {
        let looking: Vec<_> = agents
            .iter()
            .zip(&expected)
            .zip(&listed)
            .map(|((agent, expected), listed)| scope.spawn(move || agent.time_to(expected, *listed, PATIENCE, stop)))
            .collect();
        let back = cluster.control_plane().restart(stop);
        let times = looking.into_iter().map(|look| look.join().map_err(|_| anyhow!("a thread that looks died"))?);
        let times: Result<Vec<(Duration, String)>> = times.collect();
        back.and(times)
    });
    for (agent, (time, wrong)) in agents.iter().zip(soonest?) {
        let (name, away) = (agent.name(), gone.as_secs());
        say(&format!(
            "after {away} s without API server: {name}'s maps were right {} ms after it had listed",
            time.as_millis()
        ));
        ensure!(
            time <= SOON,
            "the maps of {name} were right too late, bound is {} ms; wrong was:\n{wrong}",
            SOON.as_millis()
        );
    }
    clients.endure(CALM, stop)?;
    say(&format!("no client noticed; {} segments were sent again", clients.sent_again() - sent_again));

    let done = clients.end()?;
    for (agent, refused) in agents.iter().zip(refused) {
        let now = agent.lost()?;
        ensure!(now == refused, "{} dropped or refused packets: {refused:?} before, {now:?} now", agent.name());
    }
    let seconds = done.seconds;
    say(&format!(
        "{} connections were opened and {} answers came over open ones in {seconds} s, the slowest after {} ms; none was lost, refused or dropped",
        done.opened,
        done.asked,
        done.slowest_us / 1000
    ));
    // A machine that is far too slow for the load would have proved nothing.
    if done.opened < u64::from(trial.a_second) * seconds * 9 / 10 {
        bail!("only {} connections were opened in {seconds} s: the machine is too slow for the load", done.opened);
    }
    Ok(())
}

/// What happens while the API server is away: another one, which no agent knows, takes changes, and tells a fresh agent of each node
/// what there is then. Returns the maps that it makes of that.
fn while_away(cluster: &Cluster, world: &World<'_>, agents: &[Agent<'_>]) -> Result<Vec<String>> {
    let second = cluster.control_plane().start_second(&cluster.options().stop)?;
    world.change()?;
    etcd::compact(cluster.control_plane().host().place.net())?;
    let fresh = agents.iter().map(Fresh::start).collect::<Result<Vec<Fresh<'_>>>>()?;
    let maps = fresh.into_iter().map(|fresh| fresh.maps(PATIENCE)).collect();
    second.check()?;
    maps
}
