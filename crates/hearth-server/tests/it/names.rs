//! What a text means that a person typed: names of projects, parts of ids, tasks, and who may ask; and what a task's id stands
//! for when it is used again.

use hearth_drivers::fake::FakeOptions;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, git, git_repo};
/// A request with another token than the first.
async fn call(server: &Server, token: &str, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
    let url = format!("http://{}/api/v1{path}", server.address);
    let request = reqwest::Client::new().request(method, url).bearer_auth(token);
    server.send(request.json(&body)).await
}

async fn token(server: &Server, body: Value) -> String {
    server.post("/tokens", body).await["token"].as_str().unwrap().to_owned()
}

fn ids(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn token_that_may_only_claim_finds_its_project_by_name_and_only_its_own_claims() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(3).await;
    let id = project.trim_start_matches("/projects/");
    server.project(json!({ "name": "other" })).await;
    let agent = token(&server, json!({ "name": "a", "scopes": ["claim"], "projectId": id })).await;
    let get = async |path: &str| call(&server, &agent, Method::GET, path, json!({})).await;

    let (status, found) = get("/find/projects?text=Demo").await;
    assert_eq!((status, ids(&found)), (StatusCode::OK, vec![id]), "{found}");
    let (_, hidden) = get("/find/projects?text=other").await;
    assert_eq!(ids(&hidden), Vec::<&str>::new());
    let (status, _) = get(&project).await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    let claim = format!("{pool}/claim");
    let foreign = server.post(&claim, json!({ "taskId": "T1" })).await;
    let (_, mine) = call(&server, &agent, Method::POST, &claim, json!({ "taskId": "T2" })).await;
    let mine = mine["id"].as_str().unwrap();
    for text in [
        "T2",
        "last",
        mine,
        &mine[..mine.len() - 1],
        &mine[mine.len() - 12..],
        &mine[4..mine.len() - 1],
    ] {
        let (status, found) = get(&format!("/find/instances?text={text}")).await;
        assert_eq!((status, ids(&found)), (StatusCode::OK, vec![mine]), "{text}: {found}");
        assert_eq!(found["items"][0]["projectName"], "demo");
    }
    for text in ["T1", foreign["id"].as_str().unwrap()] {
        let (_, found) = get(&format!("/find/instances?text={text}")).await;
        assert_eq!(ids(&found), Vec::<&str>::new(), "{text}");
    }
    let (_, claims) = get("/claims").await;
    assert_eq!(ids(&claims), [mine]);
    assert_eq!(claims["items"][0]["owner"], "a", "it named no owner, so it is its own");
    let all = server.get(&format!("/claims?projectId={id}")).await;
    assert_eq!(ids(&all), [mine, foreign["id"].as_str().unwrap()]);
    // What several things may be called is named, all of it.
    let both = server.get("/find/instances?text=wpi_").await;
    assert!(both["items"].as_array().unwrap().len() >= 3, "{both}");
    let writer = token(&server, json!({ "name": "w", "scopes": ["project:write"] })).await;
    let (status, _) = call(&server, &writer, Method::GET, "/claims", json!({})).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let other = token(&server, json!({ "name": "o", "scopes": ["admin"], "tenant": "beta" })).await;
    for path in ["/claims", "/find/instances?text=T1", "/find/projects?text=demo"] {
        let (_, found) = call(&server, &other, Method::GET, path, json!({})).await;
        assert_eq!(ids(&found), Vec::<&str>::new(), "{path}");
    }
}

#[tokio::test]
async fn lease_is_extended_by_minutes_and_never_past_seven_days() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let task = json!({ "ttlMinutes": 60, "taskId": "T1" });
    let claimed = server.post(&format!("{pool}/claim"), task.clone()).await;
    let extend = format!("/instances/{}/extend", claimed["id"].as_str().unwrap());
    let at = |reply: &Value| reply["expiresAt"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let longer = server.post(&extend, json!({ "minutes": 90 })).await;
    assert_eq!(at(&longer).duration_since(at(&claimed)).as_mins(), 90);
    // Asked again, the claim says how long the VM is its own by now.
    let again = server.post(&format!("{pool}/claim"), task).await;
    assert_eq!(
        (&again["id"], &again["expiresAt"]),
        (&claimed["id"], &longer["expiresAt"])
    );
    let (status, reply) = server.call(Method::POST, &extend, json!({ "minutes": 10_080 })).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
    let fault = &reply["error"]["details"][0];
    let said = fault["message"].as_str().unwrap();
    assert_eq!(fault["path"], "minutes");
    assert!(said.contains("7 days (10080 minutes) from now at the latest"), "{said}");
    let possible = said
        .strip_prefix("must be at most ")
        .unwrap()
        .split(':')
        .next()
        .unwrap();
    let possible: u64 = possible.parse().unwrap();
    assert!((9_920..=9_930).contains(&possible), "{said}");
    // Nothing was changed by that, and what is said to be possible is.
    let most = server.post(&extend, json!({ "minutes": possible })).await;
    assert_eq!(
        at(&most).duration_since(at(&longer)).as_mins(),
        i64::try_from(possible).unwrap()
    );
    let ahead = at(&most).duration_since(jiff::Timestamp::now());
    assert!(ahead <= jiff::SignedDuration::from_hours(7 * 24), "{ahead:?}");
    for wrong in [
        json!({}),
        json!({ "minutes": 0 }),
        json!({ "minutes": 10_081 }),
        json!({ "minutes": 5, "x": 1 }),
    ] {
        let (status, reply) = server.call(Method::POST, &extend, wrong).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
    }
}

#[tokio::test]
async fn key_of_a_claim_stands_for_what_decides_the_vm_and_a_difference_is_named() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let claim = format!("{pool}/claim");
    let first = json!({ "taskId": "T10", "waitMs": 60_000, "env": { "KEY": "geheim" } });
    let made = server.post(&claim, first).await;
    for same in [
        json!({ "taskId": "T10", "env": { "KEY": "geheim" } }),
        json!({ "taskId": "T10", "env": { "KEY": "geheim" }, "miss": "require", "strict": false, "branch": null }),
        json!({ "taskId": "T10", "env": { "KEY": "geheim" }, "ttlMinutes": 720, "waitMs": 1 }),
    ] {
        assert_eq!(server.post(&claim, same).await["id"], made["id"]);
    }
    for (other, fields) in [
        (json!({ "taskId": "T10" }), vec!["env"]),
        (json!({ "taskId": "T10", "env": { "KEY": "anders" } }), vec!["env"]),
        (
            json!({ "taskId": "T10", "strict": true, "ttlMinutes": 5, "env": { "KEY": "geheim" } }),
            vec!["strict", "ttlMinutes"],
        ),
        (
            json!({ "taskId": "T10", "branch": "dev", "env": { "KEY": "geheim" } }),
            vec!["branch"],
        ),
    ] {
        let (status, reply) = server.call(Method::POST, &claim, other).await;
        assert_eq!(status, StatusCode::CONFLICT, "{reply}");
        let details = reply["error"]["details"].as_array().unwrap();
        let named: Vec<&str> = details.iter().map(|field| field["path"].as_str().unwrap()).collect();
        assert_eq!(named, fields, "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(
            fields.iter().all(|field| message.contains(&format!("`{field}`"))),
            "{message}"
        );
        assert!(!reply.to_string().contains("geheim"), "{reply}");
    }
    let stranger = token(&server, json!({ "name": "s", "scopes": ["claim"] })).await;
    let (status, reply) = call(&server, &stranger, Method::POST, &claim, json!({ "taskId": "T10" })).await;
    assert_eq!(status, StatusCode::CONFLICT, "{reply}");
    assert!(reply["error"]["details"].is_null(), "{reply}");
}

#[tokio::test]
async fn name_means_one_project_of_a_tenant_when_made_and_when_renamed() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let first = server.post("/projects", json!({ "name": "shop" })).await;
    let id = first["id"].as_str().unwrap();
    let second = server.post("/projects", json!({ "name": " Shop two " })).await;
    assert_eq!(second["name"], "Shop two");
    let path = format!("/projects/{}", second["id"].as_str().unwrap());
    for taken in ["shop", "SHOP", "  shop "] {
        for (method, path) in [(Method::POST, "/projects"), (Method::PATCH, path.as_str())] {
            let (status, reply) = server.call(method, path, json!({ "name": taken })).await;
            assert_eq!(status, StatusCode::CONFLICT, "{taken}: {reply}");
            assert!(reply["error"]["message"].as_str().unwrap().contains(id), "{reply}");
        }
    }
    // Its own name in other letters is free for it; so is the name of another tenant's project.
    assert_eq!(
        server.patch(&path, json!({ "name": "SHOP TWO" })).await["name"],
        "SHOP TWO"
    );
    let other = token(&server, json!({ "name": "o", "scopes": ["admin"], "tenant": "beta" })).await;
    let (status, reply) = call(&server, &other, Method::POST, "/projects", json!({ "name": "shop" })).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    // Of ten that are made at once one is.
    let made =
        futures::future::join_all((0..10).map(|_| server.call(Method::POST, "/projects", json!({ "name": "race" }))))
            .await;
    assert_eq!(made.iter().filter(|(status, _)| *status == StatusCode::OK).count(), 1);
}

#[tokio::test]
async fn branches_of_repositories_are_listed_and_of_one_that_does_not_answer_nothing_is_known() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let url = git_repo(server.folder.path(), "app", &[("a", "b")]);
    git(&server.folder.path().join("repos/app"), &["branch", "topic/x"]);
    git(&server.folder.path().join("repos/app"), &["tag", "v1"]);
    let gone = json!({ "repoFullName": "o/gone", "branch": "main", "url": "file:///nowhere/at/all" });
    let repos = json!([{ "repoFullName": "o/app", "branch": "main", "url": url }, gone]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let listed = server.get(&format!("{project}/branches")).await;
    let app = json!({ "repoFullName": "o/app", "branch": "main", "isThere": true, "branches": ["main", "topic/x"] });
    let gone = json!({ "repoFullName": "o/gone", "branch": "main", "isThere": null, "branches": null });
    assert_eq!(listed["items"], json!([app, gone]));
    // The branch of the pool is the one that counts.
    server
        .patch(&format!("{project}/warm-pool"), json!({ "branch": "mian" }))
        .await;
    let listed = server.get(&format!("{project}/branches")).await;
    assert_eq!(listed["items"][0]["branch"], "mian");
    assert_eq!(listed["items"][0]["isThere"], false);
}
