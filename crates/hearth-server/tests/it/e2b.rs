//! E2B's protocol: refusals, lists and faults with the fake driver; the whole story of a sandbox by E2B's own clients in a real VM.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::harness::{BOOT, SOON, Server, options};
use crate::secrets::files_with;
use crate::vms::{clean_up, qemu_of, server_with};

/// How long one of the clients' stories may take on a busy machine.
const STORY: Duration = Duration::from_secs(600);

/// A request as clients send it, with the key of this token.
async fn call(server: &Server, key: &str, method: Method, path: &str, body: Value) -> (reqwest::Response, Value) {
    let url = format!("http://{}/e2b{path}", server.address);
    let request = reqwest::Client::new().request(method, url).header("x-api-key", key);
    answer(request.json(&body)).await
}

async fn answer(request: reqwest::RequestBuilder) -> (reqwest::Response, Value) {
    let response = request.send().await.unwrap();
    let (parts, body) = http::Response::from(response).into_parts();
    let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    (http::Response::from_parts(parts, Vec::new()).into(), value)
}

async fn create(server: &Server, body: Value) -> Value {
    let (response, made) = call(server, &server.token, Method::POST, "/v2/sandboxes", body).await;
    assert_eq!(response.status(), StatusCode::CREATED, "{made}");
    made
}

/// A server with a fake driver that has room for so many VMs.
async fn roomy(tell: impl FnOnce(&mut hearth_server::ServeOptions)) -> Server {
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.provision_concurrency = 4;
    tell(&mut options);
    Server::start(folder, options, move |_| Ok(driver)).await.unwrap()
}

#[tokio::test]
async fn tag_names_the_build_that_it_was_given_to_and_no_later_one() {
    let server = roomy(|_| ()).await;
    let ask = async |method: Method, path: &str, body: Value| {
        let (response, said) = call(&server, &server.token, method, path, body).await;
        (response.status(), said)
    };
    let build = async |body: Value| {
        let (_, begun) = ask(Method::POST, "/v3/templates", body).await;
        let (id, build) = (
            begun["templateID"].as_str().unwrap(),
            begun["buildID"].as_str().unwrap(),
        );
        let steps = json!({ "steps": [{ "type": "RUN", "args": [format!("echo {build}")] }], "force": false });
        let (status, said) = ask(Method::POST, &format!("/v2/templates/{id}/builds/{build}"), steps).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{said}");
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let (_, said) = ask(
                Method::GET,
                &format!("/templates/{id}/builds/{build}/status"),
                json!({}),
            )
            .await;
            if said["status"] == "ready" {
                return begun;
            }
            assert!(
                tokio::time::Instant::now() < deadline && said["status"] != "error",
                "{said}"
            );
            crate::harness::pause().await;
        }
    };
    let first = build(json!({ "name": "web:v1", "tags": ["stable", "v1"] })).await;
    assert_eq!(first["tags"], json!(["v1", "stable"]));
    let given = json!({ "target": "web:stable", "tags": ["best"] });
    let (status, said) = ask(Method::POST, "/templates/tags", given).await;
    assert_eq!((status, &said["buildID"]), (StatusCode::CREATED, &first["buildID"]));
    let taken = json!({ "name": "web", "tags": ["stable"] });
    let (status, _) = ask(Method::DELETE, "/templates/tags", taken).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (_, tags) = ask(Method::GET, "/templates/web/tags", json!({})).await;
    let named: Vec<&Value> = tags.as_array().unwrap().iter().map(|tag| &tag["tag"]).collect();
    assert_eq!(named, ["best", "v1"]);
    let exists = async |name: &str| ask(Method::GET, &format!("/templates/aliases/{name}"), json!({})).await;
    let built = first["buildID"].as_str().unwrap();
    for name in [
        "web",
        "web:v1",
        "team/web:best".replace('/', "%2F").as_str(),
        &format!("web:{built}"),
        "web:default",
    ] {
        assert_eq!(exists(name).await.0, StatusCode::OK, "{name}");
    }
    // Begun alone, it replaces nothing.
    ask(Method::POST, "/v3/templates", json!({ "name": "web:v3" })).await;
    assert_eq!(exists("web:v1").await.0, StatusCode::OK);
    build(json!({ "name": "web:v2" })).await;
    for (name, word) in [("web:v1", "a later build"), ("web:v3", "`best`, `v1`, `v2`")] {
        let (status, said) = exists(name).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
        assert!(said["message"].as_str().unwrap().contains(word), "{said}");
    }
    assert_eq!(exists("web").await.0, StatusCode::OK);
    let given = json!({ "target": "web:v1", "tags": ["late"] });
    let (status, said) = ask(Method::POST, "/templates/tags", given).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
    let wrong = json!({ "name": "web", "tags": ["a b"] });
    let (status, _) = ask(Method::POST, "/v3/templates", wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    server.project(json!({ "name": "plain", "repos": [] })).await;
    let (status, said) = exists("plain:v1").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{said}");
    assert_eq!(exists("plain:default").await.0, StatusCode::OK);
}

#[tokio::test]
async fn e2b_says_what_is_wrong_in_its_clients_words() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    server.full_pool(1).await;
    for (key, path) in [("", "/v2/sandboxes"), ("hearth_wrong", "/sandboxes/x")] {
        let (response, said) = call(&server, key, Method::GET, path, json!({})).await;
        assert_eq!(
            (response.status(), &said["code"]),
            (StatusCode::UNAUTHORIZED, &json!(401)),
            "{said}"
        );
    }
    let (response, said) = call(
        &server,
        &server.token,
        Method::POST,
        "/v2/sandboxes",
        json!({ "templateID": "none" }),
    )
    .await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert!(said["message"].as_str().unwrap().contains("`demo`"), "{said}");
    for (body, word) in [
        (json!({ "mcp": {} }), "mcp"),
        (json!({ "timeout": -1 }), "timeout"),
        (json!({ "envVars": { "a b": "1" } }), "a b"),
        (json!({ "metadata": { "a": 1 } }), "metadata"),
        (json!({ "network": { "denyOut": ["203.0.113.1"] } }), "denyOut"),
        (json!({ "network": { "allowOut": ["not a host"] } }), "allowOut"),
    ] {
        let (response, said) = call(&server, &server.token, Method::POST, "/v2/sandboxes", body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{said}");
        assert!(said["message"].as_str().unwrap().contains(word), "{said}");
    }

    for (body, word) in [
        (json!({ "name": "none", "cpuCount": 0 }), "cpuCount"),
        (json!({ "name": "none", "cpuCount": 9999 }), "9999 processors"),
        (json!({ "name": "--" }), "`name`"),
    ] {
        let (response, said) = call(&server, &server.token, Method::POST, "/v3/templates", body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{said}");
        assert!(said["message"].as_str().unwrap().contains(word), "{said}");
    }

    // `base` is the only project, by whatever name: what was refused has made none.
    let made = create(&server, json!({ "templateID": "base", "timeout": 60 })).await;
    let id = made["sandboxID"].as_str().unwrap();
    assert!(
        id.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
        "{id}"
    );
    let theirs = server.token.replace("hearth_", "e2b_");
    let (response, shown) = call(&server, &theirs, Method::GET, &format!("/sandboxes/{id}"), json!({})).await;
    assert_eq!(
        (response.status(), &shown["state"]),
        (StatusCode::OK, &json!("running")),
        "{shown}"
    );

    // Another tenant's key sees none of it.
    let other = json!({ "name": "t", "scopes": ["admin"], "tenant": "acme" });
    let other = server.post("/tokens", other).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    for (method, path) in [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::POST, "/connect"),
        (Method::POST, "/timeout"),
        (Method::POST, "/pause"),
        (Method::POST, "/fork"),
        (Method::POST, "/snapshots"),
        (Method::PUT, "/network"),
        (Method::GET, "/metrics"),
    ] {
        let path = format!("/sandboxes/{id}{path}");
        let (response, said) = call(&server, &other, method, &path, json!({ "timeout": 60 })).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}: {said}");
    }
    let (_, listed) = call(&server, &other, Method::GET, "/v2/sandboxes", json!({})).await;
    assert_eq!(listed, json!([]));

    // What speaks for it wants its secret, and says that it is gone in the words that clients look for.
    let client = reqwest::Client::new();
    let list = |id: &str, secret: &str| {
        let url = format!("http://{}/e2b/process.Process/List", server.address);
        let request = client
            .post(url)
            .header("e2b-sandbox-id", id)
            .header("x-access-token", secret);
        answer(request.json(&json!({})))
    };
    let secret = made["envdAccessToken"].as_str().unwrap();
    assert_eq!(list(id, secret).await.1, json!({ "processes": [] }));
    let (response, said) = list(id, "0000").await;
    assert_eq!(
        (response.status(), &said["code"]),
        (StatusCode::UNAUTHORIZED, &json!("unauthenticated"))
    );
    for port in ["0", "65536", "http"] {
        let url = format!("http://{}/e2b/process.Process/List", server.address);
        let request = client.post(url).header("e2b-sandbox-id", id);
        let request = request
            .header("x-access-token", secret)
            .header("e2b-sandbox-port", port);
        let (response, said) = answer(request.json(&json!({}))).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{said}");
        assert!(said["message"].as_str().unwrap().contains("1 to 65535"), "{said}");
    }
    let (response, said) = list(&"0".repeat(32), secret).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(said["message"], json!("The sandbox was not found"));
    let (response, _) = call(
        &server,
        &server.token,
        Method::DELETE,
        &format!("/sandboxes/{id}"),
        json!({}),
    )
    .await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(list(id, secret).await.0.status(), StatusCode::BAD_GATEWAY);

    // A path that is none keeps the shape.
    let (response, said) = call(&server, &server.token, Method::GET, "/volumes", json!({})).await;
    assert_eq!(
        (response.status(), &said["code"]),
        (StatusCode::NOT_FOUND, &json!(404)),
        "{said}"
    );
}

#[tokio::test]
async fn e2b_by_name_reaches_the_control_plane_and_the_sandbox() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    server.full_pool(1).await;
    let client = reqwest::Client::new();
    let at = |method: Method, host: &str, path: &str| {
        let request = client.request(method, format!("http://{}{path}", server.address));
        request.header("host", format!("{host}.localhost:7717"))
    };
    let made = at(Method::POST, "api", "/v2/sandboxes").header("x-api-key", &server.token);
    let (response, made) = answer(made.json(&json!({ "templateID": "base" }))).await;
    assert_eq!(response.status(), StatusCode::CREATED, "{made}");
    assert_eq!(made["domain"], json!("localhost:7717"));
    let (id, secret) = (
        made["sandboxID"].as_str().unwrap(),
        made["envdAccessToken"].as_str().unwrap(),
    );
    let health = at(Method::GET, &format!("49983-{id}"), "/health").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::NO_CONTENT);
    let list = at(Method::POST, &format!("49983-{id}"), "/process.Process/List").header("x-access-token", secret);
    assert_eq!(answer(list.json(&json!({}))).await.1, json!({ "processes": [] }));
    // A port of it is as closed as a port of any claim, and its own secret opens it.
    let port = at(Method::GET, &format!("3000-{id}"), "/metrics").send().await.unwrap();
    assert_eq!(port.status(), StatusCode::UNAUTHORIZED);
    let port = at(Method::GET, &format!("3000-{id}"), "/metrics");
    let port = port.header("e2b-traffic-access-token", made["trafficAccessToken"].as_str().unwrap());
    assert_ne!(port.send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn five_hundred_sandboxes_are_listed_page_by_page() {
    let server = roomy(|options| {
        options.max_vms = 1000;
        options.memory_mib = 4096 * 1024;
    })
    .await;
    server.full_pool(1).await;
    let made = create(
        &server,
        json!({ "templateID": "demo", "timeout": 3600, "metadata": { "of": "a&b" } }),
    )
    .await;
    let fork = format!("/sandboxes/{}/fork", made["sandboxID"].as_str().unwrap());
    for _ in 0..25 {
        let body = json!({ "count": 20, "timeout": 3600 });
        let (response, said) = call(&server, &server.token, Method::POST, &fork, body).await;
        assert_eq!(response.status(), StatusCode::CREATED, "{said}");
    }
    let (mut found, mut next) = (Vec::new(), Some(String::new()));
    let mut pages = 0;
    while let Some(token) = next {
        let path = format!("/v2/sandboxes?limit=90&metadata=of%3Da%2526b&nextToken={token}");
        let (response, page) = call(&server, &server.token, Method::GET, &path, json!({})).await;
        assert_eq!(response.status(), StatusCode::OK, "{page}");
        found.extend(page.as_array().unwrap().iter().map(|one| one["sandboxID"].to_string()));
        let header = response.headers().get("x-next-token");
        next = header.map(|token| token.to_str().unwrap().to_owned());
        pages += 1;
    }
    let count = found.len();
    found.sort();
    found.dedup();
    assert_eq!((count, found.len(), pages), (501, 501, 6));
    for (query, expected) in [
        ("metadata=of%3Dother", 0),
        // As clients write it.
        ("limit=1000&metadata=of%3Da%252526b", 501),
        ("state=paused", 0),
        ("template=demo&limit=1000", 501),
    ] {
        let (_, page) = call(
            &server,
            &server.token,
            Method::GET,
            &format!("/v2/sandboxes?{query}"),
            json!({}),
        )
        .await;
        assert_eq!(page.as_array().unwrap().len(), expected, "{query}");
    }
}

#[tokio::test]
async fn an_empty_pool_is_503_that_is_worth_another_try_and_then_serves() {
    let server = roomy(|options| {
        options.max_vms = 1;
        options.longest_claim_wait = Duration::from_millis(500);
    })
    .await;
    server.full_pool(1).await;
    let first = create(&server, json!({ "timeout": 600 })).await;
    let (response, said) = call(&server, &server.token, Method::POST, "/v2/sandboxes", json!({})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{said}");
    assert_eq!(said["error_code"], json!("sandbox_capacity_unavailable"));
    assert_eq!(response.headers()["should-retry"], "true");
    assert!(
        response.headers()["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    let path = format!("/sandboxes/{}", first["sandboxID"].as_str().unwrap());
    call(&server, &server.token, Method::DELETE, &path, json!({})).await;
    let deadline = tokio::time::Instant::now() + crate::harness::SOON;
    loop {
        let (response, said) = call(&server, &server.token, Method::POST, "/v2/sandboxes", json!({})).await;
        if response.status() == StatusCode::CREATED {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{said}");
    }
}

#[tokio::test]
async fn a_sandbox_is_paused_at_its_end_and_its_key_and_secrets_are_nowhere() {
    const SECRET: &str = "it's-a-known-secret-of-a-sandbox";
    let (server, _) = Server::fake(FakeOptions::default()).await;
    server.full_pool(1).await;
    let body = json!({ "timeout": 1, "autoPause": true, "envVars": { "S": SECRET } });
    let url = format!("http://{}/e2b/v2/sandboxes", server.address);
    let request = reqwest::Client::new().post(url).header("x-api-key", &server.token);
    let request = request.header("idempotency-key", "one");
    let (_, made) = answer(request.try_clone().unwrap().json(&body)).await;
    let (_, again) = answer(request.try_clone().unwrap().json(&body)).await;
    assert_eq!(made["sandboxID"], again["sandboxID"], "{again}");
    let (response, said) = answer(request.json(&json!({ "timeout": 2 }))).await;
    assert_eq!(
        (response.status(), &said["error_code"]),
        (StatusCode::CONFLICT, &json!("idempotency_request_mismatch"))
    );
    let path = format!("/sandboxes/{}", made["sandboxID"].as_str().unwrap());
    let deadline = tokio::time::Instant::now() + crate::harness::SOON;
    loop {
        let (_, shown) = call(&server, &server.token, Method::GET, &path, json!({})).await;
        if shown["state"] == "paused" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{shown}");
        crate::harness::pause().await;
    }
    let connect = format!("{path}/connect");
    let (response, said) = call(
        &server,
        &server.token,
        Method::POST,
        &connect,
        json!({ "timeout": 600 }),
    )
    .await;
    assert_eq!(response.status(), StatusCode::CREATED, "{said}");
    let (_, shown) = call(&server, &server.token, Method::GET, &path, json!({})).await;
    assert_eq!(
        (&shown["state"], &shown["lifecycle"]["onTimeout"]),
        (&json!("running"), &json!("pause"))
    );
    let log = server.get("/audit?limit=100").await;
    let noted = |operation: &str| {
        let id = format!("wpi_{}", made["sandboxID"].as_str().unwrap());
        let items = log["items"].as_array().unwrap();
        items
            .iter()
            .any(|one| one["operation"] == operation && one["instanceId"] == id.as_str())
    };
    assert!(noted("e2b_create_sandbox") && noted("e2b_connect_sandbox"), "{log}");
    let audit = log.to_string();
    let events = call(&server, &server.token, Method::GET, "/v2/sandboxes", json!({}))
        .await
        .1
        .to_string();
    let (folder, options) = server.stop().await;
    for secret in [SECRET, made["envdAccessToken"].as_str().unwrap()] {
        assert!(!audit.contains(secret) && !events.contains(secret));
        let mut found = Vec::new();
        files_with(&options.data_dir, secret.as_bytes(), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
    drop(folder);
}

/// Where `cargo xtask test` has put the clients.
fn clients() -> PathBuf {
    std::env::var_os("HEARTH_E2B")
        .expect("HEARTH_E2B is not set: `cargo xtask test e2b` fetches the clients and sets it")
        .into()
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b")
}

/// A client's program, told where the server is in nothing but its own variables.
fn client(server: &Server, program: &Path, script: &Path) -> tokio::process::Command {
    let url = format!("http://{}/e2b", server.address);
    let mut command = tokio::process::Command::new(program);
    command
        .arg(script)
        .arg("stories")
        // As `hearth env e2b` spells it.
        .env("E2B_API_KEY", server.token.replace("hearth_", "e2b_"))
        .env("E2B_API_URL", &url)
        .env("E2B_SANDBOX_URL", url)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn told(mut command: tokio::process::Command) {
    let output = tokio::time::timeout(STORY, command.output()).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    println!("{}", text(&output.stdout));
    assert!(
        output.status.success() && text(&output.stdout).contains("told"),
        "{command:?}: {}: {}",
        output.status,
        text(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn e2b_clients_tell_their_stories_against_real_vms() {
    let server = server_with(|_| {}).await;
    let project = server.project(json!({ "name": "Stories", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    server.until_full(BOOT, &project, 2).await;
    let python = clients().join("bin/python");
    told(client(&server, &python, &scripts().join("story.py"))).await;
    // Modules are looked for beside the script.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(clients().join("node_modules"), folder.path().join("node_modules")).unwrap();
    let story = folder.path().join("story.mjs");
    std::fs::copy(scripts().join("story.mjs"), &story).unwrap();
    let of = |script: &str| client(&server, &python, &scripts().join(script));
    let stories = [of("story_async.py"), client(&server, Path::new("node"), &story)];
    join_all(stories.map(told)).await;
    // What others have built on them, and a template.
    join_all([of("deep_agents.py"), of("openai_agents.py"), of("template.py")].map(told)).await;

    // A VM that dies in the middle of a stream ends it.
    let mut command = client(&server, &python, &scripts().join("killed.py"));
    let mut running = command.spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    let id = tokio::time::timeout(BOOT, lines.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let vm = server.get(&format!("/instances/wpi_{id}")).await["instanceId"].clone();
    let qemu = i32::try_from(qemu_of(vm.as_str().unwrap()).unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(qemu), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = tokio::time::timeout(STORY, running.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    // Those of templates, too: their pools keep VMs.
    let all = server.get("/projects").await;
    for one in all["items"].as_array().unwrap() {
        let path = format!("/projects/{}", one["id"].as_str().unwrap());
        server.call(Method::DELETE, &path, json!({})).await;
    }
    clean_up(server, &project).await;
}
