//! `netlb drops`: counters by reason.

use std::process::ExitCode;

use clap::Args;
use netlb_common::maps::name;
use netlb_common::reason::{Kind, Reason};
use serde::Serialize;

use super::Paths;
use super::output::{Format, print, print_json};
use super::table::TextTable;
use crate::bpf::table::Table;

#[derive(Args, Debug)]
pub(super) struct DropsArgs {
    #[command(flatten)]
    paths: Paths,
    /// Also counters that are zero, and those of packets that went on
    #[arg(long)]
    all: bool,
    /// How to print (JSON always has all counters)
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A counter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Row {
    reason: &'static str,
    /// `drop`, `refuse`, or `note` for what went on.
    kind: &'static str,
    packets: u64,
    text: &'static str,
}

pub(super) fn run(args: &DropsArgs) -> anyhow::Result<ExitCode> {
    let counters = Table::<u32, u64>::open(&args.paths.pins(), name::COUNTERS)?;
    let mut rows = Vec::new();
    for (reason, name, kind, text) in Reason::ALL {
        let packets = counters.sum(u32::from(reason.0))?;
        rows.push(Row { reason: name, kind: word(*kind), packets, text });
    }
    match args.output {
        Format::Json => print_json(&rows)?,
        Format::Table => print(&table(&rows, args.all))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Drop => "drop",
        Kind::Refuse => "refuse",
        Kind::Note => "note",
    }
}

fn table(rows: &[Row], all: bool) -> String {
    let mut table = TextTable::new(&["REASON", "KIND", "PACKETS", "MEANS"]);
    let mut shown = 0;
    for row in rows.iter().filter(|row| all || row.packets > 0 && row.kind != "note") {
        table.row([row.reason.to_owned(), row.kind.to_owned(), row.packets.to_string(), row.text.to_owned()]);
        shown += 1;
    }
    if shown == 0 {
        "Nothing was dropped or refused (see --all for other counters).\n".to_owned()
    } else {
        table.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_and_notes_show_only_when_asked_for() {
        let row = |reason, kind, packets| Row { reason, kind, packets, text: "Why." };
        let rows = [row("malformed", "drop", 0), row("no_endpoints", "refuse", 3), row("new_flow", "note", 9)];
        assert_eq!(table(&rows, false), "REASON        KIND    PACKETS  MEANS\nno_endpoints  refuse  3        Why.\n");
        assert_eq!(table(&rows, true).lines().count(), 4);
        assert!(table(&rows[..1], false).starts_with("Nothing was dropped"));
    }
}
