//! A claimed VM that its owner pauses: it stays paused until the next call into it, and no call waits in a VM that was paused under it.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server};

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
async fn a_vm_with_a_call_under_way_is_paused_by_force_alone_and_the_call_ends_after_it() {
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
