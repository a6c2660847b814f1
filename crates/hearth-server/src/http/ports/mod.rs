//! TCP ports in a VM: what listens, HTTP and WebSockets to it ([`proxy`], found by path, header or host name in [`route`]), raw
//! connections ([`tunnel`]), and links for others ([`share`]). Everything goes through the agent; no port of a VM is opened to a network.

mod address;
mod proxy;
mod rewrite;
mod route;
mod share;
mod tunnel;
mod visitor;
mod visitor_limit;
mod watched;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use hearth_api::error::{ErrorCode, FieldError};
use hearth_api::ids::InstanceId;
use hearth_api::port::{InstancePort, InstancePorts, InstancePreview};
use hearth_guest::client::{AgentClient, AgentError, GuestStream, NOT_ACCEPTED, NOTHING_LISTENS};
use hearth_guest::ports::ListeningPort;

use super::AppState;
use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Inside, answered, enter, usable};
use super::extract::Path;
use crate::secrets::links::LinkKey;
use crate::store::InstanceRow;

pub use address::{FORWARDED_PROTO, LOCAL_DOMAIN, named, outer_host, outer_scheme};
pub use proxy::{Proxied, pass};
pub use rewrite::Outside;
pub use route::{answer, by_name_or_header, routes};
pub use share::{__path_share_port, share_port};
pub use tunnel::{__path_open_tunnel, open_tunnel, opened};
pub use visitor_limit::VisitorLimit;
pub use watched::Watched;

/// What an agent answers to a path that it does not know.
const UNKNOWN_PATH: u16 = 404;
/// So many of the ports that do listen are named when one does not.
const NAMED_PORTS: usize = 20;

/// What the installation says of ports.
#[derive(Debug, Clone)]
pub struct PortAccess {
    /// Names below this one, `{port}-{id}.<domain>`, lead to VMs.
    pub domain: Option<String>,
    /// Signs links.
    pub links: LinkKey,
    /// Requests that came by them.
    pub visitors: VisitorLimit,
}

/// What listens in a VM
///
/// HTTP and WebSockets reach a port below `/api/v1/instances/{id}/ports/{port}/`, with every method; a request for `…/ports/3000/a?b=c` arrives
/// at port 3000 of the VM as `/a?b=c`, with `Host: localhost:3000`, `X-Forwarded-For`, `-Host`, `-Proto` and `-Prefix`. The token in
/// `Authorization` is not passed on; where the server in the VM needs that header itself, send the token as `X-Hearth-Token`. The headers
/// `X-Hearth-Instance` and `X-Hearth-Port` do the same for a request on any path, and `{port}-{id}.<domain>` where the server has a
/// domain for it. Where nothing listens the answer is 502.
#[utoipa::path(
    get,
    path = "/instances/{id}/ports",
    tag = "ports",
    responses((status = 200, body = InstancePorts, description = "What listens"), (status = 409, description = "refused"), (status = 410, description = "refused"))
)]
pub async fn list_ports(
    State(state): State<AppState>,
    caller: Caller,
    Path(id): Path<InstanceId>,
    headers: HeaderMap,
) -> Result<Json<InstancePorts>, ApiError> {
    let row = usable(&state, &caller, &id).await?;
    let Inside { agent, resumed } = enter(&state, &row).await?;
    let found = answered(&state, &row, agent.listening_ports()).await?;
    drop(resumed);
    let found = found.map_err(|error| unusual(&error))?;
    let url = |port| address::of(&state.ports, &headers, &id, port);
    let previews = row.settings.iter().flat_map(|repo| {
        let named = repo.settings.hooks.previews.iter();
        named.map(|preview| InstancePreview {
            name: preview.name.to_string(),
            repo_full_name: repo.repo_full_name.clone(),
            port: preview.port.get(),
            url: url(preview.port.get()),
            listening: found.iter().any(|one| one.port == preview.port.get()),
        })
    });
    Ok(Json(InstancePorts {
        previews: previews.collect(),
        items: found.iter().map(|one| shown(one, url(one.port))).collect(),
    }))
}

fn shown(one: &ListeningPort, url: String) -> InstancePort {
    InstancePort {
        port: one.port,
        address: one.address.clone(),
        process_id: one.process_id,
        process: one.process.clone(),
        command: one.command.clone(),
        user: one.user.clone(),
        url,
    }
}

/// A connection to a port, or why there is none.
async fn connect(state: &AppState, row: &InstanceRow, agent: &AgentClient, port: u16) -> Result<GuestStream, ApiError> {
    match answered(state, row, agent.port_stream(port)).await? {
        Ok(stream) => Ok(stream),
        Err(AgentError::Refused {
            status: NOTHING_LISTENS,
            ..
        }) => Err(nothing_listens(agent, port).await),
        Err(AgentError::Refused {
            status: NOT_ACCEPTED,
            message,
            ..
        }) => Err(ApiError::new(ErrorCode::BadGateway, message)),
        Err(error) => Err(unusual(&error)),
    }
}

/// 502 that names what does listen.
async fn nothing_listens(agent: &AgentClient, port: u16) -> ApiError {
    let mut found = agent.listening_ports().await.unwrap_or_default();
    // One server may listen on several addresses.
    found.dedup_by_key(|one| one.port);
    let name = |one: &ListeningPort| one.process.clone().unwrap_or_else(|| "a process that ended".to_owned());
    let named = found.iter().take(NAMED_PORTS);
    let list: Vec<String> = named
        .clone()
        .map(|one| format!("{} ({})", one.port, name(one)))
        .collect();
    let what = if list.is_empty() {
        "nothing listens on any port there".to_owned()
    } else {
        format!("what does: {}", list.join(", "))
    };
    let details = named.map(|one| FieldError {
        path: format!("port {}", one.port),
        message: match one.process_id {
            Some(pid) => format!("{} (process {pid}) listens on {}", name(one), one.address),
            None => format!("something listens on {}", one.address),
        },
    });
    ApiError::new(
        ErrorCode::BadGateway,
        format!("nothing listens on port {port} in the VM; {what}. Start the server, or use its port"),
    )
    .with_details(details.collect())
}

/// What an agent says besides that nothing listens.
fn unusual(error: &AgentError) -> ApiError {
    match error {
        AgentError::Refused {
            status: UNKNOWN_PATH, ..
        } => ApiError::new(
            ErrorCode::Conflict,
            "the agent in this VM is older than connections to ports; build the image again",
        ),
        other => ApiError::unavailable(other.to_string()),
    }
}
