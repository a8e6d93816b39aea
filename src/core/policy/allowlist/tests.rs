//! Tests of the allowlist: the grammar by table, the decision against a reference that compares bit by bit.

use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> Peer<'static> {
    Peer::Ip(text.parse().unwrap())
}

fn allows(list: &str, peer: Peer<'_>) -> bool {
    Allowlist::parse(list).unwrap().allows(&peer)
}

#[test]
fn an_empty_list_denies_all() {
    for list in ["", " ", ",", " , \n\t,"] {
        let parsed = Allowlist::parse(list).unwrap();
        assert!(parsed.is_empty());
        for peer in [Peer::Local, ip("127.0.0.1"), ip("::1"), Peer::Internal { bgw_type: "pg_cron" }] {
            assert!(!parsed.allows(&peer), "{peer:?}");
        }
    }
    assert!(!Allowlist::parse("local").unwrap().is_empty());
}

#[test]
fn addresses_and_networks() {
    for (list, address, expected) in [
        ("10.1.2.3", "10.1.2.3", true),
        ("10.1.2.3", "10.1.2.4", false),
        ("10.1.2.3/32", "10.1.2.3", true),
        ("10.0.0.0/8", "10.255.255.255", true),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.0/8", "9.255.255.255", false),
        ("0.0.0.0/0", "255.255.255.255", true),
        ("0.0.0.0/0", "0.0.0.0", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true),
        ("::/0", "127.0.0.1", false),
        ("::/0", "::ffff:127.0.0.1", false),
        ("2001:db8::/32", "2001:db8:ffff::1", true),
        ("2001:db8::/32", "2001:db9::", false),
        ("::1", "::1", true),
        ("::1", "127.0.0.1", false),
        ("2001:DB8::1", "2001:db8:0:0::1", true),
        // Both spellings of an IPv4 address, on both sides.
        ("10.1.2.3", "::ffff:10.1.2.3", true),
        ("::ffff:10.1.2.3", "10.1.2.3", true),
        ("::ffff:10.1.2.3", "::ffff:10.1.2.3", true),
        ("::ffff:a01:203", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "10.9.9.9", true),
        ("::ffff:10.0.0.0/104", "11.0.0.0", false),
        ("::ffff:0:0/96", "192.0.2.1", true),
        ("::ffff:0:0/96", "::ffff:192.0.2.1", true),
        ("::ffff:0:0/96", "::1", false),
        // Wider than the mapped block: IPv6, so no IPv4 client.
        ("::/80", "::ffff:192.0.2.1", false),
        ("::/80", "::1", true),
        // IPv4-compatible and NAT64 addresses are not mapped ones.
        ("10.1.2.3", "::10.1.2.3", false),
        ("10.1.2.3", "64:ff9b::10.1.2.3", false),
        ("::10.1.2.3", "10.1.2.3", false),
        // Joined and nested ranges.
        ("10.0.0.0/9,10.128.0.0/9", "10.128.0.0", true),
        ("10.0.0.0/8,10.1.0.0/16,10.0.0.1", "10.200.0.0", true),
        ("10.0.0.1,10.0.0.3", "10.0.0.2", false),
        ("0.0.0.0/0,10.0.0.1", "255.0.0.1", true),
        ("255.255.255.255,0.0.0.0", "128.0.0.0", false),
    ] {
        assert_eq!(allows(list, ip(address)), expected, "{address} in {list}");
    }
}

#[test]
fn kinds_of_peer_do_not_stand_in_for_each_other() {
    const EVERYTHING: &str = "0.0.0.0/0 ::/0 local internal";
    let cron = Peer::Internal { bgw_type: "pg_cron" };
    for (list, peer, expected) in [
        ("local", Peer::Local, true),
        ("LOCAL", Peer::Local, true),
        ("local", ip("127.0.0.1"), false),
        ("127.0.0.1 ::1", Peer::Local, false),
        ("0.0.0.0/0 ::/0", Peer::Local, false),
        ("0.0.0.0/0 ::/0 local", cron, false),
        ("internal", cron, true),
        ("Internal", cron, true),
        ("internal", Peer::Local, false),
        ("internal", ip("127.0.0.1"), false),
        ("internal:pg_cron", cron, true),
        ("INTERNAL:pg_cron", cron, true),
        ("internal:PG_CRON", cron, false),
        ("internal:pg_cro", cron, false),
        ("internal:pg_cron2", cron, false),
        ("internal:pg_cron", Peer::Internal { bgw_type: "" }, false),
        ("internal:b internal:c internal:a", Peer::Internal { bgw_type: "a" }, true),
        ("internal:b internal:c internal:a", Peer::Internal { bgw_type: "c" }, true),
        ("internal:b internal:c internal:a", Peer::Internal { bgw_type: "d" }, false),
        ("internal", Peer::Internal { bgw_type: "logical replication worker" }, true),
        (EVERYTHING, Peer::Autovacuum, false),
        (EVERYTHING, Peer::Unknown, false),
        (EVERYTHING, Peer::Internal { bgw_type: "parallel worker" }, false),
        (EVERYTHING, Peer::Internal { bgw_type: "autovacuum worker" }, false),
        (EVERYTHING, Peer::Internal { bgw_type: "autovacuum launcher" }, false),
    ] {
        assert_eq!(allows(list, peer), expected, "{peer:?} in {list}");
    }
}

#[test]
fn separators_and_quotes() {
    for (list, items) in [
        ("a,b c\td\ne\r\nf", &["a", "b", "c", "d", "e", "f"][..]),
        (" , a ,, b , ", &["a", "b"]),
        ("\"a b\",c", &["a b", "c"]),
        ("internal:\"a, b\" c", &["internal:a, b", "c"]),
        ("\"a\"\"b\"", &["a\"b"]),
        ("\"a\" \"b\"", &["a", "b"]),
        ("\"\"", &[""]),
        ("a\"\"", &["a"]),
        ("\"\"\"\"", &["\""]),
    ] {
        assert_eq!(split_items(list).unwrap(), items, "{list:?}");
    }
    let worker = Peer::Internal { bgw_type: "my \"odd\", worker" };
    assert!(allows("10.0.0.1, \"internal:my \"\"odd\"\", worker\"", worker));
    assert!(allows("internal:\"my \"\"odd\"\", worker\"", worker));
    // No-break space and other Unicode blanks separate nothing: the item is refused, not silently split.
    assert!(Allowlist::parse("10.0.0.1\u{a0}10.0.0.2").is_err());
}

#[test]
fn refuses_malformed_items_by_name() {
    for item in [
        "10.0.0",
        "10",
        "10/8",
        "10.0.0.0.0",
        "256.0.0.1",
        "010.0.0.1",
        "1.2.3.4:5432",
        "[::1]",
        "[::1]:5432",
        ":::",
        "1::2::3",
        "localhost",
        "example.com",
        "*",
        "all",
        "any",
        "samehost",
        "10.0.0.1-10.0.0.9",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/8/8",
        "10.0.0.0/256",
        "10.0.0.0/8a",
        "::/129",
        "::/0128",
        "/8",
        "0x7f.0.0.1",
        "2130706433",
        "10.0.0.1/8",
        "10.1.0.0/15",
        "2001:db8::1/64",
        "::ffff:10.0.0.1/104",
        "::ffff:0:0/90",
        "0.0.0.1/0",
        "::1/0",
        "fe80::1%eth0",
        "fe80::1%eth0/64",
        "fe80::%1/64",
        "internal:",
        "internals",
        "locals",
        "local:",
        "!10.0.0.1",
        "-10.0.0.1",
        "10.0.0.1;10.0.0.2",
        "\u{ff11}.2.3.4",
        "١.٢.٣.٤",
    ] {
        let e = Allowlist::parse(&format!("127.0.0.1, {item}, ::1")).unwrap_err();
        assert_eq!(e.message, format!("invalid item \"{item}\" in address list"));
        assert!(e.hint.is_some() || e.detail.is_some(), "{item}");
    }
    assert!(Allowlist::parse("internal:autovacuum").is_ok(), "a type that merely resembles a refused one");
    for (list, message) in [
        ("\"\"", "invalid item \"\" in address list"),
        ("\" 10.0.0.1\"", "invalid item \" 10.0.0.1\" in address list"),
        ("\"10.0.0.1", "invalid item \"10.0.0.1\" in address list"),
        ("10.0.0.1\"", "invalid item \"10.0.0.1\" in address list"),
        ("internal:\"autovacuum worker\"", "invalid item \"internal:autovacuum worker\" in address list"),
        ("\"internal:parallel worker\"", "invalid item \"internal:parallel worker\" in address list"),
        ("internal:a\u{7}b", "invalid item \"internal:a\\u{7}b\" in address list"),
        ("internal:\"a\nb\"", "invalid item \"internal:a\\u{a}b\" in address list"),
    ] {
        assert_eq!(Allowlist::parse(list).unwrap_err().message, message);
    }
}

#[test]
fn host_bits_are_answered_with_both_fixes() {
    let e = Allowlist::parse("10.1.2.3/8").unwrap_err();
    assert_eq!(e.hint.as_deref(), Some("Write 10.0.0.0/8 for the network or 10.1.2.3 for the one address."));
    let e = Allowlist::parse("2001:db8::1/32").unwrap_err();
    assert_eq!(
        e.hint.as_deref(),
        Some("Write 2001:db8::/32 for the network or 2001:db8::1 for the one address.")
    );
}

#[test]
fn bounds() {
    let items =
        |n: u32| (0..n).map(|i| std::net::Ipv4Addr::from(2 * i).to_string()).collect::<Vec<_>>().join(",");
    let full = Allowlist::parse(&items(1024)).unwrap();
    assert!(full.allows(&ip("0.0.7.254")) && !full.allows(&ip("0.0.7.255")) && !full.allows(&ip("0.0.8.0")));
    let e = Allowlist::parse(&items(1025)).unwrap_err();
    assert_eq!(e.message, "address list has too many items");
    assert_eq!(Allowlist::parse(&",".repeat(65_537)).unwrap_err().message, "address list is too long");
    assert!(Allowlist::parse(&",".repeat(65_536)).unwrap().is_empty());
    let e = Allowlist::parse(&"x".repeat(60_000)).unwrap_err();
    assert!(e.message.len() < 120, "a huge item is cut in the message");

    let longest = "w".repeat(95);
    assert!(allows(&format!("internal:{longest}"), Peer::Internal { bgw_type: &longest }));
    assert!(Allowlist::parse(&format!("internal:{longest}w")).is_err());
}

#[test]
fn a_secrets_own_list_admits_only_addresses_inside() {
    let nets: Vec<IpNet> =
        ["10.0.0.0/8", "2001:db8::/32"].iter().map(|n| parse_network(n).unwrap()).collect();
    for (peer, expected) in [
        (ip("10.1.2.3"), true),
        (ip("::ffff:10.1.2.3"), true),
        (ip("2001:db8::1"), true),
        (ip("11.0.0.1"), false),
        (ip("::ffff:11.0.0.1"), false),
        (ip("2001:db9::1"), false),
        (ip("::1"), false),
        (Peer::Local, false),
        (Peer::Internal { bgw_type: "pg_cron" }, false),
        (Peer::Autovacuum, false),
        (Peer::Unknown, false),
    ] {
        assert_eq!(narrow(&nets, &peer), expected, "{peer:?}");
        assert!(!narrow(&[], &peer), "an empty list admits nobody");
    }
    // A mapped network that did not come through `parse_network`, as from a stored cidr.
    let raw: IpNet = "::ffff:10.0.0.0/104".parse().unwrap();
    assert!(narrow(&[raw], &ip("10.1.2.3")) && narrow(&[raw], &ip("::ffff:10.1.2.3")));
    assert!(!narrow(&[raw], &ip("11.0.0.1")));
    let everything: Vec<IpNet> = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    assert!(narrow(&everything, &ip("192.0.2.1")) && narrow(&everything, &ip("::1")));
    assert!(!narrow(&everything, &Peer::Local), "a list of addresses never admits a socket");
    assert!(!narrow(&everything[1..], &ip("::ffff:192.0.2.1")));
}

/// An address or network as a string of bits: four-byte form for IPv4 and mapped IPv6.
fn bits(address: IpAddr, prefix: usize) -> (bool, Vec<bool>) {
    let of = |bytes: &[u8]| -> Vec<bool> {
        bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1)).collect()
    };
    match address {
        IpAddr::V4(a) => (true, of(&a.octets())[..prefix].to_vec()),
        IpAddr::V6(a) => {
            let all = of(&a.octets());
            let mapped = prefix >= 96 && a.octets()[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            if mapped { (true, all[96..prefix].to_vec()) } else { (false, all[..prefix].to_vec()) }
        }
    }
}

fn reference(nets: &[(IpAddr, usize)], peer: IpAddr) -> bool {
    let width = if peer.is_ipv4() { 32 } else { 128 };
    let (v4, peer_bits) = bits(peer, width);
    nets.iter().any(|&(address, prefix)| {
        let (net_v4, net_bits) = bits(address, prefix);
        v4 == net_v4 && peer_bits.starts_with(&net_bits)
    })
}

/// Addresses crowded into few places, so that peers and networks meet, the mapped block and both ends included.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![
        (0u32..4, 0u32..4).prop_map(|(hi, lo)| hi << 30 | lo),
        (0u32..8).prop_map(|lo| u32::MAX - lo),
        (0u32..8).prop_map(|lo| 0x0a00_0000 + lo),
        any::<u32>(),
    ];
    let v6 = prop_oneof![
        (0u128..4, 0u128..8).prop_map(|(hi, lo)| hi << 126 | lo),
        (0u128..8).prop_map(|lo| u128::MAX - lo),
        (0u128..8).prop_map(|lo| 0xffff_0000_0000 + 0x0a00_0000 + lo),
        (0u128..4).prop_map(|lo| 0xfffe_ffff_ffff + lo),
        any::<u128>(),
    ];
    prop_oneof![v4.prop_map(|a| IpAddr::V4(a.into())), v6.prop_map(|a| IpAddr::V6(a.into()))]
}

/// A network without host bits: the address cut to a prefix length.
fn network() -> impl Strategy<Value = (IpAddr, usize)> {
    (address(), 0usize..=128).prop_map(|(address, length)| match address {
        IpAddr::V4(a) => {
            let length = length % 33;
            let mask = u32::MAX.checked_shl(32 - length as u32).unwrap_or(0);
            (IpAddr::V4((u32::from(a) & mask).into()), length)
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - length as u32).unwrap_or(0);
            (IpAddr::V6((u128::from(a) & mask).into()), length)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_bit_by_bit_comparison(
        nets in prop::collection::vec(network(), 0..8),
        peers in prop::collection::vec(address(), 8),
    ) {
        let text = nets.iter().map(|(a, p)| format!("{a}/{p}")).collect::<Vec<_>>().join(" ");
        let list = Allowlist::parse(&text).unwrap();
        let parsed: Vec<IpNet> = nets.iter().map(|(a, p)| parse_network(&format!("{a}/{p}")).unwrap()).collect();
        // The edges of every network are where an off-by-one would show.
        let edges = parsed.iter().flat_map(|n| [n.network(), n.broadcast()]);
        for peer in peers.into_iter().chain(edges) {
            let expected = reference(&nets, peer);
            prop_assert_eq!(list.allows(&Peer::Ip(peer)), expected, "{} in {}", peer, text);
            prop_assert_eq!(narrow(&parsed, &Peer::Ip(peer)), expected, "{} in {}", peer, text);
        }
    }

    #[test]
    fn host_bits_are_always_refused((address, length) in network(), bit in 0u32..128) {
        let width = if address.is_ipv4() { 32 } else { 128 };
        prop_assume!(length < width);
        let bit = bit % (width - length) as u32;
        let dirty: IpAddr = match address {
            IpAddr::V4(a) => IpAddr::V4((u32::from(a) | 1 << bit).into()),
            IpAddr::V6(a) => IpAddr::V6((u128::from(a) | 1 << bit).into()),
        };
        prop_assert!(parse_network(&format!("{dirty}/{length}")).is_err(), "{dirty}/{length}");
    }

    #[test]
    fn parse_never_panics(text in prop_oneof![
        any::<String>(), "[0-9a-f.:/,% \"]{0,40}", "(internal|local|internal:|::ffff:|/|,| |\"|1|10\\.0\\.0\\.0){0,12}",
    ]) {
        if let Ok(list) = Allowlist::parse(&text) {
            prop_assert!(!list.allows(&Peer::Unknown) && !list.allows(&Peer::Autovacuum));
        }
    }

    #[test]
    fn any_worker_type_can_be_written(name in "[a-zA-Z0-9_ ,\"é:/.]{1,40}") {
        prop_assume!(name.len() <= MAX_WORKER_TYPE_BYTES);
        let list = Allowlist::parse(&format!("internal:\"{}\"", name.replace('"', "\"\""))).unwrap();
        let peer = Peer::Internal { bgw_type: &name };
        prop_assert!(list.allows(&peer));
        let other = format!("{}x", name);
        let stranger = Peer::Internal { bgw_type: &other };
        prop_assert!(!list.allows(&stranger));
    }
}
