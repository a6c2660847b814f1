//! Doors for clients of other products, each in the protocol that those speak.

pub mod e2b;

use axum::Router;

use crate::http::AppState;

/// All doors, beside the pages; `api` is what both call.
pub fn beside(state: AppState, api: Router, pages: impl FnOnce(Router) -> Router<AppState>) -> Router<AppState> {
    e2b::routes(state, api.clone()).merge(pages(api))
}
