//! Fragments: a later one has no ports, and takes those that the first recorded. Bounded by the map, which forgets the oldest.

use netlb_common::conntrack::{CtKey, age};
use netlb_common::fragment::{FragmentValue, TIMEOUT_S};

use crate::parse::Parsed;
use crate::tables::Tables;

/// Records a first fragment's ports; completes the tuple of a later one, if its first was seen.
#[inline(always)]
pub fn follow<T: Tables>(t: &T, parsed: Parsed, key: &mut CtKey) -> Parsed {
    if parsed.fragment() { look(t, parsed, key) } else { parsed }
}

#[inline(never)]
fn look<T: Tables>(t: &T, parsed: Parsed, key: &mut CtKey) -> Parsed {
    let Some(scratch) = t.scratch() else { return parsed };
    let now = t.now();
    // SAFETY: this CPU's own record; `parse` is done with the one field, and only this function uses the other.
    let (fragment, first) = unsafe { (&(*scratch.as_ptr()).fragment, &mut (*scratch.as_ptr()).first) };
    if !parsed.later_fragment() {
        if parsed.has_ports() {
            *first = FragmentValue { ports: key.ports(), seen: now };
            t.set_fragment(fragment, first);
        }
        return parsed;
    }
    let hz = t.config().map_or(1, |c| c.hz);
    match t.fragment(fragment) {
        Some(known) if age(now, known.seen) <= TIMEOUT_S.wrapping_mul(hz) => {
            key.tail |= known.ports as u64;
            parsed.with_ports()
        }
        _ => parsed,
    }
}
