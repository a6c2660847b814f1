//! Outgoing webhooks against a real receiver: signed, tried again, logged, sent again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::{SOON, Server, bare_project, options, pause};

/// A second of the pauses between attempts.
const SECOND: Duration = Duration::from_millis(20);

/// So long a receiver may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// One request as it came.
#[derive(Debug, Clone)]
struct Posted {
    head: String,
    body: String,
}

impl Posted {
    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).unwrap().1
    }

    /// Whether it is signed with this secret.
    fn is_signed(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        let content = [self.header("webhook-id"), self.header("webhook-timestamp"), &self.body].join(".");
        mac.update(content.as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        self.header("webhook-signature") == format!("v1,{signature}")
    }

    fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver that answers with the next of these, and with 204 after them.
#[derive(Clone)]
struct Receiver {
    address: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Receiver {
    async fn start(mut answers: Vec<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let all = posted.clone();
        answers.reverse();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                let whole = loop {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    if let Some((head, body)) = text.split_once("\r\n\r\n") {
                        let length = head.lines().find_map(|line| {
                            line.to_ascii_lowercase()
                                .strip_prefix("content-length: ")
                                .map(str::to_owned)
                        });
                        if length.is_some_and(|length| body.len() >= length.parse::<usize>().unwrap()) {
                            break Posted {
                                head: head.to_owned(),
                                body: body.to_owned(),
                            };
                        }
                    }
                    assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
                };
                all.lock().unwrap().push(whole);
                let answer = answers.pop().unwrap_or("204 No Content");
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, posted }
    }

    fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Posted> {
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let posted = self.posted();
            if posted.len() >= count {
                return posted;
            }
            assert!(std::time::Instant::now() < deadline, "{posted:?}");
            pause().await;
        }
    }

    fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }
}

async fn server() -> Server {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let mut options = options(folder.path());
    options.webhook_second = SECOND;
    Server::start(folder, options, move |_| Ok(driver)).await.unwrap()
}

#[tokio::test]
async fn events_are_posted_signed_and_tried_again_with_one_id_until_they_are_taken() {
    let server = server().await;
    let receiver = Receiver::start(vec!["500 No", "302 Found", "200 OK"]).await;
    let project = server.project(bare_project()).await;
    let other = server.project(json!({ "name": "other", "repos": [] })).await;
    let id = project.trim_start_matches("/projects/");
    let body = json!({ "url": receiver.url(), "projectId": id, "kinds": ["project.changed"] });
    let made = server.post("/webhooks", body).await;
    let (webhook, secret) = (made["id"].as_str().unwrap(), made["secret"].as_str().unwrap());
    // Not its kind, not its project, and its own.
    server
        .patch(&format!("{project}/warm-pool"), json!({ "targetSize": 2 }))
        .await;
    server.patch(&other, json!({ "description": "x" })).await;
    server.patch(&project, json!({ "description": "the first" })).await;
    let posted = receiver.until(3).await;
    assert!(posted.iter().all(|one| one.is_signed(secret)), "{posted:?}");
    assert!(!posted[0].is_signed("whsec_AAAA"));
    let ids: Vec<&str> = posted.iter().map(|one| one.header("webhook-id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0] && id.starts_with("msg_")), "{ids:?}");
    let event = posted[0].event();
    assert_eq!(
        (&event["type"], &event["data"]["kind"], &event["data"]["projectId"]),
        (&json!("project.changed"), &json!("project.changed"), &json!(id))
    );
    let log = format!("/webhooks/{webhook}/deliveries");
    let deliveries = server
        .until(SOON, &log, |list| list["items"][0]["status"] == "delivered")
        .await;
    let delivery = &deliveries["items"][0];
    assert_eq!(deliveries["items"].as_array().unwrap().len(), 1, "{deliveries}");
    assert_eq!(
        (
            &delivery["attempts"],
            &delivery["lastStatus"],
            &delivery["lastError"],
            &delivery["id"]
        ),
        (&json!(3), &json!(200), &json!(null), &json!(ids[0]))
    );
    // Again, by hand: the same id and body.
    let replay = format!("{log}/{}/replay", ids[0]);
    server.post(&replay, json!({})).await;
    let again = receiver.until(4).await;
    assert_eq!(
        (again[3].header("webhook-id"), &again[3].body),
        (ids[0], &posted[0].body)
    );
    // The secret is shown once.
    let list = server.get("/webhooks").await;
    assert_eq!(list["items"][0]["url"], receiver.url());
    assert!(!list.to_string().contains(secret) && !deliveries.to_string().contains(secret));
    let deleted = server
        .send(server.request(Method::DELETE, &format!("/webhooks/{webhook}")))
        .await;
    assert_eq!(deleted.0, StatusCode::OK);
    server.patch(&project, json!({ "description": "the last" })).await;
    assert_eq!(server.get("/webhooks").await, json!({ "items": [] }));
    let gone = server.send(server.request(Method::GET, &log)).await;
    assert_eq!(gone.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_receiver_that_never_answers_delays_no_other() {
    let server = server().await;
    // It takes connections and says nothing: the kernel accepts them.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", silent.local_addr().unwrap());
    let receiver = Receiver::start(vec![]).await;
    for url in [url, receiver.url()] {
        let made = server.post("/webhooks", json!({ "url": url, "kinds": ["project.changed"] }));
        made.await;
    }
    let project = server.project(bare_project()).await;
    // More than are taken up at a time.
    let changes = 80;
    for change in 0..changes {
        let change = json!({ "description": change.to_string() });
        server.patch(&project, change).await;
    }
    let begun = std::time::Instant::now();
    receiver.until(changes).await;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_given_up_after_all_attempts_and_found_again_by_a_replay() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let driver = FakeDriver::new(1, FakeOptions::default());
    let mut options = options(folder.path());
    // The whole of 28 hours in some tenths of a second.
    options.webhook_second = Duration::from_micros(2);
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let project = server.project(bare_project()).await;
    let receiver = Receiver::start(vec!["503 Away"; 8]).await;
    let made = server.post("/webhooks", json!({ "url": receiver.url() })).await;
    let webhook = made["id"].as_str().unwrap().to_owned();
    let secret = made["secret"].as_str().unwrap().to_owned();
    server.patch(&project, json!({ "description": "x" })).await;
    let failed = format!("/webhooks/{webhook}/deliveries?failed=true");
    let list = server
        .until(SOON, &failed, |list| list["items"][0]["status"] == "failed")
        .await;
    let delivery = &list["items"][0];
    assert_eq!(
        (&delivery["attempts"], &delivery["lastStatus"], &delivery["nextAt"]),
        (&json!(8), &json!(503), &json!(null))
    );
    assert!(delivery["lastError"].as_str().unwrap().contains("503"), "{delivery}");
    assert_eq!(server.get("/webhooks").await["items"][0]["failed"], 1);
    // Over a restart, too.
    let (folder, options) = server.stop().await;
    let made: Arc<dyn Driver> = Arc::new(driver);
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let path = format!(
        "/webhooks/{webhook}/deliveries/{}/replay",
        delivery["id"].as_str().unwrap()
    );
    server.post(&path, json!({})).await;
    let posted = receiver.until(9).await;
    assert!(posted[8].is_signed(&secret));
    let all = format!("/webhooks/{webhook}/deliveries");
    server
        .until(SOON, &all, |list| list["items"][0]["status"] == "delivered")
        .await;
}

#[tokio::test]
async fn webhooks_are_for_admins_of_the_first_tenant_and_their_urls_hold_no_secret() {
    let server = server().await;
    for (url, says) in [
        ("ftp://x", "must be a URL"),
        ("http://a:b@x", "without user and password"),
        ("x", "must be a URL"),
    ] {
        let (status, body) = server.call(Method::POST, "/webhooks", json!({ "url": url })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(says), "{body}");
    }
    let client = reqwest::Client::new();
    for body in [
        json!({ "name": "f", "scopes": ["admin"], "tenant": "acme" }),
        json!({ "name": "r", "scopes": ["project:write"] }),
    ] {
        let token = server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
        let url = format!("http://{}/api/v1/webhooks", server.address);
        let reply = client.get(url).bearer_auth(token).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::FORBIDDEN);
    }
}
