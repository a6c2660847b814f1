//! One call: send, repeat where that is safe, read the answer. Knows HTTP, but no operation of the API.

use std::time::{Duration, Instant};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, RETRY_AFTER, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{self, ClientError};
use super::in_process;
use super::{Client, REQUEST_ID_HEADER, build_http};

/// Most attempts for one call: with the pauses below this bridges a restart of the server's process (about 3 s).
const MAX_ATTEMPTS: u32 = 5;
/// Pause before the second attempt; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// When a server asks for a longer wait than this, the caller gets its answer instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long an ordinary call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// When a call may be sent a second time. A request that never reached a server always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice does no more than once (it reads, or sets or removes something by its name): after a lost connection, a 503, a
    /// 429.
    Harmless,
    /// Twice does more than once: after a 429, which a server says before it does anything.
    Once,
    /// A claim with an idempotency key: after a lost connection, no answer in time, a 503. A 429 is its answer.
    KeyedClaim,
    /// A claim without one: never. A 429 is its answer.
    PlainClaim,
}

/// One call, ready to send (and to send again).
pub(super) struct Call<'a> {
    client: &'a Client,
    method: Method,
    url: Url,
    body: Option<Vec<u8>>,
    accept: &'static str,
    timeout: Option<Duration>,
    repeat: Repeat,
    waited_enough: Option<Duration>,
    upgrade: Option<Upgrade>,
    headers: Vec<(HeaderName, String)>,
}

/// A call that is to become a WebSocket.
struct Upgrade {
    /// Only HTTP/1.1 can become one.
    http1: reqwest::Client,
    key: String,
}

impl Client {
    /// A call of the path made from these segments, which are escaped.
    pub(super) fn call(&self, method: Method, segments: &[&str]) -> Call<'_> {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        let repeat = if method == Method::GET {
            Repeat::Harmless
        } else {
            Repeat::Once
        };
        Call {
            client: self,
            method,
            url,
            body: None,
            accept: "application/json",
            timeout: Some(CALL_TIMEOUT),
            repeat,
            waited_enough: None,
            upgrade: None,
            headers: Vec::new(),
        }
    }

    pub(super) fn get(&self, segments: &[&str]) -> Call<'_> {
        self.call(Method::GET, segments)
    }

    pub(super) fn post(&self, segments: &[&str]) -> Call<'_> {
        self.call(Method::POST, segments)
    }
}

impl Call<'_> {
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.url.query_pairs_mut().append_pair(name, value);
        self
    }

    pub(super) fn json<T: Serialize>(mut self, body: &T) -> Result<Self, ClientError> {
        let bytes = serde_json::to_vec(body).map_err(|fault| ClientError::Setup {
            reason: format!("the request cannot be written as JSON: {fault}"),
        })?;
        self.body = Some(bytes);
        Ok(self)
    }

    /// For the few paths outside `/api/v1`.
    pub(super) fn set_root_path(&mut self, segments: &[&str]) {
        self.url = self.client.root.clone();
        if let Ok(mut path) = self.url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
    }

    /// `None`: as long as it takes (streams).
    pub(super) fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// A 503 after this time is the answer: the server has waited for as long as it was asked to.
    pub(super) fn waited_enough(mut self, after: Duration) -> Self {
        self.waited_enough = Some(after);
        self
    }

    pub(super) fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }

    /// It is to become a WebSocket, with this key.
    pub(super) fn upgrade(mut self, key: String) -> Result<Self, ClientError> {
        let http1 = build_http(
            &self.client.root,
            &self.client.route,
            reqwest::ClientBuilder::http1_only,
        )?;
        self.upgrade = Some(Upgrade { http1, key });
        Ok(self)
    }

    pub(super) fn header(mut self, name: HeaderName, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(super) fn accept(mut self, accept: &'static str) -> Self {
        self.accept = accept;
        self
    }

    /// Sends it and reads the answer as JSON.
    pub(super) async fn read<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        let (begun, mut attempt) = (Instant::now(), 1);
        loop {
            let fault = match self.once().await {
                Ok((body, request_id)) => {
                    return serde_json::from_slice(&body).map_err(|fault| ClientError::Decode {
                        url: self.url.to_string(),
                        reason: fault.to_string(),
                        request_id,
                    });
                }
                Err(fault) => fault,
            };
            self.pause_or_give_up(fault, attempt, begun).await?;
            attempt += 1;
        }
    }

    /// Sends it and hands over the reply with its body unread.
    pub(super) async fn open(self) -> Result<Response, ClientError> {
        let (begun, mut attempt) = (Instant::now(), 1);
        loop {
            match self.send().await {
                Ok(response) => return Ok(response),
                Err(fault) => self.pause_or_give_up(fault, attempt, begun).await?,
            }
            attempt += 1;
        }
    }

    async fn pause_or_give_up(&self, fault: ClientError, attempt: u32, begun: Instant) -> Result<(), ClientError> {
        if matches!(fault, ClientError::Api { status: 503, .. })
            && self.waited_enough.is_some_and(|after| begun.elapsed() >= after)
        {
            return Err(fault);
        }
        match pause_before_next(self.repeat, &fault, attempt) {
            Some(pause) => {
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(fault),
        }
    }

    async fn once(&self) -> Result<(bytes::Bytes, Option<String>), ClientError> {
        let response = self.send().await?;
        let request_id = request_id(&response);
        let body = response.bytes().await.map_err(|fault| self.transport(fault))?;
        Ok((body, request_id))
    }

    /// Sends it once, with a body that comes in chunks, and reads the answer as JSON.
    pub(super) async fn upload<T: DeserializeOwned>(self, body: reqwest::Body) -> Result<T, ClientError> {
        let request = self
            .request()
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body);
        let response = self.answer(request).await?;
        let request_id = request_id(&response);
        let body = response.bytes().await.map_err(|fault| self.transport(fault))?;
        serde_json::from_slice(&body).map_err(|fault| ClientError::Decode {
            url: self.url.to_string(),
            reason: fault.to_string(),
            request_id,
        })
    }

    async fn send(&self) -> Result<Response, ClientError> {
        let mut request = self.request();
        if let Some(body) = &self.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        self.answer(request).await
    }

    fn request(&self) -> RequestBuilder {
        let http = self
            .upgrade
            .as_ref()
            .map_or(&self.client.http, |upgrade| &upgrade.http1);
        let mut request = http
            .request(self.method.clone(), self.url.clone())
            .header(ACCEPT, self.accept);
        if let Some(Upgrade { key, .. }) = &self.upgrade {
            request = request
                .header(CONNECTION, "Upgrade")
                .header(UPGRADE, "websocket")
                .header(SEC_WEBSOCKET_VERSION, "13")
                .header(SEC_WEBSOCKET_KEY, key);
        }
        if let Some(token) = &self.client.authorization {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if let Some(timeout) = self.timeout {
            request = request.timeout(timeout);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = match &self.client.in_process {
            None => request.send().await.map_err(|fault| self.transport(fault))?,
            Some(answer) => {
                let answered = in_process::send(answer, request, self.timeout);
                answered.await.map_err(|after| match after {
                    Some(after) => ClientError::Timeout {
                        url: self.client.address(),
                        after,
                    },
                    None => ClientError::Setup {
                        reason: "the request cannot be written".to_owned(),
                    },
                })?
            }
        };
        let switched = self.upgrade.is_some() && response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched || response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let request_id = request_id(&response);
        let retry_after = retry_after(&response);
        // A body that cannot be read changes nothing: the status already says that it failed.
        let body = response.bytes().await.unwrap_or_default();
        Err(error::from_reply(status, &body, request_id, retry_after))
    }

    fn transport(&self, fault: reqwest::Error) -> ClientError {
        let url = self.client.address();
        // Before the look at timeouts: a connection that was never made in time has not carried the request.
        if fault.is_connect() {
            return ClientError::Unreachable {
                url,
                reason: error::chain(&fault.without_url()),
            };
        }
        if let (true, Some(after)) = (fault.is_timeout(), self.timeout) {
            return ClientError::Timeout { url, after };
        }
        if fault.is_builder() {
            return ClientError::Setup {
                reason: error::chain(&fault.without_url()),
            };
        }
        ClientError::Interrupted {
            url,
            reason: error::chain(&fault.without_url()),
        }
    }
}

fn header(response: &Response, name: &str) -> Option<String> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

pub(super) fn request_id(response: &Response) -> Option<String> {
    header(response, REQUEST_ID_HEADER)
}

/// Seconds only; the form with a date is for caches, and Hearth never sends it.
fn retry_after(response: &Response) -> Option<Duration> {
    header(response, RETRY_AFTER.as_str())?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// The one decision about sending again: how long to wait first, or `None` to give up.
fn pause_before_next(repeat: Repeat, fault: &ClientError, attempt: u32) -> Option<Duration> {
    if attempt >= MAX_ATTEMPTS {
        return None;
    }
    let step = FIRST_PAUSE.saturating_mul(1 << (attempt - 1).min(8));
    let harmless = matches!(repeat, Repeat::Harmless | Repeat::KeyedClaim);
    match fault {
        ClientError::Unreachable { .. } => Some(step),
        ClientError::Interrupted { .. } if harmless => Some(step),
        ClientError::Timeout { .. } if repeat == Repeat::KeyedClaim => Some(step),
        // A server may say 503 in the middle of its work (its own time was up): what it has done is not known.
        ClientError::Api {
            status: 503,
            retry_after,
            ..
        } if harmless => wished(step, *retry_after),
        ClientError::Api {
            status: 429,
            retry_after,
            ..
        } if matches!(repeat, Repeat::Harmless | Repeat::Once) => wished(step, *retry_after),
        _ => None,
    }
}

fn wished(step: Duration, retry_after: Option<Duration>) -> Option<Duration> {
    let pause = retry_after.unwrap_or(step).max(step);
    (pause <= LONGEST_PAUSE).then_some(pause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(status: u16, retry_after: Option<u64>) -> ClientError {
        error::from_reply(status, b"{}", None, retry_after.map(Duration::from_secs))
    }

    fn unreachable() -> ClientError {
        ClientError::Unreachable {
            url: String::new(),
            reason: String::new(),
        }
    }

    fn interrupted() -> ClientError {
        ClientError::Interrupted {
            url: String::new(),
            reason: String::new(),
        }
    }

    fn timed_out() -> ClientError {
        ClientError::Timeout {
            url: String::new(),
            after: CALL_TIMEOUT,
        }
    }

    const ALL: [Repeat; 4] = [Repeat::Harmless, Repeat::Once, Repeat::KeyedClaim, Repeat::PlainClaim];

    #[test]
    fn what_never_arrived_is_always_sent_again_but_not_for_ever() {
        for repeat in ALL {
            assert_eq!(pause_before_next(repeat, &unreachable(), 1), Some(FIRST_PAUSE));
            assert_eq!(pause_before_next(repeat, &unreachable(), 3), Some(FIRST_PAUSE * 4));
            assert_eq!(pause_before_next(repeat, &unreachable(), MAX_ATTEMPTS), None);
        }
    }

    #[test]
    fn what_the_server_refuses_is_not_sent_again() {
        for repeat in ALL {
            for status in [401, 403, 404, 409, 410, 413, 422, 500] {
                assert_eq!(pause_before_next(repeat, &api(status, Some(1)), 1), None, "{status}");
            }
        }
    }

    #[test]
    fn a_write_is_sent_again_only_when_it_was_provably_not_carried_out() {
        let next = |fault| pause_before_next(Repeat::Once, &fault, 1);
        assert_eq!(next(interrupted()), None);
        assert_eq!(next(timed_out()), None);
        assert_eq!(next(api(503, Some(1))), None);
        assert_eq!(next(api(429, Some(2))), Some(Duration::from_secs(2)));
        assert_eq!(next(api(429, Some(3600))), None);
    }

    #[test]
    fn what_does_no_harm_twice_is_sent_again_and_the_wish_for_a_pause_is_kept() {
        let next = |fault, attempt| pause_before_next(Repeat::Harmless, &fault, attempt);
        assert_eq!(next(interrupted(), 2), Some(FIRST_PAUSE * 2));
        assert_eq!(next(api(503, Some(3)), 1), Some(Duration::from_secs(3)));
        assert_eq!(next(api(429, None), 1), Some(FIRST_PAUSE));
        assert_eq!(next(api(429, Some(3600)), 1), None);
        assert_eq!(next(timed_out(), 1), None);
    }

    #[test]
    fn a_keyed_claim_is_sent_again_unless_the_pool_is_empty() {
        let next = |fault| pause_before_next(Repeat::KeyedClaim, &fault, 1);
        assert_eq!(next(interrupted()), Some(FIRST_PAUSE));
        assert_eq!(next(timed_out()), Some(FIRST_PAUSE));
        assert_eq!(next(api(503, None)), Some(FIRST_PAUSE));
        assert_eq!(next(api(429, Some(1))), None);
    }

    #[test]
    fn a_claim_without_a_key_could_take_a_second_vm() {
        for fault in [interrupted(), timed_out(), api(503, Some(1)), api(429, Some(1))] {
            assert_eq!(pause_before_next(Repeat::PlainClaim, &fault, 1), None);
        }
    }

    #[test]
    fn only_what_reads_is_harmless_by_its_method() {
        let client = Client::new("http://localhost:1", "").unwrap();
        assert_eq!(client.get(&["x"]).repeat, Repeat::Harmless);
        for method in [Method::POST, Method::PATCH, Method::PUT, Method::DELETE] {
            assert_eq!(client.call(method, &["x"]).repeat, Repeat::Once);
        }
    }
}
