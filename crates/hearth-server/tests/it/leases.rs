//! What a project says of its claims: how many there may be, when the end of a lease is warned of, and when VMs are paused that nobody uses.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Special, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, options};

/// How long a minute of a project's setting lasts here.
const MINUTE: Duration = Duration::from_millis(600);

/// A server with short minutes, and so many ready VMs.
async fn server(ready: u64, rules: Vec<ExecRule>) -> (Server, FakeDriver, String) {
    server_with_faults(ready, rules, Vec::new()).await
}

async fn server_with_faults(ready: u64, rules: Vec<ExecRule>, faults: Vec<Fault>) -> (Server, FakeDriver, String) {
    let driver = FakeDriver::new(
        1,
        FakeOptions {
            rules,
            faults,
            ..FakeOptions::default()
        },
    );
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.provision_concurrency = 4;
    options.idle_minute = MINUTE;
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (project, _) = server.full_pool(ready).await;
    (server, driver, project)
}

async fn claim(server: &Server, project: &str, body: Value) -> (StatusCode, Value) {
    server
        .call(Method::POST, &format!("{project}/warm-pool/claim"), body)
        .await
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value}"))
}

#[tokio::test]
async fn settings_of_claims_are_kept_and_shown_and_refused_when_they_are_none() {
    let (server, _driver, project) = server(1, Vec::new()).await;
    let view = server.get(&format!("{project}/view")).await;
    let shown = |view: &Value| {
        [
            "maxClaims",
            "idlePauseMinutes",
            "idlePauseToDisk",
            "leaseWarningMinutes",
        ]
        .map(|name| view[name].clone())
    };
    assert_eq!(shown(&view), [json!(null), json!(null), json!(false), json!(10)]);
    let documented = server
        .patch(
            &project,
            json!({ "maxClaims": 3.0, "idlePauseMinutes": 30, "idlePauseToDisk": true, "leaseWarningMinutes": 0 }),
        )
        .await;
    assert!(
        documented.get("maxClaims").is_none(),
        "a documented reply gets no new key: {documented}"
    );
    let set = [json!(3), json!(30), json!(true), json!(0)];
    assert_eq!(shown(&server.get(&format!("{project}/view")).await), set);
    server.patch(&project, json!({ "description": "other" })).await;
    assert_eq!(shown(&server.get(&format!("{project}/view")).await), set);
    for wrong in [
        json!({ "maxClaims": 0 }),
        json!({ "maxClaims": 1.5 }),
        json!({ "idlePauseMinutes": 0 }),
        json!({ "idlePauseToDisk": null }),
        json!({ "leaseWarningMinutes": -1 }),
        json!({ "leaseWarningMinutes": null }),
    ] {
        let (status, reply) = server.call(Method::PATCH, &project, wrong.clone()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{wrong}: {reply}");
    }
    server
        .patch(&project, json!({ "maxClaims": null, "idlePauseMinutes": null }))
        .await;
    let view = server.get(&format!("{project}/view")).await;
    assert_eq!(shown(&view), [json!(null), json!(null), json!(true), json!(0)]);
}

#[tokio::test]
async fn no_more_claims_hold_a_vm_than_the_project_allows_however_many_ask_at_once() {
    let (server, _driver, project) = server(4, Vec::new()).await;
    server.patch(&project, json!({ "maxClaims": 2 })).await;
    let server = &server;
    let asked = (0..6).map(|number| claim(server, &project, json!({ "taskId": format!("T{number}") })));
    let replies = futures::future::join_all(asked).await;
    let held: Vec<&Value> = replies
        .iter()
        .filter(|(status, _)| *status == StatusCode::OK)
        .map(|(_, reply)| reply)
        .collect();
    assert_eq!(held.len(), 2, "{replies:?}");
    for (status, reply) in replies.iter().filter(|(status, _)| *status != StatusCode::OK) {
        assert_eq!(*status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    }
    // Who holds them, and what to do.
    let (status, reply) = claim(server, &project, json!({ "waitMs": 60_000 })).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    let message = text(&reply["error"]["message"]);
    assert!(
        message.contains("hold 2 VMs, and may hold no more than 2 (`maxClaims`)"),
        "{message}"
    );
    for id in held.iter().map(|reply| text(&reply["id"])) {
        assert!(message.contains(id), "{message}");
    }
    assert!(
        message.contains("hearth release ID") && message.contains("--max-claims"),
        "{message}"
    );
    let request = server
        .request(Method::POST, &format!("{project}/warm-pool/claim"))
        .json(&json!({}));
    let refused = request.send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    // A repeated one is answered as before, and one that is released makes room.
    let task = server.get("/claims").await["items"][0]["taskId"].clone();
    let (status, again) = claim(server, &project, json!({ "taskId": task })).await;
    assert_eq!(status, StatusCode::OK, "{again}");
    server
        .post(&format!("/instances/{}/release", text(&held[0]["id"])), json!({}))
        .await;
    let (status, reply) = claim(server, &project, json!({ "waitMs": 20_000 })).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    // Another limit holds at once.
    server.patch(&project, json!({ "maxClaims": 3 })).await;
    let (status, reply) = claim(server, &project, json!({ "waitMs": 20_000 })).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let (status, _) = claim(server, &project, json!({ "miss": "bypass", "waitMs": 20_000 })).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_lease_that_ends_soon_is_said_so_until_it_is_extended() {
    let (server, _driver, project) = server(2, Vec::new()).await;
    let (_, short) = claim(&server, &project, json!({ "ttlMinutes": 5 })).await;
    claim(&server, &project, json!({ "ttlMinutes": 60 })).await;
    let soon = async || {
        let claims = server.get("/claims").await;
        let items = claims["items"].as_array().unwrap().clone();
        let ends_soon = |item: &&Value| item["leaseEndsSoon"] == true;
        items
            .iter()
            .filter(ends_soon)
            .map(|item| item["id"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(soon().await, [short["id"].clone()]);
    let path = format!("/instances/{}", text(&short["id"]));
    assert_eq!(server.get(&path).await["leaseWarningMinutes"], 10);
    server.patch(&project, json!({ "leaseWarningMinutes": 120 })).await;
    assert_eq!(soon().await.len(), 2);
    server.patch(&project, json!({ "leaseWarningMinutes": 0 })).await;
    assert_eq!(soon().await.len(), 0);
    server.patch(&project, json!({ "leaseWarningMinutes": 10 })).await;
    server.post(&format!("{path}/extend"), json!({ "minutes": 120 })).await;
    assert_eq!(soon().await.len(), 0);
}

struct Idle {
    server: Server,
    driver: FakeDriver,
    vm: VmId,
    path: String,
}

impl Idle {
    /// A claimed VM of a project whose VMs are paused after so many short minutes.
    async fn claimed(rules: Vec<ExecRule>, settings: Value) -> Self {
        Self::claimed_with_faults(rules, Vec::new(), settings).await
    }

    async fn claimed_with_faults(rules: Vec<ExecRule>, faults: Vec<Fault>, settings: Value) -> Self {
        let (server, driver, project) = server_with_faults(1, rules, faults).await;
        server.patch(&project, settings).await;
        let (_, reply) = claim(&server, &project, json!({})).await;
        Self {
            vm: text(&reply["instanceId"]).parse().unwrap(),
            path: format!("/instances/{}", text(&reply["id"])),
            server,
            driver,
        }
    }

    async fn state(&self) -> Option<VmState> {
        self.driver.inspect(&self.vm).await.unwrap()
    }

    async fn until(&self, wanted: VmState) {
        let reached = async {
            while self.state().await != Some(wanted) {
                crate::harness::pause().await;
            }
        };
        let reached = tokio::time::timeout(SOON, reached).await;
        assert!(reached.is_ok(), "it is {:?}, not {wanted:?}", self.state().await);
    }

    async fn exec(&self, command: &str) -> Value {
        self.server
            .post(&format!("{}/exec", self.path), json!({ "command": command }))
            .await
    }

    /// It runs for some of its minutes more.
    async fn stays_running(&self) {
        let end = tokio::time::Instant::now() + 5 * MINUTE;
        while tokio::time::Instant::now() < end {
            assert_eq!(self.state().await, Some(VmState::Running));
            crate::harness::pause().await;
        }
    }
}

#[tokio::test]
async fn a_vm_that_nobody_uses_is_paused_with_the_reason_and_the_next_call_resumes_it_once() {
    let idle = Idle::claimed(
        vec![ExecRule::prints("echo", "here\n")],
        json!({ "idlePauseMinutes": 1 }),
    )
    .await;
    for _ in 0..2 {
        idle.until(VmState::Paused).await;
        // The reason is written when the VM is paused.
        while idle.server.get(&idle.path).await["pausedBecause"].is_null() {
            crate::harness::pause().await;
        }
        let (view, claims) = (idle.server.get(&idle.path).await, idle.server.get("/claims").await);
        for shown in [&view, &claims["items"][0]] {
            assert_eq!(
                [&shown["paused"], &shown["pausedToDisk"]],
                [&json!(true), &json!(false)]
            );
            assert_eq!(shown["pausedBecause"], "nobody used it for 1 minute", "{shown}");
        }
        // To look at it, or to keep its lease, is no use of it.
        idle.server.post(&format!("{}/heartbeat", idle.path), json!({})).await;
        idle.server.get("/claims").await;
        assert_eq!(idle.state().await, Some(VmState::Paused));
        let before = idle.driver.calls(Verb::Resume);
        let asked = futures::future::join_all((0..8).map(|_| idle.exec("echo"))).await;
        assert!(asked.iter().all(|reply| reply["stdout"] == "here\n"), "{asked:?}");
        assert_eq!(idle.driver.calls(Verb::Resume), before + 1);
        let view = idle.server.get(&idle.path).await;
        assert_eq!([&view["paused"], &view["pausedBecause"]], [&json!(false), &json!(null)]);
    }
    // Its owner's own pause has no reason.
    idle.server.post(&format!("{}/pause", idle.path), json!({})).await;
    assert_eq!(idle.server.get(&idle.path).await["pausedBecause"], json!(null));
}

#[tokio::test]
async fn a_vm_is_used_while_a_call_is_under_way_and_while_a_session_computes() {
    let rules = vec![
        ExecRule {
            takes: 6 * MINUTE,
            ..ExecRule::prints("slow", "done\n")
        },
        ExecRule::does("compute", Special::Computes),
        ExecRule::does("idle-server", Special::NeverEnds),
    ];
    let idle = Idle::claimed(rules, json!({ "idlePauseMinutes": 1 })).await;
    let (slow, ()) = tokio::join!(idle.exec("slow"), idle.stays_running());
    assert_eq!(slow["stdout"], "done\n");
    idle.until(VmState::Paused).await;
    let sessions = format!("{}/sessions", idle.path);
    let session = idle
        .server
        .post(&sessions, json!({ "request": { "command": "compute" } }))
        .await;
    idle.stays_running().await;
    let signal = format!("{sessions}/{}/signal", text(&session["id"]));
    idle.server.post(&signal, json!({ "signal": "KILL" })).await;
    idle.until(VmState::Paused).await;
    // One that only waits is no use.
    idle.server
        .post(&sessions, json!({ "request": { "command": "idle-server" } }))
        .await;
    idle.until(VmState::Paused).await;
}

#[tokio::test]
async fn an_idle_vm_is_paused_to_the_disk_where_the_project_says_so_and_in_memory_where_that_fails() {
    let settings = json!({ "idlePauseMinutes": 1, "idlePauseToDisk": true });
    let full = Fault {
        verb: Verb::Save,
        call: 1,
        kind: FaultKind::Retry,
        moment: FaultMoment::Before,
    };
    let rules = vec![ExecRule::prints("echo", "here\n")];
    let idle = Idle::claimed_with_faults(rules, vec![full], settings).await;
    idle.until(VmState::Paused).await;
    let view = idle.server.get(&idle.path).await;
    assert_eq!(
        [&view["pausedToDisk"], &view["pausedBecause"]],
        [&json!(false), &json!("nobody used it for 1 minute")]
    );
    assert_eq!(idle.exec("echo").await["stdout"], "here\n");
    idle.until(VmState::Saved).await;
    let view = idle.server.get(&idle.path).await;
    assert_eq!(
        [&view["paused"], &view["pausedToDisk"], &view["pausedBecause"]],
        [&json!(true), &json!(true), &json!("nobody used it for 1 minute")]
    );
    assert_eq!(idle.exec("echo").await["stdout"], "here\n");
    idle.until(VmState::Saved).await;
    assert_eq!(idle.exec("echo").await["stdout"], "here\n");
}

#[tokio::test]
async fn a_vm_is_never_paused_where_the_project_does_not_want_it() {
    let idle = Idle::claimed(Vec::new(), json!({ "idlePauseToDisk": true })).await;
    idle.stays_running().await;
}
