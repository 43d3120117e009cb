//! What a reviewer would say twice: who may import whom, where names may stand, what must not be committed. ARCHITECTURE.md lists the invariants.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lies in the workspace").to_path_buf()
}

/// Every file below a folder of the workspace with one of these endings, as (path relative to the workspace, text).
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                open.extend(
                    fs::read_dir(&path).expect("a readable folder").map(|e| e.expect("a readable entry").path()),
                );
            }
        } else if endings.iter().any(|e| path.to_string_lossy().ends_with(e)) {
            let name = path.strip_prefix(root()).expect("below the workspace").to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).expect("a text file")));
        }
    }
    assert!(!found.is_empty(), "{folder} holds no {endings:?}: this rule would check nothing");
    found.sort();
    found
}

/// Code lines (comments left out) in a folder that name one of `words`, as `path:line: text`.
fn lines_naming(folder: &str, words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in files(folder, &[".rs"]) {
        for (i, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && words.iter().any(|w| code.contains(w)) {
                hits.push(format!("{path}:{}: {code}", i + 1));
            }
        }
    }
    hits
}

fn assert_none(rule: &str, hits: Vec<String>) {
    assert!(hits.is_empty(), "{rule}:\n{}", hits.join("\n"));
}

#[test]
fn the_pure_rooms_have_no_io_no_clock_and_no_kernel() {
    for room in ["model", "compile", "plan"] {
        let words = [
            "aya::",
            "tokio::",
            "kube::",
            "std::fs",
            "std::net::Tcp",
            "std::net::Udp",
            "Instant::now",
            "SystemTime",
            "std::thread",
            "k8s_openapi",
            "async fn",
        ];
        assert_none(&format!("{room}/ is pure"), lines_naming(&format!("netlb-user/src/{room}"), &words));
    }
}

#[test]
fn the_contract_and_the_core_name_neither_aya_nor_std_io() {
    assert_none(
        "netlb-common does no I/O",
        lines_naming("netlb-common/src", &["std::fs", "std::net", "std::thread", "std::time", "aya_ebpf"]),
    );
    let core: Vec<_> = lines_naming("netlb-ebpf/src", &["aya_ebpf", "aya::"]);
    let edge = ["main.rs", "programs.rs", "maps.rs", "kernel.rs", "hooks/"];
    let hits =
        core.into_iter().filter(|hit| !edge.iter().any(|e| hit.starts_with(&format!("netlb-ebpf/src/{e}")))).collect();
    assert_none("only the edge names aya", hits);
}

#[test]
fn only_hooks_turn_verdicts_into_numbers() {
    let hits = lines_naming("netlb-ebpf/src", &["TC_ACT", "XDP_DROP", "XDP_PASS", "xdp_action"]);
    assert_none(
        "kernel return codes stand in hooks/",
        hits.into_iter().filter(|hit| !hit.contains("/hooks/")).collect(),
    );
}

#[test]
fn map_names_stand_in_the_contract_and_the_object_only() {
    let names: Vec<String> = netlb_common::maps::ALL.iter().map(|m| format!("\"{}\"", m.name)).collect();
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_none("use netlb_common::maps::name", lines_naming("netlb-user/src", &words));
}

#[test]
fn no_debts_are_committed_without_a_name() {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    for folder in ["netlb-common", "netlb-ebpf", "netlb-user", "tests", "xtask"] {
        let hits = files(folder, &[".rs"])
            .into_iter()
            .flat_map(|(path, text)| {
                let lines: Vec<String> =
                    text.lines().enumerate().map(|(i, l)| format!("{path}:{}: {l}", i + 1)).collect();
                lines.into_iter().filter(|l| words.iter().any(|w| l.contains(w))).collect::<Vec<_>>()
            })
            .collect();
        assert_none("finish it, or say in the issue what is left", hits);
    }
}

#[test]
fn every_reason_is_documented() {
    let page = fs::read_to_string(root().join("docs/reasons.md")).expect("docs/reasons.md");
    for (_, name, _, text) in netlb_common::Reason::ALL {
        assert!(page.contains(&format!("| `{name}` |")) && page.contains(text), "docs/reasons.md lacks {name}: {text}");
    }
}

/// Fields of core/v1 Service (spec, status) and discovery/v1 EndpointSlice in Kubernetes 1.36, as docs/services.md names them.
const FIELDS: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "sessionAffinityConfig.clientIP",
    "sessionAffinityConfig.clientIP.timeoutSeconds",
    "trafficDistribution",
    "type",
    "ports[].appProtocol",
    "ports[].name",
    "ports[].nodePort",
    "ports[].port",
    "ports[].protocol",
    "ports[].targetPort",
    "conditions",
    "loadBalancer.ingress[].hostname",
    "loadBalancer.ingress[].ip",
    "loadBalancer.ingress[].ipMode",
    "loadBalancer.ingress[].ports",
    "addressType",
    "endpoints",
    "endpoints[].addresses",
    "endpoints[].conditions.ready",
    "endpoints[].conditions.serving",
    "endpoints[].conditions.terminating",
    "endpoints[].deprecatedTopology",
    "endpoints[].hints.forNodes",
    "endpoints[].hints.forZones",
    "endpoints[].hostname",
    "endpoints[].nodeName",
    "endpoints[].targetRef",
    "endpoints[].zone",
];

#[test]
fn every_field_of_a_service_and_its_slices_is_documented() {
    let page = fs::read_to_string(root().join("docs/services.md")).expect("docs/services.md");
    for field in FIELDS {
        assert!(page.contains(&format!("\n| `{field}` |")), "docs/services.md has no row for {field}");
    }
    // What the converters ask an object for must be among them.
    let known = |key: &str| FIELDS.iter().any(|field| field.split('.').any(|step| step.trim_end_matches("[]") == key));
    let mut asked = 0;
    for file in ["service.rs", "endpoint_slice.rs"] {
        let code = fs::read_to_string(root().join("netlb-user/src/k8s").join(file)).expect("a converter");
        for getter in ["text", "list", "object", "choice", "integer", "boolean", "port", "get"] {
            for key in code.split(&format!(".{getter}(\"")).skip(1).filter_map(|rest| rest.split('"').next()) {
                // Parts of every object, of hints and of references.
                if !["spec", "status", "metadata", "labels", "annotations", "kind", "name"].contains(&key) {
                    assert!(known(key), "{file} reads {key}: docs/services.md must say so");
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 15, "only {asked} fields found: the converters ask otherwise now");
}

#[test]
fn every_field_of_kube_proxys_configuration_is_documented() {
    let page = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    for (field, why) in netlb_user::config::kube_proxy::FIELDS {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{field}` | ")));
        let row = row.unwrap_or_else(|| panic!("docs/configuration.md has no row for {field}"));
        match why {
            Some(why) => assert!(row.ends_with(&format!(" | nothing: {why} |")), "{field}: {why}\n{row}"),
            None => assert!(!row.contains("| nothing"), "{field} is honoured: {row}"),
        }
    }
}

#[test]
fn every_metric_is_documented() {
    let page = fs::read_to_string(root().join("docs/configuration.md")).expect("docs/configuration.md");
    let text = netlb_user::metrics::Metrics::new(None).and_then(|metrics| metrics.text()).expect("metrics");
    let listed: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let named: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(named.len() > 40, "only {} metrics: {named:?}", named.len());
    for name in &named {
        assert!(listed.contains(name), "docs/configuration.md has no row for {name}");
    }
    for name in listed.iter().filter(|name| ["kubeproxy_", "netlb_", "process_"].iter().any(|p| name.starts_with(p))) {
        assert!(named.contains(name), "docs/configuration.md lists {name}, which is not exported");
    }
}

#[test]
fn nothing_committed_names_a_path_of_the_machine_it_was_written_on() {
    let words = [concat!("/wo", "rk/"), concat!("/shared", "/design"), concat!("/tmp/", "brief")];
    for (path, text) in files(".", &[".rs", ".md", ".toml", ".yaml", ".ci/run"]) {
        for word in words {
            assert!(!text.contains(word), "{path} names {word}");
        }
    }
}
