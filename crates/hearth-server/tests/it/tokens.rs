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
