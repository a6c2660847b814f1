//! Claimed VMs that end by themselves, kernels that panic, and VMs that wait for room on the host's disk: noticed, said, and nothing
//! taken away.

use std::sync::Arc;

use hearth_api::ids::VmId;
use hearth_drivers::Driver;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::guests::{hanging, long_set_up, message, until_it_runs, vm, watchful};
use crate::harness::{SOON, Server, bare_project};

const PANIC: &str = "Kernel panic - not syncing: sysrq triggered crash";

/// The one claim that there is.
fn only(claims: &Value) -> &Value {
    &claims["items"][0]
}

#[tokio::test]
async fn a_claimed_vm_whose_process_is_gone_is_noted_with_its_reason_and_stays_claimed() {
    // Not by a probe: no VM of this server is asked.
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    for (end, why) in [
        (
            FakeDriver::crash as fn(&FakeDriver, &_) -> bool,
            "its process on the host is gone",
        ),
        (FakeDriver::power_off, "its guest turned it off"),
    ] {
        let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
        let id = claim["id"].as_str().unwrap();
        assert_eq!(only(&server.get("/claims").await)["vmEndedAt"], json!(null));
        assert!(end(&driver, &vm(&claim)));
        let claims = server
            .until(SOON, "/claims", |it| only(it)["vmEndedAt"].is_string())
            .await;
        let because = only(&claims)["vmEndedBecause"].as_str().unwrap();
        assert!(because.contains(why), "{because}");
        let view = server.get(&format!("/instances/{id}")).await;
        assert_eq!(
            (&view["status"], &view["vmEndedAt"], &view["vmEndedBecause"]),
            (&json!("claimed"), &only(&claims)["vmEndedAt"], &json!(because))
        );
        let explained = server.get(&format!("{pool}/explain")).await;
        let mut instances = explained["instances"].as_array().unwrap().iter();
        let counted = instances.find(|it| it["id"] == id).unwrap();
        assert_eq!(counted["memoryMib"], 0, "{counted}");
        let extend = json!({ "minutes": 5 });
        let (status, body) = server
            .call(Method::POST, &format!("/instances/{id}/extend"), extend)
            .await;
        assert_eq!(status, StatusCode::CONFLICT, "{body}");
        let said = message(&body).to_owned();
        for part in ["the VM has ended", why, &format!("hearth release {id}")] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let exec = format!("/instances/{id}/exec");
        let (status, body) = server.call(Method::POST, &exec, json!({ "command": "true" })).await;
        assert_eq!((status, message(&body)), (StatusCode::CONFLICT, said.as_str()));
        server.post(&format!("/instances/{id}/release"), json!({})).await;
        server.until(SOON, "/claims", |it| it["items"] == json!([])).await;
    }
}

#[tokio::test]
async fn a_claimed_vm_that_ended_while_no_server_ran_is_noted_at_the_start() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let (folder, options) = server.stop().await;
    assert!(driver.crash(&vm(&claim)));
    let again: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(again)).await.unwrap();
    let claims = server
        .until(SOON, "/claims", |it| only(it)["vmEndedAt"].is_string())
        .await;
    assert_eq!(only(&claims)["id"], claim["id"]);
}

/// Starts a command in a claimed VM, and does this to the VM meanwhile; what its client is told.
async fn exec_while(
    server: &Server,
    driver: &FakeDriver,
    claim: &Value,
    command: &str,
    act: fn(&FakeDriver, &VmId) -> bool,
) -> String {
    let exec = format!("/instances/{}/exec", claim["id"].as_str().unwrap());
    let long = server.request(Method::POST, &exec).json(&json!({ "command": command }));
    let acting = async {
        until_it_runs(driver, claim, |spec| format!("{spec:?}").contains(command)).await;
        assert!(act(driver, &vm(claim)));
    };
    let ((status, body), ()) = tokio::join!(server.send(long), acting);
    assert_eq!(status, StatusCode::OK, "{body}");
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_kernel_panic_is_not_called_a_restart() {
    let (server, driver) = watchful(hanging()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let commands = json!({ "setupCommands": [{ "name": "l", "command": "long" }] });
    let id = server.post(&format!("{pool}/test"), commands).await["id"].clone();
    let detail = format!("{pool}/instances/{}", id.as_str().unwrap());
    let begun = server.get(&detail).await;
    until_it_runs(&driver, &begun, |spec| spec.shell.as_deref() == Some("long")).await;
    assert!(driver.panic(&vm(&begun)));
    let failed = server.until(SOON, &detail, |it| it["status"] == "failed").await;
    let reason = failed["failureReason"].as_str().unwrap();
    assert!(
        reason.starts_with("the guest's kernel panicked during the command `l`") && reason.contains(PANIC),
        "{reason}"
    );
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let said = exec_while(&server, &driver, &claim, "long 1", FakeDriver::panic).await;
    assert!(said.contains("kernel panicked") && said.contains(PANIC), "{said}");
    // The one after it is a restart: the panic is of an earlier boot.
    let said = exec_while(&server, &driver, &claim, "long 2", FakeDriver::reboot).await;
    assert!(
        said.contains("the VM was restarted") && !said.contains("panic"),
        "{said}"
    );
}

#[tokio::test]
async fn a_claimed_vm_waits_for_room_on_the_hosts_disk_and_its_work_goes_on() {
    let (server, driver) = watchful(hanging()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claim["id"].as_str().unwrap();
    let exec = format!("/instances/{id}/exec");
    let work = server.request(Method::POST, &exec).json(&json!({ "command": "long" }));
    let work = tokio::spawn(work.send());
    until_it_runs(&driver, &claim, |spec| format!("{spec:?}").contains("long")).await;
    assert!(driver.fill_disk(&vm(&claim)));
    // Whoever works in it learns of it at once.
    let (status, body) = server.call(Method::POST, &exec, json!({ "command": "true" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    let said = message(&body);
    assert!(
        said.contains("the disk of the host is full")
            && said.contains("resumes by itself")
            && !said.contains("release"),
        "{said}"
    );
    for path in ["/claims".to_owned(), format!("/instances/{id}")] {
        let is_told = |it: &Value| it.to_string().contains("the disk of the host is full");
        server.until(SOON, &path, is_told).await;
    }
    driver.free_disk();
    server
        .until(SOON, "/claims", |it| only(it)["unresponsive"].is_null())
        .await;
    server.post(&exec, json!({ "command": "true" })).await;
    assert!(!work.is_finished(), "what was under way was ended");
    work.abort();
}

#[tokio::test]
async fn a_set_up_on_a_full_disk_ends_and_says_so() {
    let (server, driver, detail, begun) = long_set_up().await;
    assert!(driver.fill_disk(&vm(&begun)));
    let failed = server.until(SOON, &detail, |it| it["status"] == "failed").await;
    let reason = failed["failureReason"].as_str().unwrap();
    assert!(reason.contains("the disk of the host is full"), "{reason}");
}

#[tokio::test]
async fn no_vm_is_said_to_have_ended_that_was_never_made() {
    let no_room = Fault {
        verb: Verb::Create,
        call: 1,
        kind: FaultKind::Permanent,
        moment: FaultMoment::Before,
    };
    let fake = FakeOptions {
        faults: vec![no_room],
        rules: vec![ExecRule::fails("broken", 1, "no")],
        ..FakeOptions::default()
    };
    let (server, _) = Server::fake(fake).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    let broken = json!([{ "name": "broken", "command": "broken" }]);
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 1, "setupCommands": broken }),
        )
        .await;
    let instances = format!("{pool}/instances");
    let failed = |all: &Value| {
        let items = all["items"].as_array().unwrap().iter();
        items.filter(|it| it["status"] == "failed").count()
    };
    server.until(SOON, &instances, |all| failed(all) == 1).await;
    // All fail, and only the newest keeps its VM; the first had none.
    server.post(&format!("{pool}/retry"), json!({})).await;
    let all = server.until(SOON, &instances, |all| failed(all) >= 3).await;
    let ids: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|it| it["id"].as_str().unwrap())
        .collect();
    let second = format!("/instances/{}", ids[1]);
    let gone = server.until(SOON, &second, |it| it["vmEndedAt"].is_string()).await;
    assert_eq!(gone["vmEndedBecause"], "it had failed, and its VM was not needed");
    let first = server.get(&format!("/instances/{}", ids[0])).await;
    assert_eq!(
        (&first["vmEndedAt"], &first["vmEndedBecause"]),
        (&Value::Null, &Value::Null)
    );
    server.stop().await;
}
