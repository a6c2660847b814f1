//! Who sees, makes and revokes which tokens.

use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, bare_project};

/// A request with another token than the first.
async fn call(server: &Server, token: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let url = format!("http://{}/api/v1{path}", server.address);
    let request = reqwest::Client::new().request(method, url).bearer_auth(token);
    server.send(request.json(&body)).await
}

async fn make(server: &Server, body: Value) -> (String, String) {
    let made = server.post("/tokens", body).await;
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    (text("token"), text("id"))
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_projects_admin_reaches_that_projects_tokens_and_the_first_tenants_reaches_all() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (mine, other) = (
        server.project(bare_project()).await,
        server.project(bare_project()).await,
    );
    let id = |path: &str| path.trim_start_matches("/projects/").to_owned();
    let admin = |name: &str, project: &str| json!({ "name": name, "scopes": ["admin"], "projectId": id(project) });
    let (narrow, _) = make(&server, admin("narrow", &mine)).await;
    let (_, sibling) = make(&server, admin("sibling", &mine)).await;
    let (_, foreign) = make(&server, admin("foreign", &other)).await;
    let (tenant, _) = make(
        &server,
        json!({ "name": "tenant", "scopes": ["admin"], "tenant": "acme" }),
    )
    .await;

    let (_, list) = call(&server, &narrow, Method::GET, "/tokens", json!({})).await;
    assert_eq!(names(&list), ["narrow", "sibling"]);
    let (_, list) = call(&server, &tenant, Method::GET, "/tokens", json!({})).await;
    assert_eq!(names(&list), ["tenant"]);
    let list = server.get("/tokens").await;
    assert_eq!(
        names(&list),
        ["first admin token", "narrow", "sibling", "foreign", "tenant"]
    );

    let revoke = async |token: &str, id: &str| {
        let path = format!("/tokens/{id}");
        call(&server, token, Method::DELETE, &path, json!({})).await.0
    };
    assert_eq!(revoke(&narrow, &foreign).await, StatusCode::NOT_FOUND);
    assert_eq!(revoke(&tenant, &foreign).await, StatusCode::NOT_FOUND);
    assert_eq!(revoke(&narrow, &sibling).await, StatusCode::OK);
    let (_, again) = make(&server, admin("again", &mine)).await;
    server.call(Method::DELETE, &mine, json!({})).await;
    assert_eq!(revoke(&narrow, &again).await, StatusCode::NOT_FOUND);
    let (status, _) = call(&server, &narrow, Method::GET, "/tokens", json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_token_makes_none_that_outlives_it() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let end = "2090-01-01T00:00:00Z";
    let (expiring, _) = make(&server, json!({ "name": "e", "scopes": ["admin"], "expiresAt": end })).await;
    for (wanted, status) in [
        (Value::Null, StatusCode::FORBIDDEN),
        (json!("2090-01-01T00:00:01Z"), StatusCode::FORBIDDEN),
        (json!(end), StatusCode::OK),
    ] {
        let body = json!({ "name": "n", "scopes": ["claim"], "expiresAt": wanted });
        let (got, reply) = call(&server, &expiring, Method::POST, "/tokens", body).await;
        assert_eq!(got, status, "{reply}");
        if status == StatusCode::FORBIDDEN {
            assert!(
                reply["error"]["message"].as_str().unwrap().contains("lives longer"),
                "{reply}"
            );
        }
    }
}

#[tokio::test]
async fn a_token_that_names_no_owner_gets_nobody_elses_personal_variables() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(3).await;
    // The first admin token's own.
    let own = json!({ "variables": [{ "name": "MINE", "value": "of-the-admin" }] });
    server
        .put(&format!("{project}/environment-variables/personal"), own)
        .await;
    let admins = server.get("/tokens").await["items"][0]["owner"].clone();
    for (body, owner, gets) in [
        (json!({ "name": "bot", "scopes": ["claim"] }), json!("bot"), false),
        (
            json!({ "name": "ci", "scopes": ["project:read", "project:write", "claim"] }),
            json!("ci"),
            false,
        ),
        (
            json!({ "name": "mine", "scopes": ["claim"], "owner": admins }),
            admins.clone(),
            true,
        ),
        (json!({ "name": "root", "scopes": ["admin"] }), admins.clone(), true),
    ] {
        let made = server.post("/tokens", body).await;
        assert_eq!(made["owner"], owner, "{made}");
        let token = made["token"].as_str().unwrap();
        let (status, claimed) = call(
            &server,
            token,
            Method::POST,
            &format!("{pool}/claim"),
            json!({ "waitMs": 30_000 }),
        )
        .await;
        assert_eq!(status, StatusCode::OK, "{claimed}");
        let vm = claimed["instanceId"].as_str().unwrap().parse().unwrap();
        let variables = driver
            .file(&vm, "/home/.env")
            .map(|file| file.to_vec())
            .unwrap_or_default();
        let variables = String::from_utf8(variables).unwrap();
        assert_eq!(variables.contains("of-the-admin"), gets, "{owner}: {variables}");
    }
}

#[tokio::test]
async fn a_token_of_an_agent_reaches_names_that_begin_so_and_holds_no_more_vms_than_it_may() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = async |name: &str| {
        let project = server.project(json!({ "name": name, "repos": [] })).await;
        let enable = json!({ "enabled": true, "targetSize": 3 });
        server.patch(&format!("{project}/warm-pool"), enable).await;
        server.until_full(crate::harness::SOON, &project, 3).await;
        project
    };
    let (own, other) = (project("mcp-own").await, project("other").await);
    let scopes = json!(["project:read", "project:write", "claim"]);
    let (token, id) = make(
        &server,
        json!({ "name": "agent", "scopes": scopes, "namePrefix": "mcp-", "maxVms": 2 }),
    )
    .await;
    let ask = async |method: Method, path: &str, body: Value| call(&server, &token, method, path, body).await;
    let listed = server.get("/tokens").await;
    let listed = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["id"] == id.as_str());
    let listed = listed.unwrap();
    assert_eq!((&listed["namePrefix"], &listed["maxVms"]), (&json!("mcp-"), &json!(2)));

    // By every way that leads to a project.
    let (_, list) = ask(Method::GET, "/projects", json!({})).await;
    assert_eq!(names(&list), ["mcp-own"]);
    let (_, found) = ask(Method::GET, "/find/projects?text=other", json!({})).await;
    assert_eq!(found["items"], json!([]));
    let claim = |project: &str| format!("{project}/warm-pool/claim");
    let foreign = server.post(&claim(&other), json!({ "taskId": "theirs" })).await;
    let foreign = foreign["id"].as_str().unwrap();
    for (method, path, body) in [
        (Method::GET, other.clone(), json!({})),
        (Method::PATCH, other.clone(), json!({ "description": "mine now" })),
        (Method::GET, format!("{other}/environment-variables/shared"), json!({})),
        (Method::POST, claim(&other), json!({})),
        (Method::GET, format!("/instances/{foreign}"), json!({})),
        (
            Method::POST,
            format!("/instances/{foreign}/exec"),
            json!({ "command": "true" }),
        ),
    ] {
        let (status, reply) = ask(method, &path, body).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {reply}");
    }
    for path in ["/find/instances?text=theirs", "/claims"] {
        let (_, found) = ask(Method::GET, path, json!({})).await;
        assert_eq!(found["items"], json!([]), "{path}");
    }
    // Through E2B's door, too.
    let e2b = async |path: &str| {
        let url = format!("http://{}/e2b{path}", server.address);
        let answer = reqwest::Client::new()
            .get(url)
            .header("x-api-key", &token)
            .send()
            .await
            .unwrap();
        (answer.status(), answer.text().await.unwrap())
    };
    assert_eq!(e2b("/v2/sandboxes").await, (StatusCode::OK, "[]".to_owned()));
    assert_eq!(e2b(&format!("/sandboxes/{foreign}")).await.0, StatusCode::NOT_FOUND);
    let (status, reply) = ask(Method::GET, "/events?follow=false", json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{reply}");
    for (method, path, body) in [
        (Method::POST, "/projects", json!({ "name": "theirs", "repos": [] })),
        (Method::PATCH, own.as_str(), json!({ "name": "theirs" })),
        (Method::PATCH, &format!("{own}/warm-pool"), json!({ "targetSize": 3 })),
        (Method::GET, "/audit", json!({})),
        (Method::POST, "/tokens", json!({ "name": "more", "scopes": ["claim"] })),
    ] {
        let (status, reply) = ask(method, path, body).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}: {reply}");
    }
    let (status, _) = ask(Method::POST, "/projects", json!({ "name": "mcp-new", "repos": [] })).await;
    assert_eq!(status, StatusCode::OK);

    // At the same time: no more than it may.
    let path = claim(&own);
    let all = futures::future::join_all((0..3).map(|task| {
        call(
            &server,
            &token,
            Method::POST,
            &path,
            json!({ "taskId": format!("t-{task}") }),
        )
    }));
    let all = all.await;
    let (taken, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(status, _)| *status == StatusCode::OK);
    assert_eq!((taken.len(), refused.len()), (2, 1));
    let (status, reply) = &refused[0];
    assert_eq!(*status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    assert!(
        reply["error"]["message"].as_str().unwrap().contains("`maxVms`"),
        "{reply}"
    );
    let held = taken[0].1["id"].as_str().unwrap();
    let (status, reply) = ask(Method::POST, &format!("/instances/{held}/fork"), json!({})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    // What is given back makes room.
    let (status, _) = ask(Method::POST, &format!("/instances/{held}/release"), json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let (status, reply) = ask(Method::POST, &path, json!({ "taskId": "after", "waitMs": 20_000 })).await;
    assert_eq!(status, StatusCode::OK, "{reply}");

    // A limit holds nobody who can make tokens.
    for limit in [json!({ "namePrefix": "mcp-" }), json!({ "maxVms": 1 })] {
        let mut body = json!({ "name": "root", "scopes": ["admin"] });
        body.as_object_mut().unwrap().extend(limit.as_object().unwrap().clone());
        let (status, reply) = server.call(Method::POST, "/tokens", body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
    }
}
