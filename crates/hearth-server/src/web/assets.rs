//! The files that the pages load: in the program, under paths that hold a hash of what they hold, so that a browser may keep them for good.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use sha2::{Digest as _, Sha256};

use super::refusal::Refusal;

/// Where they are.
pub const PATH: &str = "/assets/{hash}/{name}";
/// Bytes of the hash in a path.
const HASH_BYTES: usize = 8;
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// One of the files.
pub struct Asset {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
    /// Where it is loaded from.
    pub path: String,
}

/// A file of the folder `assets`.
macro_rules! asset {
    ($name:literal, $kind:expr) => {
        LazyLock::new(|| Asset::new($name, $kind, include_str!(concat!("assets/", $name))))
    };
}

/// The scripts of the pages: `app.js` is ours.
pub static APP: LazyLock<Asset> = asset!("app.js", JAVASCRIPT);
pub static HTMX: LazyLock<Asset> = asset!("htmx.min.js", JAVASCRIPT);
pub static STYLE: LazyLock<Asset> = asset!("style.css", CSS);
pub static TERMINAL: LazyLock<Asset> = asset!("terminal.js", JAVASCRIPT);
pub static XTERM: LazyLock<Asset> = asset!("xterm.js", JAVASCRIPT);
pub static XTERM_FIT: LazyLock<Asset> = asset!("addon-fit.js", JAVASCRIPT);
pub static XTERM_STYLE: LazyLock<Asset> = asset!("xterm.css", CSS);
pub static ICON: LazyLock<Asset> = asset!("icon.svg", "image/svg+xml");
pub static LICENSES: LazyLock<Asset> = asset!("LICENSES.txt", "text/plain; charset=utf-8");

impl Asset {
    fn new(name: &'static str, kind: &'static str, text: &'static str) -> Self {
        let hash = hex::encode(&Sha256::digest(text)[..HASH_BYTES]);
        Self {
            name,
            kind,
            text,
            path: format!("/assets/{hash}/{name}"),
        }
    }
}

/// `GET /assets/{hash}/{name}`.
pub async fn file(Path((hash, name)): Path<(String, String)>) -> Result<Response, Refusal> {
    let all: [&Asset; 9] = [
        &APP,
        &HTMX,
        &STYLE,
        &TERMINAL,
        &XTERM,
        &XTERM_FIT,
        &XTERM_STYLE,
        &ICON,
        &LICENSES,
    ];
    let path = format!("/assets/{hash}/{name}");
    let found = all.into_iter().find(|asset| asset.name == name && asset.path == path);
    let Some(asset) = found else {
        let why = "there is no such file; the server may have been updated: load the page again";
        return Err(Refusal::new(ErrorCode::NotFound, why));
    };
    let mut response = asset.text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    Ok(response)
}
