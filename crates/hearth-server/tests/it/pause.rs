//! A claimed VM that its owner pauses: it stays paused until the next call into it, and no call waits in a VM that was paused under it.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Special, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{BOOT, SOON, Server, options};
use crate::vms::{clean_up, exec, qemu_of, server_with};

struct Work {
    server: Server,
    driver: FakeDriver,
    vm: VmId,
    /// `/instances/{id}`.
    path: String,
}

async fn claimed(rules: Vec<ExecRule>) -> Work {
    let (server, driver) = Server::fake(FakeOptions {
        rules,
        ..FakeOptions::default()
    })
    .await;
    claimed_of(server, driver).await
}

async fn claimed_of(server: Server, driver: FakeDriver) -> Work {
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    Work {
        vm: claim["instanceId"].as_str().unwrap().parse().unwrap(),
        path: format!("/instances/{}", claim["id"].as_str().unwrap()),
        server,
        driver,
    }
}

impl Work {
    async fn state(&self) -> Option<VmState> {
        self.driver.inspect(&self.vm).await.unwrap()
    }

    async fn pause(&self, query: &str) -> (StatusCode, Value) {
        let path = format!("{}/pause{query}", self.path);
        self.server.call(Method::POST, &path, json!({})).await
    }

    /// What the instance and the list of claims say.
    async fn shown(&self) -> [Value; 2] {
        let view = self.server.get(&self.path).await;
        let claims = self.server.get("/claims").await;
        [view["paused"].clone(), claims["items"][0]["paused"].clone()]
    }

    async fn exec(&self) -> Value {
        let path = format!("{}/exec", self.path);
        self.server.post(&path, json!({ "command": "echo" })).await
    }
}

#[tokio::test]
async fn a_paused_vm_is_shown_as_paused_and_resumes_on_request() {
    let work = claimed(Vec::new()).await;
    assert_eq!(work.shown().await, [json!(false), json!(false)]);
    for _ in 0..2 {
        let (status, reply) = work.pause("").await;
        assert_eq!((status, &reply["paused"]), (StatusCode::OK, &json!(true)), "{reply}");
        assert_eq!(work.state().await, Some(VmState::Paused));
        // To look at it does not resume it.
        assert_eq!(work.shown().await, [json!(true), json!(true)]);
    }
    for _ in 0..2 {
        let reply = work.server.post(&format!("{}/resume", work.path), json!({})).await;
        assert_eq!(reply["paused"], json!(false));
        assert_eq!(work.state().await, Some(VmState::Running));
    }
    assert_eq!(work.shown().await, [json!(false), json!(false)]);
}

#[tokio::test]
async fn the_next_command_resumes_a_paused_vm() {
    let work = claimed(vec![ExecRule::prints("echo", "here\n")]).await;
    for _ in 0..3 {
        assert_eq!(work.pause("").await.0, StatusCode::OK);
        let clock = work.driver.clock(&work.vm);
        let reply = tokio::time::timeout(SOON, work.exec()).await.unwrap();
        assert_eq!(reply["stdout"], "here\n");
        assert_eq!(work.state().await, Some(VmState::Running));
        assert!(work.driver.clock(&work.vm) > clock, "its clock is set when it resumes");
    }
}

#[tokio::test]
async fn a_vm_with_a_call_under_way_is_paused_by_force_alone() {
    let slow = ExecRule {
        takes: Duration::from_secs(3),
        ..ExecRule::prints("slow", "done\n")
    };
    let work = claimed(vec![slow]).await;
    let request = work
        .server
        .request(Method::POST, &format!("{}/exec", work.path))
        .json(&json!({ "command": "slow" }));
    let running = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    // The call is under way as soon as a pause is refused; until then it had not begun.
    let refused = async {
        loop {
            let (status, reply) = work.pause("").await;
            if status == StatusCode::CONFLICT {
                return reply;
            }
        }
    };
    let reply = tokio::time::timeout(SOON, refused).await.unwrap();
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("1 call is under way in this VM") && message.contains("`force`"),
        "{message}"
    );
    assert_eq!(work.state().await, Some(VmState::Running));
    let (status, reply) = work.pause("?force=true").await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(work.state().await, Some(VmState::Paused));
    work.server.post(&format!("{}/resume", work.path), json!({})).await;
    let ended = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!(ended["stdout"], "done\n");
    // Nothing is counted any more.
    assert_eq!(work.pause("").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_restart_of_the_server_leaves_a_paused_vm_paused() {
    let work = claimed(vec![ExecRule::prints("echo", "here\n")]).await;
    assert_eq!(work.pause("").await.0, StatusCode::OK);
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
    assert_eq!(work.shown().await, [json!(true), json!(true)]);
    assert_eq!(work.exec().await["stdout"], "here\n");
    assert_eq!(work.state().await, Some(VmState::Running));
}

#[tokio::test]
async fn a_paused_vm_is_not_taken_for_one_that_does_not_answer() {
    let driver = FakeDriver::new(1, FakeOptions::default());
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.probe_interval = Duration::from_millis(200);
    options.probe_patience = Duration::from_millis(200);
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let work = claimed_of(server, driver).await;
    assert_eq!(work.pause("").await.0, StatusCode::OK);
    // Each probe of it asks the driver; a VM that hangs is given up after a few.
    let before = work.driver.calls(Verb::Inspect);
    let probed = async {
        while work.driver.calls(Verb::Inspect) < before + 40 {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(SOON, probed).await.unwrap();
    let view = work.server.get(&work.path).await;
    assert_eq!([&view["unresponsive"], &view["paused"]], [&json!(null), &json!(true)]);
    assert_eq!(work.state().await, Some(VmState::Paused));
}

#[tokio::test]
async fn a_paused_vm_is_released_and_what_is_not_claimed_is_not_paused() {
    let work = claimed(Vec::new()).await;
    assert_eq!(work.pause("").await.0, StatusCode::OK);
    work.server.post(&format!("{}/release", work.path), json!({})).await;
    for verb in ["pause", "resume"] {
        let path = format!("{}/{verb}", work.path);
        let (status, reply) = work.server.call(Method::POST, &path, json!({})).await;
        assert!(
            [StatusCode::CONFLICT, StatusCode::NOT_FOUND].contains(&status),
            "{status} {reply}"
        );
    }
    let gone = async {
        while work.state().await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_vm_that_has_ended_is_not_paused_and_the_reply_says_that_it_ended() {
    let work = claimed(Vec::new()).await;
    assert!(work.driver.crash(&work.vm));
    for verb in ["pause", "resume"] {
        let path = format!("{}/{verb}", work.path);
        let (status, reply) = work.server.call(Method::POST, &path, json!({})).await;
        assert_eq!(status, StatusCode::CONFLICT, "{reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("the VM has ended"), "{message}");
    }
}

/// Processor time that a process has used, in ticks of a hundredth of a second.
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // After the name, which may hold anything, the state is the third field; user and system time are the 14th and 15th.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_real_vm_costs_no_processor_while_paused_and_its_processes_continue() {
    const COUNTER: &str =
        "i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done";
    const PAUSED: Duration = Duration::from_secs(8);
    let server = server_with(|_| {}).await;
    let project = server.project(json!({ "name": "pauses", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let id = claim["id"].as_str().unwrap();
    let qemu = qemu_of(claim["instanceId"].as_str().unwrap()).unwrap();
    exec(
        &server,
        id,
        &format!("( {COUNTER} ) >/dev/null 2>&1 & echo $! >/tmp/counter"),
    )
    .await;
    let read = "until [ -s /tmp/count ]; do sleep 0.1; done; kill -0 $(cat /tmp/counter) && cat /tmp/count && date +%s";
    let before = exec(&server, id, read).await;
    assert_eq!(before["exitCode"], 0, "{before}");
    let request = server
        .request(Method::POST, &format!("/instances/{id}/exec"))
        .json(&json!({ "command": "sleep 5; echo done" }));
    let running = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    let pause = format!("/instances/{id}/pause");
    while server.call(Method::POST, &pause, json!({})).await.0 != StatusCode::CONFLICT {}
    server.post(&format!("{pause}?force=true"), json!({})).await;
    let (begun, used) = (std::time::Instant::now(), ticks(qemu));
    while begun.elapsed() < PAUSED {
        crate::harness::pause().await;
    }
    let used = ticks(qemu) - used;
    assert!(used < 40, "{used} hundredths of a second in {PAUSED:?}");
    assert_eq!(server.get(&format!("/instances/{id}")).await["paused"], true);
    assert!(!running.is_finished(), "the command waits");
    let after = exec(&server, id, read).await;
    let now = jiff::Timestamp::now().as_second();
    assert_eq!(after["exitCode"], 0, "{after}");
    let numbers = |reply: &Value| -> Vec<i64> {
        let printed = reply["stdout"].as_str().unwrap();
        printed.lines().map(|line| line.parse().unwrap()).collect()
    };
    let (before, after) = (numbers(&before), numbers(&after));
    assert!(after[0] > before[0], "the same process counts on: {before:?} {after:?}");
    let ended = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!(
        (&ended["exitCode"], &ended["stdout"]),
        (&json!(0), &json!("done\n")),
        "{ended}"
    );
    // It would be behind by all of the pause.
    assert!((now - after[1]).abs() < 5, "the clock says {} at {now}", after[1]);
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    clean_up(server, &project).await;
}

#[tokio::test]
async fn a_command_whose_time_passes_while_the_vm_is_paused_is_said_to_have_been_paused() {
    // Time passes in a paused VM of this driver, but nothing is heard of this one.
    let work = claimed(vec![ExecRule::does("slow", Special::NeverEnds)]).await;
    let request = work
        .server
        .request(Method::POST, &format!("{}/exec", work.path))
        .json(&json!({ "command": "slow", "timeoutSeconds": 3 }));
    let running = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    let begun = async {
        while work
            .driver
            .commands(&work.vm)
            .iter()
            .all(|spec| spec.timeout_ms != Some(3000))
        {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(SOON, begun).await.unwrap();
    assert_eq!(work.pause("?force=true").await.0, StatusCode::OK);
    let ended = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!(ended["timedOut"], true, "{ended}");
    let message = ended["error"].as_str().unwrap();
    assert!(message.contains("while the VM was paused"), "{message}");
}
