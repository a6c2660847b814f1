//! Shapes, statuses and bounds of the documented operations.

use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project};

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn projects_are_made_listed_in_pages_changed_and_deleted() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let body = json!({ "name": "My app", "repos": [{ "repoFullName": "o/n", "branch": "main", "url": "file:///x" }] });
    let made = server.post("/projects", body).await;
    assert_eq!(
        keys(&made),
        [
            "createdAt",
            "description",
            "id",
            "name",
            "repos",
            "taskCode",
            "updatedAt"
        ]
    );
    assert_eq!(made["repos"], json!([{ "repoFullName": "o/n", "branch": "main" }]));
    assert_eq!(made["taskCode"], "MYAPP");
    let created = made["createdAt"].as_str().unwrap();
    assert!(
        created.ends_with('Z') && created.split('.').nth(1).unwrap().len() == 4,
        "{created}"
    );
    for _ in 0..4 {
        server.project(bare_project()).await;
    }
    let first = server.get("/projects?limit=2").await;
    assert_eq!(keys(&first), ["hasMore", "items", "nextCursor"]);
    let mut seen = first["items"].as_array().unwrap().len();
    let mut page = first;
    while page["hasMore"] == true {
        page = server
            .get(&format!(
                "/projects?limit=2&cursor={}",
                page["nextCursor"].as_str().unwrap()
            ))
            .await;
        seen += page["items"].as_array().unwrap().len();
    }
    assert_eq!((seen, &page["nextCursor"]), (5, &Value::Null));
    let path = format!("/projects/{}", made["id"].as_str().unwrap());
    let patched = server.patch(&path, json!({ "description": "d" })).await;
    assert_eq!(
        (&patched["description"], &patched["name"]),
        (&json!("d"), &json!("My app"))
    );
    assert_eq!(
        server.patch(&path, json!({ "description": null })).await["description"],
        Value::Null
    );
    server.call(Method::DELETE, &path, json!({})).await;
    assert_eq!(
        server.call(Method::GET, &path, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn a_pool_is_null_until_configured_and_keeps_what_a_patch_leaves_out() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let fresh = server.get(&pool).await;
    assert_eq!(
        fresh,
        json!({ "allowed": true, "config": null, "status": { "ready": 0, "provisioning": 0, "failed": 0 }, "metadata": null })
    );
    let first = server.patch(&pool, json!({ "unknownKey": 1 })).await;
    assert_eq!(keys(&first), ["config", "status"]);
    let config = &first["config"];
    assert_eq!(
        keys(config),
        [
            "branch",
            "createdAt",
            "enabled",
            "maxAgeMinutes",
            "setupCommands",
            "targetSize",
            "updatedAt"
        ]
    );
    assert_eq!(
        (
            &config["enabled"],
            &config["targetSize"],
            &config["maxAgeMinutes"],
            &config["branch"]
        ),
        (&json!(false), &json!(1), &json!(60), &Value::Null)
    );
    let commands = json!([{ "name": "größe", "command": "true", "background": true }, { "name": "b", "command": "x" }]);
    let all = json!({ "targetSize": 20.0, "maxAgeMinutes": 180, "branch": "dev", "setupCommands": commands });
    let set = server.patch(&pool, all).await["config"].clone();
    assert_eq!(
        (&set["targetSize"], &set["branch"], &set["setupCommands"]),
        (&json!(20), &json!("dev"), &commands)
    );
    let kept = server.patch(&pool, json!({})).await["config"].clone();
    assert_eq!((&kept["branch"], &kept["setupCommands"]), (&json!("dev"), &commands));
    let cleared = server
        .patch(&pool, json!({ "branch": null, "setupCommands": null }))
        .await["config"]
        .clone();
    assert_eq!(
        (&cleared["branch"], &cleared["setupCommands"]),
        (&Value::Null, &Value::Null)
    );
    let view = server.get(&pool).await;
    assert_eq!(
        view["metadata"],
        json!({ "lastProvisionedAt": null, "lastClaimedAt": null })
    );
}

#[tokio::test]
async fn wrong_values_are_422_and_name_the_field() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    for (body, path) in [
        (json!({ "targetSize": 0 }), "targetSize"),
        (json!({ "targetSize": 21 }), "targetSize"),
        (json!({ "targetSize": 1.5 }), "targetSize"),
        (json!({ "targetSize": "3" }), "targetSize"),
        (json!({ "targetSize": null }), "targetSize"),
        (json!({ "targetSize": 1e300 }), "targetSize"),
        (json!({ "maxAgeMinutes": 29 }), "maxAgeMinutes"),
        (json!({ "maxAgeMinutes": 181 }), "maxAgeMinutes"),
        (json!({ "enabled": null }), "enabled"),
        (json!({ "enabled": "yes" }), "enabled"),
        (json!({ "branch": 1 }), "branch"),
        (json!({ "branch": "-x" }), "branch"),
        (json!({ "setupCommands": [{ "name": "a" }] }), "setupCommands[0]"),
        (
            json!({ "setupCommands": [{ "name": "", "command": "x" }] }),
            "setupCommands[0].name",
        ),
        (json!([]), "."),
    ] {
        let (status, reply) = server.call(Method::PATCH, &pool, body.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(reply["error"]["code"], "validation_error");
        let found = reply["error"]["details"][0]["path"].as_str().unwrap();
        assert!(found.starts_with(path) || body.is_array(), "{body}: {reply}");
    }
    for query in ["limit=0", "limit=51", "limit=abc", "status=foo", "limit=1.5"] {
        let (status, _) = server
            .call(Method::GET, &format!("{pool}/instances?{query}"), json!({}))
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
    let raw = server
        .request(Method::PATCH, &pool)
        .header("content-type", "application/json")
        .body("{\"a\":");
    assert_eq!(server.send(raw).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let text = server
        .request(Method::PATCH, &pool)
        .header("content-type", "text/plain")
        .body("{}");
    assert_eq!(server.send(text).await.0, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn every_refusal_has_the_error_shape() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let http = reqwest::Client::new();
    let url = format!("http://{}", server.address);
    for (request, status, code) in [
        (http.get(format!("{url}/api/v1/projects")), 401, "unauthorized"),
        (
            http.get(format!("{url}/api/v1/projects")).bearer_auth("hearth_x"),
            401,
            "unauthorized",
        ),
        (http.get(format!("{url}/nothing")), 404, "not_found"),
        (server.request(Method::GET, "/projects/%FF"), 404, "not_found"),
        (server.request(Method::GET, "/projects/prj_0"), 404, "not_found"),
        (server.request(Method::PUT, "/projects"), 405, "method_not_allowed"),
        (
            server
                .request(Method::POST, "/projects")
                .json(&json!({ "name": "x", "more": 1 })),
            422,
            "validation_error",
        ),
    ] {
        let (got, body) = server.send(request).await;
        assert_eq!(
            (got.as_u16(), body["error"]["code"].as_str().unwrap()),
            (status, code),
            "{body}"
        );
        assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    }
    let long = server
        .request(Method::POST, "/projects")
        .body(vec![b' '; 65 * 1024 * 1024]);
    assert_eq!(server.send(long).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn test_and_clear_take_no_body_and_an_instance_has_the_documented_shape() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let (status, reply) = server
        .send(server.request(Method::POST, &format!("{project}/warm-pool/test")))
        .await;
    assert_eq!((status, keys(&reply)), (StatusCode::OK, vec!["id"]));
    let path = format!("{project}/warm-pool/instances/{}", reply["id"].as_str().unwrap());
    let detail = server.until(SOON, &path, |it| it["status"] == "ready").await;
    assert_eq!(
        keys(&detail),
        [
            "createdAt",
            "failureReason",
            "id",
            "instanceId",
            "isTest",
            "status",
            "steps",
            "summary"
        ]
    );
    assert_eq!(
        keys(&detail["summary"]),
        [
            "completedSteps",
            "error",
            "failedStep",
            "success",
            "totalDurationMs",
            "totalSteps"
        ]
    );
    let names: Vec<_> = detail["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["create_vm", "ensure_server"]);
    assert_eq!(
        (&detail["isTest"], &detail["summary"]["success"]),
        (&json!(true), &json!(true))
    );
    let list = server.get(&format!("{project}/warm-pool/instances")).await;
    assert_eq!(keys(&list), ["items"]);
    assert_eq!(
        keys(&list["items"][0]),
        [
            "createdAt",
            "failureReason",
            "id",
            "instanceId",
            "isTest",
            "provisionedAt",
            "status"
        ]
    );
    let status = server.get(&format!("{project}/warm-pool")).await["status"].clone();
    assert_eq!(status, json!({ "ready": 0, "provisioning": 0, "failed": 0 }));
    let (status, reply) = server
        .send(server.request(Method::POST, &format!("{project}/warm-pool/clear")))
        .await;
    assert_eq!((status, &reply["cleared"]), (StatusCode::OK, &json!(1)));
    assert_eq!(
        server.call(Method::GET, &path, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn tokens_have_scopes_and_tenants() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let make = async |body: Value| server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
    let reader = make(json!({ "name": "r", "scopes": ["project:read"] })).await;
    let other = make(json!({ "name": "o", "scopes": ["admin"], "tenant": "other" })).await;
    let http = reqwest::Client::new();
    let url = format!("http://{}/api/v1{project}", server.address);
    let status = async |method: Method, token: &str| {
        http.request(method, &url)
            .bearer_auth(token)
            .json(&json!({}))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(status(Method::GET, &reader).await, 200);
    assert_eq!(status(Method::PATCH, &reader).await, 403);
    assert_eq!(status(Method::GET, &other).await, 404);
    let listed = server.get("/tokens").await;
    assert!(!listed.to_string().contains(&reader[8..]));
    let id = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "r")
        .unwrap()["id"]
        .clone();
    server
        .call(Method::DELETE, &format!("/tokens/{}", id.as_str().unwrap()), json!({}))
        .await;
    assert_eq!(status(Method::GET, &reader).await, 401);
}

#[tokio::test]
async fn variables_go_in_and_only_their_names_come_back() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let path = format!("{project}/environment-variables/shared");
    let put = json!({ "variables": [{ "name": "B", "value": "geheim-1" }, { "name": "A", "value": "" }] });
    let items = server.put(&path, put).await["items"].clone();
    assert_eq!(
        keys(&items[0]),
        ["configured", "lastUpdatedByUserId", "name", "updatedAt"]
    );
    assert_eq!(
        (&items[0]["name"], &items[1]["name"], &items[0]["configured"]),
        (&json!("A"), &json!("B"), &json!(true))
    );
    assert!(!server.get(&path).await.to_string().contains("geheim"));
    for bad in [
        json!({ "variables": [] }),
        json!({ "variables": [{ "name": "1A", "value": "geheim-2" }] }),
        json!({ "variables": [{ "name": "A", "value": "geheim-2\u{0}" }] }),
        json!({ "variables": [{ "name": "A", "value": "x".repeat(100_001) }] }),
    ] {
        let (status, reply) = server.call(Method::PUT, &path, bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
        assert!(!reply.to_string().contains("geheim"), "{reply}");
    }
    let (_, gone) = server.call(Method::DELETE, &format!("{path}/A"), json!({})).await;
    assert_eq!(gone, json!({ "deleted": true, "name": "A" }));
    let (_, gone) = server.call(Method::DELETE, &format!("{path}/A"), json!({})).await;
    assert_eq!(gone, json!({ "deleted": false, "name": "A" }));
}

#[tokio::test]
async fn a_token_makes_none_that_may_do_more_than_itself() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let id = project.strip_prefix("/projects/").unwrap();
    let make = async |body: Value| server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
    let narrow = make(json!({ "name": "n", "scopes": ["admin"], "projectId": id })).await;
    let other = make(json!({ "name": "o", "scopes": ["admin"], "tenant": "other" })).await;
    let http = reqwest::Client::new();
    for (token, body, status) in [
        (&narrow, json!({ "name": "x", "scopes": ["admin"] }), 403),
        (
            &narrow,
            json!({ "name": "x", "scopes": ["claim"], "projectId": id }),
            200,
        ),
        (
            &other,
            json!({ "name": "x", "scopes": ["admin"], "tenant": "default" }),
            403,
        ),
        (&other, json!({ "name": "x", "scopes": ["admin"] }), 200),
    ] {
        let url = format!("http://{}/api/v1/tokens", server.address);
        let reply = http.post(url).bearer_auth(token).json(&body).send().await.unwrap();
        assert_eq!(reply.status().as_u16(), status, "{body}");
    }
}
