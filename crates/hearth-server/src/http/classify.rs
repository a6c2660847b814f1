//! Which answers the log calls failures of this server: 5xx of its own, and not what a server in a VM answers or that none answers there.

use std::fmt;

use axum::http::{Response, StatusCode};
use tower_http::classify::{
    ClassifiedResponse, ClassifyResponse, NeverClassifyEos, ServerErrorsAsFailures, ServerErrorsFailureClass,
};

use super::ports::Proxied;

/// Classifies answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct OwnFailures;

impl ClassifyResponse for OwnFailures {
    type FailureClass = ServerErrorsFailureClass;
    type ClassifyEos = NeverClassifyEos<ServerErrorsFailureClass>;

    fn classify_response<B>(self, response: &Response<B>) -> ClassifiedResponse<Self::FailureClass, Self::ClassifyEos> {
        let of_a_vm = response.extensions().get::<Proxied>().is_some();
        if of_a_vm || response.status() == StatusCode::BAD_GATEWAY {
            return ClassifiedResponse::Ready(Ok(()));
        }
        ServerErrorsAsFailures::new().classify_response(response)
    }

    fn classify_error<E>(self, error: &E) -> Self::FailureClass
    where
        E: fmt::Display + 'static,
    {
        ServerErrorsAsFailures::new().classify_error(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_faults_are_failures() {
        let is_failure = |status: u16, of_a_vm: bool| {
            let mut response = Response::builder().status(status).body(()).unwrap();
            if of_a_vm {
                response.extensions_mut().insert(Proxied);
            }
            matches!(
                OwnFailures.classify_response(&response),
                ClassifiedResponse::Ready(Err(_))
            )
        };
        assert!(is_failure(500, false) && is_failure(503, false));
        assert!(!is_failure(500, true) && !is_failure(502, false) && !is_failure(404, false));
    }
}
