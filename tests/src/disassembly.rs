//! What the kernel object's code says about itself: the stack each function takes, and whom it calls. Read from `llvm-objdump -dr`, by the bytes
//! of the instructions (RFC 9669), not by their spelling.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A function: its section, and its offset there in bytes.
type Place = (String, u64);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Bytes below the frame pointer that it touches or hands out.
    pub frame: u32,
    pub calls: Vec<Call>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Another function of the object.
    Function(Place),
    /// The same, by symbol: a function that the verifier walks by itself, or one of the compiler's ([`MEMORY`]).
    Symbol(String),
}

/// The compiler's helpers: loops over bytes.
const MEMORY: [&str; 5] = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];

impl Call {
    fn is_memory(&self) -> bool {
        matches!(self, Call::Symbol(name) if MEMORY.contains(&name.as_str()))
    }
}

/// Every function of an object.
#[derive(Debug, Default)]
pub struct Disassembly(BTreeMap<Place, Function>);

impl Disassembly {
    /// Disassembles an object file.
    ///
    /// # Errors
    /// If llvm-objdump does not run, or prints what this does not know.
    pub fn of(object: &[u8]) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), object)?;
        let output =
            Command::new("llvm-objdump").arg("-dr").arg(file.path()).output().context("running llvm-objdump")?;
        ensure!(output.status.success(), "llvm-objdump: {}", String::from_utf8_lossy(&output.stderr));
        Disassembly::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut found = Disassembly::default();
        let mut section = String::new();
        let mut function = None;
        let mut offset = 0;
        // Registers that hold the frame pointer, by number.
        let mut frame_pointer = [false; 16];
        // The call before a relocation line.
        let mut call = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("Disassembly of section ") {
                section = name.trim_end_matches(':').to_owned();
            } else if let Some((at, name)) = symbol(line) {
                offset = at;
                frame_pointer = [false; 16];
                let entry = found.0.entry((section.clone(), at)).or_default();
                entry.name = name.to_owned();
                function = Some((section.clone(), at));
            } else if let Some(target) = line.trim_start().split_once("R_BPF_64_32").map(|(_, symbol)| symbol.trim()) {
                let place = function.clone().context("a relocation outside any function")?;
                let imm = call.take().with_context(|| format!("a call's relocation without a call: {line}"))?;
                let calls = &mut found.0.get_mut(&place).context("the function was entered above")?.calls;
                // Until now it looked like a call within the section.
                calls.pop();
                calls.push(if target.starts_with('.') {
                    Call::Function((target.to_owned(), target_of(0, imm)))
                } else {
                    Call::Symbol(target.to_owned())
                });
            } else if let Some(bytes) = instruction(line) {
                let place = function.clone().with_context(|| format!("an instruction outside any function: {line}"))?;
                let entry = found.0.get_mut(&place).context("the function was entered above")?;
                let (op, dst, src) = (bytes[0], bytes[1] & 0xf, bytes[1] >> 4);
                let off = i16::from_le_bytes([bytes[2], bytes[3]]);
                let imm = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                call = None;
                match op {
                    // Pseudo call: to another function.
                    0x85 if src == 1 => {
                        entry.calls.push(Call::Function((section.clone(), target_of(offset, imm))));
                        call = Some(imm);
                    }
                    // r = frame pointer; r += a negative number.
                    0xbf => frame_pointer[usize::from(dst)] = src == 10 || frame_pointer[usize::from(src)],
                    0x07 if frame_pointer[usize::from(dst)] => entry.touch(imm),
                    // Loads and stores: BPF_LDX, BPF_ST, BPF_STX in mode MEM or ATOMIC.
                    _ if op & 7 == 1 && src == 10 => entry.touch(i32::from(off)),
                    _ if matches!(op & 7, 2 | 3) && dst == 10 => entry.touch(i32::from(off)),
                    _ => {}
                }
                // A call leaves nothing in the first six registers; a load, or arithmetic, nothing of the frame pointer.
                if op == 0x85 {
                    frame_pointer[..6].fill(false);
                } else if matches!(op & 7, 1 | 4) || (op & 7 == 7 && op != 0xbf && op != 0x07) {
                    frame_pointer[usize::from(dst)] = false;
                }
                offset += bytes.len() as u64;
            }
        }
        ensure!(!found.0.is_empty(), "llvm-objdump printed no function");
        Ok(found)
    }

    fn find(&self, name: &str) -> Result<(&Place, &Function)> {
        self.0.iter().find(|(_, f)| f.name == name).with_context(|| format!("the object has no function {name}"))
    }

    /// Bytes of stack of a program with all it calls, as the verifier adds them up: `round` makes of each frame what it counts for.
    ///
    /// # Errors
    /// If there is no such function, or calls go in a circle.
    pub fn stack(&self, program: &str, round: fn(u32) -> u32) -> Result<u32> {
        self.depth(self.find(program)?.0, round, 0)
    }

    fn depth(&self, place: &Place, round: fn(u32) -> u32, level: u32) -> Result<u32> {
        // The kernel allows 8 frames.
        ensure!(level < 8, "more than 8 frames at {}+{:#x}", place.0, place.1);
        let function = self.0.get(place).with_context(|| format!("no function at {}+{:#x}", place.0, place.1))?;
        let mut deepest = 0;
        for call in &function.calls {
            let below = match call {
                Call::Function(place) => self.depth(place, round, level + 1)?,
                Call::Symbol(name) => self.depth(self.find(name)?.0, round, level + 1)?,
            };
            deepest = deepest.max(below);
        }
        Ok(round(function.frame) + deepest)
    }

    /// Calls of memcpy and the like in a program's own code.
    ///
    /// # Errors
    /// If there is no such function.
    pub fn memory_calls(&self, program: &str) -> Result<u32> {
        let (_, function) = self.find(program)?;
        Ok(function.calls.iter().filter(|call| call.is_memory()).count() as u32)
    }

    /// Calls of memcpy and the like in everything a program can reach.
    ///
    /// # Errors
    /// If there is no such function, or it calls what is not there.
    pub fn reachable_memory_calls(&self, program: &str) -> Result<u32> {
        let mut open = vec![self.find(program)?.0.clone()];
        let mut seen = std::collections::BTreeSet::new();
        let mut count = 0;
        while let Some(place) = open.pop() {
            if !seen.insert(place.clone()) {
                continue;
            }
            let Some(function) = self.0.get(&place) else { bail!("no function at {}+{:#x}", place.0, place.1) };
            for call in &function.calls {
                match call {
                    _ if call.is_memory() => count += 1,
                    Call::Function(place) => open.push(place.clone()),
                    Call::Symbol(name) => open.push(self.find(name)?.0.clone()),
                }
            }
        }
        Ok(count)
    }
}

impl Function {
    fn touch(&mut self, offset: i32) {
        self.frame = self.frame.max(offset.min(0).unsigned_abs());
    }
}

/// The byte offset a call at `at` goes to: instructions from the next one on.
fn target_of(at: u64, imm: i32) -> u64 {
    at.wrapping_add_signed((i64::from(imm) + 1) * 8)
}

/// `0000000000000530 <name>:`
fn symbol(line: &str) -> Option<(u64, &str)> {
    let (at, name) = line.split_once(" <")?;
    Some((u64::from_str_radix(at, 16).ok()?, name.strip_suffix(">:")?))
}

/// A line of an instruction: its number, a tab, 8 or 16 bytes in hexadecimal, a tab, its spelling.
fn instruction(line: &str) -> Option<Vec<u8>> {
    let (_, rest) = line.split_once(":\t")?;
    let (bytes, _) = rest.split_once('\t')?;
    let bytes: Vec<u8> = bytes.split_whitespace().map(|b| u8::from_str_radix(b, 16).ok()).collect::<Option<_>>()?;
    (bytes.len() == 8 || bytes.len() == 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
object:	file format elf64-bpf

Disassembly of section .text:

0000000000000000 <helper>:
       0:	7b 1a f8 ff 00 00 00 00	*(u64 *)(r10 - 0x8) = r1
       1:	95 00 00 00 00 00 00 00	exit

0000000000000010 <memset>:
       2:	95 00 00 00 00 00 00 00	exit

0000000000000018 <middle>:
       3:	bf a2 00 00 00 00 00 00	r2 = r10
       4:	07 02 00 00 d8 ff ff ff	r2 += -0x28
       5:	85 10 00 00 fa ff ff ff	call -0x6
       6:	85 10 00 00 ff ff ff ff	call -0x1
		0000000000000030:  R_BPF_64_32	memset
       7:	95 00 00 00 00 00 00 00	exit

Disassembly of section classifier:

0000000000000000 <program>:
       0:	18 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00	r1 = 0x0 ll
		0000000000000000:  R_BPF_64_64	MAP
       2:	85 10 00 00 02 00 00 00	call 0x2
		0000000000000010:  R_BPF_64_32	.text
       3:	85 00 00 00 27 00 00 00	call 0x27
       4:	79 a1 f0 ff 00 00 00 00	r1 = *(u64 *)(r10 - 0x10)
       5:	95 00 00 00 00 00 00 00	exit
";

    #[test]
    fn frames_calls_and_depth() {
        let d = Disassembly::parse(TEXT).unwrap();
        let of = |name: &str| d.find(name).unwrap().1;
        assert_eq!((of("helper").frame, of("middle").frame, of("program").frame), (8, 0x28, 0x10));
        assert_eq!(of("middle").calls, [Call::Function((".text".into(), 0)), Call::Symbol("memset".into())]);
        assert_eq!(of("program").calls, [Call::Function((".text".into(), 0x18))]);
        assert_eq!(d.stack("program", |frame| frame.next_multiple_of(16)).unwrap(), 16 + 48 + 16);
        assert_eq!((d.memory_calls("program").unwrap(), d.reachable_memory_calls("program").unwrap()), (0, 1));
        assert!(d.stack("nobody", |frame| frame).is_err());
    }
}
