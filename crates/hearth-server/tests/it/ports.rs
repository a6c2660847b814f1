//! Ports of VMs through the front door: the fake VMs' ports lead to HTTP servers of the test.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::StreamExt as _;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::harness::{SOON, Server, pause};

type Page = UnsyncBoxBody<Bytes, hyper::Error>;

fn page(status: StatusCode, header: (&'static str, &'static str), text: &str) -> Response<Page> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {});
    Response::builder()
        .status(status.as_u16())
        .header(header.0, header.1)
        .body(body.boxed_unsync())
        .unwrap()
}

/// The server in the VM.
async fn answer(mut request: Request<Incoming>) -> Result<Response<Page>, hyper::Error> {
    const PLAIN: (&str, &str) = ("content-type", "text/plain");
    Ok(match request.uri().path() {
        "/reflect" => Response::new(request.into_body().boxed_unsync()),
        "/cookie" => page(
            StatusCode::OK,
            ("set-cookie", "sid=1; Path=/; Domain=localhost; HttpOnly"),
            "",
        ),
        "/away" => page(
            StatusCode::SEE_OTHER,
            ("location", "http://localhost:3000/there?x=1"),
            "",
        ),
        "/broken" => page(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, "my own page"),
        "/ws" => {
            // What a page may only open from its own site.
            assert_eq!(request.headers()["origin"], "http://localhost:3000");
            assert_eq!(request.headers()["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move { echo_messages(TokioIo::new(upgrade.await.unwrap())).await });
            let mut response = page(
                StatusCode::SWITCHING_PROTOCOLS,
                ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                "",
            );
            let headers = response.headers_mut();
            headers.insert("connection", "Upgrade".parse().unwrap());
            headers.insert("upgrade", "websocket".parse().unwrap());
            response
        }
        _ => {
            let (parts, body) = request.into_parts();
            let headers: serde_json::Map<String, Value> = parts
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
                .collect();
            let body = body.collect().await?.to_bytes();
            let message = json!({
                "method": parts.method.as_str(), "uri": parts.uri.to_string(), "headers": headers,
                "body": String::from_utf8_lossy(&body),
            });
            page(
                StatusCode::OK,
                ("content-type", "application/json"),
                &message.to_string(),
            )
        }
    })
}

/// Sends each short message back, as a server does: without a mask.
async fn echo_messages(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut head = [0; 6];
    while stream.read_exact(&mut head).await.is_ok() {
        let mut text = vec![0; usize::from(head[1] & 0x7f)];
        stream.read_exact(&mut text).await.unwrap();
        for (byte, mask) in text.iter_mut().zip(head[2..].iter().cycle()) {
            *byte ^= mask;
        }
        let frame = [&[head[0], head[1] & 0x7f], &text[..]].concat();
        stream.write_all(&frame).await.unwrap();
    }
}

pub async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(connection), service_fn(answer));
            tokio::spawn(connection.with_upgrades());
        }
    });
    address
}

pub struct Work {
    pub server: Server,
    pub driver: FakeDriver,
    pub id: InstanceId,
    http: reqwest::Client,
}

impl Work {
    /// A claimed VM whose port 3000 is served.
    pub async fn begin() -> Self {
        let (server, driver) = Server::fake(FakeOptions::default()).await;
        driver.listen(3000, serve().await);
        let (_, pool) = server.full_pool(1).await;
        let reply = server.post(&format!("{pool}/claim"), json!({})).await;
        let id: InstanceId = reply["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(reply["agent"]["ports"], format!("/api/v1/instances/{id}/ports"));
        let http = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        Self {
            server,
            driver,
            id,
            http,
        }
    }

    fn prefix(&self) -> String {
        format!("/api/v1/instances/{}/ports/3000", self.id)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{}{path}", self.server.address, self.prefix())
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http
            .request(method, self.url(path))
            .bearer_auth(&self.server.token)
    }

    pub fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.server.address), &self.server.token).unwrap()
    }

    async fn share(&self, seconds: u64) -> String {
        let path = format!("/instances/{}/shares", self.id);
        let body = json!({ "port": 3000, "expiresInSeconds": seconds });
        // As a client of another machine sees it: by path.
        let request = self.server.request(Method::POST, &path).json(&body);
        let request = request.header("host", "hearth.example.org");
        let (status, reply) = self.server.send(request).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        let url = reply["url"].as_str().unwrap();
        let rest = url.strip_prefix("http://hearth.example.org").unwrap();
        format!("http://{}{rest}", self.server.address)
    }
}

async fn json_of(request: reqwest::RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn request_arrives_as_it_was_sent_and_without_what_is_ours() {
    let work = Work::begin().await;
    for method in [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ] {
        let request = work
            .request(method.clone(), "/a%2Fb//c?x=%20&y")
            .header("x-own", "1")
            .body("hello");
        let seen = json_of(request.header("cookie", "a=1; hearth_x=2")).await;
        assert_eq!(seen["method"], method.as_str());
        assert_eq!(
            (&seen["uri"], &seen["body"]),
            (&json!("/a%2Fb//c?x=%20&y"), &json!("hello"))
        );
        let headers = &seen["headers"];
        assert_eq!(
            (&headers["host"], &headers["x-own"]),
            (&json!("localhost:3000"), &json!("1"))
        );
        assert_eq!(headers["cookie"], "a=1");
        assert_eq!(headers["x-forwarded-prefix"], work.prefix());
        assert_eq!(headers["x-forwarded-host"], work.server.address.to_string());
        assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert!(!seen.to_string().contains(&work.server.token), "{seen}");
    }
    // The server's own use of the header.
    let request = work
        .http
        .get(work.url("/"))
        .header("x-hearth-token", &work.server.token);
    let seen = json_of(request.bearer_auth("of-the-app")).await;
    assert_eq!(seen["headers"]["authorization"], "Bearer of-the-app");
    assert!(!seen.to_string().contains(&work.server.token), "{seen}");
}

#[tokio::test]
async fn answer_stays_as_it_is_but_for_places_and_cookies() {
    let work = Work::begin().await;
    let broken = work.request(Method::GET, "/broken").send().await.unwrap();
    assert_eq!(broken.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(broken.text().await.unwrap(), "my own page");
    let away = work.request(Method::GET, "/away").send().await.unwrap();
    assert_eq!(away.status(), StatusCode::SEE_OTHER);
    assert_eq!(away.headers()["location"], format!("{}/there?x=1", work.prefix()));
    let cookie = work.request(Method::GET, "/cookie").send().await.unwrap();
    assert_eq!(
        cookie.headers()["set-cookie"],
        format!("sid=1; Path={}/; HttpOnly", work.prefix())
    );
    let bare = work.request(Method::GET, "?q=1").send().await.unwrap();
    assert_eq!(bare.status(), StatusCode::PERMANENT_REDIRECT);
    assert_eq!(bare.headers()["location"], format!("{}/?q=1", work.prefix()));
}

#[tokio::test]
async fn bodies_flow_both_ways_while_they_come() {
    let work = Work::begin().await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = reqwest::Body::wrap_stream(futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    }));
    let sending = work.request(Method::POST, "/reflect").body(body).send();
    let first = async {
        sender.send(Ok(Bytes::from_static(b"first"))).await.unwrap();
    };
    let (response, ()) = tokio::join!(sending, first);
    let mut answer = response.unwrap().bytes_stream();
    // It is back before the request has ended.
    assert_eq!(timeout(SOON, answer.next()).await.unwrap().unwrap().unwrap(), "first");
    let total = 48 * 1024 * 1024;
    let chunk = Bytes::from(vec![7; 256 * 1024]);
    let sends = async {
        for _ in 0..total / chunk.len() {
            sender.send(Ok(chunk.clone())).await.unwrap();
        }
        drop(sender);
    };
    let reads = async {
        let mut read = 0;
        while let Some(chunk) = answer.next().await {
            read += chunk.unwrap().len();
        }
        read
    };
    let ((), read) = timeout(SOON, async { tokio::join!(sends, reads) }).await.unwrap();
    assert_eq!(read, total);
}

#[tokio::test]
async fn websocket_passes_with_its_messages() {
    let work = Work::begin().await;
    let mut stream = TcpStream::connect(work.server.address).await.unwrap();
    let request = format!(
        "GET {}/ws HTTP/1.1\r\nHost: hearth.example.org\r\nOrigin: http://hearth.example.org\r\nAuthorization: Bearer {}\r\n\
         Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        work.prefix(),
        work.server.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, stream.read_u8()).await.unwrap().unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    // The answer that the standard's own example gives.
    assert!(
        head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    for text in [&b"hot"[..], b"reload"] {
        let mut frame = vec![0x81, 0x80 | text.len() as u8, 1, 2, 3, 4];
        frame.extend(
            text.iter()
                .zip([1, 2, 3, 4].iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        stream.write_all(&frame).await.unwrap();
        let mut back = vec![0; 2 + text.len()];
        timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, [&[0x81, text.len() as u8], text].concat());
    }
}

#[tokio::test]
async fn port_without_a_server_names_those_that_have_one() {
    let work = Work::begin().await;
    let url = work.url("/").replace("/3000/", "/4000/");
    let request = work.http.get(url).bearer_auth(&work.server.token);
    let (status, body) = work.server.send(request).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert_eq!(body["error"]["code"], "bad_gateway");
    assert_eq!(
        body["error"]["message"],
        "nothing listens on port 4000 in the VM; what does: 3000 (fake). Start the server, or use its port"
    );
    assert_eq!(body["error"]["details"][0]["path"], "port 3000");
    // A server that speaks something else.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    work.driver.listen(4000, other.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = other.accept().await {
            drop(connection.write_all(b"220 mail.example.org\r\n").await);
        }
    });
    let url = work.url("/").replace("/3000/", "/4000/");
    let (status, body) = work
        .server
        .send(work.http.get(url).bearer_auth(&work.server.token))
        .await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("what listens on port 4000 in the VM gave no HTTP answer: "),
        "{message}"
    );
}

#[tokio::test]
async fn port_is_found_by_headers_and_by_host_name_on_any_path() {
    let work = Work::begin().await;
    let root = format!("http://{}", work.server.address);
    let by_header = |path: &str| {
        let request = work.http.get(format!("{root}{path}")).bearer_auth(&work.server.token);
        request
            .header("x-hearth-instance", work.id.as_str())
            .header("x-hearth-port", "3000")
    };
    let seen = json_of(by_header("/api/v1/projects?a=1")).await;
    assert_eq!(seen["uri"], "/api/v1/projects?a=1");
    let headers = &seen["headers"];
    assert!(
        headers.get("x-forwarded-prefix").is_none() && headers.get("x-hearth-instance").is_none(),
        "{seen}"
    );
    let away = by_header("/away").send().await.unwrap();
    assert_eq!(away.headers()["location"], "/there?x=1");
    let half = work.http.get(&root).header("x-hearth-port", "3000");
    let (status, body) = work.server.send(half).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");

    let name = format!("3000-{}.localhost:7717", work.id.as_str().replace('_', "-"));
    let by_name = work.http.get(format!("{root}/x")).header("host", &name);
    let seen = json_of(by_name.bearer_auth(&work.server.token)).await;
    assert_eq!(
        (&seen["uri"], &seen["headers"]["x-forwarded-host"]),
        (&json!("/x"), &json!(name))
    );
    // The list says the names, where they work.
    let listed = work.server.get(&format!("/instances/{}/ports", work.id)).await;
    let port = work.server.address.port();
    let url = format!("http://3000-{}.localhost:{port}/", work.id.as_str().replace('_', "-"));
    assert_eq!(listed["items"][0]["url"], url);
    assert_eq!(listed["items"][0]["process"], "fake");
    assert_eq!(listed["previews"], json!([]));
}

#[tokio::test]
async fn who_may_not_work_in_the_vm_reaches_no_port() {
    let work = Work::begin().await;
    let (status, body) = work.server.send(work.http.get(work.url("/"))).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    let (status, _) = work
        .server
        .send(work.http.get(work.url("/")).bearer_auth("hearth_unknown"))
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let created = work
        .server
        .post("/tokens", json!({ "name": "other", "scopes": ["claim"] }))
        .await;
    let other = created["token"].as_str().unwrap();
    let (status, body) = work.server.send(work.http.get(work.url("/")).bearer_auth(other)).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{body}");
    for path in [
        "/api/v1/instances/nothing/ports/3000/",
        "/api/v1/instances/wpi_1/ports/0/",
        "/api/v1/instances/wpi_1/ports/x/",
    ] {
        let url = format!("http://{}{path}", work.server.address);
        let (status, _) = work
            .server
            .send(work.http.get(url).bearer_auth(&work.server.token))
            .await;
        assert!(
            matches!(status, StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY),
            "{path}: {status}"
        );
    }
    work.server
        .post(&format!("/instances/{}/release", work.id), json!({}))
        .await;
    let (status, body) = work.server.send(work.request(Method::GET, "/")).await;
    assert!(
        matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE),
        "{status} {body}"
    );
}

#[tokio::test]
async fn shared_link_works_without_a_token_for_its_port_alone() {
    let work = Work::begin().await;
    let link = work.share(600).await;
    // A program gets the answer at once, with a cookie for what comes after.
    let opened = work.http.get(&link).send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::OK);
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(
        cookie.contains(&format!("; Path={};", work.prefix())) && cookie.contains("; HttpOnly; SameSite=Lax"),
        "{cookie}"
    );
    let seen: Value = serde_json::from_slice(&opened.bytes().await.unwrap()).unwrap();
    assert!(!seen.to_string().contains("hearth_share"), "the link is ours: {seen}");
    let pair = cookie.split(';').next().unwrap();
    let seen = json_of(work.http.get(work.url("/asset.js")).header("cookie", pair)).await;
    assert_eq!(seen["uri"], "/asset.js");
    assert!(seen["headers"].get("cookie").is_none());
    // A browser is sent to the same place without the link.
    let page = work
        .http
        .get(format!("{link}&a=1"))
        .header("accept", "text/html")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), StatusCode::SEE_OTHER);
    assert_eq!(page.headers()["location"], format!("{}/?a=1", work.prefix()));
    assert!(page.headers().contains_key("set-cookie"));
    // By name too, and to no other host.
    let (_, signed) = link.split_once('?').unwrap();
    let name = format!("3000-{}.localhost", work.id.as_str().replace('_', "-"));
    for (path, wanted) in [("/a", StatusCode::SEE_OTHER), ("//evil.example/", StatusCode::OK)] {
        let url = format!("http://{}{path}?{signed}", work.server.address);
        let request = work.http.get(url).header("host", &name).header("accept", "text/html");
        let opened = request.send().await.unwrap();
        assert_eq!(opened.status(), wanted, "{path}");
        assert!(opened.headers()["set-cookie"].to_str().unwrap().contains("; Path=/;"));
        assert!(opened.headers().get("location").is_none_or(|to| to == "/a"));
    }
    // Neither another port nor the API opens with it.
    for (url, wanted) in [
        (link.replace("/3000/", "/3001/"), StatusCode::FORBIDDEN),
        (link.replace("hearth_share=1", "hearth_share=2"), StatusCode::FORBIDDEN),
        (format!("{link}0"), StatusCode::FORBIDDEN),
    ] {
        let (status, body) = work.server.send(work.http.get(&url)).await;
        assert_eq!(status, wanted, "{url}: {body}");
    }
    let list = format!("http://{}/api/v1/instances/{}/ports", work.server.address, work.id);
    let (status, _) = work.server.send(work.http.get(list).header("cookie", pair)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn shared_link_ends_with_its_time_and_with_the_claim() {
    let work = Work::begin().await;
    let (short, long) = (work.share(1).await, work.share(600).await);
    let deadline = Instant::now() + SOON;
    let ended = loop {
        let response = work
            .http
            .get(&short)
            .header("accept", "text/html")
            .send()
            .await
            .unwrap();
        if response.status() == StatusCode::GONE {
            break response.text().await.unwrap();
        }
        assert!(Instant::now() < deadline);
        pause().await;
    };
    assert_eq!(ended, "this link has ended. Ask for a new one\n");
    assert_eq!(work.http.get(&long).send().await.unwrap().status(), StatusCode::OK);
    work.server
        .post(&format!("/instances/{}/release", work.id), json!({}))
        .await;
    let response = work.http.get(&long).header("accept", "text/html").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::GONE);
    assert!(
        response
            .text()
            .await
            .unwrap()
            .starts_with("this link has ended: the VM behind it was given back")
    );
}

#[tokio::test]
async fn previews_of_the_settings_file_are_listed_with_their_place() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let settings = r#"{"hooks":{"previews":[{"name":"web","port":3000},{"name":"docs","port":4000}]}}"#;
    let project = crate::setup::project_of(&server, &["app"], (".hearth/settings.json", settings)).await;
    let pool = format!("{project}/warm-pool");
    let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    let id = claim["id"].as_str().unwrap();
    driver.listen(3000, serve().await);
    let list = server.request(Method::GET, &format!("/instances/{id}/ports"));
    let (_, ports) = server
        .send(
            list.header("host", "hearth.example.org")
                .header("x-forwarded-proto", "https"),
        )
        .await;
    let url = |port: u16| format!("https://hearth.example.org/api/v1/instances/{id}/ports/{port}/");
    let preview = |name: &str, port: u16, listening: bool| json!({ "name": name, "repoFullName": "acme/app", "port": port, "url": url(port), "listening": listening });
    assert_eq!(
        ports["previews"],
        json!([preview("web", 3000, true), preview("docs", 4000, false)])
    );
}

/// The lease's end, moved forward by a request with the token and not by one that comes by a link.
#[tokio::test]
async fn only_the_owners_requests_keep_the_lease() {
    let work = Work::begin().await;
    let link = work.share(600).await;
    let claims = "/claims";
    let end = |claims: &Value| claims["items"][0]["expiresAt"].as_str().unwrap().to_owned();
    // What the share itself has renewed is written by then.
    let shared = work.server.get(claims).await;
    let own = work.request(Method::GET, "/").send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    let renewed = work.server.until(SOON, claims, |now| end(now) > end(&shared)).await;
    for _ in 0..20 {
        assert_eq!(work.http.get(&link).send().await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(end(&work.server.get(claims).await), end(&renewed));
}
