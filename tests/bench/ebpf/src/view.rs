//! Bounds-checked places in a packet.

/// A pointer to a `T` at `offset` bytes from `data`; `None` past `data_end`. The place may be at any address: read and write it unaligned.
#[inline(always)]
pub(crate) fn at<T>(data: u32, data_end: u32, offset: usize) -> Option<*mut T> {
    let place = data as usize + offset;
    if place + size_of::<T>() > data_end as usize { None } else { Some(place as *mut T) }
}
