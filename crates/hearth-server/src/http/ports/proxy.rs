//! One HTTP request for a server in a VM, and its answer: bodies pass as they come, and a connection that changes its protocol (a WebSocket)
//! becomes two byte streams that are joined.

use axum::body::Body;
use axum::http::{Request, StatusCode, Version};
use axum::response::Response;
use hearth_api::error::{ErrorCode, chain};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::io::InspectReader;

use super::connect;
use super::rewrite::{self, Outside};
use super::watched::Watched;
use crate::http::AppState;
use crate::http::error::ApiError;
use crate::http::exec::{Inside, enter, reach};
use crate::store::InstanceRow;

/// Marks an answer that a server in a VM gave: it stays as it is.
#[derive(Debug, Clone, Copy)]
pub struct Proxied;

/// Passes a request on, which came with a token or by a shared link. Its URI is already the one that the server in the VM gets.
pub async fn pass(
    state: &AppState,
    row: &InstanceRow,
    by_link: bool,
    mut request: Request<Body>,
    outside: &Outside,
) -> Result<Response, ApiError> {
    // A forgotten page of somebody else must not keep the VM for ever.
    let (agent, watched) = if by_link {
        let place = state.ports.visitors.enter(&row.id).await?;
        let Inside { agent, resumed } = reach(state, row).await?;
        (agent, Watched::of_visitor(state, resumed, place))
    } else {
        let Inside { agent, resumed } = enter(state, row).await?;
        (agent, Watched::new(state, row, resumed))
    };
    let stream = connect(state, row, &agent, outside.port).await?;
    let no_http = |error: hyper::Error| {
        ApiError::new(
            ErrorCode::BadGateway,
            format!(
                "what listens on port {} in the VM gave no HTTP answer: {}",
                outside.port,
                chain(&error)
            ),
        )
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(no_http)?;
    // It ends with the request and the answer, which tell of its errors.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });

    let upgrade = rewrite::upgrade_of(request.headers());
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    rewrite::request(request.headers_mut(), outside, upgrade.as_ref());
    *request.version_mut() = Version::HTTP_11;
    let request = request.map(|body| {
        let watched = watched.clone();
        Body::new(body.map_frame(move |frame| {
            watched.moved();
            frame
        }))
    });
    let mut answer = sender.send_request(request).await.map_err(no_http)?;
    *answer.version_mut() = Version::HTTP_11;
    let changes = (answer.status() == StatusCode::SWITCHING_PROTOCOLS)
        .then(|| rewrite::upgrade_of(answer.headers()))
        .flatten();
    if let (Some(_), Some(client)) = (&changes, client) {
        let server = hyper::upgrade::on(&mut answer);
        tokio::spawn(join(client, server, watched.clone()));
    }
    rewrite::answer(answer.headers_mut(), outside, changes.as_ref());
    let mut answer = answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            watched.moved();
            frame
        }))
    });
    answer.extensions_mut().insert(Proxied);
    Ok(answer)
}

/// Both ends of a connection that has changed its protocol, until both directions have ended.
async fn join(client: OnUpgrade, server: OnUpgrade, watched: Watched) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a connection did not change its protocol");
            return;
        }
    };
    let watch = |watched: Watched| move |_: &[u8]| watched.moved();
    let mut client = InspectReader::new(TokioIo::new(client), watch(watched.clone()));
    let mut server = InspectReader::new(TokioIo::new(server), watch(watched));
    // How it ended is the matter of what speaks over it.
    drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
}
