//! A claimed VM that is paused to the disk: it costs no memory, the next call resumes it, and nothing is lost by what goes wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Special, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{BOOT, SOON, Server, options};
use crate::vms::{clean_up, exec, qemu_of, server_with};

struct Work {
    server: Server,
    driver: FakeDriver,
    vm: VmId,
    path: String,
}

impl Work {
    async fn claimed(rules: Vec<ExecRule>, faults: Vec<Fault>) -> Self {
        let (server, driver) = Server::fake(FakeOptions {
            rules,
            faults,
            ..FakeOptions::default()
        })
        .await;
        let (_, pool) = server.full_pool(1).await;
        let claim = server.post(&format!("{pool}/claim"), json!({})).await;
        Self {
            vm: claim["instanceId"].as_str().unwrap().parse().unwrap(),
            path: format!("/instances/{}", claim["id"].as_str().unwrap()),
            server,
            driver,
        }
    }

    async fn state(&self) -> Option<VmState> {
        self.driver.inspect(&self.vm).await.unwrap()
    }

    async fn save(&self, query: &str) -> (StatusCode, Value) {
        let path = format!("{}/pause?toDisk=true{query}", self.path);
        self.server.call(Method::POST, &path, json!({})).await
    }

    async fn call_exec(&self) -> (StatusCode, Value) {
        let path = format!("{}/exec", self.path);
        self.server
            .call(Method::POST, &path, json!({ "command": "echo" }))
            .await
    }
}

fn echo() -> Vec<ExecRule> {
    vec![ExecRule::prints("echo", "here\n")]
}

#[tokio::test]
async fn a_vm_paused_to_the_disk_is_shown_so_and_the_next_calls_resume_it_once() {
    let work = Work::claimed(echo(), Vec::new()).await;
    for before in ["", "/pause"] {
        if !before.is_empty() {
            work.server.post(&format!("{}{before}", work.path), json!({})).await;
        }
        for _ in 0..2 {
            let (status, reply) = work.save("").await;
            assert_eq!(status, StatusCode::OK, "{reply}");
            assert_eq!([&reply["paused"], &reply["toDisk"]], [&json!(true), &json!(true)]);
            assert_eq!(work.state().await, Some(VmState::Saved));
        }
        // A pause in memory leaves it where it is.
        let reply = work.server.post(&format!("{}/pause", work.path), json!({})).await;
        assert_eq!(reply["toDisk"], true);
        let (view, claims) = (work.server.get(&work.path).await, work.server.get("/claims").await);
        for shown in [&view, &claims["items"][0]] {
            assert_eq!(
                [
                    &shown["paused"],
                    &shown["pausedToDisk"],
                    &shown["unresponsive"],
                    &shown["vmEndedAt"]
                ],
                [&json!(true), &json!(true), &json!(null), &json!(null)]
            );
        }
        let (clock, resumes) = (work.driver.clock(&work.vm), work.driver.calls(Verb::Resume));
        let all = futures::future::join_all((0..5).map(|_| work.call_exec()));
        let all = tokio::time::timeout(SOON, all).await.unwrap();
        assert!(all.iter().all(|(_, reply)| reply["stdout"] == "here\n"), "{all:?}");
        assert_eq!(work.driver.calls(Verb::Resume), resumes + 1);
        assert!(work.driver.clock(&work.vm) > clock, "its clock is set");
        assert_eq!(work.state().await, Some(VmState::Running));
    }
    work.save("").await;
    let reply = work.server.post(&format!("{}/resume", work.path), json!({})).await;
    assert_eq!([&reply["paused"], &reply["toDisk"]], [&json!(false), &json!(false)]);
    assert_eq!(work.state().await, Some(VmState::Running));
}

fn fault(verb: Verb, call: u64, kind: FaultKind, moment: FaultMoment) -> Fault {
    Fault {
        verb,
        call,
        kind,
        moment,
    }
}

#[tokio::test]
async fn a_pause_to_the_disk_that_fails_leaves_a_vm_that_works() {
    let faults = vec![
        fault(Verb::Save, 1, FaultKind::Retry, FaultMoment::Before),
        // It is not known whether it happened: once it did not, once it did.
        fault(Verb::Save, 2, FaultKind::Unknown, FaultMoment::Before),
        fault(Verb::Save, 3, FaultKind::Unknown, FaultMoment::After),
    ];
    let work = Work::claimed(echo(), faults).await;
    for expected in [VmState::Running, VmState::Running, VmState::Saved] {
        let (status, reply) = work.save("").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
        assert_eq!(work.state().await, Some(expected));
        let (_, reply) = work.call_exec().await;
        assert_eq!(reply["stdout"], "here\n");
    }
    assert_eq!(work.save("").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_resume_from_the_disk_that_fails_loses_nothing() {
    let work = Work::claimed(echo(), Vec::new()).await;
    let resumes = work.driver.calls(Verb::Resume);
    drop(work);
    // The calls before are the same every time.
    let faults = vec![
        fault(Verb::Resume, resumes + 1, FaultKind::Retry, FaultMoment::Before),
        fault(Verb::Resume, resumes + 2, FaultKind::Unknown, FaultMoment::After),
    ];
    let work = Work::claimed(echo(), faults).await;
    assert_eq!(work.driver.calls(Verb::Resume), resumes);
    assert_eq!(work.save("").await.0, StatusCode::OK);
    let (status, reply) = work.call_exec().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    assert_eq!(work.state().await, Some(VmState::Saved));
    let (status, reply) = work.call_exec().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    assert_eq!(
        work.state().await,
        Some(VmState::Running),
        "it happened, and the server was not told"
    );
    assert_eq!(work.call_exec().await.1["stdout"], "here\n");
}

#[tokio::test]
async fn a_restart_of_the_server_finds_it_and_a_release_removes_it() {
    let work = Work::claimed(echo(), Vec::new()).await;
    assert_eq!(work.save("").await.0, StatusCode::OK);
    let Work {
        server,
        driver,
        vm,
        path,
    } = work;
    let (folder, options) = server.stop().await;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    let work = Work {
        server,
        driver,
        vm,
        path,
    };
    assert_eq!(work.server.get(&work.path).await["pausedToDisk"], true);
    assert_eq!(work.call_exec().await.1["stdout"], "here\n");
    assert_eq!(work.save("").await.0, StatusCode::OK);
    work.server.post(&format!("{}/release", work.path), json!({})).await;
    let gone = async {
        while work.state().await.is_some() {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_call_under_way_forbids_it_and_is_told_when_it_is_forced() {
    let work = Work::claimed(vec![ExecRule::does("slow", Special::NeverEnds)], Vec::new()).await;
    let request = work
        .server
        .request(Method::POST, &format!("{}/exec", work.path))
        .json(&json!({ "command": "slow" }));
    let running = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    let refused = async {
        // It is under way as soon as a pause is refused.
        while work.save("").await.0 != StatusCode::CONFLICT {}
    };
    tokio::time::timeout(SOON, refused).await.unwrap();
    let (status, reply) = work.save("&force=true").await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let ended = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    let error = ended["error"].as_str().unwrap_or_else(|| panic!("{ended}"));
    assert!(
        error.starts_with("the VM was paused to the disk while the command ran"),
        "{error}"
    );
    assert_eq!(
        work.state().await,
        Some(VmState::Saved),
        "that it is told resumes nothing"
    );
}

#[tokio::test]
async fn it_counts_with_no_memory_and_is_resumed_only_when_there_is_some() {
    const LIMIT_MIB: u64 = 2600;
    let driver = FakeDriver::new(
        1,
        FakeOptions {
            rules: echo(),
            ..FakeOptions::default()
        },
    );
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.memory_mib = LIMIT_MIB;
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let (project, pool) = server.full_pool(1).await;
    let claim = async || {
        let reply = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
        format!("/instances/{}", reply["id"].as_str().unwrap())
    };
    let host = async || {
        server.get(&format!("{pool}/explain")).await["host"]["memoryMib"]
            .as_u64()
            .unwrap()
    };
    let first = claim().await;
    server.patch(&pool, json!({ "enabled": false })).await;
    server.post(&format!("{pool}/clear"), json!({})).await;
    let counted = async |expected: &dyn Fn(u64) -> bool| {
        let reached = async {
            while !expected(host().await) {
                crate::harness::pause().await;
            }
        };
        assert!(tokio::time::timeout(SOON, reached).await.is_ok(), "{}", host().await);
    };
    counted(&|mib| mib > 900).await;
    server.post(&format!("{first}/pause?toDisk=true"), json!({})).await;
    counted(&|mib| mib == 0).await;
    // Others take what it had.
    let (second, third) = (claim().await, claim().await);
    let path = format!("{first}/exec");
    let body = json!({ "command": "echo" });
    let (status, reply) = server.call(Method::POST, &path, body.clone()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("there is no memory to resume it") && message.contains(&LIMIT_MIB.to_string()),
        "{message}"
    );
    let view = server.get(&first).await;
    assert_eq!([&view["paused"], &view["pausedToDisk"]], [&json!(true), &json!(true)]);
    // One of them gives way.
    server.post(&format!("{second}/pause?toDisk=true"), json!({})).await;
    let reply = server.post(&path, body).await;
    assert_eq!(reply["stdout"], "here\n");
    for id in [first, second, third] {
        server.post(&format!("{id}/release"), json!({})).await;
    }
    server.call(Method::DELETE, &project, json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_real_vm_comes_back_from_the_disk_with_its_session_its_listener_and_its_open_file() {
    const WORK: &str = "exec 3>/root/open; rm /root/open; echo begun >&3; \
        (cd /etc; exec python3 -m http.server 8000) & \
        i=0; while :; do i=$((i+1)); echo $i >/run/count.new; mv /run/count.new /run/count; sleep 0.05; done";
    let server = server_with(|_| {}).await;
    let project = server.project(json!({ "name": "saves", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let id = claim["id"].as_str().unwrap();
    let path = format!("/instances/{id}");
    let vm = claim["instanceId"].as_str().unwrap();
    let session = server
        .post(&format!("{path}/sessions"), json!({ "request": { "command": WORK } }))
        .await;
    let pid = session["pid"].as_u64().unwrap();
    let read = format!(
        "until [ -s /run/count ]; do sleep 0.1; done; grep -q begun /proc/{pid}/fd/3 && \
         curl --silent --fail --retry 5 --retry-connrefused http://127.0.0.1:8000/hostname >/dev/null && cat /run/count && date +%s"
    );
    let numbers = |reply: &Value| -> Vec<i64> {
        assert_eq!(reply["exitCode"], 0, "{reply}");
        let printed = reply["stdout"].as_str().unwrap();
        printed.lines().map(|line| line.parse().unwrap()).collect()
    };
    let mut before = numbers(&exec(&server, id, &read).await);
    for _ in 0..2 {
        let begin = Instant::now();
        server.post(&format!("{path}/pause?toDisk=true"), json!({})).await;
        let saved = begin.elapsed();
        assert_eq!(qemu_of(vm), None, "its process has ended");
        assert_eq!(server.get(&path).await["pausedToDisk"], true);
        let away = Instant::now();
        while away.elapsed() < Duration::from_secs(6) {
            crate::harness::pause().await;
        }
        let begin = Instant::now();
        assert_eq!(exec(&server, id, "true").await["exitCode"], 0);
        println!(
            "paused to the disk in {saved:?}, the next command ended after {:?}",
            begin.elapsed()
        );
        let after = numbers(&exec(&server, id, &read).await);
        assert!(after[0] > before[0], "the same process counts on: {before:?} {after:?}");
        let now = jiff::Timestamp::now().as_second();
        // It would be behind by all of the pause.
        assert!((now - after[1]).abs() < 4, "the clock says {} at {now}", after[1]);
        before = after;
    }
    let session = server
        .get(&format!("{path}/sessions/{}", session["id"].as_str().unwrap()))
        .await;
    assert_eq!(session["exit"], json!(null), "{session}");
    server.post(&format!("{path}/pause?toDisk=true"), json!({})).await;
    server.post(&format!("{path}/release"), json!({})).await;
    clean_up(server, &project).await;
}
