//! What is closed to every VM, and the packet rules for what runs in the VM network beside VMs: everything private is refused,
//! everything else may go out. What a VM may reach is the gateway's to decide. Pure text, no IO.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use ipnet::{IpNet, Ipv4Net};

use super::gateway::VM_LINKS;

/// Where the uplink answers name queries. The uplink's own network is none of those that home routers, Docker or QEMU's
/// inner network (10.0.2.0/24) use; it exists inside the VM network only.
pub(super) const DNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 9, 3), 53);
/// The uplink's network.
pub(super) const CIDR: &str = "10.0.9.0/24";

/// Closed to every VM (IANA's special-purpose registry): this host, private networks, carrier NAT, link-local (cloud metadata
/// services live there), protocol assignments and one public address (two clouds have theirs there), benchmark, multicast, reserved.
const REFUSED_V4: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "168.63.129.16/32",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// The same for IPv6, with the ways to write an IPv4 address as an IPv6 one.
const REFUSED_V6: &[&str] = &[
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
];

/// What belongs to no host of the internet either, beside the networks above: IPv6 addresses that carry an IPv4 one.
const SPECIAL: &[&str] = &["2001::/32", "2002::/16"];

/// What no policy opens: no host has such an address, or it is this host's loopback or the VM network's own.
const NEVER: &[(&str, &str)] = &[
    ("0.0.0.0/8", "no host has such an address"),
    ("127.0.0.0/8", "it is the host's loopback"),
    ("224.0.0.0/4", "multicast does not leave a VM"),
    ("240.0.0.0/4", "no host has such an address"),
    (CIDR, "it is the VM network's own"),
    ("198.18.0.0/15", "it is the VM network's own"),
];

/// The network that keeps an address from being a public one; `None` for a host of the internet.
#[must_use]
pub fn not_public(address: IpAddr) -> Option<&'static str> {
    let all = [REFUSED_V4, REFUSED_V6, SPECIAL].into_iter().flatten().copied();
    let holds = |net: &str| net.parse::<IpNet>().is_ok_and(|net| net.contains(&address));
    all.into_iter().find(|net| holds(net))
}

/// Every IPv4 network that is closed to VMs, on a host with these addresses.
pub(super) fn closed(host: &BTreeSet<IpAddr>) -> Vec<Ipv4Net> {
    let fixed = REFUSED_V4.iter().filter_map(|net| net.parse().ok());
    let own = host.iter().filter_map(|address| match address {
        IpAddr::V4(v4) => Some(Ipv4Net::from(*v4)),
        IpAddr::V6(_) => None,
    });
    fixed.chain(own).collect()
}

/// Whether a network lies within one that is closed to VMs: that one. Naming it in an egress policy opens it.
pub fn closed_network(net: Ipv4Net) -> std::io::Result<Option<Ipv4Net>> {
    let closed = closed(&host_addresses()?);
    Ok(closed.into_iter().find(|closed| closed.contains(&net)))
}

/// Why no egress policy can open a network; `None` where one can.
#[must_use]
pub fn never_open(net: Ipv4Net) -> Option<&'static str> {
    let within = |never: &str| never.parse::<Ipv4Net>().is_ok_and(|never| never.contains(&net));
    NEVER.iter().find(|(never, _)| within(never)).map(|(_, why)| *why)
}

/// The whole rule set, replacing the one before it in one transaction. `upstream` answers the gateway's name queries.
pub(super) fn text(host: &BTreeSet<IpAddr>, upstream: SocketAddrV4) -> String {
    let set = |fixed: &[&str], own: Vec<String>| {
        let all: Vec<String> = fixed.iter().map(|&net| net.to_owned()).chain(own).collect();
        all.join(", ")
    };
    let v4 = host
        .iter()
        .filter(|address| address.is_ipv4() && !covered(address))
        .map(IpAddr::to_string)
        .collect();
    let v6 = host
        .iter()
        .filter(|address| address.is_ipv6() && !covered(address))
        .map(IpAddr::to_string)
        .collect();
    // A reset, not an ICMP message: the kernel drops the latter while the socket is still inside `connect`, and the guest
    // would wait for its timeout. Both kinds of answer must themselves be let through.
    let mut text = String::from("table inet hearth\ndelete table inet hearth\ntable inet hearth {\n");
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "  set refused4 {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}\n  \
           set refused6 {{ type ipv6_addr; flags interval; auto-merge; elements = {{ {} }} }}\n  \
           chain refuse {{\n    \
             meta l4proto tcp reject with tcp reset\n    \
             reject\n  \
           }}\n  \
           chain output {{\n    \
             type filter hook output priority 0; policy accept;\n    \
             ip daddr {server} meta l4proto {{ tcp, udp }} th dport {port} accept\n    \
             oifname \"{VM_LINKS}\" meta l4proto {{ tcp, udp }} th sport 53 accept\n    \
             tcp flags & rst == rst accept\n    \
             icmp type destination-unreachable accept\n    \
             icmpv6 type destination-unreachable accept\n    \
             oifname \"lo\" goto refuse\n    \
             ip daddr @refused4 goto refuse\n    \
             ip6 daddr @refused6 goto refuse\n  \
           }}\n}}\n",
        set(REFUSED_V4, v4),
        set(REFUSED_V6, v6),
        server = upstream.ip(),
        port = upstream.port(),
    );
    text
}

/// Whether one of the fixed networks holds this address anyway: keeps the rules short and the same when only such addresses change.
fn covered(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// Every address that this host has now.
pub fn host_addresses() -> std::io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_is_one_and_only_the_internet_is_public() {
        for net in [REFUSED_V4, REFUSED_V6, SPECIAL].into_iter().flatten() {
            assert!(net.parse::<IpNet>().is_ok(), "{net}");
        }
        for (text, net) in [
            ("127.0.0.1", Some("127.0.0.0/8")),
            ("0.0.0.0", Some("0.0.0.0/8")),
            ("169.254.169.254", Some("169.254.0.0/16")),
            ("100.100.100.200", Some("100.64.0.0/10")),
            ("168.63.129.16", Some("168.63.129.16/32")),
            ("192.0.0.192", Some("192.0.0.0/24")),
            ("172.31.255.255", Some("172.16.0.0/12")),
            ("172.32.0.1", None),
            ("8.8.8.8", None),
            ("::1", Some("::/96")),
            ("::ffff:10.0.0.1", Some("::ffff:0:0/96")),
            ("64:ff9b::7f00:1", Some("64:ff9b::/96")),
            ("2002:7f00:1::", Some("2002::/16")),
            ("fd00:ec2::254", Some("fc00::/7")),
            ("2606:4700::1111", None),
        ] {
            assert_eq!(not_public(text.parse().unwrap()), net, "{text}");
        }
    }

    #[test]
    fn network_within_a_closed_one_is_told_and_some_are_never_opened() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let closed = |text: &str| closed_network(net(text)).unwrap().map(|net| net.to_string());
        assert_eq!(closed("10.1.0.0/16").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(closed("169.254.169.254/32").as_deref(), Some("169.254.0.0/16"));
        // What is larger than a closed network opens only what is public in it.
        assert_eq!(closed("0.0.0.0/0"), None);
        assert_eq!(closed("203.0.112.0/23"), None);
        assert_eq!(never_open(net("127.0.0.1/32")), Some("it is the host's loopback"));
        assert_eq!(never_open(net("10.0.9.3/32")), Some("it is the VM network's own"));
        for other in ["10.0.0.0/8", "0.0.0.0/0", "169.254.169.254/32"] {
            assert_eq!(never_open(net(other)), None, "{other}");
        }
    }

    #[test]
    fn the_hosts_public_addresses_are_refused_and_private_ones_already_are() {
        let host = ["192.168.7.7", "203.0.113.9", "fd00::2", "2001:db8::5"].map(|text| text.parse().unwrap());
        let text = text(&BTreeSet::from(host), DNS);
        assert!(
            text.contains(", 203.0.113.9 }") && text.contains(", 2001:db8::5 }"),
            "{text}"
        );
        assert!(!text.contains("192.168.7.7") && !text.contains("fd00::2"), "{text}");
        let refused = text.find("@refused4").unwrap();
        assert!(
            text.find("th dport 53 accept").unwrap() < refused,
            "name queries must be let through first"
        );
    }
}
