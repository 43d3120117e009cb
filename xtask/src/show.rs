//! Tables for people.

use netlb_testnode::frontends::{Frontend, Frontends};
use netlb_testnode::health::HealthRow;
use netlb_testnode::proof::{Report, Row};

/// Left-aligned columns, two spaces apart; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = (*widest).max(width),
                None => widths.push(width),
            }
        }
    }
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("  {}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// The Services with their addresses and backends.
pub(crate) fn services(frontends: &Frontends) -> String {
    let mut rows = vec![words(&["SERVICE", "PORT", "KIND", "ADDRESS", "BACKENDS"])];
    // A NodePort is one line a family, not one a node.
    for frontend in frontends.all.iter().filter(|frontend| frontend.node.is_none_or(|node| node == 1)) {
        let address = frontend.address.ip().to_string();
        rows.push(vec![
            service(frontend),
            port(frontend),
            frontend.kind.word().to_owned(),
            if frontend.node.is_some() { format!("{address}, and so on") } else { address },
            backends(frontend),
        ]);
    }
    let mut text = table(&rows);
    for name in &frontends.left_to_dns {
        text += &format!("  {name}: has no address of its own, left to DNS\n");
    }
    for what in &frontends.not_tried {
        text += &format!("  {what}: not tried\n");
    }
    text
}

fn service(frontend: &Frontend) -> String {
    if frontend.port_name.is_empty() {
        frontend.service.clone()
    } else {
        format!("{}:{}", frontend.service, frontend.port_name)
    }
}

fn port(frontend: &Frontend) -> String {
    format!("{}/{}", frontend.address.port(), frontend.transport.word())
}

fn backends(frontend: &Frontend) -> String {
    let mut list: Vec<String> = frontend.backends().iter().map(ToString::to_string).collect();
    if list.is_empty() {
        list.push("none: refuses".to_owned());
    }
    if !frontend.ranges.is_empty() {
        let ranges: Vec<String> = frontend.ranges.iter().map(ToString::to_string).collect();
        list.push(format!("(only for {})", ranges.join(", ")));
    }
    if frontend.affinity {
        list.push("(a client stays with its backend)".to_owned());
    }
    list.join(" ")
}

/// What was asked and answered: a row a frontend and client.
pub(crate) fn proof(report: &Report) -> String {
    let mut rows = vec![words(&[
        "SERVICE",
        "PORT",
        "FAMILY",
        "KIND",
        "FROM",
        "VIA",
        "SENT",
        "ANSWERED",
        "BY BACKEND",
        "NETLB",
        "P50",
        "P99",
        "",
    ])];
    for client in &report.clients {
        for row in &client.requests {
            rows.push(proof_row(client.client, row));
        }
    }
    table(&rows)
}

fn proof_row(client: &str, row: &Row) -> Vec<String> {
    let name =
        if row.port_name.is_empty() { row.service.clone() } else { format!("{}:{}", row.service, row.port_name) };
    let counts = |value: &dyn Fn(usize) -> Option<String>| {
        (0..row.backends.len())
            .map(|index| value(index).unwrap_or_else(|| "?".to_owned()))
            .collect::<Vec<_>>()
            .join("+")
    };
    let answered = match (row.refused, row.dropped) {
        (0, 0) => row.answered.to_string(),
        (refused @ 1.., _) => format!("{refused} refused"),
        (0, dropped) => format!("{dropped} dropped"),
    };
    vec![
        name,
        format!("{}/{}", row.port, row.protocol.word()),
        row.family.word().to_owned(),
        row.kind.word().to_owned(),
        client.to_owned(),
        row.via.clone(),
        row.sent.to_string(),
        answered,
        counts(&|index| row.backends.get(index).map(|backend| backend.answered.to_string())),
        counts(&|index| row.backends.get(index)?.netlb_flows.map(|flows| flows.to_string())),
        time(row.p50_us),
        time(row.p99_us),
        if row.ok { "ok" } else { "WRONG" }.to_owned(),
    ]
}

fn time(micros: Option<u32>) -> String {
    micros.map_or_else(|| "-".to_owned(), |micros| format!("{}.{:02} ms", micros / 1000, micros % 1000 / 10))
}

/// What a node said to a load balancer.
pub(crate) fn health(row: &HealthRow) -> String {
    let said = match (&row.error, row.status, row.local_endpoints) {
        (None, Some(status), Some(count)) => format!("{status}, {count} endpoints"),
        (error, ..) => error.clone().unwrap_or_else(|| "no proper answer".to_owned()),
    };
    format!("health check of {} at {} ({}): {said}", row.service, row.address, row.node)
}

/// The failures, a line each.
pub(crate) fn failures(report: &Report) -> String {
    report.failures.iter().map(|failure| format!("  {failure}\n")).collect()
}

/// A problem that netlb found: file, object, field, what is wrong, what to do.
pub(crate) fn problem(problem: &serde_json::Value) -> String {
    let part = |name: &str| problem.get(name).and_then(|value| value.as_str()).unwrap_or_default();
    let place: Vec<&str> =
        ["file", "object", "field"].iter().map(|name| part(name)).filter(|text| !text.is_empty()).collect();
    format!("{}: {} {}", place.join(", "), part("message"), part("remedy")).trim_end().to_owned()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [super::words(&["A", "LONG", "C"]), super::words(&["wide", "b", ""])];
        assert_eq!(super::table(&rows), "  A     LONG  C\n  wide  b\n");
    }
}
