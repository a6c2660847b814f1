//! Options of `hearth serve` for who watches it: metrics, and how long events are kept.

use std::time::Duration;

use clap::Args;
use hearth_server::ServeOptions;

use super::serve::parse_length;
use crate::listen::TcpArg;

/// What is kept and shown of what happens.
#[derive(Debug, Clone, Args)]
pub(super) struct WatchingArgs {
    /// Also serve Prometheus metrics at /metrics of this address, without a token: a port of this machine alone, or an address with one
    /// [default: only at /metrics of the API, with an admin token]
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<TcpArg>,
    /// How long events are kept, like 7d: clients that were away continue from there [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    events_max_age: Option<Duration>,
    /// How long entries of the audit log are kept, like 30d [default: 90d]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    audit_max_age: Option<Duration>,
    /// How long records of claims and boots are kept, with their logs, like 30d [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    history_max_age: Option<Duration>,
    /// What those may take on the disk, about, in MiB [default: 1024]
    #[arg(long, value_name = "MIB")]
    history_disk: Option<u64>,
    /// Events that are kept at most [default: 500000]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    events_most: Option<u64>,
}

impl WatchingArgs {
    /// These in place of the usual ones.
    pub(super) fn set(&self, options: ServeOptions) -> ServeOptions {
        ServeOptions {
            metrics_listen: self.metrics_listen.map(|TcpArg(address)| address),
            events_max_age: self.events_max_age.unwrap_or(options.events_max_age),
            audit_max_age: self.audit_max_age.unwrap_or(options.audit_max_age),
            history_max_age: self.history_max_age.unwrap_or(options.history_max_age),
            history_disk_mib: self.history_disk.unwrap_or(options.history_disk_mib),
            most_events: self.events_most.unwrap_or(options.most_events),
            ..options
        }
    }
}
