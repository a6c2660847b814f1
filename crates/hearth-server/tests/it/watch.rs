//! Branches that are followed, and webhooks, through the front door. What was seen is known by the host's mirror, which the
//! watch brings up to date before anybody hears of a new head.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::WebhookSecret;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::harness::{SOON, Server, bare_project, commit, git, git_repo, options, pause, repo_folder};
use crate::secrets::files_with;

pub const SECRET: &str = "webhook-secret-of-the-tests";
/// An interval so long that no timed poll happens during a test.
pub const SELDOM: Duration = Duration::from_secs(3600);

/// A server that looks this often and takes webhooks.
pub async fn start(folder: &Arc<tempfile::TempDir>, interval: Duration) -> Server {
    start_on(folder, interval, FakeDriver::new(1, FakeOptions::default())).await
}

/// The same, with these machines.
async fn start_on(folder: &Arc<tempfile::TempDir>, interval: Duration, world: FakeDriver) -> Server {
    let mut options = options(folder.path());
    options.watch_interval = interval;
    options.webhook_secret = WebhookSecret::new(SECRET);
    let driver: Arc<dyn Driver> = Arc::new(world);
    Server::start(folder.clone(), options, move |_| Ok(driver))
        .await
        .unwrap()
}

/// A project with an enabled pool that follows `main` of this repository.
pub async fn follow(server: &Server, url: &str) -> String {
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    server
        .patch(&format!("{project}/warm-pool"), json!({ "enabled": true }))
        .await;
    server.until_full(SOON, &project, 1).await;
    until_followers(server, 1).await;
    project
}

/// Waits until so many repositories of that name are followed.
async fn until_followers(server: &Server, repositories: usize) {
    let ping = [("X-GitHub-Event", "ping"), ("X-Gitlab-Token", SECRET)];
    let deadline = Instant::now() + SOON;
    while hook(server, &ping, &by_name()).await.1 != json!({ "repositories": repositories }) {
        assert!(
            Instant::now() < deadline,
            "not {repositories} repositories were followed"
        );
        pause().await;
    }
}

/// The one mirror of the host, when it is there.
fn mirror(folder: &Path) -> Option<PathBuf> {
    let mirrors = std::fs::read_dir(folder.join("data/mirrors")).ok()?;
    let mut paths = mirrors.map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|end| end == "git") && path.join("refs").exists())
}

/// Waits until the mirror's `main` is at this commit.
async fn until_seen(folder: &Path, commit: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let seen =
            mirror(folder).map(|mirror| git(&mirror, &["for-each-ref", "--format=%(objectname)", "refs/heads/main"]));
        if seen.as_deref() == Some(commit) {
            return;
        }
        assert!(Instant::now() < deadline, "{commit} was never seen; {seen:?} was");
        pause().await;
    }
}

fn push_to(url: &str, number: usize) -> String {
    let repo = repo_folder(url);
    commit(&repo, &[("file", &number.to_string())], "next");
    git(&repo, &["rev-parse", "HEAD"])
}

fn signature(body: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// A webhook. The token that it has too is not looked at.
pub async fn hook(server: &Server, headers: &[(&str, &str)], body: &str) -> (StatusCode, Value) {
    let mut request = server
        .request(Method::POST, "/hooks/git")
        .header("content-type", "application/json")
        .body(body.to_owned());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request).await
}

fn by_name() -> String {
    json!({ "ref": "refs/heads/main", "repository": { "full_name": "Acme/app" } }).to_string()
}

#[tokio::test]
async fn a_push_is_seen_by_the_timed_look() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, Duration::from_millis(300)).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    follow(&server, &url).await;
    for number in 0..2 {
        until_seen(folder.path(), &push_to(&url, number)).await;
    }
}

#[tokio::test]
async fn a_push_is_seen_by_each_forges_webhook() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    follow(&server, &url).await;
    until_seen(folder.path(), &git(&repo_folder(&url), &["rev-parse", "HEAD"])).await;
    let by_address = json!({ "repository": { "clone_url": format!("{url}.git/") } }).to_string();
    let by_path = json!({ "project": { "path_with_namespace": "acme/app" } }).to_string();
    let signed = |body: &str| signature(body, SECRET);
    let prefixed = |body: &str| format!("sha256={}", signed(body));
    for (number, (body, headers)) in [
        (
            by_name(),
            vec![
                ("X-GitHub-Event", "push".to_owned()),
                ("X-Hub-Signature-256", prefixed(&by_name())),
            ],
        ),
        (
            by_path,
            vec![
                ("X-Gitlab-Event", "Push Hook".to_owned()),
                ("X-Gitlab-Token", SECRET.to_owned()),
            ],
        ),
        (
            by_address.clone(),
            vec![
                ("X-Gitea-Event", "push".to_owned()),
                ("X-Gitea-Signature", signed(&by_address)),
            ],
        ),
        (
            by_name(),
            vec![
                ("X-Forgejo-Event", "push".to_owned()),
                ("X-GitHub-Event", "push".to_owned()),
                ("X-Forgejo-Signature", signed(&by_name())),
            ],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let news = push_to(&url, number);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let reply = hook(&server, &headers, &body).await;
        assert_eq!(reply, (StatusCode::ACCEPTED, json!({ "repositories": 1 })), "{body}");
        until_seen(folder.path(), &news).await;
    }
}

#[tokio::test]
async fn a_strict_claim_after_a_webhook_gets_what_was_pushed() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    let project = follow(&server, &url).await;
    let claim = format!("{project}/warm-pool/claim");
    let signed = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", SECRET)];
    for number in 0..3 {
        let news = push_to(&url, number);
        let (status, _) = hook(&server, &signed, &by_name()).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        // At once, while the webhook still waits for others that may follow it; what was pushed is set up first.
        let reply = server.post(&claim, json!({ "strict": true })).await;
        assert_eq!(reply["repos"][0]["commit"], news, "{reply:#}");
    }
}

#[tokio::test]
async fn a_strict_claim_gets_what_was_pushed_while_nobody_followed() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let world = FakeDriver::new(1, FakeOptions::default());
    let server = start_on(&folder, SELDOM, world.clone()).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    let project = follow(&server, &url).await;
    let pool = format!("{project}/warm-pool");
    let strict = async |server: &Server, news: &str| {
        let claim = json!({ "strict": true, "waitMs": 20_000 });
        let reply = server.post(&format!("{pool}/claim"), claim).await;
        assert_eq!(reply["repos"][0]["commit"], news, "{reply:#}");
    };
    // The pool is disabled, and it is forgotten what it followed.
    server.patch(&pool, json!({ "enabled": false })).await;
    until_followers(&server, 0).await;
    strict(&server, &push_to(&url, 0)).await;
    // Enabled again.
    until_followers(&server, 0).await;
    let news = push_to(&url, 1);
    server.patch(&pool, json!({ "enabled": true })).await;
    strict(&server, &news).await;
    // A branch that nobody followed.
    git(&repo_folder(&url), &["branch", "dev"]);
    server.patch(&pool, json!({ "branch": "dev" })).await;
    git(&repo_folder(&url), &["checkout", "--quiet", "dev"]);
    strict(&server, &push_to(&url, 2)).await;
    // No server was there.
    let (folder, options) = server.stop().await;
    let news = push_to(&url, 3);
    let again: Arc<dyn Driver> = Arc::new(world.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    strict(&server, &news).await;
}

#[tokio::test]
async fn a_webhook_right_after_a_pool_was_enabled_finds_its_repository() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let signed = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Token", SECRET)];
    assert_eq!(hook(&server, &signed, &by_name()).await.1, json!({ "repositories": 0 }));
    server
        .patch(&format!("{project}/warm-pool"), json!({ "enabled": true }))
        .await;
    assert_eq!(hook(&server, &signed, &by_name()).await.1, json!({ "repositories": 1 }));
}

#[tokio::test]
async fn a_webhook_without_the_right_secret_is_refused_and_told_nothing() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    let body = by_name();
    let (wrong, right) = (signature(&body, "other"), signature(&body, SECRET));
    let (wrong_prefixed, sha1) = (format!("sha256={wrong}"), format!("sha1={right}"));
    let event = ("X-GitHub-Event", "push");
    let mut said = Vec::new();
    for headers in [
        vec![event],
        vec![event, ("X-Hub-Signature-256", &wrong_prefixed)],
        vec![event, ("X-Hub-Signature-256", &right)],
        vec![event, ("X-Hub-Signature-256", &sha1)],
        vec![event, ("X-Hub-Signature-256", "sha256=")],
        vec![event, ("X-Gitea-Signature", &wrong)],
        vec![event, ("X-Gitlab-Token", "other")],
        vec![event, ("X-Gitlab-Token", ""), ("X-Gitea-Signature", &right)],
        vec![("X-Gitlab-Token", &SECRET[1..])],
        vec![],
    ] {
        let (status, reply) = hook(&server, &headers, &body).await;
        assert_eq!(
            (status, &reply["error"]["code"]),
            (StatusCode::UNAUTHORIZED, &json!("unauthorized")),
            "{headers:?}"
        );
        said.push(reply.to_string());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    // The signature is of these very bytes.
    let prefixed = format!("sha256={right}");
    let other_body = hook(
        &server,
        &[event, ("X-Hub-Signature-256", &prefixed)],
        &format!("{body} "),
    )
    .await;
    assert_eq!(other_body.0, StatusCode::UNAUTHORIZED);
    let long = " ".repeat(26 * 1024 * 1024);
    let too_long = hook(&server, &[event, ("X-Gitea-Signature", &right)], &long).await;
    assert_eq!(too_long.0, StatusCode::PAYLOAD_TOO_LARGE);
    // Who has the secret is told what is wrong.
    let token = ("X-Gitlab-Token", SECRET);
    for (headers, body) in [
        (vec![token, event], "[]"),
        (vec![token, event], "{"),
        (vec![token, event], "null"),
        (vec![token], "{}"),
    ] {
        let (status, reply) = hook(&server, &headers, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert!(!reply.to_string().contains(SECRET));
    }
}

#[tokio::test]
async fn pings_and_other_events_are_fine_and_do_nothing() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    follow(&server, &url).await;
    until_seen(folder.path(), &git(&repo_folder(&url), &["rev-parse", "HEAD"])).await;
    let token = ("X-Gitlab-Token", SECRET);
    let none = json!({ "repository": { "full_name": "acme/other" } }).to_string();
    for (event, body, status, count) in [
        (("X-GitHub-Event", "ping"), by_name(), 200, 1),
        (("X-GitHub-Event", "issues"), by_name(), 200, 0),
        (("X-Gitlab-Event", "Tag Push Hook"), by_name(), 200, 0),
        (("X-GitHub-Event", "push"), none, 202, 0),
    ] {
        let (got, reply) = hook(&server, &[token, event], &body).await;
        assert_eq!(
            (got.as_u16(), reply),
            (status, json!({ "repositories": count })),
            "{event:?}"
        );
    }
}

#[tokio::test]
async fn webhooks_over_the_pace_are_not_read_and_not_lost() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.watch_interval = SELDOM;
    options.webhook_secret = WebhookSecret::new(SECRET);
    options.requests_per_second = 50;
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder.clone(), options, move |_| Ok(driver))
        .await
        .unwrap();
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    follow(&server, &url).await;
    until_seen(folder.path(), &git(&repo_folder(&url), &["rev-parse", "HEAD"])).await;
    let news = push_to(&url, 1);
    // They speak of another repository: only one that is not read makes the server look at ours.
    let other = json!({ "repository": { "full_name": "acme/other" } }).to_string();
    let headers = [("X-Gitlab-Token", SECRET), ("X-Gitlab-Event", "Push Hook")];
    let burst = (0..1000).map(|_| hook(&server, &headers, &other));
    let replies = futures::stream::iter(burst)
        .buffer_unordered(32)
        .collect::<Vec<_>>()
        .await;
    let refused = replies
        .iter()
        .find(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS);
    let (_, reply) = refused.expect("a burst of 1000 at 50 per second was let through");
    assert_eq!(reply["error"]["code"], "too_many_requests");
    until_seen(folder.path(), &news).await;
}

#[tokio::test]
async fn without_a_secret_webhooks_are_off() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (status, reply) = hook(&server, &[("X-Gitlab-Token", "")], "{}").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("--webhook-secret-file"), "{message}");
}

/// Git over plain HTTP, file by file, counting the looks: each begins with `info/refs`.
struct Forge {
    url: String,
    looks: Arc<AtomicUsize>,
}

impl Forge {
    async fn serving(git_folder: PathBuf) -> Self {
        git(&git_folder, &["update-server-info"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let looks = Arc::new(AtomicUsize::new(0));
        let counter = looks.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut first, mut line) = (String::new(), String::new());
                stream.read_line(&mut first).await.unwrap();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    line.clear();
                }
                let path = first.split([' ', '?']).nth(1).unwrap_or_default();
                let path = path.trim_start_matches("/acme/app.git/");
                if path == "info/refs" {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                let (status, content) = match std::fs::read(git_folder.join(path)) {
                    Ok(content) => ("200 OK", content),
                    Err(_) => ("404 Not Found", Vec::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    content.len()
                );
                let reply = [head.into_bytes(), content].concat();
                // It may have heard enough.
                let _ = stream.write_all(&reply).await;
            }
        });
        let url = format!("http://{address}/acme/app.git");
        Self { url, looks }
    }

    fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }

    /// Waits until nobody has looked for so long.
    async fn quiet(&self, long: Duration) {
        let (mut looks, mut since) = (self.looks(), Instant::now());
        while since.elapsed() < long {
            pause().await;
            if self.looks() != looks {
                (looks, since) = (self.looks(), Instant::now());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_webhooks_in_a_burst_are_one_look_or_two() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = Arc::new(start(&folder, SELDOM).await);
    let repo = git_repo(folder.path(), "app", &[("a", "1")]);
    let forge = Forge::serving(repo_folder(&repo).join(".git")).await;
    follow(&server, &forge.url).await;
    until_seen(folder.path(), &git(&repo_folder(&repo), &["rev-parse", "HEAD"])).await;
    // What the first VM and the first look ask for.
    forge.quiet(Duration::from_secs(2)).await;
    let before = forge.looks();
    let body = json!({ "repository": { "ssh_url": "git@127.0.0.1:acme/app.git" } }).to_string();
    let senders = (0..8).map(|_| {
        let (server, body) = (server.clone(), body.clone());
        tokio::spawn(async move {
            for _ in 0..125 {
                let headers = [("X-Gitlab-Token", SECRET), ("X-Gitlab-Event", "Push Hook")];
                let (status, _) = hook(&server, &headers, &body).await;
                // More than the pace allows are not read, and count all the same.
                assert!([StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS].contains(&status));
            }
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        sender.await.unwrap();
    }
    let deadline = Instant::now() + SOON;
    while forge.looks() == before {
        assert!(Instant::now() < deadline, "the burst was never answered with a look");
        pause().await;
    }
    // Nothing moved, so a look is one request for the branches. One that is still due would come within two seconds.
    forge.quiet(Duration::from_secs(4)).await;
    let looks = forge.looks() - before;
    assert!((1..=2).contains(&looks), "{looks} looks");
}

#[tokio::test]
async fn what_cannot_be_followed_is_explained_until_it_can() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, Duration::from_millis(300)).await;
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    let project = follow(&server, &url).await;
    let explain = format!("{project}/warm-pool/explain");
    until_seen(folder.path(), &git(&repo_folder(&url), &["rev-parse", "HEAD"])).await;
    let find = |explained: &Value, kind: &str| {
        let conditions = explained["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == kind)
    };
    let away = folder.path().join("away");
    std::fs::rename(repo_folder(&url), &away).unwrap();
    let kind = "RepositoryUnreachable";
    let explained = server.until(SOON, &explain, |it| find(it, kind).is_some()).await;
    let condition = find(&explained, kind).unwrap();
    assert!(condition["message"].as_str().unwrap().contains(&url), "{condition}");
    let since = condition["since"].clone();
    std::fs::rename(&away, repo_folder(&url)).unwrap();
    server.until(SOON, &explain, |it| find(it, kind).is_none()).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "branch": "gone" })).await;
    let kind = "BranchMissing";
    let explained = server.until(SOON, &explain, |it| find(it, kind).is_some()).await;
    assert!(find(&explained, kind).unwrap()["since"].as_str() > since.as_str());
    git(&repo_folder(&url), &["branch", "gone"]);
    server.until(SOON, &explain, |it| find(it, kind).is_none()).await;
}

#[tokio::test]
async fn the_webhook_secret_is_in_no_file_and_no_reply() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let server = start(&folder, SELDOM).await;
    server.project(bare_project()).await;
    let event = ("X-GitHub-Event", "push");
    let signed = format!("sha256={}", signature("{}", SECRET));
    let mut said = format!("{:?}", server.options);
    for headers in [
        [event, ("X-Gitlab-Token", SECRET)],
        [event, ("X-Hub-Signature-256", &signed)],
        [event, ("x", "y")],
    ] {
        said.push_str(&hook(&server, &headers, "{}").await.1.to_string());
    }
    said.push_str(&server.call(Method::GET, "/openapi.json", json!({})).await.1.to_string());
    assert!(!said.contains(SECRET), "{said}");
    server.stop().await;
    let mut found = Vec::new();
    files_with(folder.path(), SECRET.as_bytes(), &mut found);
    assert_eq!(found, Vec::<String>::new());
}
