//! The published documents and the limits that hold for every route.

use std::sync::Arc;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, bare_project, options};

#[tokio::test]
async fn the_checked_in_document_is_what_the_server_publishes() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let published = server.get("/openapi.json").await;
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi.json");
    let checked_in: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert!(
        published == checked_in,
        "openapi.json is not up to date: run `cargo xtask openapi`"
    );
}

#[tokio::test]
async fn every_operation_is_described_with_its_refusals() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let document = server.get("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut count = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            count += 1;
            let at = format!("{method} {path}");
            assert!(
                operation["summary"].is_string() && operation["operationId"].is_string(),
                "{at}"
            );
            let responses = operation["responses"].as_object().unwrap();
            // A WebSocket has no other good answer.
            let good = responses.get("200").or_else(|| responses.get("101"));
            assert!(good.is_some() && responses.contains_key("500"), "{at}");
            if path.starts_with("/api/v1") {
                assert!(
                    ["401", "403", "422", "429"]
                        .iter()
                        .all(|status| responses.contains_key(*status)),
                    "{at}"
                );
            }
            let contents = responses.get("200").map(|good| good["content"].as_object().unwrap());
            for (content_type, content) in contents.into_iter().flatten() {
                assert!(content.get("example").is_some(), "{at}: {content_type} has no example");
                let mut schema = content["schema"].clone();
                schema["components"] = document["components"].clone();
                let validator = jsonschema::draft202012::new(&schema).unwrap();
                let mut faults = validator
                    .iter_errors(&content["example"])
                    .map(|fault| fault.to_string());
                assert_eq!(faults.next(), None, "{at}");
            }
            if let Some(body) = operation.get("requestBody") {
                let Some(json) = body["content"].get("application/json") else {
                    continue;
                };
                let schema = json["schema"]["$ref"].as_str().unwrap();
                let name = schema.rsplit('/').next().unwrap();
                assert!(
                    document["components"]["schemas"][name]["example"].is_object(),
                    "{at}: {name} has no example"
                );
            }
        }
    }
    assert_eq!(count, 104);
}

#[tokio::test]
async fn replies_are_closed_requests_open_and_no_schema_is_unused_or_written_twice() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let document = server.get("/openapi.json").await;
    assert_eq!(document["servers"], json!([{ "url": "/" }]));
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let text = document.to_string();
    for name in schemas.keys() {
        assert!(
            text.contains(&format!(r##""#/components/schemas/{name}""##)),
            "{name} is unused"
        );
    }
    let closed = |name: &str| schemas[name]["additionalProperties"] == false;
    for reply in [
        "Project",
        "Page_Project",
        "PoolView",
        "InstanceDetail",
        "TokenCreated",
        "ErrorBody",
        "Step",
    ] {
        assert!(closed(reply), "{reply}");
    }
    for request in [
        "PatchPool",
        "TestRequest",
        "PutVariables",
        "SetupBody",
        "SetupCommand",
        "Settings",
    ] {
        assert!(!closed(request), "{request}");
    }
    assert_eq!(
        schemas["Page_Project"]["properties"]["items"]["items"],
        json!({ "$ref": "#/components/schemas/Project" })
    );
}

#[tokio::test]
async fn the_documents_page_and_the_settings_schema_are_served_without_a_token() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let http = reqwest::Client::new();
    let get = async |path: &str| {
        http.get(format!("http://{}{path}", server.address))
            .send()
            .await
            .unwrap()
    };
    let page = get("/docs/").await;
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.text().await.unwrap();
    assert!(!page.contains("//cdn") && !page.contains("https://"), "{page}");
    let schema: Value = get("/schemas/settings.json").await.json().await.unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    for (settings, fine) in [
        (
            json!({ "$schema": "x", "hooks": { "setup": ["a", { "command": "b" }], "other": 1 } }),
            true,
        ),
        (json!({ "hooks": { "previews": [{ "name": "a", "port": 0 }] } }), false),
        (json!({ "hooks": { "setup": [1] } }), false),
    ] {
        assert_eq!(validator.is_valid(&settings), fine, "{settings}");
    }
    let wrong = get("/docs/none.js").await;
    assert_eq!(wrong.status(), StatusCode::NOT_FOUND);
    assert_eq!(wrong.json::<Value>().await.unwrap()["error"]["code"], "not_found");
}

#[tokio::test]
async fn a_token_that_asks_too_often_is_told_how_long_to_wait_and_others_are_not() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.requests_per_second = 2;
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let other = server
        .post("/tokens", json!({ "name": "o", "scopes": ["project:read"] }))
        .await;
    let mut refused = None;
    for _ in 0..12 {
        let response = server.request(Method::GET, "/projects").send().await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("a burst of 12 at 2 per second was let through");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.json::<Value>().await.unwrap()["error"]["code"],
        "too_many_requests"
    );
    let http = reqwest::Client::new();
    let request = http
        .get(format!("http://{}/api/v1/projects", server.address))
        .bearer_auth(other["token"].as_str().unwrap());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn expired_and_revoked_tokens_and_those_of_another_project_open_nothing() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (one, two) = (
        server.project(bare_project()).await,
        server.project(bare_project()).await,
    );
    let id = one.trim_start_matches("/projects/");
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300)).to_string();
    let expiring = json!({ "name": "e", "scopes": ["project:read"], "expiresAt": soon });
    let expiring = server.post("/tokens", expiring).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let narrow = json!({ "name": "n", "scopes": ["project:read"], "projectId": id });
    let narrow = server.post("/tokens", narrow).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let http = reqwest::Client::new();
    let status = async |token: &str, path: &str| {
        let url = format!("http://{}/api/v1{path}", server.address);
        http.get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!((status(&narrow, &one).await, status(&narrow, &two).await), (200, 404));
    let deadline = tokio::time::Instant::now() + crate::harness::SOON;
    while status(&expiring, &one).await != 401 {
        assert!(tokio::time::Instant::now() < deadline, "the token never expired");
        crate::harness::pause().await;
    }
    for bad in [
        json!({ "name": "x", "scopes": [] }),
        json!({ "name": "x", "scopes": ["root"] }),
        json!({ "name": "x", "scopes": ["claim"], "expiresAt": "2000-01-01T00:00:00Z" }),
        json!({ "name": "x", "scopes": ["claim"], "expiresAt": "tomorrow" }),
    ] {
        let (got, reply) = server.call(Method::POST, "/tokens", bad).await;
        assert_eq!(got, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
        assert!(reply["error"]["details"][0]["path"].is_string());
    }
    let items = server.get("/tokens").await["items"].clone();
    let used = items
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["name"] == "n")
        .unwrap()
        .clone();
    let id = used["id"].as_str().unwrap();
    server
        .until(crate::harness::SOON, "/tokens", |list| {
            let items = list["items"].as_array().unwrap();
            items
                .iter()
                .any(|item| item["id"] == id && item["lastUsedAt"].is_string())
        })
        .await;
    let (gone, _) = server.call(Method::DELETE, &format!("/tokens/{id}"), json!({})).await;
    assert_eq!((gone, status(&narrow, &one).await), (StatusCode::OK, 401));
}

#[tokio::test]
async fn root_leads_a_browser_to_the_page_and_a_program_to_the_api() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let ask = |accept: &'static str| {
        client
            .get(format!("http://{}/", server.address))
            .header("accept", accept)
            .send()
    };
    let page = ask("text/html,application/xhtml+xml,*/*;q=0.8").await.unwrap();
    assert_eq!(page.status(), StatusCode::SEE_OTHER);
    let place = page.headers()["location"].to_str().unwrap().to_owned();
    let docs = client
        .get(format!("http://{}{place}", server.address))
        .send()
        .await
        .unwrap();
    assert_eq!(docs.status(), StatusCode::OK);
    assert!(
        docs.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    for accept in ["*/*", "application/json"] {
        let reply = ask(accept).await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        let places: Value = reply.json().await.unwrap();
        assert_eq!(places["api"], "/api/v1");
        let document = client
            .get(format!(
                "http://{}{}",
                server.address,
                places["openapi"].as_str().unwrap()
            ))
            .send()
            .await
            .unwrap();
        assert_eq!(document.status(), StatusCode::OK);
    }
}
