//! Who may reach a port: a token that may work in the instance, or a shared link. What proves it is taken out of the request, so that the
//! server in the VM never sees it.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use hearth_api::error::ErrorCode;
use hearth_api::ids::InstanceId;
use hearth_api::port::{INSTANCE_HEADER, PORT_HEADER, TOKEN_HEADER};
use hearth_core::state::InstanceState;
use jiff::Timestamp;

use super::{address, rewrite, share};
use crate::http::AppState;
use crate::http::auth::{Caller, TOKEN_PREFIX};
use crate::http::error::ApiError;
use crate::http::exec::usable;
use crate::secrets::links::LinkFault;
use crate::store::InstanceRow;

/// How all cookies of ours begin.
pub const COOKIE_PREFIX: &str = "hearth_";
/// The cookie that a shared link leaves in a browser.
const COOKIE: &str = "hearth_share";
/// The same as a parameter of the link.
pub const PARAMETER: &str = "hearth_share";

/// A request that may continue.
pub struct Admitted {
    pub row: InstanceRow,
    /// It came by a shared link and not with a token.
    pub by_link: bool,
    /// Set in the browser of somebody who came by a shared link.
    pub cookie: Option<HeaderValue>,
    /// Where a browser is sent first, so that the link does not stay in its address bar.
    pub redirect: Option<String>,
}

/// What a request shows.
struct Shown {
    token: Option<String>,
    /// Of a link, and whether it stood in the address.
    link: Option<(String, bool)>,
}

/// Checks who comes, and takes from the request what only we may see. `prefix` is the path below which the port is reached, empty where it has
/// a host of its own.
pub async fn admit(
    state: &AppState,
    headers: &mut HeaderMap,
    uri: &mut Uri,
    id: &InstanceId,
    port: u16,
    prefix: &str,
) -> Result<Admitted, ApiError> {
    let wants_page = crate::http::wants_page(headers);
    let Shown { token, link } = take(headers, uri);
    if let Some(token) = token {
        let caller = Caller::of_token(state, &token).await?;
        let row = usable(state, &caller, id).await?;
        return Ok(Admitted {
            row,
            by_link: false,
            cookie: None,
            redirect: None,
        });
    }
    let Some((link, in_address)) = link else {
        return Err(ApiError::new(
            ErrorCode::Unauthorized,
            "send a token: `Authorization: Bearer hearth_…` or `X-Hearth-Token: hearth_…`; a browser opens a link of `hearth share`",
        ));
    };
    let now = Timestamp::now();
    let end = state
        .ports
        .links
        .check(&share::text(id, port), &link, now)
        .map_err(refused)?;
    let row = state.store().instance(id).await?;
    let row = row.filter(|row| row.state == InstanceState::Claimed).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Gone,
            "this link has ended: the VM behind it was given back. Ask for a new link",
        )
    })?;
    let cookie = in_address.then(|| {
        let path = if prefix.is_empty() { "/" } else { prefix };
        let secure = if address::outer_scheme(headers) == "https" {
            "; Secure"
        } else {
            ""
        };
        let seconds = end.duration_since(now).as_secs();
        let text = format!("{COOKIE}={link}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
        HeaderValue::from_str(&text).ok()
    });
    // A path that begins with two slashes would lead a browser to another host.
    let stays_here = !prefix.is_empty() || !uri.path().starts_with("//");
    let redirect = (in_address && wants_page && stays_here)
        .then(|| uri.path_and_query().map(|rest| format!("{prefix}{rest}")))
        .flatten();
    Ok(Admitted {
        row,
        by_link: true,
        cookie: cookie.flatten(),
        redirect,
    })
}

fn refused(fault: LinkFault) -> ApiError {
    match fault {
        LinkFault::Forged => ApiError::new(
            ErrorCode::Forbidden,
            "this link is not one of this server for this port: it was changed or cut off, or it is for another port. Ask for it again",
        ),
        LinkFault::Ended => ApiError::new(ErrorCode::Gone, "this link has ended. Ask for a new one"),
    }
}

/// Takes tokens, links and our headers out of the request.
fn take(headers: &mut HeaderMap, uri: &mut Uri) -> Shown {
    let own = headers.remove(HeaderName::from_static(TOKEN_HEADER));
    headers.remove(HeaderName::from_static(INSTANCE_HEADER));
    headers.remove(HeaderName::from_static(PORT_HEADER));
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| token.starts_with(TOKEN_PREFIX))
        .map(str::to_owned);
    if bearer.is_some() {
        headers.remove(header::AUTHORIZATION);
    }
    let token = own
        .and_then(|value| Some(value.to_str().ok()?.trim().to_owned()))
        .or(bearer);
    let cookie = rewrite::take_cookies(headers, COOKIE_PREFIX)
        .into_iter()
        .find_map(|(name, value)| (name == COOKIE).then_some(value));
    let parameter = take_parameter(uri);
    Shown {
        token,
        link: parameter.map(|link| (link, true)).or(cookie.map(|link| (link, false))),
    }
}

/// Takes the link out of the address; what else is there stays byte for byte.
fn take_parameter(uri: &mut Uri) -> Option<String> {
    let query = uri.query()?;
    let mut link = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| match pair.split_once('=') {
            Some((PARAMETER, value)) => {
                link = Some(value.to_owned());
                false
            }
            _ => true,
        })
        .collect();
    let link = link?;
    let rest = rest.join("&");
    let path = uri.path();
    let whole = if rest.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{rest}")
    };
    *uri = whole.parse().ok()?;
    Some(link)
}

/// A refusal as the one who asks reads it: a sentence in a browser, the documented error for a program.
pub fn refusal(error: ApiError, page: bool) -> Response {
    let plain = page.then(|| error.message().to_owned());
    let mut response = error.into_response();
    if let Some(text) = plain {
        let status: StatusCode = response.status();
        let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        response = (status, kind, format!("{text}\n")).into_response();
        response.extensions_mut().insert(super::Proxied);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_who_comes_is_taken_out_and_the_rest_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer hearth_abc".parse().unwrap());
        headers.insert(header::COOKIE, "a=1; hearth_share=9-ff; b=2".parse().unwrap());
        headers.insert(INSTANCE_HEADER, "wpi_1".parse().unwrap());
        let mut uri: Uri = "/x%20y?a=%2B&hearth_share=7-aa&b".parse().unwrap();
        let shown = take(&mut headers, &mut uri);
        assert_eq!(shown.token.as_deref(), Some("hearth_abc"));
        assert_eq!(shown.link, Some(("7-aa".to_owned(), true)));
        assert_eq!(uri.to_string(), "/x%20y?a=%2B&b");
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[header::COOKIE], "a=1; b=2");
    }

    #[test]
    fn authorization_of_the_server_in_the_vm_is_left_alone() {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, "Bearer its-own".parse().unwrap());
        headers.insert(TOKEN_HEADER, "hearth_abc".parse().unwrap());
        let mut uri: Uri = "/".parse().unwrap();
        let shown = take(&mut headers, &mut uri);
        assert_eq!(shown.token.as_deref(), Some("hearth_abc"));
        assert_eq!(headers[header::AUTHORIZATION], "Bearer its-own");
        assert_eq!(headers.len(), 1);
    }
}
