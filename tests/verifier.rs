//! Every program loads, and costs the verifier and the kernel no more than `verifier-budget.toml` says. The numbers there may only fall;
//! `NETLB_BLESS=1` writes what was measured, for a raise that a commit then explains.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use aya::EbpfLoader;
use netlb_common::maps::program;
use netlb_tests::disassembly::Disassembly;
use netlb_tests::harness::{self, Trial};
use netlb_tests::kernel::load_program;
use netlb_tests::need::{Need, need};
use netlb_user::bpf::loader::set_features;
use netlb_user::bpf::probe::Features;

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/verifier-budget.toml");

const HEAD: &str = "\
# What each program may cost. Numbers may only fall; NETLB_BLESS=1 writes what was measured.
# instructions: after the verifier's translation. processed: by the verifier.
# processed_5_10: with what the programs do instead of all that Linux 5.10 lacks. A million is the limit.
# stack: bytes, with all it calls, as Linux 6.9 and newer count them; the kernel allows 512.
# stack_before_6_9: as Linux 6.6 to 6.8 count them. Above 512 those kernels refuse the program.
# memory_calls: of memcpy and the like (loops over bytes) in the program itself. memory_calls_below: in the functions it calls.
";

/// Measure → number.
type Measures = BTreeMap<String, u32>;

fn main() -> ExitCode {
    let all = need(&[Need::Root, Need::Btf]);
    let objdump = need(&[Need::Objdump]);
    if std::env::var("NETLB_BLESS").is_ok_and(|v| v == "1") {
        let bless = Trial::new("the budget is blessed", || bless().map_err(|e| format!("{e:#}")));
        return harness::run(all.and(objdump), vec![bless]);
    }
    let mut trials = vec![Trial::new("the budget names every program and no other", || {
        let budget = read().map_err(|e| format!("{e:#}"))?;
        let named: Vec<&str> = budget.keys().map(String::as_str).collect();
        let mut wanted = program::ALL;
        wanted.sort_unstable();
        if named == wanted { Ok(()) } else { Err(format!("it names {named:?}")) }
    })];
    for name in program::ALL {
        trials.push(Trial::new(format!("{name} loads within its budget"), move || check(name, loaded(name))));
        let code = Trial::new(format!("{name} keeps its stack and its calls"), move || check(name, disassembled(name)));
        trials.push(code.if_met(objdump.clone()));
    }
    harness::run(all, trials)
}

/// What the kernel says of a program.
fn loaded(name: &str) -> Result<Measures> {
    let none = Features { set_retval: false, csum_ipv6: false, fib_mtu: false };
    let (instructions, processed) = cost(name, &mut EbpfLoader::new())?;
    let mut old = EbpfLoader::new();
    set_features(&mut old, none);
    let (_, processed_old) = cost(name, &mut old)?;
    let measures = [("instructions", instructions), ("processed", processed), ("processed_5_10", processed_old)];
    Ok(measures.map(|(measure, value)| (measure.to_owned(), value)).into())
}

/// Instructions after the verifier's translation, and how many it went through.
fn cost(name: &str, loader: &mut EbpfLoader<'_>) -> Result<(u32, u32)> {
    let mut ebpf = loader.load(netlb_user::bpf::object::bytes()?).context("loading the kernel object")?;
    load_program(&mut ebpf, name)?;
    let info = ebpf.program(name).context("the program was there a moment ago")?.info()?;
    let bytes = info.size_translated().context("the kernel does not tell a program's size")?;
    let processed =
        info.verified_instruction_count().context("the kernel does not tell what its verifier processed")?;
    Ok((bytes / 8, processed))
}

/// What its code says.
fn disassembled(name: &str) -> Result<Measures> {
    let code = Disassembly::of(netlb_user::bpf::object::bytes()?)?;
    let own = code.memory_calls(name)?;
    Ok(BTreeMap::from([
        ("stack".into(), code.stack(name, |frame| frame.next_multiple_of(16))?),
        ("stack_before_6_9".into(), code.stack(name, |frame| frame.max(1).next_multiple_of(32))?),
        ("memory_calls".into(), own),
        ("memory_calls_below".into(), code.reachable_memory_calls(name)? - own),
    ]))
}

fn check(name: &str, measured: Result<Measures>) -> Result<(), String> {
    let compare = || -> Result<()> {
        let measured = measured?;
        let budget = read()?;
        let limits = budget.get(name).with_context(|| format!("verifier-budget.toml has no [{name}]"))?;
        for (measure, value) in measured {
            let limit = *limits.get(&measure).with_context(|| format!("[{name}] has no {measure}"))?;
            if value > limit {
                bail!(
                    "[{name}] {measure} is {value}, its budget is {limit}. Make it smaller, or say in the commit why it is worth it and run \
                     NETLB_BLESS=1 cargo test -p netlb-tests --test verifier"
                );
            }
            if value < limit {
                println!("[{name}] {measure} is {value}: its budget of {limit} can fall");
            }
        }
        Ok(())
    };
    compare().map_err(|e| format!("{e:#}"))
}

/// The numbers in `verifier-budget.toml`: tables of integers, nothing else of TOML.
fn read() -> Result<BTreeMap<String, Measures>> {
    let text = fs::read_to_string(BUDGET).with_context(|| format!("reading {BUDGET}"))?;
    let mut budget: BTreeMap<String, Measures> = BTreeMap::new();
    let mut program = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            budget.entry(name.to_owned()).or_default();
            program = Some(name.to_owned());
        } else {
            let entry = program.as_ref().and_then(|name| budget.get_mut(name));
            let (Some(entry), Some((measure, value))) = (entry, line.split_once(" = ")) else {
                bail!("verifier-budget.toml: {line:?} is neither [program] nor measure = number");
            };
            let value = value.parse().with_context(|| format!("verifier-budget.toml: {line:?}"))?;
            entry.insert(measure.to_owned(), value);
        }
    }
    Ok(budget)
}

fn bless() -> Result<()> {
    let mut text = HEAD.to_owned();
    for name in program::ALL {
        text += &format!("\n[{name}]\n");
        let mut measures = loaded(name)?;
        measures.append(&mut disassembled(name)?);
        for (measure, value) in measures {
            text += &format!("{measure} = {value}\n");
        }
    }
    Ok(fs::write(BUDGET, text)?)
}
