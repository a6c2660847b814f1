//! What the driver asks the gateway, one JSON object per connection, and what it answers.

use std::net::SocketAddrV4;

use hearth_api::egress::{EgressPolicy, RefusedAttempt};
use hearth_api::ids::VmId;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
pub(in crate::network) enum Request {
    /// What holds for all VMs, and the VMs that an earlier gateway served.
    Configure {
        /// The networks that are closed.
        closed: Vec<Ipv4Net>,
        /// Who answers name queries.
        upstream: SocketAddrV4,
        /// The VMs that run.
        vms: Vec<Known>,
    },
    /// A VM is about to start: it gets a namespace, in which everything public may be reached.
    Take {
        /// Its id.
        vm: VmId,
    },
    /// A VM is held to a policy from now on.
    Hold {
        /// Its id.
        vm: VmId,
        /// What it may reach.
        policy: EgressPolicy,
    },
    /// What a VM was refused.
    Refused {
        /// Its id.
        vm: VmId,
    },
}

/// A VM that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::network) struct Known {
    pub(in crate::network) vm: VmId,
    /// The number of its namespace.
    pub(in crate::network) slot: u16,
    pub(in crate::network) policy: EgressPolicy,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "camelCase")]
pub(in crate::network) enum Reply {
    /// It was done.
    Done,
    /// A namespace for a VM.
    Taken {
        /// Its number.
        slot: u16,
        /// A path that leads to it for some time.
        namespace: String,
    },
    /// What a VM was refused.
    Refused {
        /// By place, the latest first.
        attempts: Vec<RefusedAttempt>,
        /// Whether there were more than are kept.
        more: bool,
    },
    /// This gateway serves no such VM.
    NoSuchVm,
    /// It was not done.
    Failed {
        /// Why.
        reason: String,
    },
}
