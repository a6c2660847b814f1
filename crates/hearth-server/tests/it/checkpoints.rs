//! Named checkpoints of claimed VMs: made, listed, claimed from, restored, deleted.

use std::sync::Arc;

use hearth_drivers::fake::{ExecRule, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::fork::{Work, claimed, id, vm};
use crate::guests::message;
use crate::harness::{SOON, Server};

fn rules() -> FakeOptions {
    FakeOptions {
        rules: vec![ExecRule::prints("echo", "here\n")],
        ..FakeOptions::default()
    }
}

impl Work {
    async fn checkpoint(&self, name: &str) -> (StatusCode, Value) {
        let body = json!({ "name": name, "note": "all tests pass" });
        self.server.call(Method::POST, &self.path("/checkpoint"), body).await
    }

    async fn names(&self) -> Vec<String> {
        let all = self.server.get(&format!("{}/checkpoints", self.project)).await;
        let items = all["items"].as_array().unwrap().iter();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn claim_of(&self, body: Value) -> (StatusCode, Value) {
        let path = format!("{}/warm-pool/claim", self.project);
        self.server.call(Method::POST, &path, body).await
    }

    async fn write(&self, reply: &Value, text: &'static str) {
        let path = format!("/instances/{}/files?path=/home/work", id(reply));
        let request = self.server.request(Method::PUT, &path).body(text);
        let (status, reply) = self.server.send(request).await;
        assert_eq!(status, StatusCode::OK, "{reply}");
    }

    fn read(&self, reply: &Value) -> Option<bytes::Bytes> {
        self.driver.file(&vm(reply), "/home/work")
    }
}

#[tokio::test]
async fn a_checkpoint_is_listed_claimed_from_and_deleted() {
    let work = claimed(rules(), json!({ "taskId": "T1" })).await;
    work.write(&work.claim, "one").await;
    let (status, made) = work.checkpoint("before").await;
    assert_eq!(status, StatusCode::OK, "{made}");
    assert_eq!(
        [&made["name"], &made["note"], &made["instanceId"], &made["owner"]],
        [
            &json!("before"),
            &json!("all tests pass"),
            &work.claim["id"],
            &json!("default")
        ]
    );
    work.write(&work.claim, "two").await;
    let (status, taken) = work.checkpoint("before").await;
    assert_eq!(status, StatusCode::CONFLICT, "{taken}");
    assert_eq!(work.checkpoint("after").await.0, StatusCode::OK);
    assert_eq!(work.names().await, ["after", "before"]);
    for bad in ["", "-a", "a b", "a/b"] {
        assert_eq!(work.checkpoint(bad).await.0, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
    }

    let order = json!({ "checkpoint": "before", "taskId": "T2", "ttlMinutes": 30 });
    let (status, claim) = work.claim_of(order.clone()).await;
    assert_eq!((status, &claim["source"]), (StatusCode::OK, &json!("fork")), "{claim}");
    assert_eq!(work.read(&claim).unwrap(), "one");
    assert_eq!(work.read(&work.claim).unwrap(), "two");
    assert_eq!(
        work.driver.activated(&vm(&claim)).unwrap().hostname,
        vm(&claim).to_string()
    );
    assert_eq!(
        work.claim_of(order).await.1["id"],
        claim["id"],
        "the same key is the same VM"
    );
    let (status, other) = work.claim_of(json!({ "checkpoint": "after", "taskId": "T2" })).await;
    assert_eq!(status, StatusCode::CONFLICT, "{other}");
    let (status, refused) = work
        .claim_of(json!({ "checkpoint": "before", "branch": "b", "waitMs": 1 }))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused["error"]["details"].as_array().unwrap().len(), 2, "{refused}");
    let (status, none) = work.claim_of(json!({ "checkpoint": "none" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{none}");

    // Its VMs outlive it, and the VM that it was made of too.
    let path = format!("{}/checkpoints/before", work.project);
    assert_eq!(
        work.server.call(Method::DELETE, &path, json!({})).await.0,
        StatusCode::OK
    );
    assert_eq!(
        work.server.call(Method::DELETE, &path, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(work.names().await, ["after"]);
    let exec = format!("/instances/{}/exec", id(&claim));
    assert_eq!(
        work.server.post(&exec, json!({ "command": "echo" })).await["stdout"],
        "here\n"
    );
    // A project takes its checkpoints along.
    work.server.call(Method::DELETE, &work.project, json!({})).await;
    let gone = async {
        while work
            .driver
            .checkpoints()
            .await
            .unwrap()
            .iter()
            .any(|info| info.labels.contains_key("instance"))
        {
            crate::harness::pause().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_outlives_its_vm_and_the_server() {
    let work = claimed(rules(), json!({})).await;
    work.write(&work.claim, "kept").await;
    assert_eq!(work.checkpoint("kept").await.0, StatusCode::OK);
    work.server.post(&work.path("/release"), json!({})).await;
    work.until_vms_are(&[]).await;
    let Work {
        server,
        driver,
        project,
        claim,
    } = work;
    let (folder, mut options) = server.stop().await;
    // Without room for any, those with a name stay.
    options.template_disk_mib = 0;
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    let work = Work {
        server,
        driver,
        project,
        claim,
    };
    // The garbage collection has made its round when what is not needed is gone.
    let round = async {
        while work.driver.checkpoints().await.unwrap().len() > 3 {
            crate::harness::pause().await;
        }
    };
    drop(tokio::time::timeout(std::time::Duration::from_secs(2), round).await);
    assert_eq!(work.names().await, ["kept"]);
    let (status, claim) = work.claim_of(json!({ "checkpoint": "kept" })).await;
    assert_eq!(status, StatusCode::OK, "{claim}");
    assert_eq!(work.read(&claim).unwrap(), "kept");
    // And there is no room for another one.
    let path = format!("/instances/{}/checkpoint", id(&claim));
    let (status, full) = work.server.call(Method::POST, &path, json!({ "name": "more" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{full}");
    assert!(message(&full).contains("--template-disk"), "{full}");
}

#[tokio::test]
async fn a_checkpoint_that_fails_leaves_no_name_and_the_vm_runs() {
    let mut fake = rules();
    fake.faults.push(Fault {
        verb: Verb::Snapshot,
        call: 1,
        kind: FaultKind::Retry,
        moment: FaultMoment::After,
    });
    let work = claimed(fake, json!({})).await;
    let (status, reply) = work.checkpoint("c").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    assert!(work.names().await.is_empty());
    assert_eq!(
        work.driver.inspect(&vm(&work.claim)).await.unwrap(),
        Some(VmState::Running)
    );
    assert_eq!(work.checkpoint("c").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_restored_vm_is_as_it_was_and_its_claim_stays() {
    let work = claimed(rules(), json!({ "taskId": "T1" })).await;
    work.write(&work.claim, "one").await;
    assert_eq!(work.checkpoint("c").await.0, StatusCode::OK);
    work.write(&work.claim, "two").await;
    let restore = work.path("/restore");
    for _ in 0..2 {
        let before = vm(&work.server.get(&work.path("")).await);
        let reply = work.server.post(&restore, json!({ "checkpoint": "c" })).await;
        assert_eq!(
            (&reply["id"], &reply["source"]),
            (&work.claim["id"], &work.claim["source"])
        );
        assert_ne!(vm(&reply), before);
        assert_eq!(work.read(&reply).unwrap(), "one");
        work.until_vms_are(&[vm(&reply)]).await;
        assert_eq!(work.tasks().await, ["T1"]);
        let ran = work
            .server
            .post(&work.path("/exec"), json!({ "command": "echo" }))
            .await;
        assert_eq!(ran["stdout"], "here\n");
        // The claim's key gives what is there now.
        let again = work.claim_of(json!({ "taskId": "T1" })).await.1;
        assert_eq!(again["instanceId"], reply["instanceId"]);
    }
    // One whose VM has ended is restored too.
    let shown = work.server.get(&work.path("")).await;
    assert!(work.driver.crash(&vm(&shown)));
    work.server
        .until(SOON, &work.path(""), |it| it["vmEndedAt"].is_string())
        .await;
    work.server.post(&restore, json!({ "checkpoint": "c" })).await;
    assert_eq!(work.server.get(&work.path("")).await["vmEndedAt"], Value::Null);
    let (status, none) = work
        .server
        .call(Method::POST, &restore, json!({ "checkpoint": "none" }))
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{none}");
}

#[tokio::test]
async fn a_restore_that_fails_changes_nothing() {
    let mut fake = rules();
    fake.faults.push(Fault {
        verb: Verb::Fork,
        call: 2,
        kind: FaultKind::Retry,
        moment: FaultMoment::After,
    });
    let work = claimed(fake, json!({})).await;
    assert_eq!(work.checkpoint("c").await.0, StatusCode::OK);
    work.write(&work.claim, "two").await;
    let body = json!({ "checkpoint": "c" });
    let (status, reply) = work.server.call(Method::POST, &work.path("/restore"), body).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{reply}");
    work.until_vms_are(&[vm(&work.claim)]).await;
    assert_eq!(work.read(&work.claim).unwrap(), "two");
    let ran = work
        .server
        .post(&work.path("/exec"), json!({ "command": "echo" }))
        .await;
    assert_eq!(ran["stdout"], "here\n");
}

#[tokio::test]
async fn another_user_cannot_use_a_checkpoint() {
    let work = claimed(rules(), json!({})).await;
    assert_eq!(work.checkpoint("c").await.0, StatusCode::OK);
    let token = json!({ "name": "bob", "owner": "bob", "scopes": ["project:read", "claim"] });
    let token = work.server.post("/tokens", token).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let base = format!("http://{}/api/v1", work.server.address);
    let http = reqwest::Client::new();
    let listed = http
        .get(format!("{base}{}/checkpoints", work.project))
        .bearer_auth(&token);
    let listed: Value = listed.send().await.unwrap().json().await.unwrap();
    assert_eq!(listed["items"][0]["name"], "c");
    let claim = http
        .post(format!("{base}{}/warm-pool/claim", work.project))
        .bearer_auth(&token)
        .json(&json!({ "checkpoint": "c" }));
    assert_eq!(claim.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    let delete = http
        .delete(format!("{base}{}/checkpoints/c", work.project))
        .bearer_auth(&token);
    assert_eq!(delete.send().await.unwrap().status(), StatusCode::FORBIDDEN);
}
