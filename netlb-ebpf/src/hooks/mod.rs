//! One file a kind of hook: its view of a packet or socket, and the numbers its verdicts become.

pub(crate) mod fib;
pub(crate) mod sock;
pub(crate) mod tc;
pub(crate) mod xdp;

/// [`checksum::sctp_ports`](netlb_common::checksum::sctp_ports): thousands of steps.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn sctp_ports(changed: u32, len: u32) -> u32 {
    netlb_common::checksum::sctp_ports(changed, len)
}

/// [`Detour`](netlb_ebpf::detour::Detour)s of a hook as functions of their own in the object (global ones, in the kernel's words): the verifier walks
/// each once, for any arguments. The kernel knows a context by the name of its type.
macro_rules! detours {
    ($view:ident $context:ty {
        $unknown_entering:ident $unknown_leaving:ident $error_entering:ident $error_leaving:ident $refuse:ident
    }) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $unknown_entering(ctx: *mut $context, parsed: u64, device: u64) -> u64 {
            let (parsed, device) = (Parsed::from_word(parsed), Device::from_word(device));
            enter::unknown(&mut $view(ctx), &KernelTables, parsed, device).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $unknown_leaving(ctx: *mut $context, parsed: u64, device: u64) -> u64 {
            let (parsed, device) = (Parsed::from_word(parsed), Device::from_word(device));
            leave::unknown(&mut $view(ctx), &KernelTables, parsed, device).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_entering(ctx: *mut $context, parsed: u64) -> u64 {
            icmp::enter(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed)).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_leaving(ctx: *mut $context, parsed: u64) -> u64 {
            icmp::leave(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed)).word()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refuse(ctx: *mut $context, parsed: u64, reason: u32, mtu: u32) -> u64 {
            let reason = Reason(reason as u8);
            refuse::refuse(&mut $view(ctx), &KernelTables, Parsed::from_word(parsed), reason, mtu as u16).word()
        }

        impl Detour for $view {
            #[inline(always)]
            fn unknown_entering<T: Tables>(&mut self, _: &T, parsed: Parsed, device: Device) -> Verdict {
                Verdict::from_word($unknown_entering(self.0, parsed.word(), device.word()))
            }

            #[inline(always)]
            fn unknown_leaving<T: Tables>(&mut self, _: &T, parsed: Parsed, device: Device) -> Verdict {
                Verdict::from_word($unknown_leaving(self.0, parsed.word(), device.word()))
            }

            #[inline(always)]
            fn error_entering<T: Tables>(&mut self, _: &T, parsed: Parsed) -> Verdict {
                Verdict::from_word($error_entering(self.0, parsed.word()))
            }

            #[inline(always)]
            fn error_leaving<T: Tables>(&mut self, _: &T, parsed: Parsed) -> Verdict {
                Verdict::from_word($error_leaving(self.0, parsed.word()))
            }

            #[inline(always)]
            fn refuse<T: Tables>(&mut self, _: &T, parsed: Parsed, reason: Reason, mtu: u16) -> Verdict {
                Verdict::from_word($refuse(self.0, parsed.word(), reason.0 as u32, mtu as u32))
            }
        }
    };
}
pub(crate) use detours;
