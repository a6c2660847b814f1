//! A terminal in the browser: the page, and the API's WebSocket for whom has signed in.

use axum::extract::Request;
use axum::response::Response;
use hearth_api::ids::InstanceId;
use hearth_api::terminal::TerminalSize;
use maud::html;

use super::assets;
use super::form::{Fields, Named};
use super::frame::{Frame, Section};
use super::instance::{head, look_up};
use super::refusal::Refusal;
use super::session::PROOF_FIELD;
use super::visitor::Visitor;

/// `GET …/terminal`.
pub async fn show(Named(id): Named<InstanceId>, visitor: Visitor) -> Result<Response, Refusal> {
    let (view, project) = look_up(&visitor, &id).await?;
    let socket = format!("/instances/{id}/terminal/socket?{PROOF_FIELD}={}", visitor.proof);
    let body = html! {
        (head(&view, project.as_ref(), Some("Terminal")))
        p #terminal-state.dim role="status" { "Connecting …" }
        div #terminal data-socket=(socket) {}
        p.help { "Everything that runs in it ends when this page is closed; sessions outlive it. Ctrl+Shift+M leaves the terminal." }
    };
    let scripts: Vec<&assets::Asset> = vec![&assets::XTERM, &assets::XTERM_FIT, &assets::TERMINAL];
    Ok(Frame::new(&visitor, Section::Claims, "Terminal")
        .with(scripts, vec![&assets::XTERM_STYLE])
        .show(&body))
}

/// `GET …/terminal/socket`.
pub async fn socket(
    Named(id): Named<InstanceId>,
    visitor: Visitor,
    fields: Fields,
    request: Request,
) -> Result<Response, Refusal> {
    let usual = TerminalSize::default();
    let number = |name: &str, usual: u16| {
        let given = fields.get(name).and_then(|text| text.parse().ok());
        given.unwrap_or(usual).clamp(1, TerminalSize::MOST)
    };
    let (rows, cols) = (number("rows", usual.rows), number("cols", usual.cols));
    visitor
        .pass(request, &format!("/instances/{id}/terminal?rows={rows}&cols={cols}"))
        .await
}
