//! The object becomes maps and programs. Maps are pinned as they are made; programs are loaded one by one, so that one which the verifier
//! refuses does not take the others along.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use netlb_common::maps::{self, MapSpec};

use super::object::{self, NoObject};
use super::pins::{Capacities, KeptCapacity, PinError, Pins};
use super::probe::Features;

/// The object cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    NoObject(#[from] NoObject),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("the kernel object does not follow the contract: {0}; build netlb anew from one source tree")]
    Contract(String),
    #[error("the kernel object cannot be loaded: {0}")]
    Object(Box<aya::EbpfError>),
    #[error("program {0} is not in the kernel object; build netlb anew from one source tree")]
    NoProgram(String),
    #[error(
        "the kernel does not tell what programs are attached: {0}; run netlb as root, with CAP_BPF and CAP_NET_ADMIN"
    )]
    Attachments(std::io::Error),
    #[error("program {program} does not load: {reason}")]
    Program { program: String, reason: String },
}

impl From<aya::EbpfError> for LoadError {
    fn from(e: aya::EbpfError) -> Self {
        LoadError::Object(Box::new(e))
    }
}

/// A loaded object. Dropping it closes its descriptors; what is pinned or attached stays.
pub struct Loaded {
    ebpf: Ebpf,
    capacities: Capacities,
}

/// Loads the object with its maps pinned under `pins`: those there are taken over with their entries, others are made.
///
/// # Errors
/// If a pin is not what the contract says, or the kernel refuses a map.
pub fn load(pins: &Pins, wished: &Capacities) -> Result<(Loaded, Vec<KeptCapacity>), LoadError> {
    let object = checked_object()?;
    pins.prepare()?;
    let (capacities, kept) = pins.check(wished)?;
    let mut loader = EbpfLoader::new();
    for (name, entries) in capacities.iter() {
        loader.map_pin_path(name, pins.map(name)).map_max_entries(name, entries);
    }
    set_globals(&mut loader);
    let ebpf = loader.load(object)?;
    Ok((Loaded { ebpf, capacities }, kept))
}

/// Loads the object with maps of its own that nobody else sees: for tests and measurements.
///
/// # Errors
/// If the kernel refuses a map.
pub fn load_private(capacities: &Capacities) -> Result<Loaded, LoadError> {
    let object = checked_object()?;
    let mut loader = EbpfLoader::new();
    for (name, entries) in capacities.iter() {
        loader.map_max_entries(name, entries);
    }
    set_globals(&mut loader);
    let ebpf = loader.load(object)?;
    Ok(Loaded { ebpf, capacities: capacities.clone() })
}

impl Loaded {
    /// Loads a program if that is still to do, and lends its descriptor.
    ///
    /// # Errors
    /// If the object has no such program, or the verifier refuses it: then with the last lines of its log.
    pub fn program(&mut self, name: &str) -> Result<BorrowedFd<'_>, LoadError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| LoadError::NoProgram(name.to_owned()))?;
        load_one(name, program)?;
        let fd = program.fd().map_err(|e| LoadError::Program { program: name.to_owned(), reason: e.to_string() })?;
        Ok(fd.as_fd())
    }

    /// Entries each map has.
    pub fn capacities(&self) -> &Capacities {
        &self.capacities
    }

    /// aya's view, for tests that run programs or read maps by it.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the contract has three kinds of programs, aya knows thirty")]
fn load_one(name: &str, program: &mut Program) -> Result<(), LoadError> {
    if program.fd().is_ok() {
        return Ok(());
    }
    let loaded = match program {
        Program::SchedClassifier(p) => p.load(),
        Program::Xdp(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        _ => return Err(LoadError::Contract(format!("program {name} is of a kind netlb does not use"))),
    };
    loaded.map_err(|e| LoadError::Program { program: name.to_owned(), reason: last_lines(&error_text(&e)) })
}

/// An error with its causes.
fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let next = e.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = e.source();
    }
    text
}

/// The verifier explains itself in its last lines; the thousands before them help nobody in a log.
fn last_lines(text: &str) -> String {
    const KEEP: usize = 12;
    let lines: Vec<&str> = text.lines().collect();
    match lines.len().checked_sub(KEEP + 1) {
        Some(cut) if cut > 0 => {
            let tail = lines.get(cut + 1..).unwrap_or_default().join("\n");
            format!("{}\n… {cut} lines …\n{tail}", lines.first().copied().unwrap_or_default())
        }
        _ => text.to_owned(),
    }
}

/// Sets the object's globals to what the running kernel has. Every loader of the object needs it.
pub fn set_globals(loader: &mut EbpfLoader<'_>) {
    set_features(loader, Features::of_kernel());
}

/// Sets the object's globals for a kernel that has `kernel`.
pub fn set_features(loader: &mut EbpfLoader<'_>, kernel: Features) {
    static CSUM_IPV6: [u64; 2] = [0, 0x80];
    static HAS: [u32; 2] = [0, 1];
    let has = |feature: bool| &HAS[usize::from(feature)];
    loader.override_global("CSUM_IPV6", &CSUM_IPV6[usize::from(kernel.csum_ipv6)], true);
    loader.override_global("SET_RETVAL", has(kernel.set_retval), true);
    loader.override_global("FIB_TELLS_MTU", has(kernel.fib_mtu), true);
}

fn checked_object() -> Result<&'static [u8], LoadError> {
    let bytes = object::bytes()?;
    let parsed = aya_obj::Object::parse(bytes).map_err(|e| LoadError::Contract(error_text(&e)))?;
    for spec in maps::ALL {
        let map =
            parsed.maps.get(spec.name).ok_or_else(|| LoadError::Contract(format!("map {} is missing", spec.name)))?;
        if let Some(difference) = difference(spec, map) {
            return Err(LoadError::Contract(format!("map {}: {difference}", spec.name)));
        }
    }
    Ok(bytes)
}

fn difference(spec: &MapSpec, map: &aya_obj::Map) -> Option<String> {
    let fields = [
        ("type", map.map_type(), spec.kind as u32),
        ("key size", map.key_size(), spec.key),
        ("value size", map.value_size(), spec.value),
        ("flags", map.map_flags(), spec.flags),
    ];
    let (field, found, want) = fields.into_iter().find(|(_, found, want)| found != want)?;
    Some(format!("{field} {found} where {want} belongs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_follows_the_contract() {
        match checked_object() {
            Ok(bytes) => assert!(bytes.starts_with(b"\x7fELF")),
            // A build without the object proves nothing about it, and says so.
            Err(LoadError::NoObject(e)) => panic!("{e}"),
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn every_program_of_the_contract_is_in_the_object() {
        let parsed = aya_obj::Object::parse(object::bytes().expect("built with an object")).expect("an object");
        for name in maps::program::ALL {
            assert!(parsed.programs.contains_key(name), "{name}");
        }
    }

    #[test]
    fn long_verifier_logs_are_cut_in_the_middle() {
        let short: String = (0..13).map(|i| format!("{i}\n")).collect();
        assert_eq!(last_lines(&short), short);
        let long: String = (0..1000).map(|i| format!("{i}\n")).collect();
        let cut = last_lines(&long);
        assert!(cut.starts_with("0\n… 987 lines …\n988\n"), "{cut}");
        assert!(cut.ends_with("\n999"), "{cut}");
    }
}
