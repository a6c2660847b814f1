//! The gateway's packet rules, as texts for `nft`. Each text is one transaction, and can be applied again. Pure.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_api::egress::{EgressMode, EgressPolicy};
use ipnet::Ipv4Net;

use super::{ADDRESS, VM_LINKS};
use crate::network::{INTERFACE, rules};

/// The addresses of VMs in the VM network, by the numbers of their namespaces.
const ADDRESSES: &str = "198.18.16.0/20";
/// Places that a VM was refused are kept for so long after the last attempt.
pub(super) const REFUSED_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// So many places of one VM.
pub(super) const MOST_REFUSED: usize = 256;
/// So many addresses that names of one VM were resolved to, at a time.
const MOST_ADDRESSES: usize = 4096;

/// A text that cannot fail to be written.
macro_rules! add {
    ($text:ident, $($words:tt)*) => {{
        let _ = writeln!($text, $($words)*);
    }};
}

/// What holds for all VMs. Everything else that passes through is dropped.
pub(super) fn base(closed: &[Ipv4Net]) -> String {
    let mut text = String::new();
    add!(text, "add table inet egress");
    add!(
        text,
        "add set inet egress closed {{ type ipv4_addr; flags interval; auto-merge; }}"
    );
    add!(text, "flush set inet egress closed");
    elements(&mut text, "closed", closed);
    for map in ["vms", "refusals"] {
        add!(text, "add map inet egress {map} {{ type ifname : verdict; }}");
    }
    let chain = |text: &mut String, name: &str, hook: &str, rules: &[String]| {
        add!(text, "add chain inet egress {name} {{ {hook} }}");
        add!(text, "flush chain inet egress {name}");
        for rule in rules {
            add!(text, "add rule inet egress {name} {rule}");
        }
    };
    let forward = [
        format!("iifname \"{INTERFACE}\" ct direction reply ct state established,related accept"),
        "iifname vmap @vms".to_owned(),
    ];
    chain(
        &mut text,
        "forward",
        "type filter hook forward priority 0; policy drop;",
        &forward,
    );
    let input = [
        format!("iifname \"{VM_LINKS}\" ip daddr {ADDRESS} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        "iifname vmap @refusals".to_owned(),
        format!("iifname \"{VM_LINKS}\" drop"),
    ];
    chain(
        &mut text,
        "input",
        "type filter hook input priority 0; policy accept;",
        &input,
    );
    let uplink = [format!("oifname \"{INTERFACE}\" ip saddr {ADDRESSES} masquerade")];
    chain(
        &mut text,
        "uplink",
        "type nat hook postrouting priority srcnat;",
        &uplink,
    );
    text
}

/// The sets and chains of a namespace, before a VM is in it. Applied again it leaves what the sets hold.
pub(super) fn prepare(slot: u16) -> String {
    let mut text = String::new();
    for name in ["open", "networks"] {
        add!(
            text,
            "add set inet egress {name}_{slot} {{ type ipv4_addr; flags interval; auto-merge; }}"
        );
    }
    add!(
        text,
        "add set inet egress names_{slot} {{ type ipv4_addr; size {MOST_ADDRESSES}; flags timeout; }}"
    );
    let seconds = REFUSED_FOR.as_secs();
    for (name, counter) in [("first", ""), ("refused", " counter;")] {
        add!(
            text,
            "add set inet egress {name}_{slot} {{ type ipv4_addr . inet_proto . inet_service; size {MOST_REFUSED}; flags dynamic,timeout; \
             timeout {seconds}s;{counter} }}"
        );
    }
    add!(text, "add chain inet egress refuse_{slot}");
    add!(text, "flush chain inet egress refuse_{slot}");
    // A full set ends its own rule, not the chain. The first time is not renewed by a later one, the last one is.
    // A reset, not an ICMP message, for TCP: QEMU's socket sees it at once.
    for rule in [
        format!("add @first_{slot} {{ ip daddr . meta l4proto . th dport }}"),
        format!("update @refused_{slot} {{ ip daddr . meta l4proto . th dport }}"),
        "meta l4proto tcp reject with tcp reset".to_owned(),
        "reject".to_owned(),
    ] {
        add!(text, "add rule inet egress refuse_{slot} {rule}");
    }
    add!(text, "add chain inet egress vm_{slot}");
    text
}

/// Lets packets of a namespace to its rules: those that pass through, and those for the gateway that are no name queries.
pub(super) fn attach(slot: u16) -> String {
    let mut text = String::new();
    for (map, chain) in [("vms", "vm"), ("refusals", "refuse")] {
        add!(
            text,
            "add element inet egress {map} {{ \"vm{slot}\" : goto {chain}_{slot} }}"
        );
    }
    text
}

/// Forgets what a VM of before was refused.
pub(super) fn forget(slot: u16) -> String {
    format!("flush set inet egress first_{slot}\nflush set inet egress refused_{slot}\n")
}

/// What a policy says of connections that were made under it: other policies let them not pass. Never 0, which is no mark.
fn mark(policy: &EgressPolicy) -> u32 {
    let mut hasher = DefaultHasher::new();
    policy.hash(&mut hasher);
    u32::try_from(hasher.finish() >> 32).unwrap_or_default() | 1
}

/// The networks of a policy that lie within closed ones, which opens them; and the others.
pub(super) fn networks(policy: &EgressPolicy, closed: &[Ipv4Net]) -> (Vec<Ipv4Net>, Vec<Ipv4Net>) {
    let nets = policy.cidrs.iter().filter_map(|network| network.net());
    let nets = nets.filter(|net| rules::never_open(*net).is_none());
    nets.partition(|net| closed.iter().any(|closed| closed.contains(net)))
}

/// Holds a VM to a policy. `learned`: the addresses of names that stay allowed, and for how long. Connections of before that the policy
/// does not allow are reset by their next packet.
pub(super) fn hold(slot: u16, policy: &EgressPolicy, closed: &[Ipv4Net], learned: &[(Ipv4Addr, Duration)]) -> String {
    let mark = mark(policy);
    let (open, public) = networks(policy, closed);
    let mut text = String::new();
    for name in ["open", "networks", "names"] {
        add!(text, "flush set inet egress {name}_{slot}");
    }
    elements(&mut text, &format!("open_{slot}"), &open);
    elements(&mut text, &format!("networks_{slot}"), &public);
    text.push_str(&learn(slot, learned));
    add!(text, "flush chain inet egress vm_{slot}");
    let accept = format!("ct mark set {mark} accept");
    let refuse = format!("goto refuse_{slot}");
    let mut rules = vec![
        format!("oifname != \"{INTERFACE}\" {refuse}"),
        format!("meta nfproto ipv6 {refuse}"),
        // The uplink's own services, its resolver among them.
        format!("ip daddr {} {refuse}", rules::CIDR),
        format!("ct state established ct mark {mark} accept"),
        format!("ip daddr @open_{slot} {accept}"),
        format!("ip daddr @closed {refuse}"),
    ];
    match policy.mode {
        EgressMode::Open => rules.push(accept),
        EgressMode::Allow => rules.extend([
            format!("ip daddr @networks_{slot} {accept}"),
            format!("ip daddr @names_{slot} {accept}"),
            refuse,
        ]),
    }
    for rule in rules {
        add!(text, "add rule inet egress vm_{slot} {rule}");
    }
    text
}

/// Lets a VM connect to addresses that a name was resolved to, for some time. What was let through before is let through for that long.
pub(super) fn learn(slot: u16, addresses: &[(Ipv4Addr, Duration)]) -> String {
    let mut text = String::new();
    for (address, time) in addresses {
        let seconds = time.as_secs().max(1);
        let set = format!("inet egress names_{slot}");
        // The time of an element that is there is not changed by adding it again.
        add!(text, "add element {set} {{ {address} }}");
        add!(text, "delete element {set} {{ {address} }}");
        add!(text, "add element {set} {{ {address} timeout {seconds}s }}");
    }
    text
}

/// Removes everything of a namespace whose VM is gone.
pub(super) fn remove(slot: u16) -> String {
    let mut text = String::new();
    for map in ["vms", "refusals"] {
        add!(text, "delete element inet egress {map} {{ \"vm{slot}\" }}");
    }
    for chain in ["vm", "refuse"] {
        add!(text, "flush chain inet egress {chain}_{slot}");
        add!(text, "delete chain inet egress {chain}_{slot}");
    }
    for set in ["open", "networks", "names", "first", "refused"] {
        add!(text, "delete set inet egress {set}_{slot}");
    }
    text
}

fn elements(text: &mut String, set: &str, nets: &[Ipv4Net]) {
    if nets.is_empty() {
        return;
    }
    let nets: Vec<String> = nets.iter().map(Ipv4Net::to_string).collect();
    add!(text, "add element inet egress {set} {{ {} }}", nets.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(mode: EgressMode, cidrs: &[&str]) -> EgressPolicy {
        EgressPolicy {
            mode,
            hosts: Vec::new(),
            cidrs: cidrs.iter().map(|text| (*text).try_into().unwrap()).collect(),
        }
    }

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn closed_networks_are_checked_before_anything_but_what_opens_them() {
        let closed = nets(&["10.0.0.0/8", "169.254.0.0/16", "203.0.113.9/32"]);
        let policy = policy(
            EgressMode::Allow,
            &["10.1.0.0/16", "203.0.113.0/24", "127.0.0.1", "0.0.0.0/0"],
        );
        let (open, public) = networks(&policy, &closed);
        assert_eq!(
            open,
            nets(&["10.1.0.0/16"]),
            "a network that is larger than a closed one opens none"
        );
        assert_eq!(
            public,
            nets(&["203.0.113.0/24", "0.0.0.0/0"]),
            "the loopback is never opened"
        );
        let text = hold(7, &policy, &closed, &[]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
        assert!(at("@open_7 ct mark set") < at("@closed goto refuse_7"));
        assert!(at("@closed goto refuse_7") < at("@networks_7 ct mark set"));
        assert!(at("@closed goto refuse_7") < at("@names_7 ct mark set"));
        assert!(at("10.0.9.0/24 goto refuse_7") < at("@open_7 ct mark set"));
        assert!(
            text.trim_end().ends_with("add rule inet egress vm_7 goto refuse_7"),
            "{text}"
        );
    }

    #[test]
    fn connections_of_another_policy_have_another_mark() {
        let (open, allow) = (policy(EgressMode::Open, &[]), policy(EgressMode::Allow, &[]));
        assert_ne!(mark(&open), mark(&allow));
        assert_eq!(mark(&open), mark(&open.clone()));
        assert!(hold(1, &open, &[], &[]).trim_end().ends_with(" accept"));
    }
}
