//! What a client sees at the edges: headers, limits, queries, cursors, permissions of files, changes at the same time.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{SOON, Server, bare_project, git_repo, options};

/// Status and the faults, as `path: message`.
pub async fn refused(server: &Server, request: reqwest::RequestBuilder) -> (u16, Vec<String>) {
    let (status, body) = server.send(request).await;
    let details = body["error"]["details"].as_array().cloned().unwrap_or_default();
    let text = |fault: &Value| {
        format!(
            "{}: {}",
            fault["path"].as_str().unwrap(),
            fault["message"].as_str().unwrap()
        )
    };
    let mut texts: Vec<String> = details.iter().map(text).collect();
    if texts.is_empty() {
        texts.push(body["error"]["message"].as_str().unwrap_or_default().to_owned());
    }
    (status.as_u16(), texts)
}

#[tokio::test]
async fn all_wrong_parameters_of_a_query_are_named() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let get = async |path: &str| refused(&server, server.request(Method::GET, path)).await;
    let (status, faults) = get(&format!("{project}/warm-pool/instances?limit=51&status=asleep")).await;
    assert_eq!(status, 422);
    assert_eq!(
        faults,
        [
            "limit: must be at most 50",
            "status: must be one of ready, provisioning, failed, claimed"
        ]
    );
    assert_eq!(get("/projects?limit=x").await.1, ["limit: must be a whole number"]);
    assert_eq!(
        get("/projects?limit=1&limit=2").await.1,
        ["limit: is given more than once"]
    );
    assert_eq!(
        get("/projects?cursor=%C3%A4&limit=0").await.1,
        [
            "limit: must be at least 1",
            "cursor: must be a `nextCursor` that this server gave out"
        ]
    );
    let test = server.request(Method::POST, &format!("{project}/warm-pool/test?cache=1"));
    assert_eq!(refused(&server, test).await.1, ["cache: must be true or false"]);
    let body = json!({ "repositories": [] });
    let setup = server.request(Method::PATCH, &format!("{project}/setup?replaceLegacyHooks=yes"));
    assert_eq!(
        refused(&server, setup.json(&body)).await.1,
        ["replaceLegacyHooks: must be true or false"]
    );
}

#[tokio::test]
async fn cursors_are_opaque_and_only_the_servers_own_are_taken() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let first = server.project(bare_project()).await;
    let second = server.project(bare_project()).await;
    let page = server.get("/projects?limit=1").await;
    let cursor = page["nextCursor"].as_str().unwrap();
    let id = first.trim_start_matches("/projects/");
    assert!(!cursor.contains(id) && page["items"][0]["id"] == id, "{page}");
    let next = server.get(&format!("/projects?limit=1&cursor={cursor}")).await;
    assert_eq!(next["items"][0]["id"], second.trim_start_matches("/projects/"));
    // Another version, a character that no id has, half a character.
    for bad in [id, "x", "", "326162", "3141", "31616"] {
        let path = format!("/projects?cursor={bad}");
        let (status, faults) = refused(&server, server.request(Method::GET, &path)).await;
        assert_eq!((status, faults.len()), (422, 1), "{bad}: {faults:?}");
    }
}

#[tokio::test]
async fn a_missing_token_is_told_how_to_come_and_the_documents_page_what_it_may_load() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let http = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", server.address);
    let response = http.get(url("/api/v1/projects")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    for page in ["/docs/", "/docs/swagger-initializer.js"] {
        let response = http.get(url(page)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{page}");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self'"), "{policy}");
        if page.ends_with(".js") {
            let script = response.text().await.unwrap();
            assert!(script.contains(r#""validatorUrl": "none""#), "{script}");
        }
    }
}

#[tokio::test]
async fn a_clients_request_id_is_kept_when_it_can_stand_in_a_log() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let longest = "a".repeat(128);
    let too_long = "a".repeat(129);
    for (sent, kept) in [
        ("job-7_a.B", true),
        (longest.as_str(), true),
        (too_long.as_str(), false),
        ("a b", false),
        ("a;b", false),
        ("", false),
    ] {
        let request = server.request(Method::GET, "/healthz").header("x-request-id", sent);
        let response = request.send().await.unwrap();
        let got = response.headers()["x-request-id"].to_str().unwrap();
        assert_eq!(got == sent, kept, "{sent}: {got}");
        assert!(!got.is_empty());
    }
}

/// What a bare connection answers to this text, until it is closed.
async fn exchange(server: &Server, text: &str) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
    // A reset is an end as well.
    let _ = read.expect("the server keeps the connection open");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn silent_and_slow_connections_are_closed_and_http_2_is_not_spoken() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.header_patience = Duration::from_millis(200);
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    for text in ["", "GET /he", "GET /healthz HTTP/1.1\r\nHost: a\r\n"] {
        let answer = exchange(&server, text).await;
        assert!(!answer.contains(" 200 "), "{text}: {answer}");
    }
    let answer = exchange(&server, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(!answer.contains("SETTINGS") && !answer.contains(" 200 "), "{answer}");
    server.get("/healthz").await;
}

#[tokio::test]
async fn a_body_that_is_announced_too_long_is_refused_unread() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let request = format!(
        "POST /api/v1/projects HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{{",
        server.token
    );
    let answer = exchange(&server, &request).await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("longer than 64 MiB"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_files_with_secrets_are_their_owners_alone_in_any_folder() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let given = options(folder.path());
    let server = Server::start(folder, given, move |_| Ok(driver)).await.unwrap();
    server.project(bare_project()).await;
    let mode = |name: &str| std::fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
    for name in [
        "hearth.db",
        "hearth.db-wal",
        "hearth.db-shm",
        "secret.key",
        "admin-token",
    ] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    assert_eq!(mode(""), 0o755);
    let (new, _) = Server::fake(FakeOptions::default()).await;
    let made = std::fs::metadata(&new.options.data_dir).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn changes_of_different_fields_at_the_same_time_all_survive() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let url = git_repo(server.folder.path(), "app", &[("README", "a")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "first", "repos": repos })).await;
    let setup = format!("{project}/setup");
    for round in 0..8 {
        let (name, text, code) = (format!("n{round}"), format!("d{round}"), format!("T{round}"));
        let script = format!("echo {round}");
        let scripts = json!({ "initialize": script, "updateAfterCheckout": null, "startup": null });
        let body = json!({ "repositories": [
            { "repository": "acme/app", "branch": "main", "scripts": scripts, "commands": [] }
        ] });
        tokio::join!(
            server.patch(&setup, body),
            server.patch(&project, json!({ "name": name })),
            server.patch(&project, json!({ "description": text })),
            server.patch(&project, json!({ "taskCode": code })),
        );
        let now = server.get(&project).await;
        assert_eq!(
            (&now["name"], &now["description"], &now["taskCode"]),
            (&json!(name), &json!(text), &json!(code)),
            "{now}"
        );
        let saved = server.get(&setup).await;
        assert_eq!(
            saved["setup"]["repositories"][0]["scripts"]["initialize"], script,
            "{saved}"
        );
    }
}

#[tokio::test]
async fn sentences_say_which_fields_and_which_form() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let id = server.post(&format!("{pool}/claim"), json!({})).await["id"].clone();
    let exec = format!("/instances/{}/exec", id.as_str().unwrap());
    let post = async |path: &str, body: Value| refused(&server, server.request(Method::POST, path).json(&body)).await.1;
    assert_eq!(
        post(&exec, json!({ "command": "a", "argv": ["a"] })).await,
        [".: give either `command` or `argv`, not both"]
    );
    assert_eq!(post(&exec, json!({})).await, [".: give either `command` or `argv`"]);
    let expected = "expiresAt: must be an RFC 3339 time like 2027-01-31T12:00:00Z, at most the year 9999";
    for wrong in ["tomorrow", "2027-01-31", "+12027-01-31T12:00:00Z"] {
        let body = json!({ "name": "a", "scopes": ["claim"], "expiresAt": wrong });
        assert_eq!(post("/tokens", body).await, [expected], "{wrong}");
    }
}

#[tokio::test]
async fn a_project_that_may_have_no_vms_is_refused_a_claim_as_it_is_a_pool() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(json!({ "name": "none", "maxVms": 0 })).await;
    let pool = format!("{project}/warm-pool");
    let patch = server.call(Method::PATCH, &pool, json!({ "enabled": true })).await;
    let claim = server.call(Method::POST, &format!("{pool}/claim"), json!({})).await;
    assert_eq!(claim.0, StatusCode::FORBIDDEN, "{}", claim.1);
    assert_eq!(claim, patch);
}

#[tokio::test]
async fn a_claim_is_the_same_however_it_is_written() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let path = format!("{pool}/claim");
    let claim = async |key: Option<&[u8]>, body: Value| {
        let mut request = server.request(Method::POST, &path).json(&body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        server.send(request).await
    };
    let (status, first) = claim(None, json!({ "taskId": "t", "env": { "B": "1", "A": "2" } })).await;
    assert_eq!(status, StatusCode::OK, "{first}");
    for (key, body) in [
        (Some("t"), json!({ "env": { "A": "2", "B": "1" } })),
        (
            Some("t"),
            json!({ "taskId": "t", "branch": null, "env": { "A": "2", "B": "1" } }),
        ),
        (
            None,
            json!({ "strict": null, "env": { "A": "2", "B": "1" }, "taskId": "t" }),
        ),
    ] {
        let (_, again) = claim(key.map(str::as_bytes), body).await;
        assert_eq!(again["id"], first["id"], "{again}");
    }
    let (status, _) = claim(Some(b"t"), json!({ "env": { "A": "3" } })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    for (key, said) in [("u".as_bytes(), "not the same as `taskId`"), ("ä".as_bytes(), "ASCII")] {
        let (status, reply) = claim(Some(key), json!({ "taskId": "t" })).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        let fault = &reply["error"]["details"][0];
        assert_eq!(fault["path"], "Idempotency-Key");
        assert!(fault["message"].as_str().unwrap().contains(said), "{reply}");
    }
}
