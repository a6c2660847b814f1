//! The pages' forms through the front door, and the list of many projects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use reqwest::header::LOCATION;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::Person;
use crate::harness::{SOON, Server, options};

#[tokio::test]
async fn project_is_made_tested_enabled_claimed_and_deleted_without_a_script() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    let refused = person.post("/projects", &[("name", "  "), ("vmSize", "small")]).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused.text().await.unwrap().contains("role=\"alert\""));
    let setup = person
        .send(
            "/projects",
            &[
                ("name", "shop"),
                ("vmSize", "small"),
                ("repo", ""),
                ("branch", "main"),
                ("url", ""),
            ],
        )
        .await;
    let project = setup.split("/setup").next().unwrap().to_owned();
    assert!(person.page(&setup).await.contains("Project made."));

    let commands = [
        ("name", "second"),
        ("command", "true"),
        ("background", "no"),
        ("limit", "90"),
        ("name", "first"),
        ("command", "sleep 1"),
        ("background", "yes"),
        ("name", ""),
        ("command", ""),
        ("background", "no"),
    ];
    person.send(&format!("{project}/setup/commands"), &commands).await;
    let saved = server.get(&format!("{project}/warm-pool")).await["config"]["setupCommands"].clone();
    assert_eq!(
        saved,
        json!([
            { "name": "second", "command": "true", "timeoutSeconds": 90 },
            { "name": "first", "command": "sleep 1", "background": true },
        ])
    );
    let boot = person.send(&format!("{project}/test"), &[]).await;
    let id = boot.rsplit('/').next().unwrap();
    server
        .until(SOON, &format!("{project}/warm-pool/instances/{id}"), |it| {
            it["status"] == "ready"
        })
        .await;
    let page = person.page(&boot).await;
    assert!(page.contains("Succeeded") && page.contains("warm_pool_setup"), "{page}");
    assert!(
        !page.contains("every 2s, refresh"),
        "a boot that is over is not asked for any more"
    );

    let wrong = person
        .post(
            &project,
            &[("enabled", "yes"), ("targetSize", "99"), ("maxAgeMinutes", "60")],
        )
        .await;
    assert_eq!(wrong.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert!(wrong.text().await.unwrap().contains("targetSize"));
    person
        .send(
            &project,
            &[("enabled", "yes"), ("targetSize", "2"), ("maxAgeMinutes", "60")],
        )
        .await;
    server.until_full(SOON, &project, 2).await;
    let part = person.page(&format!("{project}/pool")).await;
    assert!(
        part.starts_with("<div id=\"pool\"") && part.contains("2<small> of 2</small>"),
        "{part}"
    );

    let vm = person
        .send(
            &format!("{project}/claim"),
            &[("taskId", "task-1"), ("ttlMinutes", "30")],
        )
        .await;
    let vm = vm.split('?').next().unwrap().to_owned();
    assert!(person.page("/claims").await.contains("task-1"));
    let before = server.get(&vm).await["expiresAt"].clone();
    person.send(&format!("{vm}/extend"), &[("minutes", "60")]).await;
    assert_ne!(server.get(&vm).await["expiresAt"], before);
    person.send(&format!("{vm}/pause"), &[]).await;
    assert!(person.page(&vm).await.contains("The VM is paused"));
    person.send(&format!("{vm}/resume"), &[]).await;
    let charts = person.until("/charts", "<rect class=\"ready\"").await;
    assert!(charts.contains("Wait, median"), "{charts}");
    let own = format!("/charts?range=7d&project={}", project.rsplit('/').next().unwrap());
    let charts = person.until(&own, "Time by step").await;
    for part in [
        "Ready against target",
        "<line class=\"target\"",
        "VM-hours, claimed",
        "warm_pool_setup",
    ] {
        assert!(charts.contains(part), "{part}: {charts}");
    }
    assert_eq!(
        person.send(&format!("{vm}/release"), &[]).await,
        "/claims?done=released"
    );
    assert!(!person.page("/claims").await.contains("task-1"));

    // What was is still told.
    let claims = person
        .until(&format!("{project}/history?text=TASK-1"), "released")
        .await;
    assert!(claims.contains("task-1"), "{claims}");
    let none = person
        .page(&format!("{project}/history?text=task-2&troubled=true"))
        .await;
    assert!(none.contains("The history has no such claim."), "{none}");
    let boots = person.page(&format!("{project}/history?show=boots")).await;
    assert!(boots.contains(&format!("{project}/history/{id}")), "{boots}");
    let log = person.page(&format!("{project}/history/{id}")).await;
    assert!(
        log.contains("warm_pool_setup") && log.contains("made for test"),
        "{log}"
    );
    let advice = person.page(&format!("{project}/advice?target=3")).await;
    assert!(advice.contains("Suggested") && advice.contains("Asked for"), "{advice}");
    let wrong = person.page(&format!("{project}/advice?days=1000")).await;
    assert!(wrong.contains("role=\"alert\"") && wrong.contains("days"), "{wrong}");
    let audit = person.until("/audit", "release_instance").await;
    assert!(
        audit.contains("create_project") && audit.contains("422 refused"),
        "{audit}"
    );
    // What was done in the pages came from somewhere, too.
    let written = server.get("/audit").await;
    for entry in written["items"].as_array().unwrap() {
        assert!(
            entry["address"] == "127.0.0.1" && entry["requestId"].is_string(),
            "{entry}"
        );
    }

    let slip = person.post(&format!("{project}/delete"), &[("name", "shopp")]).await;
    assert_eq!(slip.status(), StatusCode::UNPROCESSABLE_ENTITY);
    person.send(&format!("{project}/delete"), &[("name", "shop")]).await;
    assert_eq!(person.get(&project).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn files_go_in_and_come_out_as_they_are() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let vm = format!("/instances/{}", claim["id"].as_str().unwrap());
    let person = Person::sign_in(&server, &server.token).await;
    let file = format!("{vm}/file?path=/home/a.html");
    let put = |proof: &str| {
        person
            .request(Method::PUT, &file)
            .header("x-hearth-page", proof)
            .body("<script>1</script>")
    };
    assert_eq!(put("").send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let put = put(&person.proof).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::OK, "{}", put.text().await.unwrap());
    assert!(person.page(&format!("{vm}/files?path=/home")).await.contains("a.html"));
    let got = person.get(&file).await;
    assert_eq!(
        got.headers()["content-disposition"],
        "attachment; filename*=UTF-8''a%2Ehtml"
    );
    assert_eq!(got.headers()["content-type"], "application/octet-stream");
    assert_eq!(got.text().await.unwrap(), "<script>1</script>");
    assert_eq!(
        person.get(&format!("{vm}/file?path=/home/none")).await.status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn what_is_in_a_vm_is_shown_on_its_page() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    driver.add_rule(ExecRule::prints(
        "count-things",
        "\u{1b}[32m<b>three</b>\u{1b}[0m things\n",
    ));
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let vm = format!("/instances/{}", claim["id"].as_str().unwrap());
    let person = Person::sign_in(&server, &server.token).await;
    let empty = person.page(&format!("{vm}/inside")).await;
    assert!(
        empty.contains("Nothing listens") && empty.contains("None was started."),
        "{empty}"
    );
    driver.listen(3000, "127.0.0.1:9".parse().unwrap());
    let session = json!({ "request": { "command": "count-things" } });
    let session = server.post(&format!("{vm}/sessions"), session).await;
    let page = person.page(&format!("{vm}/inside")).await;
    let link = format!("{vm}/ports/3000");
    assert!(page.contains("count-things") && page.contains(&link), "{page}");
    // What a page asks for by itself gives nobody a way in: only who opens the preview gets a link, and that is written down.
    assert!(!page.contains("hearth_share="), "{page}");
    let opened = person.get(&link).await;
    let to = opened.headers()[LOCATION].to_str().unwrap();
    assert!(
        opened.status() == StatusCode::SEE_OTHER && to.contains("hearth_share="),
        "{to}"
    );
    assert_eq!(
        person.get(&format!("{vm}/ports/x")).await.status(),
        StatusCode::NOT_FOUND
    );
    let shares = |audit: &Value| {
        let items = audit["items"].as_array().unwrap().iter();
        items.filter(|entry| entry["operation"] == "share_port").count()
    };
    // It is written down beside the answer.
    let audit = server.until(SOON, "/audit", |audit| shares(audit) > 0).await;
    assert_eq!(shares(&audit), 1, "{audit}");
    let output = person
        .page(&format!("{vm}/sessions/{}", session["id"].as_str().unwrap()))
        .await;
    assert!(output.contains("&lt;b&gt;three&lt;/b&gt; things"), "{output}");
    assert_eq!(
        person.get(&format!("{vm}/logs/none")).await.status(),
        StatusCode::NOT_FOUND
    );
}

/// Projects of the large list.
const MANY: usize = 1000;
/// What a page of it may take in the server, measured here from the outside.
const QUICK: Duration = Duration::from_millis(100);

#[tokio::test]
async fn list_of_a_thousand_projects_is_searched_in_pages_and_quick() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    // A thousand projects may be made faster than one client may ask.
    options.requests_per_second = 0;
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    for number in 0..MANY {
        let (status, _) = server
            .call(Method::POST, "/projects", json!({ "name": format!("p{number:04}") }))
            .await;
        assert_eq!(status, StatusCode::OK);
    }
    let person = Person::sign_in(&server, &server.token).await;
    let first = person.page("/").await;
    assert!(first.contains("Page 1 of 20") && first.contains(">p0000<") && !first.contains(">p0050<"));
    let last = person.page("/?p=20").await;
    assert!(last.contains(">p0999<") && !last.contains("rel=\"next\""));
    let found = person.page("/?q=P099&show=disabled").await;
    assert_eq!((found.contains(">p0999<"), found.contains(">p0000<")), (true, false));
    assert!(person.page("/?show=enabled").await.contains("No project is like that."));
    // The quickest of some: this machine does other things, too.
    let mut quickest = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        person.page("/").await;
        quickest = quickest.min(start.elapsed());
    }
    println!("a page of {MANY} projects: {quickest:?}");
    assert!(quickest < QUICK, "{quickest:?}");
}

#[tokio::test]
async fn first_load_is_small_and_its_files_are_kept_for_good() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let person = Person::sign_in(&server, &server.token).await;
    let page = person.page("/").await;
    let mut bytes = page.len();
    let mut paths = Vec::new();
    for part in page
        .split('"')
        .filter(|part| part.starts_with("/assets/") && !part.ends_with(".txt"))
    {
        let raw = person
            .request(Method::GET, part)
            .header("accept-encoding", "gzip")
            .send()
            .await
            .unwrap();
        assert_eq!(raw.status(), StatusCode::OK, "{part}");
        assert_eq!(raw.headers()["cache-control"], "public, max-age=31536000, immutable");
        let packed = raw.headers().get("content-encoding").is_some();
        let text = raw.bytes().await.unwrap();
        println!("{part}: {} bytes, packed: {packed}", text.len());
        bytes += text.len();
        paths.push(part.to_owned());
    }
    assert!(
        paths.len() >= 4 && !page.contains("xterm") && !page.contains("http"),
        "{page}"
    );
    assert!(bytes < 200_000, "{bytes}");
    assert_eq!(
        person.get("/assets/0000000000000000/app.js").await.status(),
        StatusCode::NOT_FOUND
    );
}
