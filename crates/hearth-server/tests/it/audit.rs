//! The audit log: who did what, from where, with which result, and never a secret.

use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project};

async fn entries(server: &Server, query: &str) -> Vec<Value> {
    let list = server.get(&format!("/audit?{query}")).await;
    list["items"].as_array().unwrap().clone()
}

/// The newest entry of an operation, as soon as it is written.
async fn newest(server: &Server, operation: &str) -> Value {
    let is = |entry: &&Value| entry["operation"] == operation;
    let list = server
        .until(SOON, "/audit", |list| {
            list["items"].as_array().unwrap().iter().any(|entry| is(&entry))
        })
        .await;
    list["items"].as_array().unwrap().iter().find(is).unwrap().clone()
}

#[tokio::test]
async fn what_changes_something_is_written_with_who_where_and_the_result_and_without_secrets() {
    const SECRET: &str = "s3cr3t-value-of-this-test";
    let (server, _driver) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let id = project.trim_start_matches("/projects/");
    let made = newest(&server, "create_project").await;
    assert_eq!(
        (
            &made["projectId"],
            &made["status"],
            &made["address"],
            &made["tokenName"]
        ),
        (
            &json!(id),
            &json!(200),
            &json!("127.0.0.1"),
            &json!("first admin token")
        )
    );
    assert!(made["requestId"].as_str().is_some_and(|id| !id.is_empty()));
    let variables = json!({ "variables": [{ "name": "S", "value": SECRET }] });
    server
        .put(&format!("{project}/environment-variables/shared"), variables)
        .await;
    let delete = server.request(Method::DELETE, &format!("{project}/environment-variables/shared/S"));
    server.send(delete).await;
    let gone = newest(&server, "delete_shared_variable").await;
    assert_eq!((&gone["subject"], &gone["status"]), (&json!("S"), &json!(200)));
    server
        .patch(
            &format!("{project}/warm-pool"),
            json!({ "enabled": true, "targetSize": 1 }),
        )
        .await;
    server.until_full(SOON, &project, 1).await;
    let claim = server
        .post(&format!("{project}/warm-pool/claim"), json!({ "env": { "S": SECRET } }))
        .await;
    let instance = claim["id"].as_str().unwrap();
    let claimed = newest(&server, "claim_instance").await;
    assert_eq!(
        (&claimed["instanceId"], &claimed["projectId"]),
        (&claim["id"], &json!(id))
    );
    let exec = json!({ "command": format!("echo {SECRET}") });
    server
        .call(Method::POST, &format!("/instances/{instance}/exec"), exec)
        .await;
    let ran = newest(&server, "exec_in_instance").await;
    assert_eq!((&ran["instanceId"], &ran["projectId"]), (&claim["id"], &json!(id)));
    let token = server
        .post("/tokens", json!({ "name": "reader", "scopes": ["project:read"] }))
        .await;
    assert_eq!(newest(&server, "create_token").await["subject"], token["id"]);
    // What is refused is written with its refusal.
    let secret = token["token"].as_str().unwrap();
    let client = reqwest::Client::new();
    let url = format!("http://{}/api/v1/instances/{instance}/release", server.address);
    let refused = client.post(&url).bearer_auth(secret).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused = newest(&server, "release_instance").await;
    assert_eq!(
        (&refused["tokenName"], &refused["status"]),
        (&json!("reader"), &json!(403))
    );
    // Nobody that is known: it did nothing.
    client.post(&url).bearer_auth("hearth_guess").send().await.unwrap();
    server
        .post(&format!("/instances/{instance}/heartbeat"), json!({}))
        .await;
    server.post(&format!("/instances/{instance}/release"), json!({})).await;
    let released = server
        .until(SOON, "/audit?limit=1", |list| {
            list["items"][0]["status"] == 200 && list["items"][0]["operation"] == "release_instance"
        })
        .await;
    assert_eq!(released["items"][0]["instanceId"], claim["id"]);
    let all = entries(&server, "limit=1000").await;
    let ids: Vec<u64> = all.iter().map(|entry| entry["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted_by(|a, b| a > b), "{ids:?}");
    let operations: Vec<&str> = all.iter().map(|entry| entry["operation"].as_str().unwrap()).collect();
    assert!(
        !operations.contains(&"heartbeat_instance") && !operations.contains(&"get_pool"),
        "{operations:?}"
    );
    let text = Value::from(all.clone()).to_string();
    assert!(
        !text.contains(SECRET) && !text.contains(secret) && !text.contains(&server.token),
        "{text}"
    );
    let older = entries(&server, &format!("before={}&limit=2", ids[2])).await;
    assert_eq!(
        older
            .iter()
            .map(|entry| entry["id"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        ids[3..5]
    );
    // A server that stops loses none, and only admins of the tenant read them.
    let other = server
        .post("/tokens", json!({ "name": "o", "scopes": ["admin"], "tenant": "acme" }))
        .await;
    let ask = |token: Value| {
        let url = format!("http://{}/api/v1/audit", server.address);
        let request = client.get(url).bearer_auth(token.as_str().unwrap());
        async move {
            let reply = request.send().await.unwrap();
            (reply.status(), reply.json::<Value>().await.unwrap())
        }
    };
    assert_eq!(ask(token["token"].clone()).await.0, StatusCode::FORBIDDEN);
    assert_eq!(ask(other["token"].clone()).await.1, json!({ "items": [] }));
}

#[tokio::test]
async fn entries_of_the_last_moment_are_written_before_the_server_ends() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    for count in 0..20 {
        server
            .patch(&project, json!({ "description": format!("{count}") }))
            .await;
    }
    let (folder, options) = server.stop().await;
    let made: std::sync::Arc<dyn hearth_drivers::Driver> = std::sync::Arc::new(driver);
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let all = entries(&server, "").await;
    let changes = all.iter().filter(|entry| entry["operation"] == "patch_project").count();
    assert_eq!(changes, 20, "{all:#?}");
}
