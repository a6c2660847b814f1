//! Who gets a page and who does not: sign-in and out, forms of others, tenants, scopes, hostile texts, secrets.

use hearth_drivers::fake::FakeOptions;
use reqwest::header::{ACCEPT, COOKIE, LOCATION};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Form as _, Person, client};
use crate::harness::{SOON, Server, bare_project};

/// A token of the server with these scopes; its id and its secret.
async fn token(server: &Server, body: Value) -> (String, String) {
    let made = server.post("/tokens", body).await;
    (
        made["id"].as_str().unwrap().to_owned(),
        made["token"].as_str().unwrap().to_owned(),
    )
}

#[tokio::test]
async fn browsers_get_the_pages_at_the_root_and_programs_what_they_always_got() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let at = format!("http://{}/", server.address);
    let program = client().get(&at).send().await.unwrap();
    assert_eq!(program.headers()["vary"], "accept");
    let places: Value = program.json().await.unwrap();
    assert_eq!(
        (places["name"].as_str(), places["api"].as_str()),
        (Some("hearth"), Some("/api/v1"))
    );
    let browser = client().get(&at).header(ACCEPT, "text/html,*/*").send().await.unwrap();
    assert_eq!(
        (browser.status(), &browser.headers()[LOCATION]),
        (StatusCode::SEE_OTHER, &"/sign-in".parse().unwrap())
    );
    for (path, accept, kind) in [
        ("nowhere", "text/html,*/*", "text/html; charset=utf-8"),
        ("nowhere", "*/*", "application/json"),
        ("api/v1/nowhere", "text/html,*/*", "application/json"),
    ] {
        let answer = client().get(format!("{at}{path}")).header(ACCEPT, accept);
        let answer = answer.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.headers()["content-type"], kind, "{path}");
    }
    let page = client().get(format!("{at}sign-in")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"));
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    assert_eq!(page.headers()["cache-control"], "no-store");
    let text = page.text().await.unwrap();
    assert!(!text.contains(" style=") && !text.contains(" onclick=") && !text.contains("<script>"));
}

#[tokio::test]
async fn sign_in_leads_back_and_ends_with_the_session_or_the_token() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let base = format!("http://{}", server.address);
    let sent = client().get(format!("{base}/tokens?a=b")).send().await.unwrap();
    assert_eq!(sent.headers()[LOCATION], "/sign-in?next=%2Ftokens%3Fa%3Db");
    let wrong = client().post(format!("{base}/sign-in")).form(&[("token", "hearth_no")]);
    let wrong = wrong.send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert!(wrong.text().await.unwrap().contains("This token is not known"));
    let back = client()
        .post(format!("{base}/sign-in"))
        .form(&[("token", server.token.as_str()), ("next", "/tokens")]);
    assert_eq!(back.send().await.unwrap().headers()[LOCATION], "/tokens");

    let person = Person::sign_in(&server, &server.token).await;
    assert!(person.page("/").await.contains("There is no project yet."));
    assert_eq!(person.send("/sign-out", &[]).await, "/sign-in");
    assert_eq!(person.get("/").await.status(), StatusCode::SEE_OTHER);

    let (id, secret) = token(&server, json!({ "name": "t", "scopes": ["project:read"] })).await;
    let person = Person::sign_in(&server, &secret).await;
    server
        .request(Method::DELETE, &format!("/tokens/{id}"))
        .send()
        .await
        .unwrap();
    assert_eq!(person.get("/").await.headers()[LOCATION], "/sign-in");
    let polled = person
        .request(Method::GET, "/")
        .header("hx-request", "true")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (polled.status(), &polled.headers()["hx-refresh"]),
        (StatusCode::UNAUTHORIZED, &"true".parse().unwrap())
    );
}

#[tokio::test]
async fn form_that_is_not_of_our_own_pages_is_refused() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    let form = |proof: &str| {
        person
            .request(Method::POST, "/projects")
            .form(&[("name", "x"), ("page", proof)])
    };
    for refused in [
        form(""),
        form("0123"),
        form(&person.proof).header("sec-fetch-site", "cross-site"),
        form(&person.proof).header("sec-fetch-site", "same-site"),
        form(&person.proof).header("origin", "http://evil.example"),
        form(&person.proof).header("origin", "null"),
    ] {
        let answer = refused.send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(
            answer
                .text()
                .await
                .unwrap()
                .contains("did not come from a page of this server")
        );
    }
    assert_eq!(server.get("/projects").await["items"], json!([]));
    let foreign = client()
        .post(format!("http://{}/sign-in", server.address))
        .header("sec-fetch-site", "cross-site")
        .form(&[("token", server.token.as_str())]);
    assert_eq!(foreign.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let own = form(&person.proof)
        .header("sec-fetch-site", "same-origin")
        .send()
        .await
        .unwrap();
    assert_eq!(own.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn script_of_the_same_host_reads_no_page() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    let fetched = |mode: &str, to: &str| {
        person
            .request(Method::GET, "/tokens")
            .header("sec-fetch-site", "same-origin")
            .header("sec-fetch-mode", mode)
            .header("sec-fetch-dest", to)
    };
    for (mode, to) in [
        ("cors", "empty"),
        ("same-origin", "empty"),
        ("no-cors", "script"),
        ("navigate", "iframe"),
    ] {
        assert_eq!(
            fetched(mode, to).send().await.unwrap().status(),
            StatusCode::FORBIDDEN,
            "{mode} {to}"
        );
    }
    assert_eq!(
        fetched("navigate", "document").send().await.unwrap().status(),
        StatusCode::OK
    );
    let ours = fetched("cors", "empty").header("x-hearth-page", &person.proof);
    assert_eq!(ours.send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn another_tenant_sees_nothing_and_a_token_does_what_its_scopes_say() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let claim = server
        .post(&format!("{pool}/claim"), json!({ "taskId": "secret-task" }))
        .await;
    let vm = claim["id"].as_str().unwrap();
    let body = json!({ "name": "o", "tenant": "other", "scopes": ["project:read", "project:write", "claim"] });
    let other = Person::sign_in(&server, &token(&server, body).await.1).await;
    let list = other.page("/").await;
    assert!(list.contains("There is no project yet.") && !list.contains("demo"));
    assert!(!other.page("/claims").await.contains("secret-task"));
    assert!(other.page("/charts").await.contains("There was no claim"));
    for path in [
        project.clone(),
        format!("{project}/pool"),
        format!("{project}/setup"),
        format!("{project}/boots/{vm}"),
        format!("/charts?project={}", project.trim_start_matches("/projects/")),
        format!("/instances/{vm}"),
        format!("/instances/{vm}/files"),
        format!("/instances/{vm}/terminal"),
    ] {
        let answer = other.get(&path).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        assert!(!answer.text().await.unwrap().contains("demo"), "{path}");
    }
    assert_eq!(other.get("/host").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(other.get("/tokens").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        other.post(&format!("{project}/retry"), &[]).await.status(),
        StatusCode::NOT_FOUND
    );

    let read = token(&server, json!({ "name": "r", "scopes": ["project:read"] }))
        .await
        .1;
    let reader = Person::sign_in(&server, &read).await;
    let page = reader.page(&project).await;
    assert!(!page.contains("Delete the project") && !page.contains("Claim a VM"));
    let answer = reader.post(&project, &[("enabled", "yes")]).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert!(answer.text().await.unwrap().contains("lacks the scope `project:write`"));
    let claims = token(&server, json!({ "name": "c", "scopes": ["claim"] })).await.1;
    let claimer = Person::sign_in(&server, &claims).await;
    assert_eq!(claimer.get("/").await.headers()[LOCATION], "/claims");
    assert!(!claimer.page("/claims").await.contains("secret-task"));
}

#[tokio::test]
async fn session_is_worth_nothing_at_the_api() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    let answer = client()
        .get(format!("http://{}/api/v1/projects", server.address))
        .header(COOKIE, person.cookie)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
}

/// Texts that would run if they were not escaped.
const HOSTILE: [&str; 3] = [
    "<script>window.hostile=1</script>",
    "\"><img src=x onerror=window.hostile=1>",
    "'-window.hostile-'",
];

#[tokio::test]
async fn hostile_texts_are_shown_as_they_are_written() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    for text in HOSTILE {
        let mut body = bare_project();
        body["name"] = text.into();
        body["description"] = text.into();
        let project = server.project(body).await;
        let change = json!({ "setupCommands": [{ "name": text, "command": text }] });
        server.patch(&format!("{project}/warm-pool"), change).await;
        let commands = [("name", text), ("command", ""), ("background", "no")];
        let refused = person.post(&format!("{project}/setup/commands"), &commands).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let boot = server.test_boot(SOON, &project, json!({})).await;
        let boot = format!("{project}/boots/{}", boot["id"].as_str().unwrap());
        let search: String = form_urlencoded_of(text);
        for path in [
            "/".to_owned(),
            format!("/?q={search}&done={search}"),
            project.clone(),
            format!("{project}/setup"),
            boot,
            format!("{project}/history?show=boots&text={search}"),
            format!("{project}/history?before={search}"),
            format!("{project}/advice?days={search}&target={search}"),
            format!("/audit?project={search}"),
            format!("/charts?range={search}&project={}", project.rsplit('/').next().unwrap()),
            format!("/sign-in?next={search}"),
        ] {
            let page = person.get(&path).await.text().await.unwrap();
            assert!(
                !page.contains("<script>window") && !page.contains("<img src"),
                "{path}: {page}"
            );
        }
    }
}

fn form_urlencoded_of(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[tokio::test]
async fn no_page_holds_a_token_a_variable_or_a_credential() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    const VARIABLE: &str = "variable-value-4711";
    const CREDENTIAL: &str = "git-credential-4711";
    let shared = json!({ "variables": [{ "name": "KNOWN_NAME", "value": VARIABLE }] });
    server
        .put(&format!("{project}/environment-variables/shared"), shared)
        .await;
    let credential = json!({ "credentials": [{ "kind": "token", "host": "git.example.org", "token": CREDENTIAL }] });
    server
        .call(Method::PUT, &format!("{project}/credentials"), credential)
        .await;
    let person = Person::sign_in(&server, &server.token).await;
    person
        .send(
            &format!("{project}/setup/variables"),
            &[("kind", "personal"), ("name", "MINE"), ("value", VARIABLE)],
        )
        .await;
    server.until_full(SOON, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let vm = claim["id"].as_str().unwrap();
    let session = person.cookie.split_once('=').unwrap().1;
    for path in [
        "/".to_owned(),
        project.clone(),
        format!("{project}/setup"),
        "/claims".to_owned(),
        "/charts".to_owned(),
        "/host".to_owned(),
        "/tokens".to_owned(),
        "/audit".to_owned(),
        format!("{project}/history"),
        format!("{project}/history?show=boots"),
        format!("{project}/advice"),
        format!("/instances/{vm}"),
        format!("/instances/{vm}/inside"),
        format!("/instances/{vm}/terminal"),
        format!("/instances/{vm}/files"),
    ] {
        let page = person.page(&path).await;
        for secret in [VARIABLE, CREDENTIAL, server.token.as_str(), session] {
            assert!(!page.contains(secret), "{path}");
        }
    }
    assert!(person.page(&format!("{project}/setup")).await.contains("KNOWN_NAME"));
    // The one page that shows a secret, once.
    let made = person
        .post("/tokens", &[("name", "new"), ("scope", "claim")])
        .await
        .text()
        .await
        .unwrap();
    assert_eq!(made.matches("hearth_").count(), 1, "{made}");
    assert!(!person.page("/tokens").await.contains("hearth_"));
}

#[tokio::test]
async fn socket_of_a_terminal_opens_for_our_own_pages_alone() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let person = Person::sign_in(&server, &server.token).await;
    let path = format!("/instances/{}/terminal/socket", claim["id"].as_str().unwrap());
    let own = format!("http://{}", server.address);
    // Over plain http a browser sends the cookie and an origin, and says nothing else.
    for (origin, proof, expected) in [
        (Some("http://evil.example"), None, StatusCode::FORBIDDEN),
        (Some("http://evil.example"), Some(&person.proof), StatusCode::FORBIDDEN),
        (Some(own.as_str()), None, StatusCode::FORBIDDEN),
        (None, None, StatusCode::FORBIDDEN),
        (Some(own.as_str()), Some(&person.proof), StatusCode::SWITCHING_PROTOCOLS),
    ] {
        let query = proof.map(|proof| format!("?page={proof}")).unwrap_or_default();
        let mut request = person
            .request(Method::GET, &format!("{path}{query}"))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), expected, "{origin:?} {proof:?}");
    }
    // Nor does another page read a page of ours.
    let page = person
        .request(Method::GET, "/claims")
        .header("origin", "http://evil.example");
    assert_eq!(page.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}
