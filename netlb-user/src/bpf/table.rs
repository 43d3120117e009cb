//! A pinned map as a typed table: one element at a time to write, in batches to read. Needs no loaded object, so the command line reads the
//! same tables as the agent, alive or not.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, OwnedFd};

use bytemuck::{Pod, Zeroable};
use netlb_common::maps::Kind;

use super::pins::Pins;
use super::sys::{self, Cursor, ObjectKind, Step};

/// Elements read by one call of the kernel.
const BATCH: usize = 4096;

/// A map cannot be used as the table it should be.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("map {name} is not pinned at {path}; start `netlb agent` with this --pin-path first")]
    Absent { name: &'static str, path: String },
    #[error("map {name} at {path}: {cause}; run netlb as root, and check that the pin is a map of this netlb")]
    Open { name: &'static str, path: String, cause: io::Error },
    #[error(
        "map {name} at {path} has keys of {key} and values of {value} bytes, this netlb expects {want_key} and {want_value}; use the netlb that made it, or remove it with `netlb cleanup`"
    )]
    Layout { name: &'static str, path: String, key: u32, value: u32, want_key: usize, want_value: usize },
}

/// A map with keys `K` and values `V`. In a per-CPU map `V` is one CPU's value, and only [`sum`](Table::sum) reads it.
pub struct Table<K, V> {
    fd: OwnedFd,
    name: &'static str,
    capacity: u32,
    /// A trie: walked key by key, because its batch cursor is a whole key, and kernels before 5.13 have none.
    trie: bool,
    /// CPUs whose values stand side by side; 1 in an ordinary map.
    cpus: usize,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens a map of the contract by its pin.
    ///
    /// # Errors
    /// If it is not pinned there, or has another layout.
    pub fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        let pin = pins.map(name);
        let path = || pin.display().to_string();
        let open = |cause: io::Error| {
            if cause.kind() == io::ErrorKind::NotFound {
                TableError::Absent { name, path: path() }
            } else {
                TableError::Open { name, path: path(), cause }
            }
        };
        let fd = sys::obj_get(&pin).map_err(open)?;
        if sys::kind(fd.as_fd()).map_err(open)? != ObjectKind::Map {
            let cause = io::Error::other("the pin is not a map");
            return Err(TableError::Open { name, path: path(), cause });
        }
        let info = sys::map_info(fd.as_fd()).map_err(open)?;
        if info.key as usize != size_of::<K>() || info.value as usize != size_of::<V>() {
            return Err(TableError::Layout {
                name,
                path: path(),
                key: info.key,
                value: info.value,
                want_key: size_of::<K>(),
                want_value: size_of::<V>(),
            });
        }
        let cpus = if info.kind == Kind::PerCpuArray as u32 { possible_cpus().map_err(open)? } else { 1 };
        let trie = info.kind == Kind::LpmTrie as u32;
        Ok(Table { fd, name, capacity: info.max_entries, trie, cpus, types: PhantomData })
    }

    /// Name of the map.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Entries the map can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Bytes of one element's value as the kernel copies it.
    fn stride(&self) -> usize {
        if self.cpus == 1 { size_of::<V>() } else { size_of::<V>().next_multiple_of(8) * self.cpus }
    }

    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0u8; self.stride()];
        // SAFETY: `open` compared the map's sizes with those of `K` and `V`; `stride` is the kernel's rule for per-CPU values.
        let found = unsafe { sys::map_lookup(self.fd.as_fd(), bytemuck::bytes_of(key), &mut value) }?;
        Ok(found.then(|| read(&value)))
    }

    /// Writes an element of an ordinary (not per-CPU) map.
    ///
    /// # Errors
    /// The kernel's: E2BIG if the map is full.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        debug_assert_eq!(self.cpus, 1, "{}: a per-CPU map is written by the kernel", self.name);
        // SAFETY: `open` compared the map's sizes with those of `K` and `V`.
        unsafe { sys::map_update(self.fd.as_fd(), bytemuck::bytes_of(key), bytemuck::bytes_of(value)) }
    }

    /// Deletes an element; false without one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&self, key: &K) -> io::Result<bool> {
        // SAFETY: `open` compared the map's key size with that of `K`.
        unsafe { sys::map_delete(self.fd.as_fd(), bytemuck::bytes_of(key)) }
    }

    /// Deletes an element that is as it was read. The kernel knows no such step for a hash: whoever writes between the comparison and the
    /// deletion, within a microsecond, still loses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_unchanged(&self, key: &K, read: &V) -> io::Result<bool> {
        let now = self.get(key)?;
        if now.is_some_and(|now| bytemuck::bytes_of(&now) == bytemuck::bytes_of(read)) {
            return self.delete(key);
        }
        Ok(false)
    }

    /// The next elements of a walk, at most a few thousand; `None` when it is over. What changes meanwhile may be missed or seen twice.
    ///
    /// # Errors
    /// The kernel's; the walk is then over.
    pub fn next_batch(&self, at: &mut Position) -> io::Result<Option<Vec<(K, V)>>> {
        if self.trie && !at.done {
            at.done = true;
            return self.walk().map(Some);
        }
        while !at.done {
            let mut keys = vec![0u8; size_of::<K>() * at.room];
            let mut values = vec![0u8; self.stride() * at.room];
            // SAFETY: the buffers are `room` keys and values long by the sizes that `open` compared; the contract's arrays have keys of four
            // bytes, its other maps that get here are hashes.
            let step =
                unsafe { sys::map_lookup_batch(self.fd.as_fd(), &mut at.cursor, &mut keys, &mut values, at.room) };
            let count = match step {
                Ok(Step::More(count)) => count,
                Ok(Step::Last(count)) => {
                    at.done = true;
                    count
                }
                Ok(Step::TooSmall) => {
                    at.room *= 2;
                    continue;
                }
                Err(e) => {
                    at.done = true;
                    return Err(e);
                }
            };
            let keys = keys.chunks_exact(size_of::<K>()).map(read);
            let values = values.chunks_exact(self.stride()).map(|v| read(&v[..size_of::<V>()]));
            return Ok(Some(keys.zip(values).take(count).collect()));
        }
        Ok(None)
    }

    /// Every element, one call of the kernel for each key and each value.
    fn walk(&self) -> io::Result<Vec<(K, V)>> {
        let (mut all, mut last): (_, Option<K>) = (Vec::new(), None);
        loop {
            let mut next = K::zeroed();
            // SAFETY: `open` compared the map's key size with that of `K`.
            let more = unsafe {
                let last = last.as_ref().map(bytemuck::bytes_of);
                sys::map_next_key(self.fd.as_fd(), last, bytemuck::bytes_of_mut(&mut next))
            }?;
            if !more {
                return Ok(all);
            }
            all.extend(self.get(&next)?.map(|value| (next, value)));
            last = Some(next);
        }
    }

    /// Every element, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let (mut all, mut at) = (Vec::new(), Position::default());
        while let Some(mut batch) = self.next_batch(&mut at)? {
            all.append(&mut batch);
        }
        Ok(all)
    }
}

impl Table<u32, u64> {
    /// Sum of a per-CPU counter over all CPUs; 0 beyond the map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sum(&self, index: u32) -> io::Result<u64> {
        let mut values = vec![0u8; self.stride()];
        // SAFETY: as in `get`.
        let found = unsafe { sys::map_lookup(self.fd.as_fd(), bytemuck::bytes_of(&index), &mut values) }?;
        let sum = values.chunks_exact(8).map(read::<u64>).fold(0u64, u64::wrapping_add);
        Ok(if found { sum } else { 0 })
    }

    /// Clears a per-CPU counter on all CPUs. A packet that counts meanwhile may be lost to the count.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear(&self, index: u32) -> io::Result<()> {
        let zero = vec![0u8; self.stride()];
        // SAFETY: as in `get`.
        unsafe { sys::map_update(self.fd.as_fd(), bytemuck::bytes_of(&index), &zero) }
    }
}

/// Where a walk stands, see [`Table::next_batch`].
pub struct Position {
    cursor: Cursor,
    /// Elements the buffers hold.
    room: usize,
    done: bool,
}

impl Default for Position {
    fn default() -> Self {
        Position { cursor: Cursor::default(), room: BATCH, done: false }
    }
}

fn read<T: Pod + Zeroable>(bytes: &[u8]) -> T {
    bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()])
}

/// CPUs the kernel keeps per-CPU values for: all that could ever be plugged in.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_cpus(&text).ok_or_else(|| io::Error::other(format!("/sys/devices/system/cpu/possible reads {text:?}")))
}

/// Counts the CPUs of a list like `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::count_cpus;

    #[test]
    fn cpu_lists() {
        assert_eq!(count_cpus("0-1\n"), Some(2));
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        assert_eq!(count_cpus("3-0"), None);
        assert_eq!(count_cpus(""), None);
    }
}
