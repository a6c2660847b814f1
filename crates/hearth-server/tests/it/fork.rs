//! Forks of a claimed VM by its owner: all or none, each claimed, with an identity of its own; the VM itself continues.

use std::collections::BTreeSet;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Special, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guests::message;
use crate::harness::{SOON, Server};

pub struct Work {
    pub server: Server,
    pub driver: FakeDriver,
    pub project: String,
    /// The claim's reply.
    pub claim: Value,
}

pub async fn claimed(fake: FakeOptions, order: Value) -> Work {
    let (server, driver) = Server::fake(fake).await;
    let (project, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), order).await;
    // Nothing is made beside what a test makes.
    server.patch(&pool, json!({ "enabled": false })).await;
    let none = |all: &Value| all["items"] == json!([]);
    server
        .until(SOON, &format!("{pool}/instances?status=ready"), none)
        .await;
    Work {
        server,
        driver,
        project,
        claim,
    }
}

pub fn id(reply: &Value) -> &str {
    reply["id"].as_str().unwrap()
}

pub fn vm(reply: &Value) -> VmId {
    reply["instanceId"].as_str().unwrap().parse().unwrap()
}

impl Work {
    pub fn path(&self, part: &str) -> String {
        format!("/instances/{}{part}", id(&self.claim))
    }

    async fn fork(&self, body: Value) -> (StatusCode, Value) {
        self.server.call(Method::POST, &self.path("/fork"), body).await
    }

    async fn forks(&self, body: Value) -> Vec<Value> {
        let (status, reply) = self.fork(body).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        assert_eq!(reply["parent"], self.claim["id"]);
        let items = reply["items"].as_array().unwrap();
        items.iter().map(|item| item["claim"].clone()).collect()
    }

    /// Waits until these are the only VMs.
    pub async fn until_vms_are(&self, wanted: &[VmId]) {
        let wanted: BTreeSet<VmId> = wanted.iter().cloned().collect();
        let same = async {
            loop {
                let there = self.driver.list().await.unwrap();
                if there.into_iter().map(|vm| vm.id).collect::<BTreeSet<_>>() == wanted {
                    return;
                }
                crate::harness::pause().await;
            }
        };
        tokio::time::timeout(SOON, same).await.unwrap();
    }

    pub async fn tasks(&self) -> Vec<String> {
        let claims = self.server.get("/claims").await;
        let mut tasks: Vec<String> = claims["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|claim| claim["taskId"].as_str().unwrap_or("-").to_owned())
            .collect();
        tasks.sort();
        tasks
    }
}

fn rules() -> FakeOptions {
    FakeOptions {
        rules: vec![
            ExecRule::does("serve", Special::NeverEnds),
            ExecRule {
                takes: Duration::from_secs(2),
                ..ExecRule::prints("slow", "done\n")
            },
            ExecRule::prints("echo", "here\n"),
        ],
        ..FakeOptions::default()
    }
}

#[tokio::test]
async fn forks_are_claimed_copies_with_identities_of_their_own() {
    let order = json!({ "taskId": "T1", "env": { "SECRET": "of-the-task" } });
    let work = claimed(rules(), order).await;
    let (server, driver) = (&work.server, &work.driver);
    let parent = vm(&work.claim);
    let session = json!({ "request": { "command": "serve" }, "tag": "web" });
    let session = server.post(&work.path("/sessions"), session).await;
    let request = server.request(Method::POST, &work.path("/exec"));
    let running = tokio::spawn(request.json(&json!({ "command": "slow" })).send());
    let forks = work.forks(json!({ "count": 3 })).await;
    assert_eq!(forks.len(), 3);
    assert_eq!(work.tasks().await, ["T1", "T1-1", "T1-2", "T1-3"]);
    let mut names = BTreeSet::from([driver.activated(&parent).unwrap().hostname]);
    for fork in &forks {
        let (of, path) = (vm(fork), format!("/instances/{}", id(fork)));
        assert_eq!(fork["source"], "fork");
        for same in ["recipe", "repos"] {
            assert_eq!(fork[same], work.claim[same], "{same}");
        }
        // The session has renewed the lease since the claim.
        assert!(fork["expiresAt"].as_str() >= work.claim["expiresAt"].as_str());
        assert_eq!(fork["expiresAt"], forks[0]["expiresAt"]);
        let view = server.get(&path).await;
        assert_eq!(
            (&view["status"], &view["instanceId"]),
            (&json!("claimed"), &fork["instanceId"])
        );
        assert!(names.insert(driver.activated(&of).unwrap().hostname));
        assert_eq!(driver.inspect(&of).await.unwrap(), Some(VmState::Running));
        assert_eq!(driver.file(&of, "/home/.env"), driver.file(&parent, "/home/.env"));
        let sessions = server.get(&format!("{path}/sessions")).await;
        assert_eq!(sessions["items"][0]["id"], session["id"]);
        assert_eq!(sessions["items"][0]["status"], "running");
        let ran = server.post(&format!("{path}/exec"), json!({ "command": "echo" })).await;
        assert_eq!(ran["stdout"], "here\n");
    }
    let explained = server.get(&format!("/instances/{}/claim", id(&forks[0]))).await;
    assert!(
        explained["why"].as_str().unwrap().contains("forked from a claimed VM"),
        "{explained}"
    );
    // The command that ran in the VM meanwhile goes to its end.
    let ended: Value = running.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(ended["stdout"], "done\n", "{ended}");
    assert_eq!(driver.inspect(&parent).await.unwrap(), Some(VmState::Running));
    // Each is released by itself.
    server
        .post(&format!("/instances/{}/release", id(&forks[0])), json!({}))
        .await;
    work.until_vms_are(&[parent.clone(), vm(&forks[1]), vm(&forks[2])])
        .await;
    server.post(&work.path("/release"), json!({})).await;
    work.until_vms_are(&[vm(&forks[1]), vm(&forks[2])]).await;
    let ran = server
        .post(
            &format!("/instances/{}/exec", id(&forks[1])),
            json!({ "command": "echo" }),
        )
        .await;
    assert_eq!(ran["stdout"], "here\n", "a fork outlives what it was forked from");
}

#[tokio::test]
async fn forks_are_named_on_where_names_are_taken_and_a_fork_is_forked() {
    let work = claimed(rules(), json!({ "taskId": "T1" })).await;
    work.forks(json!({})).await;
    let second = work.forks(json!({ "count": 2, "ttlMinutes": 5 })).await;
    assert_eq!(work.tasks().await, ["T1", "T1-1", "T1-2", "T1-3"]);
    let end: jiff::Timestamp = second[0]["expiresAt"].as_str().unwrap().parse().unwrap();
    assert!(end < jiff::Timestamp::now() + jiff::SignedDuration::from_mins(6));
    let path = format!("/instances/{}/fork", id(&second[1]));
    let reply = work.server.post(&path, json!({ "taskId": "other" })).await;
    assert_eq!(reply["items"][0]["taskId"], "other");
    // Without a task there are no names.
    let work = claimed(rules(), json!({})).await;
    work.forks(json!({ "count": 2 })).await;
    assert_eq!(work.tasks().await, ["-", "-", "-"]);
}

#[tokio::test]
async fn a_repeated_fork_gives_the_same_and_another_request_is_refused() {
    let work = claimed(rules(), json!({})).await;
    let order = json!({ "count": 2, "taskId": "try" });
    let first = work.forks(order.clone()).await;
    let again = work.forks(order.clone()).await;
    let ids = |forks: &[Value]| forks.iter().map(|fork| fork["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&again));
    assert_eq!(work.driver.list().await.unwrap().len(), 3);
    for other in [
        json!({ "count": 3, "taskId": "try" }),
        json!({ "count": 2, "taskId": "try", "ttlMinutes": 9 }),
    ] {
        let (status, reply) = work.fork(other).await;
        assert_eq!(status, StatusCode::CONFLICT, "{reply}");
    }
    work.server
        .post(&format!("/instances/{}/release", id(&first[1])), json!({}))
        .await;
    let (status, reply) = work.fork(order).await;
    assert_eq!(status, StatusCode::GONE, "{reply}");
    for (bad, path) in [
        (json!({ "count": 0 }), "count"),
        (json!({ "count": 65 }), "count"),
        (json!({ "count": 2, "taskId": "x".repeat(200) }), "taskId"),
    ] {
        let (status, reply) = work.fork(bad).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
        assert_eq!(reply["error"]["details"][0]["path"], path);
    }
}

#[tokio::test]
async fn a_paused_vm_is_forked_and_stays_paused() {
    let work = claimed(rules(), json!({})).await;
    work.server.post(&work.path("/pause"), json!({})).await;
    let forks = work.forks(json!({})).await;
    let state = async |reply: &Value| work.driver.inspect(&vm(reply)).await.unwrap();
    assert_eq!(state(&work.claim).await, Some(VmState::Paused));
    assert_eq!(state(&forks[0]).await, Some(VmState::Running));
}

#[tokio::test]
async fn forks_are_counted_against_the_limits_before_anything_is_made() {
    let work = claimed(rules(), json!({})).await;
    work.server.patch(&work.project, json!({ "maxVms": 3 })).await;
    let (status, reply) = work.fork(json!({ "count": 3 })).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    let why = message(&reply);
    assert!(
        why.contains("`maxVms`") && why.contains("3 more VMs were asked for, and none was made"),
        "{why}"
    );
    assert_eq!(work.driver.calls(Verb::Snapshot), 0);
    assert_eq!(work.tasks().await, ["-"]);
    assert_eq!(work.forks(json!({ "count": 2 })).await.len(), 2);
}

#[tokio::test]
async fn memory_of_the_host_is_counted_for_forks() {
    let driver = FakeDriver::new(1, rules());
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut options = crate::harness::options(folder.path());
    options.memory_mib = 5 * 1024;
    let made: std::sync::Arc<dyn Driver> = std::sync::Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let path = format!("/instances/{}/fork", id(&claim));
    let (status, reply) = server.call(Method::POST, &path, json!({ "count": 20 })).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    assert!(message(&reply).contains("MiB of memory"), "{reply}");
    assert_eq!(driver.calls(Verb::Snapshot), 0);
}

#[tokio::test]
async fn when_one_fork_fails_none_is_left_and_the_vm_continues() {
    for (verb, nth, kind) in [
        (Verb::Snapshot, 1, FaultKind::Retry),
        (Verb::Snapshot, 1, FaultKind::Permanent),
        (Verb::Fork, 3, FaultKind::Retry),
        (Verb::Fork, 2, FaultKind::Unknown),
        (Verb::Connect, 3, FaultKind::Permanent),
    ] {
        let mut fake = rules();
        // One fork is the pool's, and one connection each of the build's VM and the pool's.
        let call = if verb == Verb::Snapshot { nth } else { nth + 1 };
        fake.faults.push(Fault {
            verb,
            call,
            kind,
            moment: FaultMoment::After,
        });
        let work = claimed(fake, json!({ "taskId": "T1" })).await;
        let (status, reply) = work.fork(json!({ "count": 3 })).await;
        if verb == Verb::Connect {
            // It is tried again.
            assert_eq!(status, StatusCode::OK, "{reply}");
            continue;
        }
        let conflicts = kind == FaultKind::Permanent;
        let wanted = if conflicts {
            StatusCode::CONFLICT
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        assert_eq!(status, wanted, "{verb:?} {kind:?}: {reply}");
        work.until_vms_are(&[vm(&work.claim)]).await;
        assert_eq!(work.tasks().await, ["T1"]);
        let ran = work
            .server
            .post(&work.path("/exec"), json!({ "command": "echo" }))
            .await;
        assert_eq!(ran["stdout"], "here\n");
        // The same request is carried out when nothing fails.
        assert_eq!(work.forks(json!({ "count": 3 })).await.len(), 3);
        assert_eq!(work.tasks().await, ["T1", "T1-1", "T1-2", "T1-3"]);
    }
}

#[tokio::test]
async fn what_is_not_claimed_or_has_ended_is_not_forked() {
    let work = claimed(rules(), json!({})).await;
    assert!(work.driver.crash(&vm(&work.claim)));
    let (status, reply) = work.fork(json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT, "{reply}");
    assert!(message(&reply).starts_with("the VM has ended"), "{reply}");
    work.server.post(&work.path("/release"), json!({})).await;
    let (status, reply) = work.fork(json!({})).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{reply}");
}

#[tokio::test]
async fn the_checkpoint_between_is_no_template_and_goes_with_the_last_vm() {
    let work = claimed(rules(), json!({})).await;
    let of_forks = async || {
        let all = work.driver.checkpoints().await.unwrap();
        all.into_iter()
            .filter(|info| info.labels.contains_key("instance"))
            .count()
    };
    work.forks(json!({ "count": 2 })).await;
    assert_eq!(of_forks().await, 1);
    let listed = work.server.get("/templates").await;
    let between = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["stage"] == "fork")
        .unwrap();
    assert_eq!(
        (&between["needed"], &between["recipes"]),
        (&json!(false), &json!([])),
        "{between}"
    );
    // The pool's next VM is a fork of its template.
    work.server
        .patch(&format!("{}/warm-pool", work.project), json!({ "enabled": true }))
        .await;
    work.server.until_full(SOON, &work.project, 1).await;
    work.server.call(Method::DELETE, &work.project, json!({})).await;
    work.until_vms_are(&[]).await;
    let gone = async {
        while of_forks().await > 0 {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn forks_whose_request_went_away_are_taken_back_unless_they_have_a_task() {
    let work = claimed(rules(), json!({})).await;
    let parent = vm(&work.claim);
    for (body, tasks) in [
        (json!({ "count": 2 }), &["-"][..]),
        (json!({ "count": 2, "taskId": "try" }), &["-", "try-1", "try-2"]),
    ] {
        // Making two forks takes some seconds then, in which a busy server sees that the connection is gone.
        work.driver.answer_late(Duration::from_secs(1));
        let request = work.server.request(Method::POST, &work.path("/fork")).json(&body);
        let request = tokio::spawn(request.send());
        let vms_are = async |wanted: &dyn Fn(usize) -> bool| {
            let reached = async {
                while !wanted(work.driver.list().await.unwrap().len()) {
                    crate::harness::pause().await;
                }
            };
            tokio::time::timeout(SOON, reached).await.unwrap();
        };
        vms_are(&|count| count >= 3).await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        vms_are(&|count| count == tasks.len()).await;
        let listed = |claims: &Value| claims["items"].as_array().unwrap().len() == tasks.len();
        work.server.until(SOON, "/claims", listed).await;
        assert_eq!(work.tasks().await, tasks);
        work.driver.answer_late(Duration::ZERO);
    }
    let forks = work.forks(json!({ "count": 2, "taskId": "try" })).await;
    work.until_vms_are(&[parent, vm(&forks[0]), vm(&forks[1])]).await;
}
