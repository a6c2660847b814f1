//! What was done: after a form the browser is sent to a page, which says it once.

use axum::response::{IntoResponse as _, Redirect, Response};
use maud::{Markup, html};

use super::form::Fields;

/// The parameter.
const FIELD: &str = "done";

/// Something that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Cancelled,
    Claimed,
    Cleared,
    Created,
    Deleted,
    Extended,
    Forked,
    Paused,
    Released,
    Resumed,
    Retried,
    Revoked,
    Saved,
}

impl Done {
    const ALL: [Self; 13] = [
        Self::Cancelled,
        Self::Claimed,
        Self::Cleared,
        Self::Created,
        Self::Deleted,
        Self::Extended,
        Self::Forked,
        Self::Paused,
        Self::Released,
        Self::Resumed,
        Self::Retried,
        Self::Revoked,
        Self::Saved,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Claimed => "claimed",
            Self::Cleared => "cleared",
            Self::Created => "created",
            Self::Deleted => "deleted",
            Self::Extended => "extended",
            Self::Forked => "forked",
            Self::Paused => "paused",
            Self::Released => "released",
            Self::Resumed => "resumed",
            Self::Retried => "retried",
            Self::Revoked => "revoked",
            Self::Saved => "saved",
        }
    }

    fn message(self) -> &'static str {
        match self {
            Self::Cancelled => "Boot ended.",
            Self::Claimed => "The VM is yours until its lease ends.",
            Self::Cleared => "Pool cleared; the VMs are being removed.",
            Self::Created => "Project made. Next: say how its VMs are set up, and test that.",
            Self::Deleted => "Deleted.",
            Self::Extended => "Lease extended.",
            Self::Forked => "VM forked; the forks are claims of their own.",
            Self::Paused => "VM paused. The next call into it resumes it.",
            Self::Released => "VM released; it is being destroyed.",
            Self::Resumed => "VM resumed.",
            Self::Retried => "Earlier failures no longer count; the set-up is tried again.",
            Self::Revoked => "Token revoked.",
            Self::Saved => "Saved.",
        }
    }

    /// To a page that says it.
    pub fn at(self, path: &str) -> Response {
        let (path, place) = path
            .split_once('#')
            .map_or((path, String::new()), |(path, place)| (path, format!("#{place}")));
        let sign = if path.contains('?') { '&' } else { '?' };
        Redirect::to(&format!("{path}{sign}{FIELD}={}{place}", self.name())).into_response()
    }
}

/// What the address says was done; a text of somebody's own is never shown.
pub fn notice(query: &Fields) -> Markup {
    let name = query.get(FIELD);
    let done = Done::ALL.into_iter().find(|done| Some(done.name()) == name);
    html! {
        @if let Some(done) = done {
            div.notice.good role="status" { p { (done.message()) } }
        }
    }
}
