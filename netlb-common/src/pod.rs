//! `record!`: a plain-old-data map record. bytemuck's derive refuses implicit padding, the assertions refuse odd sizes.

macro_rules! record {
    ($(#[$meta:meta])* pub struct $name:ident [$size:literal] { $($(#[$fmeta:meta])* pub $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
        #[repr(C, align(8))]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }

        const _: () = assert!(core::mem::size_of::<$name>() == $size && $size % 8 == 0);

        // SAFETY: the bytemuck derive above proves: repr(C), Copy, no padding, every bit pattern valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    };
}
pub(crate) use record;
