//! Kernel programs of the benchmark. On the host this is a stub.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod generator;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod receiver;
#[cfg(target_arch = "bpf")]
mod view;

#[cfg(target_arch = "bpf")]
mod object {
    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        // The verifier proves that no path comes here.
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("netlb-bench-ebpf is the kernel object of netlb-bench; `cargo xtask bench` builds and runs both.");
}
