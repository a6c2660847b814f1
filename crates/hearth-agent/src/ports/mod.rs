//! TCP ports of this VM: what listens ([`listening`]), and connections of the host to it ([`connect`]). No port is opened here.

mod connect;
mod listening;
pub(crate) mod relay;

use hearth_guest::ports::PortList;
use http::StatusCode;

pub(crate) use connect::stream;

use crate::reply::{self, Fault, Reply};

/// What listens. On a thread of its own: a VM may have thousands of processes to look through.
pub(crate) async fn list() -> Result<Reply, Fault> {
    let items = tokio::task::spawn_blocking(listening::with_processes)
        .await
        .map_err(|error| Fault::from_io("the listening ports could not be read", &error.into()))?;
    Ok(reply::json(StatusCode::OK, &PortList { items }))
}
