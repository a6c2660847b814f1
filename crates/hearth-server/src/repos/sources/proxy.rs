//! A proxy on the loopback for one fetch of somebody who may not reach everything: git and its helpers speak HTTP through it and
//! reach what [`Egress`] lets them reach, redirects included. Nobody but this fetch knows its password, and it ends with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::RngExt as _;
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::egress::{Egress, EgressError};
use super::location::{Scheme, plain_host};

/// Random bytes of the password.
const SECRET_BYTES: usize = 24;
/// The user that git says it is.
const USER: &str = "hearth";
/// Said by clients to the proxy alone.
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

type Body = BoxBody<Bytes, hyper::Error>;

/// A running proxy.
pub(super) struct Proxy {
    address: SocketAddr,
    secret: String,
    line: Line,
    _end: DropGuard,
}

/// What each of its connections has.
#[derive(Clone)]
struct Line(Arc<Shared>);

struct Shared {
    egress: Egress,
    /// The header that knows the password.
    authorization: String,
    /// The first connection that there was not: git says nothing of why.
    error: Mutex<Option<EgressError>>,
    end: CancellationToken,
}

impl Proxy {
    /// Listens until it is dropped.
    pub(super) async fn open(egress: Egress) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let secret: [u8; SECRET_BYTES] = rand::rng().random();
        let secret = hex::encode(secret);
        let authorization = format!("Basic {}", STANDARD.encode(format!("{USER}:{secret}")));
        let end = CancellationToken::new();
        let line = Line(Arc::new(Shared {
            egress,
            authorization,
            error: Mutex::default(),
            end: end.clone(),
        }));
        tokio::spawn(line.clone().listen(listener));
        Ok(Self {
            address,
            secret,
            line,
            _end: end.drop_guard(),
        })
    }

    /// Where it listens.
    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// What git is told. It holds the password.
    pub(super) fn url(&self) -> String {
        format!("http://{USER}:{}@{}", self.secret, self.address)
    }

    /// Why there was no connection, if one was asked for in vain.
    pub(super) fn error(&self) -> Option<EgressError> {
        let error = self.line.0.error.lock();
        error.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Line {
    async fn listen(self, listener: TcpListener) {
        let end = self.0.end.clone();
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(self.clone().serve(stream));
                    }
                    // Too many open files: git says that nobody answers, and the look is repeated.
                    Err(error) => {
                        tracing::warn!(%error, "the proxy of a fetch takes no more connections");
                        return;
                    }
                },
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        let end = self.0.end.clone();
        let service = service_fn(|request| self.clone().answer(request));
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            () = end.cancelled() => {}
            // It ends as the client asks; what went wrong is the client's to say.
            _ = serving => {}
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
        let known = request.headers().get(PROXY_AUTHORIZATION);
        let wanted = self.0.authorization.as_bytes();
        if !known.is_some_and(|given| given.as_bytes().ct_eq(wanted).into()) {
            let mut response = says(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "this proxy serves one fetch");
            let basic = HeaderValue::from_static("Basic realm=\"hearth\"");
            response.headers_mut().insert(PROXY_AUTHENTICATE, basic);
            return Ok(response);
        }
        let uri = request.uri().clone();
        let scheme = if request.method() == Method::CONNECT {
            Some(Scheme::Https)
        } else {
            uri.scheme_str().and_then(Scheme::of)
        };
        let host = uri.host().and_then(plain_host);
        let (Some(scheme @ (Scheme::Http | Scheme::Https)), Some(host)) = (scheme, host) else {
            return Ok(says(StatusCode::BAD_REQUEST, "this names no host"));
        };
        let port = uri.port_u16().unwrap_or(scheme.default_port());
        let stream = match self.0.egress.connect(scheme, &host, port).await {
            Ok(stream) => stream,
            Err(error) => return Ok(self.refuse(error)),
        };
        if request.method() == Method::CONNECT {
            tokio::spawn(self.clone().tunnel(request, stream));
            return Ok(says(StatusCode::OK, ""));
        }
        if scheme == Scheme::Https {
            return Ok(says(StatusCode::BAD_REQUEST, "this needs a tunnel"));
        }
        self.pass_on(request, uri, stream).await
    }

    /// Notes why there is no connection.
    fn refuse(&self, error: EgressError) -> Response<Body> {
        let status = match error {
            EgressError::Refused(_) => StatusCode::FORBIDDEN,
            EgressError::Failed(_) => StatusCode::BAD_GATEWAY,
        };
        let response = says(status, &error.to_string());
        let mut first = self.0.error.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(error);
        response
    }

    async fn tunnel(self, request: Request<Incoming>, mut there: TcpStream) {
        let passing = async {
            let here = hyper::upgrade::on(request).await.ok()?;
            let mut here = TokioIo::new(here);
            tokio::io::copy_bidirectional(&mut here, &mut there).await.ok()
        };
        tokio::select! {
            () = self.0.end.cancelled() => {}
            // Either end may hang up.
            _ = passing => {}
        }
    }

    /// Plain HTTP: the request continues as it is, but for what was said to the proxy.
    async fn pass_on(
        self,
        mut request: Request<Incoming>,
        uri: Uri,
        stream: TcpStream,
    ) -> Result<Response<Body>, hyper::Error> {
        let headers = request.headers_mut();
        headers.remove(PROXY_AUTHORIZATION);
        headers.remove(PROXY_CONNECTION);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = Uri::try_from(path).unwrap_or_default();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let end = self.0.end.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                _ = connection => {}
            }
        });
        let response = sender.send_request(request).await?;
        Ok(response.map(|body| body.boxed()))
    }
}

fn says(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(text.to_owned()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
