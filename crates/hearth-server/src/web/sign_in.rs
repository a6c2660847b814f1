//! Signing in with a token, and out. OpenID Connect is a second way in beside the form, and begins the same session.

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use hearth_api::error::ErrorCode;
use hearth_api::token::Scope;
use maud::html;

use super::Pages;
use super::form::{Fields, Posted, fields_of, pairs};
use super::frame;
use super::refusal::Refusal;
use super::session::{Session, is_own_origin};
use super::visitor::Visitor;
use crate::http::Caller;

/// `GET /sign-in`.
pub async fn show(State(pages): State<Pages>, query: Fields, request: Request) -> Result<Response, Refusal> {
    if let Some(visitor) = Visitor::by_cookie(request.headers(), request.extensions(), &pages).await? {
        return Ok(Redirect::to(&next(query.get("next"), &visitor.caller)).into_response());
    }
    Ok(form(&pages, query.get("next"), None))
}

pub fn form(pages: &Pages, next: Option<&str>, refusal: Option<&Refusal>) -> Response {
    let body = html! {
        h1 { "Sign in" }
        @if let Some(refusal) = refusal { (refusal.notice()) }
        @if let Some(provider) = &pages.openid {
            p { a.button.main href={ "/sign-in/openid?" (pairs(&[("next", next)])) } { "Sign in at " (provider.host()) } }
            p.help { "Or with a token:" }
        }
        form.stacked method="post" action="/sign-in" {
            @if let Some(next) = next { input type="hidden" name="next" value=(next); }
            label for="token" { "Token" }
            input #token type="password" name="token" required autofocus[pages.openid.is_none()] autocomplete="off" spellcheck="false"
                placeholder="hearth_…" aria-describedby="token-help";
            p #token-help.help {
                "The server wrote the first one to " code { "admin-token" } " in its data folder; "
                code { "hearth token create" } " makes others."
            }
            button .main[pages.openid.is_none()] type="submit" { "Sign in" }
        }
    };
    let status = refusal.map_or(StatusCode::OK, Refusal::status);
    (
        status,
        [(header::CONTENT_TYPE, frame::HTML)],
        frame::bare("Sign in", &body),
    )
        .into_response()
}

/// Where somebody is sent who has signed in: back to the page they came for, if it is one of ours.
pub fn next(named: Option<&str>, caller: &Caller) -> String {
    let is_ours = |path: &&str| {
        let rest = path.strip_prefix('/').unwrap_or("/");
        !rest.starts_with(['/', '\\']) && path.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match named.filter(is_ours) {
        Some(path) => path.to_owned(),
        None if caller.has(Scope::ProjectRead) => "/".to_owned(),
        None => "/claims".to_owned(),
    }
}

/// `POST /sign-in`.
pub async fn sign_in(State(pages): State<Pages>, request: Request) -> Result<Response, Refusal> {
    let headers = request.headers().clone();
    if !is_own_origin(&headers) {
        let why = "this did not come from the sign-in page of this server; open that, and sign in there";
        return Err(Refusal::new(ErrorCode::Forbidden, why));
    }
    let fields = fields_of(request).await?;
    let token = fields.filled("token").unwrap_or_default();
    let caller = match Caller::of_token(&pages.state, token).await {
        Ok(caller) => caller,
        Err(error) => return Ok(form(&pages, fields.get("next"), Some(&error.into()))),
    };
    let cookie = Session::begin(&pages.state.store, &caller, &headers).await?;
    let to = next(fields.get("next"), &caller);
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&to)).into_response())
}

/// `POST /sign-out`.
pub async fn sign_out(State(pages): State<Pages>, posted: Posted) -> Result<Response, Refusal> {
    let visitor = posted.visitor;
    let cookie = visitor.session().end(&pages.state.store, visitor.outer()).await?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_api::ids::TokenId;
    use jiff::Timestamp;

    #[test]
    fn only_a_path_of_this_server_is_gone_back_to() {
        let caller = Caller(crate::store::TokenRow {
            id: TokenId::generate(),
            name: "t".to_owned(),
            owner: "o".to_owned(),
            tenant: "default".to_owned(),
            scopes: vec![Scope::Claim],
            project_id: None,
            name_prefix: None,
            max_vms: None,
            created_at: Timestamp::UNIX_EPOCH,
            last_used_at: None,
            expires_at: None,
        });
        assert_eq!(next(Some("/projects/a?b=c"), &caller), "/projects/a?b=c");
        for foreign in [
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/a\nb",
            "",
        ] {
            assert_eq!(next(Some(foreign), &caller), "/claims", "{foreign}");
        }
    }
}
