//! What the claimed VMs of a project may connect to: everything public, or a list of names and networks; and what they were refused.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;
use crate::values::{EgressHost, EgressNetwork};

/// What is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// Every public address.
    #[default]
    Open,
    /// Only what the list names.
    Allow,
}

impl EgressMode {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Allow => "allow",
        }
    }
}

impl std::str::FromStr for EgressMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mode = [Self::Open, Self::Allow].into_iter().find(|mode| mode.as_str() == text);
        mode.ok_or_else(|| "must be `open` or `allow`".to_owned())
    }
}

/// Body of PUT, and what a VM is held to. Private networks, the host's own addresses and metadata services are closed in either mode,
/// but for networks in `cidrs` that lie within them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "mode": "allow", "hosts": ["github.com", "*.npmjs.org"], "cidrs": ["203.0.113.0/24"] }))]
pub struct EgressPolicy {
    /// What is let through.
    pub mode: EgressMode,
    /// In the mode `allow`: the names that may be resolved and connected to. `*.` at the beginning stands for all names below.
    #[serde(default)]
    #[schema(max_items = 200, required = false)]
    pub hosts: Vec<EgressHost>,
    /// In the mode `allow`: the networks that may be connected to. In either mode: the closed networks that are opened.
    #[serde(default)]
    #[schema(max_items = 200, required = false)]
    pub cidrs: Vec<EgressNetwork>,
}

impl EgressPolicy {
    /// Whether a name may be resolved. `name` is in small letters and without a dot at its end.
    #[must_use]
    pub fn allows_name(&self, name: &str) -> bool {
        self.mode == EgressMode::Open || self.hosts.iter().any(|host| host.matches(name))
    }
}

impl EgressHost {
    /// Whether a name in small letters and without a dot at its end is this one, or below it.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self.as_str().strip_prefix("*.") {
            Some(above) => name
                .strip_suffix(above)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            None => name == self.as_str(),
        }
    }
}

impl EgressNetwork {
    /// As a network, without the bits that name a host in it. Every text of this type is one.
    #[must_use]
    pub fn net(&self) -> Option<Ipv4Net> {
        let text = self.as_str();
        let net = match text.contains('/') {
            true => text.parse::<Ipv4Net>().ok(),
            false => text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from),
        };
        net.map(|net| net.trunc())
    }

    /// Whether its address has bits behind its prefix, so that it is not plain whether the host or the whole network is meant.
    #[must_use]
    pub fn names_host_bits(&self) -> bool {
        let net = self.as_str().parse::<Ipv4Net>();
        net.is_ok_and(|net| net.addr() != net.network())
    }
}

/// A project's egress policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectEgress {
    /// What is let through.
    pub mode: EgressMode,
    /// The names of the list.
    pub hosts: Vec<EgressHost>,
    /// The networks of the list.
    pub cidrs: Vec<EgressNetwork>,
    /// When it was last set; `null`: never, so it is `open`.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub updated_at: Option<Timestamp>,
    /// Claimed VMs in which it is not in force yet: the server tries again every few seconds.
    pub pending: Vec<PendingEgress>,
}

/// A claimed VM in which the policy is not in force yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingEgress {
    /// The instance.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// What an instance may connect to, and what it was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceEgress {
    /// What its VM is held to now.
    pub policy: EgressPolicy,
    /// Whether that is the project's policy: one that was set a moment ago may not be in force yet.
    pub up_to_date: bool,
    /// Refused attempts, the latest first.
    pub refused: Vec<RefusedAttempt>,
    /// Whether there were more different ones than are kept.
    pub more: bool,
}

/// What a refused attempt was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RefusedProtocol {
    /// A name was not resolved.
    Dns,
    /// A TCP connection.
    Tcp,
    /// A UDP packet.
    Udp,
}

impl RefusedProtocol {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Attempts to reach one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefusedAttempt {
    /// The name, or the address and port.
    pub target: String,
    /// How.
    pub protocol: RefusedProtocol,
    /// How many packets or queries.
    pub count: u64,
    /// When the first one was.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub first_at: Timestamp,
    /// When the last one was.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub last_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_on_list_matches_itself_and_wildcard_only_what_is_below() {
        let host = |text: &str| EgressHost::try_from(text).unwrap();
        assert!(host("npmjs.org").matches("npmjs.org"));
        assert!(!host("npmjs.org").matches("registry.npmjs.org"));
        assert!(!host("npmjs.org").matches("evilnpmjs.org"));
        assert!(host("*.npmjs.org").matches("registry.npmjs.org"));
        assert!(host("*.npmjs.org").matches("a.b.npmjs.org"));
        for other in ["npmjs.org", ".npmjs.org", "evilnpmjs.org", "npmjs.org.evil.example"] {
            assert!(!host("*.npmjs.org").matches(other), "{other}");
        }
    }

    #[test]
    fn host_is_no_address_and_network_is_one() {
        for good in [
            "localhost",
            "a-b.example",
            "*.s3.example.org",
            "_x.example",
            "1.2.3.example",
        ] {
            assert!(EgressHost::try_from(good).is_ok(), "{good}");
        }
        for bad in [
            "", "*", "*.", "a..b", "-a.b", "A.b", "http://a", "a.b/", "10.0.0.1", "a.*.b", "a.b.",
        ] {
            assert!(EgressHost::try_from(bad).is_err(), "{bad}");
        }
        for good in ["10.1.2.3", "10.0.0.0/8", "0.0.0.0/0", "255.255.255.255/32"] {
            let network = EgressNetwork::try_from(good).unwrap();
            assert!(network.net().is_some(), "{good}");
        }
        for bad in [
            "",
            "10.0.0",
            "256.0.0.1",
            "10.0.0.0/33",
            "10.0.0.0/",
            "010.0.0.1",
            "::1",
            "fd00::/8",
        ] {
            assert!(EgressNetwork::try_from(bad).is_err(), "{bad}");
        }
        let network = EgressNetwork::try_from("10.1.2.3/8").unwrap();
        assert_eq!(network.net().unwrap().to_string(), "10.0.0.0/8");
    }
}
