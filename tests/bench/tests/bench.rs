//! The benchmark run as people run it: a figure is printed only if its packets went the way they must.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netlb-bench")).args(arguments).output().expect("the benchmark was built")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_the_programs_in_place_nothing_is_measured() {
    let output = run(&["--micro", "--only", "packets", "--detached"]);
    let errors = text(&output.stderr);
    assert!(!output.status.success());
    for row in [
        "netlb XDP, established (UDP) (IPv4): the packet did not arrive",
        "netlb XDP, every packet a new flow (TCP SYN) (IPv6): the packet did not arrive",
        "netlb TCX redirect road, answers (UDP) (IPv4)",
        "netlb TCX stack road, established (UDP) (IPv6)",
    ] {
        assert!(errors.contains(row), "the error does not name {row:?}:\n{errors}");
    }
    assert!(!errors.contains("plain forwarding, one flow"), "plain forwarding needs no program of netlb:\n{errors}");
    assert!(!text(&output.stdout).contains("ns per packet"), "a table was printed:\n{}", text(&output.stdout));
}

#[test]
fn a_short_run_measures_every_row_and_loses_no_packet() {
    let file = std::env::temp_dir().join(format!("netlb-bench-test-{}.json", std::process::id()));
    let path = file.to_str().expect("a temporary folder in UTF-8");
    let output = run(&["--micro", "--only", "packets", "--rounds", "4", "--keep-disturbed", "--json", path]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let json = std::fs::read_to_string(&file).expect("the report was written");
    std::fs::remove_file(&file).expect("the report can be removed");
    let report: serde_json::Value = serde_json::from_str(&json).expect("the report is JSON");
    let rows = report.pointer("/packets/rows").and_then(serde_json::Value::as_array).expect("the report has rows");
    let number = |row: &serde_json::Value, field: &str| row.get(field).and_then(serde_json::Value::as_u64);
    assert_eq!(rows.len(), 50);
    for row in rows {
        assert!(number(row, "ordered").is_some_and(|n| n > 0), "{row}");
        assert_eq!(number(row, "sent"), number(row, "ordered"), "{row}");
        assert_eq!(number(row, "received"), number(row, "ordered"), "{row}");
    }
}
