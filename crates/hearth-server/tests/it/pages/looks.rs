//! What assistive technology makes of the pages, checked by axe-core in Chromium.

use hearth_drivers::fake::FakeOptions;
use serde_json::json;

use super::browser::{NARROW, WIDE, Window};
use super::story::sign_in;
use crate::harness::Server;

/// axe-core 4.14.1, as it is in the npm registry; its licence is beside it.
const AXE: &str = include_str!("../../axe/axe.min.js");
/// Faults of this weight are mended before anything is shown to anybody.
const HEAVY: [&str; 2] = ["serious", "critical"];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn axe_finds_nothing_serious_on_any_page() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(2).await;
    let change = json!({ "setupCommands": [{ "name": "build", "command": "make" }] });
    server.patch(&pool, change).await;
    let boot = server.test_boot(crate::harness::SOON, &project, json!({})).await;
    let vm = server
        .post(&format!("{pool}/claim"), json!({ "taskId": "task-1" }))
        .await;
    let vm = format!("/instances/{}", vm["id"].as_str().unwrap());
    let window = Window::open(&server).await;
    window.go("/sign-in").await;
    let mut found = faults(&window, "/sign-in").await;
    sign_in(&window, &server).await;
    for path in [
        "/".to_owned(),
        "/projects/new".to_owned(),
        project.clone(),
        format!("{project}/setup"),
        format!("{project}/boots/{}", boot["id"].as_str().unwrap()),
        format!("{project}/history"),
        format!("{project}/history?show=boots"),
        format!("{project}/history/{}", boot["id"].as_str().unwrap()),
        format!("{project}/advice"),
        "/claims".to_owned(),
        format!("/charts?project={}", project.rsplit('/').next().unwrap()),
        "/host".to_owned(),
        "/tokens".to_owned(),
        "/audit".to_owned(),
        vm.clone(),
        format!("{vm}/files"),
        format!("{vm}/terminal"),
        "/projects/prj_none".to_owned(),
    ] {
        window.go(&path).await;
        window.until("document.readyState === 'complete'").await;
        for scheme in ["light", "dark"] {
            window.colours(scheme).await;
            found.extend(faults(&window, &format!("{path} {scheme}")).await);
        }
        window.resize(NARROW).await;
        found.extend(faults(&window, &format!("{path} narrow")).await);
        window.resize(WIDE).await;
    }
    window.close().await;
    assert!(found.is_empty(), "{found:#?}");
}

/// What axe finds in the page that is shown.
async fn faults(window: &Window, place: &str) -> Vec<String> {
    const RUN: &str = "axe.run(document, { resultTypes: ['violations'] }).then(found => ({
        passed: found.passes.length,
        faults: found.violations.map(one => ({
            id: one.id, impact: one.impact,
            where: one.nodes.slice(0, 3).map(node => node.html + ' ' + node.failureSummary),
        })),
    }))";
    window.run(AXE).await;
    let found = window.ask(RUN).await;
    // It did look: a page without a heading, a language or names for its parts passes few of its rules.
    assert!(found["passed"].as_u64() > Some(15), "{place}: {found:#}");
    let faults = found["faults"].as_array().cloned().unwrap_or_default();
    let heavy = faults
        .iter()
        .filter(|fault| HEAVY.contains(&fault["impact"].as_str().unwrap_or_default()));
    heavy.map(|fault| format!("{place}: {fault}")).collect()
}
