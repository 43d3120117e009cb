//! Why a packet did not simply pass: one table of names for counters, `netlb drops`, events and documentation.

/// Index into `COUNTERS`. Numbers are never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(transparent)]
pub struct Reason(pub u8);

/// What became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Dropped without an answer.
    Drop,
    /// Answered with TCP RST, an ICMP error, or an error from connect().
    Refuse,
    /// Went on; worth counting.
    Note,
}

/// Size of `COUNTERS`.
pub const COUNT: u32 = 64;

macro_rules! reasons {
    ($($number:literal $konst:ident $name:literal $kind:ident $text:literal;)*) => {
        impl Reason {
            $(#[doc = $text] pub const $konst: Reason = Reason($number);)*

            /// Every reason there is, by number.
            pub const ALL: &'static [(Reason, &'static str, Kind, &'static str)] = &[$((Reason($number), $name, Kind::$kind, $text)),*];
        }
        $(const _: () = assert!($number < COUNT);)*
    };
}

reasons! {
    1 MALFORMED "malformed" Drop "A header is cut short or contradicts itself.";
    2 MAPPED_ADDRESS "mapped_address" Drop "An IPv6 packet carries a v4-mapped address, which would alias IPv4 keys.";
    3 FRAGMENT "fragment" Drop "A later fragment to a Service whose first fragment was not seen before it.";
    4 UNALLOCATED "unallocated" Drop "To an address of the Service CIDR that no Service owns.";
    5 CONNTRACK_FULL "conntrack_full" Drop "No room for a new flow in CT_NEW.";
    6 STALE_BACKEND "stale_backend" Drop "A TCP flow whose backend id now means another backend.";
    7 NO_SCRATCH "no_scratch" Drop "A per-CPU or configuration record is missing: a defect, please report.";
    8 REWRITE_FAILED "rewrite_failed" Drop "The kernel refused to make the packet writable or to adjust its checksum.";
    9 STRAY_RST "stray_rst" Drop "A TCP RST to a Service that belongs to no flow.";
    10 PORTS_EXHAUSTED "ports_exhausted" Drop "No free source port was found for a flow whose answers collide with another's.";
    11 SOURCE_RANGE "source_range" Drop "The client is not in loadBalancerSourceRanges.";
    12 NO_LOCAL_INTERNAL "no_local_internal" Drop "internalTrafficPolicy is Local, and the Service has endpoints only on other nodes.";
    13 NO_LOCAL_EXTERNAL "no_local_external" Drop "externalTrafficPolicy is Local, and the Service has endpoints only on other nodes.";
    14 NO_ROUTE "no_route" Drop "The node has no route for a flow it forwards for a client outside.";
    15 NO_ADDRESS "no_address" Drop "The flow must be masqueraded, and the node has no address of its family.";
    16 TOO_BIG "too_big" Drop "Larger than the next device takes, and may not be answered or fragmented.";
    20 NO_ENDPOINTS "no_endpoints" Refuse "The Service has no endpoint that takes new flows.";
    21 UNDEFINED_PORT "undefined_port" Refuse "To a port or protocol that the owner of the address does not serve.";
    22 NO_FLOW "no_flow" Refuse "A TCP segment in mid-stream to a Service, of a flow that is not known.";
    23 FRAGMENTATION_NEEDED "fragmentation_needed" Refuse "Larger than the next device takes: answered, so that the sender sends less.";
    24 TTL_EXCEEDED "ttl_exceeded" Refuse "TTL or hop limit ended at this node.";
    30 NEW_FLOW "new_flow" Note "A flow to a Service was given a backend.";
    31 REOPENED "reopened" Note "The ports of a flow that was over were used again.";
    32 RESELECTED "reselected" Note "A flow was given another backend because its own is gone.";
    33 PORT_MOVED "port_moved" Note "A flow's source port was changed because the tuple of its answers was taken.";
    34 HAIRPIN "hairpin" Note "A pod reached itself through its own Service.";
    35 ESTABLISHED_FULL "established_full" Note "No room in CT: an answered flow stays in CT_NEW, where a flood can evict it.";
    36 REDIRECTED "redirected" Note "Packets delivered on the redirect road.";
    37 TO_STACK "to_stack" Note "Packets of the redirect road handed to the stack: too big for the device, TTL at its end, or the device is gone.";
    38 ICMP_TRANSLATED "icmp_translated" Note "ICMP errors whose quoted packet was translated back.";
    39 ROUTED "routed" Note "Packets of clients outside forwarded to or from another node.";
    40 SOCKET_TRANSLATED "socket_translated" Note "Sockets of the node connected to a backend in place of a VIP.";
    41 SOCKET_NO_ENDPOINTS "socket_no_endpoints" Refuse "connect() or sendto() on the node failed: the Service has no endpoint.";
    42 SOCKET_UNDEFINED_PORT "socket_undefined_port" Refuse "connect() or sendto() on the node failed: the address does not serve that port.";
    43 SOCKET_UNALLOCATED "socket_unallocated" Refuse "connect() or sendto() on the node failed: no Service owns that address of the Service CIDR.";
    44 SOCKET_SOURCE_RANGE "socket_source_range" Refuse "connect() or sendto() on the node failed: the node is not in loadBalancerSourceRanges.";
    45 SOCKET_NO_LOCAL "socket_no_local" Refuse "connect() or sendto() on the node failed: traffic policy is Local, and the endpoints are on other nodes.";
    46 MASQUERADED "masqueraded" Note "A flow's client address was replaced by the node's.";
    47 SLIPPED "slipped" Note "A flow to a Service was translated only where it would have left the node: its pod's device had no program yet.";
    48 FRAGMENT_FOLLOWED "fragment_followed" Note "Later fragments that took their first's way.";
}

impl Reason {
    /// The name of a counter index, if it has one.
    pub fn name(self) -> Option<&'static str> {
        Self::ALL.iter().find(|(r, ..)| *r == self).map(|(_, name, ..)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique() {
        for (i, (a, name, ..)) in Reason::ALL.iter().enumerate() {
            assert!(Reason::ALL[..i].iter().all(|(b, other, ..)| a != b && name != other), "{name}");
        }
    }
}
