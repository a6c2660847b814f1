//! Files in a VM: what a folder holds, and files that come out and go in. What is downloaded is saved by the browser and never shown as a
//! page: it is a guest's.

use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use hearth_api::file::{FileEntry, FileKind, FileList};
use hearth_api::ids::InstanceId;
use maud::{Markup, html};

use super::form::{Fields, Named};
use super::frame::{Frame, Section};
use super::instance::{head, look_up};
use super::parts;
use super::project::refused;
use super::refusal::Refusal;
use super::visitor::Visitor;

/// Where somebody begins.
const HOME: &str = "/home";

fn query(path: &str) -> String {
    form_urlencoded::Serializer::new(String::new())
        .append_pair("path", path)
        .finish()
}

/// `GET …/files`.
pub async fn list(Named(id): Named<InstanceId>, visitor: Visitor, fields: Fields) -> Result<Response, Refusal> {
    let (view, project) = look_up(&visitor, &id).await?;
    let folder = fields.filled("path").unwrap_or(HOME).to_owned();
    let listed: Result<FileList, _> = visitor
        .get(&format!("/instances/{id}/files/list?{}", query(&folder)))
        .await;
    let body = html! {
        (head(&view, project.as_ref(), Some("Files")))
        form.filter method="get" action=(format!("/instances/{id}/files")) {
            label.hidden for="path" { "Folder" }
            input #path name="path" value=(folder) spellcheck="false";
            button type="submit" { "Open" }
        }
        @match &listed {
            Err(refusal) => (refusal.notice()),
            Ok(list) => (table(&id, &folder, list)),
        }
        section.card aria-labelledby="upload-title" {
            h2 #upload-title { "Upload" }
            form.stacked data-upload=(format!("/instances/{id}/file")) data-folder=(folder) {
                label for="file" { "File for " code { (folder) } }
                input #file type="file" name="file" required;
                button.main type="submit" { "Upload" }
                p role="status" data-state="" {}
            }
        }
    };
    let page = Frame::new(&visitor, Section::Claims, "Files").show(&body);
    Ok(refused(page, listed.as_ref().err()))
}

fn table(id: &InstanceId, folder: &str, list: &FileList) -> Markup {
    let parent = folder.trim_end_matches('/').rsplit_once('/').map(|(parent, _)| parent);
    let parent = parent.map(|parent| if parent.is_empty() { "/" } else { parent });
    html! {
        @if list.truncated { p.notice { "The folder holds more than is shown." } }
        table.cards {
            caption.hidden { "What " (folder) " holds" }
            thead { tr { th scope="col" { "Name" } th.number scope="col" { "Size" } th scope="col" { "Owner" } th scope="col" { "Mode" } th scope="col" { "Changed" } } }
            tbody {
                @if let Some(parent) = parent {
                    tr { th scope="row" { a href=(format!("/instances/{id}/files?{}", query(parent))) { "↑ " (parent) } } td {} td {} td {} td {} }
                }
                @for entry in &list.items { (row(id, entry)) }
            }
        }
    }
}

fn row(id: &InstanceId, entry: &FileEntry) -> Markup {
    let page = if entry.kind == FileKind::Directory {
        "files"
    } else {
        "file"
    };
    let href = format!("/instances/{id}/{page}?{}", query(&entry.path));
    // A name that is no text cannot be asked for by it.
    let is_reachable = entry.name_base64.is_none() && entry.kind != FileKind::Other;
    html! {
        tr {
            th scope="row" {
                @if is_reachable { a href=(href) { (entry.name) @if entry.kind == FileKind::Directory { "/" } } } @else { (entry.name) }
                @if let Some(to) = &entry.symlink_target { " " span.dim { "→ " (to) } }
            }
            td.number data-label="Size" { @if entry.kind == FileKind::File { (parts::bytes(entry.size)) } @else { span.dim { "–" } } }
            td data-label="Owner" { (entry.owner) }
            td data-label="Mode" { code { (entry.mode) } }
            td data-label="Changed" { (parts::time(entry.modified_at)) }
        }
    }
}

/// The path that a request names.
fn path_of(fields: &Fields) -> Result<String, Refusal> {
    let path = fields.filled("path");
    let path = path.ok_or_else(|| Refusal::new(ErrorCode::ValidationError, "`path` must name a file in the VM"))?;
    Ok(query(path))
}

/// `GET …/file`.
pub async fn download(
    Named(id): Named<InstanceId>,
    visitor: Visitor,
    fields: Fields,
    request: Request,
) -> Result<Response, Refusal> {
    let path = path_of(&fields)?;
    let mut response = visitor.pass(request, &format!("/instances/{id}/files?{path}")).await?;
    if !response.status().is_success() {
        return Ok(visitor.refusal_of(response).await.into_response());
    }
    let name = fields
        .get("path")
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default();
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    let disposition = HeaderValue::try_from(format!("attachment; filename*=UTF-8''{name}"));
    response.headers_mut().insert(
        header::CONTENT_DISPOSITION,
        disposition.unwrap_or(HeaderValue::from_static("attachment")),
    );
    Ok(response)
}

/// `PUT …/file`: the body is the file.
pub async fn upload(
    Named(id): Named<InstanceId>,
    visitor: Visitor,
    fields: Fields,
    request: Request,
) -> Result<Response, Refusal> {
    let path = path_of(&fields)?;
    visitor.pass(request, &format!("/instances/{id}/files?{path}")).await
}
