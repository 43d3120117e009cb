//! The kernel object: entry points, and the edge between core and kernel. On the host this is a stub.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod programs;

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!(
        "netlb-ebpf is netlb's kernel object; `cargo build --release -p netlb-user` builds it for the bpf target and embeds it in `netlb`."
    );
}
