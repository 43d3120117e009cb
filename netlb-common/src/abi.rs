//! The version of the contract, and the sizes it fixes.

/// Raised with each change of a record, a map's kind or a number's meaning. Pins of another version live in another directory.
pub const ABI_VERSION: u32 = 2;

#[cfg(test)]
mod tests {
    use crate::maps;

    /// A moved layout shows here as a diff. When it moves, raise `ABI_VERSION`, then copy the new table.
    #[test]
    fn the_layout_of_version_2() {
        let table: Vec<_> =
            maps::ALL.iter().map(|m| format!("{} {:?} {} {}", m.name, m.kind, m.key, m.value)).collect();
        let want = [
            "FRONTENDS Hash 24 32",
            "SLOTS Array 4 4",
            "BACKENDS Array 4 40",
            "ENDPOINTS Array 4 32",
            "ENDPOINT_BY_ADDR Hash 16 4",
            "ENDPOINT_BY_IFINDEX Hash 4 4",
            "AFFINITY LruHash 24 16",
            "CT Hash 40 96",
            "CT_NEW LruHash 40 96",
            "SOCKETS LruHash 32 32",
            "CONFIG Array 4 456",
            "COUNTERS PerCpuArray 4 8",
            "BACKEND_FLOWS PerCpuArray 4 8",
            "BACKEND_LOAD Array 4 4",
            "TURNS Array 4 4",
            "UPLINKS Hash 4 40",
            "SOURCE_RANGES LpmTrie 24 4",
            "FRAGMENTS LruHash 40 8",
            "CLIENTS Hash 8 32",
        ];
        assert_eq!(table, want);
        assert_eq!(super::ABI_VERSION, 2);
    }
}
