use super::*;

/// 10.0.0.1:4660 > 10.0.0.2:53 with four bytes; both sums added up on paper.
#[test]
fn known_bytes() {
    let got = eth().ip4("10.0.0.1", "10.0.0.2").tos_id(0, 1).ttl(64).udp(0x1234, 53).payload(b"abcd").bytes();
    let want = [
        0x02, 0, 0, 0, 0, 0xfe, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x00, // Ethernet
        0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0x26, 0xca, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
        0x12, 0x34, 0, 53, 0, 12, 0x14, 0xa4, b'a', b'b', b'c', b'd', // UDP
    ];
    assert_eq!(show(&got), show(&want));
    assert_eq!(got, want);
}

#[test]
fn every_layer_that_the_builder_makes_verifies() {
    let v4 = || eth().ip("10.0.1.2", "10.96.0.10");
    let v6 = || eth().ip("fd00:10:1::2", "fd00:10:96::10");
    let frames = [
        v4().tcp(1, 2, SYN).payload(b"odd"),
        v4().options(&[1, 1, 1, 0]).tcp(1, 2, ACK).tcp_options(&[1; 12]).payload(b"x"),
        v4().udp(1, 2).payload(b"hello"),
        v4().udp(1, 2).no_sum().payload(b"hello"),
        v4().icmp(8, 0).rest(0x0001_0002).payload(b"ping"),
        v4().icmp(3, 4).rest(1400).quote(&v4().tcp(1, 2, ACK).payload(&[7; 100]), 28),
        v4().sctp(1, 2, 1).payload(b"an INIT"),
        v6().sctp(1, 2, 0).no_sum().payload(b"data"),
        v4().raw(47).payload(&[0; 12]),
        v4().fragment(3, true).raw(17).payload(&[0; 16]),
        v6().tcp(1, 2, SYN),
        v6().ext(Ext::HopByHop(0))
            .ext(Ext::Destination(2))
            .ext(Ext::Routing(1))
            .ext(Ext::Auth(3))
            .udp(1, 2)
            .payload(b"abc"),
        v6().fragment(0, true).udp(1, 2).payload(&[0; 16]),
        v6().icmp(2, 0).rest(1280).quote(&v6().tcp(1, 2, ACK).payload(&[7; 100]), 200),
        v4().tcp(1, 2, SYN).padding(6),
        eth().payload(b"arp"),
    ];
    for frame in frames {
        assert_eq!(verify(&frame.bytes()), Ok(()), "{}", show(&frame.bytes()));
    }
}

#[test]
fn one_flipped_bit_anywhere_in_an_ip_packet_is_found() {
    for frame in [
        eth().ip("10.0.1.2", "10.96.0.10").tcp(1, 2, SYN).payload(b"hello"),
        eth().ip("10.0.1.2", "10.96.0.10").udp(1, 2).payload(b"hello"),
        eth().ip("fd00:10:1::2", "fd00:10:96::10").udp(1, 2).payload(b"hello"),
        eth().ip("10.0.1.2", "10.96.0.10").icmp(8, 0).payload(b"hello"),
        eth().ip("10.0.1.2", "10.96.0.10").sctp(1, 2, 0).payload(b"hello"),
    ] {
        let good = frame.bytes();
        for bit in 14 * 8..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 0x80 >> (bit % 8);
            // IPv6 has no header sum: traffic class, flow label, next header and hop limit are covered by nothing.
            let uncovered = frame.is_v6() && matches!(bit - 14 * 8, 4..32 | 48..64);
            assert_eq!(verify(&bad).is_err(), !uncovered, "bit {bit}: {}", show(&bad));
        }
    }
}

/// The check value of CRC-32C (RFC 3720 appendix B.4): 32 bytes of zeros, of which four are the field.
#[test]
fn the_crc_of_zeros() {
    assert_eq!(bytes::crc32c(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
}

#[test]
fn show_reads_like_this() {
    let inner = eth().ip("10.0.1.3", "10.0.1.2").tcp(8080, 40000, SYN | ACK).payload(b"hi");
    let error = eth().ip("10.9.9.9", "10.0.1.3").icmp(3, 4).rest(1400).quote(&inner, 200);
    assert_eq!(
        show(&error.bytes()),
        "eth 02:00:00:00:00:01 > 02:00:00:00:00:fe ipv4, 84 bytes\n\
         ip 10.9.9.9 > 10.0.1.3 ttl 64 len 70 id 4242 sum da60\n\
         icmp type 3 code 4 rest 00000578 sum 0da5\n  \
         quoted ip 10.0.1.3 > 10.0.1.2 ttl 64 len 42 id 4242 sum e287\n  \
         quoted tcp 8080 > 40000 SYN+ACK seq 1000 ack 0 win 64240 sum 76b9\n  \
         quoted data 2 bytes \"hi\""
    );
    assert!(show(&error.poke(40, &[9]).bytes()).contains("\nwrong: "));
}

#[test]
fn moved_ports_are_put_in_quotes_too() {
    let inner = eth().ip("10.0.1.3", "10.0.1.2").tcp(8080, MOVED, ACK);
    let error = eth().ip("10.9.9.9", "10.0.1.3").icmp(3, 4).quote(&inner, 200);
    assert!(error.is_unresolved());
    let done = error.resolve(33_333);
    assert!(!done.is_unresolved());
    assert!(show(&done.bytes()).contains("tcp 8080 > 33333"));
}

#[test]
fn resealing_repairs_what_was_changed() {
    for frame in [
        eth().ip("10.0.1.2", "10.96.0.10").options(&[1; 8]).tcp(1, 2, SYN).payload(b"hello"),
        eth().ip("10.0.1.2", "10.96.0.10").udp(1, 2).payload(b"hello"),
        eth().ip("fd00:10:1::2", "fd00:10:96::10").ext(Ext::Destination(0)).icmp(128, 0).payload(b"hello"),
        eth().ip("10.0.1.2", "10.96.0.10").sctp(1, 2, 0).payload(b"hello"),
    ] {
        let good = frame.bytes();
        let mut bytes = good.clone();
        *bytes.last_mut().unwrap() ^= 0x55;
        assert!(verify(&bytes).is_err());
        reseal(&mut bytes);
        assert_eq!(verify(&bytes), Ok(()));
        *bytes.last_mut().unwrap() ^= 0x55;
        reseal(&mut bytes);
        assert_eq!(bytes, good);
    }
}
