//! What is around every page: its head, the way to the other pages, and who is signed in.

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use hearth_api::token::Scope;
use maud::{DOCTYPE, Markup, html};

use super::assets;
use super::session::{PROOF_FIELD, PROOF_HEADER};
use super::visitor::Visitor;

/// The content type of a page.
pub const HTML: &str = "text/html; charset=utf-8";
/// What htmx is told: an answer that is a refusal changes nothing on the page, and it adds no style, keeps no history and leaves what a
/// person has opened as it is.
const HTMX_CONFIG: &str = r#"{"noSwap":[204,304,"4xx","5xx"],"includeIndicatorCSS":false,"history":false,"defaultTimeout":15000,"morphIgnore":["data-htmx-powered","open"]}"#;

/// Which part of the pages one belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    Projects,
    Claims,
    Charts,
    Host,
    Tokens,
    Audit,
}

impl Section {
    const ALL: [Self; 6] = [
        Self::Projects,
        Self::Claims,
        Self::Charts,
        Self::Host,
        Self::Tokens,
        Self::Audit,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Projects => "Projects",
            Self::Claims => "Claims",
            Self::Charts => "Charts",
            Self::Host => "Host",
            Self::Tokens => "Tokens",
            Self::Audit => "Audit",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Projects => "/",
            Self::Claims => "/claims",
            Self::Charts => "/charts",
            Self::Host => "/host",
            Self::Tokens => "/tokens",
            Self::Audit => "/audit",
        }
    }

    fn is_for(self, visitor: &Visitor) -> bool {
        match self {
            Self::Projects => visitor.may(Scope::ProjectRead),
            Self::Claims | Self::Charts => visitor.may(Scope::ProjectRead) || visitor.may(Scope::Claim),
            Self::Host => visitor.may_see_host(),
            Self::Tokens | Self::Audit => visitor.may(Scope::Admin),
        }
    }
}

/// A page of somebody who has signed in.
pub struct Frame<'a> {
    visitor: &'a Visitor,
    section: Section,
    title: &'a str,
    scripts: Vec<&'a assets::Asset>,
    styles: Vec<&'a assets::Asset>,
}

impl<'a> Frame<'a> {
    pub fn new(visitor: &'a Visitor, section: Section, title: &'a str) -> Self {
        Self {
            visitor,
            section,
            title,
            scripts: Vec::new(),
            styles: Vec::new(),
        }
    }

    /// The same with more files than every page has.
    pub fn with(self, scripts: Vec<&'a assets::Asset>, styles: Vec<&'a assets::Asset>) -> Self {
        Self {
            scripts,
            styles,
            ..self
        }
    }

    /// The page with this in it.
    pub fn show(self, body: &Markup) -> Response {
        let Self {
            visitor,
            section,
            title,
            scripts,
            styles,
        } = self;
        let head = head(title, &scripts, &styles);
        let owner = &visitor.caller.0.owner;
        let proof = serde_json::json!({ (PROOF_HEADER): visitor.proof });
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                (head)
                body hx-headers:inherited=(proof) data-proof=(visitor.proof) {
                    a.skip href="#main" { "Skip to the content" }
                    header.top {
                        a.brand href="/" { "Hearth" }
                        nav aria-label="Main" {
                            ul {
                                @for one in Section::ALL.into_iter().filter(|one| one.is_for(visitor)) {
                                    li {
                                        a href=(one.path()) aria-current=[(one == section).then_some("page")] { (one.name()) }
                                    }
                                }
                            }
                        }
                        form.who method="post" action="/sign-out" {
                            (proof_field(visitor))
                            span title=(format!("Token {}, tenant {}", visitor.caller.0.name, visitor.caller.0.tenant)) { (owner) }
                            button.quiet type="submit" { "Sign out" }
                        }
                    }
                    main #main tabindex="-1" { (body) }
                    (foot())
                }
            }
        };
        to_response(page)
    }
}

/// A page of nobody in particular.
pub fn bare(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head(title, &[], &[]))
            body {
                header.top { a.brand href="/" { "Hearth" } }
                main #main.narrow tabindex="-1" { (body) }
                (foot())
            }
        }
    };
    page.into_string()
}

/// A part of a page.
pub fn part(markup: Markup) -> Response {
    to_response(markup)
}

/// What every form sends along.
pub fn proof_field(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(PROOF_FIELD) value=(visitor.proof); }
}

fn to_response(markup: Markup) -> Response {
    ([(header::CONTENT_TYPE, HTML)], markup.into_string()).into_response()
}

fn head(title: &str, scripts: &[&assets::Asset], styles: &[&assets::Asset]) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="htmx-config" content=(HTMX_CONFIG);
            title { (title) " · Hearth" }
            link rel="icon" type="image/svg+xml" href=(assets::ICON.path);
            @for style in styles { link rel="stylesheet" href=(style.path); }
            link rel="stylesheet" href=(assets::STYLE.path);
            script defer src=(assets::HTMX.path) {}
            @for script in scripts { script defer src=(script.path) {} }
            script defer src=(assets::APP.path) {}
        }
    }
}

fn foot() -> Markup {
    html! {
        footer {
            "Hearth " (env!("CARGO_PKG_VERSION")) " · "
            a href="/docs/" { "API" } " · "
            a href=(assets::LICENSES.path) { "Licences" }
        }
    }
}
