//! `netlb status`: the agent's own word, and whether it is still there to say it.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::Paths;
use super::output::{Format, print, print_json};
use super::table::TextTable;
use crate::observe::status::{self, Status};

#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    paths: Paths,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The status, and what only the reader can know.
#[derive(Serialize)]
struct Shown {
    /// The agent that wrote it still runs.
    alive: bool,
    /// Seconds since 1970.
    now: u64,
    #[serde(flatten)]
    status: Status,
}

/// Exit code 0 if the agent lives and is ready, else 1.
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let run_dir = &args.paths.run_dir;
    let status = match status::read(run_dir) {
        Ok(status) => status,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!(
                "no agent has written a status in {}; start `netlb agent`, or name its folder with --run-dir",
                run_dir.display()
            )
        }
        Err(e) => return Err(e).with_context(|| format!("{}", status::path(run_dir).display())),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let shown = Shown { alive: status::is_alive(status.pid), now, status };
    match args.output {
        Format::Json => print_json(&shown)?,
        Format::Table => print(&text(&shown))?,
    }
    Ok(if shown.alive && shown.status.ready.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(shown: &Shown) -> String {
    let s = &shown.status;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    let agent = match (shown.alive, s.ready.ready) {
        (true, true) => "ready".to_owned(),
        (true, false) => format!("NOT READY: {}", s.ready.reason),
        (false, _) => {
            "DEAD: what it attached goes on, and nothing follows the cluster; start `netlb agent` again".to_owned()
        }
    };
    line("agent", &agent);
    line("version", &format!("netlb {}, maps version {}, kernel {}, pid {}", s.version, s.abi, s.kernel, s.pid));
    let words = |addrs: &mut dyn Iterator<Item = &IpAddr>| match addrs.map(ToString::to_string).collect::<Vec<_>>() {
        none if none.is_empty() => "(none)".to_owned(),
        some => some.join(" "),
    };
    let serving = words(&mut s.node_port_addresses.iter());
    line("node", &format!("{}, {}, NodePorts on {serving}", s.node, words(&mut s.node_addresses.iter())));
    let revision = s.revision.as_deref().unwrap_or("(none)");
    let failure = s.source.failure.as_ref().map(|failure| {
        let time = words_of_time(shown.now.saturating_sub(failure.since));
        format!("; NOT FOLLOWED for {time}: {}", failure.reason)
    });
    line("source", &format!("{}, revision {revision}{}", s.source.from, failure.unwrap_or_default()));
    line("services", &format!("{} Services, {} backends", s.services, s.backends));
    if let Some(d) = &s.delivery {
        line("delivery", &format!("{} road (--delivery {}): {}", d.road.name(), d.mode.name(), d.why));
    }
    line("masquerade", &format!("source ports {}", s.snat_ports));
    let c = &s.conntrack;
    let new = format!("{} of {} without an answer yet", c.new_entries, c.new_capacity);
    line("conntrack", &format!("{} of {} entries, {new}", c.entries, c.capacity));
    let health = s.health.healthz.map_or_else(|| "not answered".to_owned(), |at| at.to_string());
    line("healthz", &health);
    let metrics = s.health.metrics.map_or_else(|| "not answered".to_owned(), |at| at.to_string());
    line("metrics", &metrics);
    section(&mut text, "Notes", s.notes.iter().map(String::as_str));
    section(&mut text, "Not enforced yet", s.not_enforced.iter().map(String::as_str));
    let problems: Vec<String> = s.problems.iter().map(ToString::to_string).collect();
    section(&mut text, "Problems", problems.iter().map(String::as_str));
    if !s.devices.is_empty() {
        let mut table = TextTable::new(&["DEVICE", "ATTACHED", "ADDRESSES", "KNOWN BY"]);
        for d in &s.devices {
            let addrs: Vec<String> = d.addrs.iter().map(ToString::to_string).collect();
            let attached = if d.attached { "yes" } else { "no" };
            table.row([d.name.clone(), attached.to_owned(), addrs.join(" "), d.how.clone()]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    if !s.uplinks.is_empty() {
        let mut table = TextTable::new(&["OTHER DEVICE", "UPLINK", "ATTACHED", "ADDRESSES", "MTU", "WHY"]);
        let word = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        for u in &s.uplinks {
            let addrs: Vec<String> = u.addrs.iter().map(ToString::to_string).collect();
            let (is_uplink, attached) = (word(u.is_uplink), word(u.attached));
            table.row([u.name.clone(), is_uplink, attached, addrs.join(" "), u.mtu.to_string(), u.why.clone()]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    if !s.health.ports.is_empty() {
        let mut table = TextTable::new(&["HEALTH PORT", "SERVICE", "READY HERE", "OPEN ON"]);
        for p in &s.health.ports {
            let ready: Vec<String> = p.ready.iter().map(|(family, count)| format!("{count} {family}")).collect();
            let open: Vec<String> = p.open_on.iter().map(|at| at.ip().to_string()).collect();
            let open = if open.is_empty() { "nothing".to_owned() } else { open.join(" ") };
            table.row([p.port.to_string(), p.service.clone(), ready.join(", "), open]);
        }
        let _ = write!(text, "\n{}", table.render());
    }
    text
}

/// Two units of a time, the largest first.
fn words_of_time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn section<'a>(text: &mut String, title: &str, lines: impl ExactSizeIterator<Item = &'a str>) {
    if lines.len() > 0 {
        let _ = writeln!(text, "\n{title} ({})", lines.len());
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::k8s::SourceFailure;
    use crate::observe::status::SourceStatus;

    #[test]
    fn everything_a_person_must_know_is_said() {
        let mut shown = Shown { alive: true, now: 1_700_000_000, status: status::tests::sample() };
        let want = "\
agent       ready
version     netlb 0.1.0, maps version 1, kernel 6.18.0, pid 4242
node        node1, 192.168.99.11, NodePorts on 192.168.99.11
source      folder /objects, revision 42
services    5 Services, 12 backends
delivery    redirect road (--delivery auto): nothing has a say
masquerade  source ports 1024-29999
conntrack   8 of 10 entries, 1 of 4 without an answer yet
healthz     0.0.0.0:10256
metrics     127.0.0.1:10249

Not enforced yet (1)
  NetworkPolicy shop/deny

Problems (1)
  bad.yaml: Service default/bad spec.ports[0].port: 70000 is no port; use 1 to 65535

DEVICE  ATTACHED  ADDRESSES   KNOWN BY
veth1   yes       10.244.1.5  namespace

OTHER DEVICE  UPLINK  ATTACHED  ADDRESSES      MTU   WHY
eth0          yes     yes       192.168.99.11  1500  carries a default route

HEALTH PORT  SERVICE   READY HERE      OPEN ON
30500        shop/web  2 ipv4, 1 ipv6  192.0.2.1
";
        assert_eq!(text(&shown), want);
        let failure = SourceFailure { reason: "it is away".to_owned(), since: 1_700_000_000 - 3725 };
        shown.status.source = SourceStatus { from: "API server".to_owned(), failure: Some(failure) };
        let line = "\nsource      API server, revision 42; NOT FOLLOWED for 1h 2m: it is away\n";
        assert!(text(&shown).contains(line), "{}", text(&shown));
        shown.alive = false;
        assert!(text(&shown).starts_with("agent       DEAD"));
        let json = serde_json::to_value(&shown).expect("JSON");
        assert_eq!((&json["alive"], &json["revision"]), (&false.into(), &"42".into()));
    }
}
