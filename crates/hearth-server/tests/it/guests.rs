//! Guests that hang while their VM runs, that something on the host stops, and that restart: this is noticed, and the VM's owner is told.

use std::sync::Arc;
use std::time::Duration;

use hearth_api::ids::VmId;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Verb};
use hearth_drivers::{Driver, VmState};
use hearth_guest::ExecSpec;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{SOON, Server, bare_project, options};

/// How long a probe waits.
const PATIENCE: Duration = Duration::from_millis(300);

/// A server that looks at its VMs all the time.
pub async fn watchful(fake: FakeOptions) -> (Server, FakeDriver) {
    let driver = FakeDriver::new(1, fake);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.probe_interval = Duration::from_millis(400);
    options.probe_patience = PATIENCE;
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    (Server::start(folder, options, move |_| Ok(made)).await.unwrap(), driver)
}

pub fn vm(instance: &Value) -> VmId {
    instance["instanceId"].as_str().unwrap().parse().unwrap()
}

pub fn hanging() -> FakeOptions {
    FakeOptions {
        rules: vec![ExecRule {
            takes: Duration::from_secs(600),
            ..ExecRule::prints("long", "")
        }],
        ..FakeOptions::default()
    }
}

/// Waits until such a command was given to an instance's VM.
pub async fn until_it_runs(driver: &FakeDriver, instance: &Value, is_it: impl Fn(&ExecSpec) -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !driver.commands(&vm(instance)).iter().any(&is_it) {
        assert!(tokio::time::Instant::now() < deadline);
        crate::harness::pause().await;
    }
}

pub fn message(body: &Value) -> &str {
    body["error"]["message"].as_str().unwrap()
}

/// A test boot whose set-up command runs and does not end: where it is shown, and as it is shown then.
pub async fn long_set_up() -> (Server, FakeDriver, String, Value) {
    let (server, driver) = watchful(hanging()).await;
    let project = server.project(bare_project()).await;
    let commands = json!({ "setupCommands": [{ "name": "l", "command": "long" }] });
    let id = server.post(&format!("{project}/warm-pool/test"), commands).await["id"].clone();
    let detail = format!("{project}/warm-pool/instances/{}", id.as_str().unwrap());
    let begun = server.get(&detail).await;
    until_it_runs(&driver, &begun, |spec| spec.shell.as_deref() == Some("long")).await;
    (server, driver, detail, begun)
}

#[tokio::test]
async fn a_hanging_ready_vm_is_replaced() {
    let (server, driver) = watchful(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    assert!(driver.hang(&vm(&ready), true));
    let detail = format!("{pool}/instances/{}", ready["id"].as_str().unwrap());
    let failed = server.until(SOON, &detail, |it| it["status"] == "failed").await;
    let reason = failed["failureReason"].as_str().unwrap();
    assert!(reason.contains("did not answer 3 times in a row"), "{reason}");
    server.until_full(SOON, &project, 1).await;
}

/// On an overloaded host everything in a VM answers late: it is good all the same.
#[tokio::test]
async fn a_ready_vm_that_answers_late_is_kept() {
    let (server, driver) = watchful(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    // Later than a probe waits; the last one before it would be given up waits longer.
    driver.answer_late(PATIENCE * 2);
    let looks = driver.calls(Verb::Resume);
    let deadline = tokio::time::Instant::now() + 2 * SOON;
    while driver.calls(Verb::Resume) < looks + 8 {
        let pool = server.get(&format!("{project}/warm-pool")).await;
        assert_eq!(pool["status"]["ready"], 1, "{pool:#}");
        assert!(tokio::time::Instant::now() < deadline, "it is not looked at");
        crate::harness::pause().await;
    }
    let kept = server.get(&format!("{pool}/instances?status=ready")).await["items"][0].clone();
    assert_eq!(kept["id"], ready["id"]);
    assert_eq!((driver.calls(Verb::Create), driver.calls(Verb::Fork)), (1, 1));
}

/// A clock that cannot be set exactly for lack of processor time is set as well as can be: no boot fails by it, and nothing is held
/// against the host.
#[tokio::test]
async fn a_pool_fills_though_no_clock_can_be_set_exactly() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    driver.answer_late(Duration::from_millis(220));
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    server.until_full(3 * SOON, &project, 2).await;
    let failed = server.get(&format!("{pool}/instances?status=failed")).await;
    assert_eq!(failed["items"], json!([]), "{failed:#}");
    let explained = server.get(&format!("{pool}/explain")).await;
    let mut conditions = explained["conditions"].as_array().unwrap().iter();
    assert!(
        !conditions.any(|it| it["type"] == "HostTrouble" && it["status"] == true),
        "{explained:#}"
    );
    // The claim sets it once more.
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    assert!(driver.clock(&vm(&claimed)).is_some());
}

#[tokio::test]
async fn a_ready_vm_that_was_stopped_from_outside_is_replaced_without_a_probe() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    assert!(driver.halt(&vm(&ready)));
    let detail = format!("{pool}/instances/{}", ready["id"].as_str().unwrap());
    let failed = server.until(SOON, &detail, |it| it["status"] == "failed").await;
    let reason = failed["failureReason"].as_str().unwrap();
    assert!(reason.contains("stopped the VM's process"), "{reason}");
    server.until_full(SOON, &project, 1).await;
}

#[tokio::test]
async fn calls_to_a_claimed_vm_that_hangs_end_and_say_so_and_it_is_kept() {
    let (server, driver) = watchful(hanging()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claim["id"].as_str().unwrap();
    let exec = format!("/instances/{id}/exec");
    let long = server.request(Method::POST, &exec).json(&json!({ "command": "long" }));
    let waiting = async {
        // The command is under way before the guest hangs.
        until_it_runs(&driver, &claim, |spec| format!("{spec:?}").contains("long")).await;
        assert!(driver.hang(&vm(&claim), true));
        jiff::Timestamp::now()
    };
    let ((status, body), hangs) = tokio::join!(server.send(long), waiting);
    assert_eq!(status, StatusCode::OK);
    assert!(
        body["exitCode"].is_null() && body["error"].as_str().unwrap().contains("does not answer since"),
        "{body}"
    );
    let (status, body) = server.call(Method::POST, &exec, json!({ "command": "true" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(message(&body).contains(&format!("hearth release {id}")), "{body}");
    let view = server.get(&format!("/instances/{id}")).await;
    assert_eq!(view["status"], "claimed");
    assert!(
        view["unresponsive"]["reason"]
            .as_str()
            .unwrap()
            .contains("processors run"),
        "{view}"
    );
    // From the first answer that it missed on, not from the last one that it gave.
    let since: jiff::Timestamp = view["unresponsive"]["since"].as_str().unwrap().parse().unwrap();
    assert!(since.as_millisecond() >= hangs.as_millisecond(), "{since} {hangs}");
    let explained = server.get(&format!("{pool}/explain")).await;
    let conditions = explained["conditions"].as_array().unwrap();
    let said = conditions.iter().find(|it| it["type"] == "Unresponsive").unwrap();
    assert!(said["message"].as_str().unwrap().contains(id), "{said}");
    // It recovers on its own: nothing was removed.
    assert!(driver.hang(&vm(&claim), false));
    server
        .until(SOON, &format!("/instances/{id}"), |it| it["unresponsive"].is_null())
        .await;
    server.post(&exec, json!({ "command": "true" })).await;
    driver.hang(&vm(&claim), true);
    server.post(&format!("/instances/{id}/release"), json!({})).await;
}

#[tokio::test]
async fn a_claimed_vm_that_was_stopped_or_has_ended_says_so_at_once() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(2).await;
    let mut said = Vec::new();
    for (stop, refused) in [
        (
            FakeDriver::halt as fn(&FakeDriver, &VmId) -> bool,
            StatusCode::SERVICE_UNAVAILABLE,
        ),
        (FakeDriver::crash, StatusCode::CONFLICT),
    ] {
        let claim = server.post(&format!("{pool}/claim"), json!({})).await;
        assert!(stop(&driver, &vm(&claim)));
        let exec = format!("/instances/{}/exec", claim["id"].as_str().unwrap());
        let (status, body) = server.call(Method::POST, &exec, json!({ "command": "true" })).await;
        assert_eq!(status, refused, "{body}");
        assert!(message(&body).contains("hearth release"), "{body}");
        said.push(message(&body).to_owned());
    }
    assert!(
        said[0].contains("does not answer") && said[1].contains("has ended"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_set_up_whose_guest_hangs_fails_with_its_step() {
    let (server, driver, detail, begun) = long_set_up().await;
    assert!(driver.hang(&vm(&begun), true));
    let failed = server.until(SOON, &detail, |it| it["status"] != "provisioning").await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["summary"]["failedStep"], "warm_pool_setup");
    let reason = failed["failureReason"].as_str().unwrap();
    assert!(reason.contains("the VM does not answer since"), "{reason}");
}

#[tokio::test]
async fn a_set_up_whose_vm_is_left_paused_is_resumed_and_continues() {
    let (server, driver, detail, begun) = long_set_up().await;
    let vm = vm(&begun);
    driver.pause(&vm).await.unwrap();
    assert!(driver.hang(&vm, true));
    let deadline = tokio::time::Instant::now() + SOON;
    while driver.inspect(&vm).await.unwrap() != Some(VmState::Running) {
        assert!(tokio::time::Instant::now() < deadline);
        crate::harness::pause().await;
    }
    assert!(driver.hang(&vm, false));
    assert_eq!(server.get(&detail).await["status"], "provisioning");
}

#[tokio::test]
async fn a_ready_vm_that_restarted_is_replaced_and_never_handed_over() {
    let (server, driver) = watchful(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    assert!(driver.reboot(&vm(&ready)));
    let detail = format!("{pool}/instances/{}", ready["id"].as_str().unwrap());
    let failed = server.until(SOON, &detail, |it| it["status"] == "failed").await;
    assert!(
        failed["failureReason"].as_str().unwrap().contains("restarted"),
        "{failed}"
    );
    server.until_full(SOON, &project, 1).await;
    // A claim that is sooner than the next look gets another one.
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let ready = server.get(&format!("{pool}/instances")).await["items"][0].clone();
    assert!(driver.reboot(&vm(&ready)));
    let claim = server.post(&format!("{pool}/claim"), json!({ "waitMs": 20_000 })).await;
    assert_ne!(claim["id"], ready["id"]);
}

#[tokio::test]
async fn the_owner_of_a_vm_that_restarted_is_told() {
    let (server, driver) = watchful(hanging()).await;
    let (_, pool) = server.full_pool(1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claim["id"].as_str().unwrap();
    let view = server.get(&format!("/instances/{id}")).await;
    assert!(view["rebootedAt"].is_null(), "{view}");
    let long = server.request(Method::POST, &format!("/instances/{id}/exec"));
    let long = long.json(&json!({ "command": "long" }));
    let rebooting = async {
        until_it_runs(&driver, &claim, |spec| format!("{spec:?}").contains("long")).await;
        assert!(driver.reboot(&vm(&claim)));
    };
    let ((status, body), ()) = tokio::join!(server.send(long), rebooting);
    assert_eq!(status, StatusCode::OK);
    assert!(
        body["error"].as_str().unwrap().contains("the VM was restarted"),
        "{body}"
    );
    let message = server
        .until(SOON, &format!("/instances/{id}"), |it| !it["rebootedAt"].is_null())
        .await;
    assert_eq!(message["status"], "claimed");
    server
        .post(&format!("/instances/{id}/exec"), json!({ "command": "true" }))
        .await;
}

#[tokio::test]
async fn forks_of_a_vm_with_an_rsa_host_key_get_one_each_of_their_own() {
    let (server, driver) = Server::fake(FakeOptions {
        has_rsa_host_key: true,
        ..FakeOptions::default()
    })
    .await;
    let (_, pool) = server.full_pool(3).await;
    let list = server.get(&format!("{pool}/instances?status=ready")).await;
    let keys = list["items"].as_array().unwrap().iter();
    let keys = keys.map(|it| driver.activated(&vm(it)).unwrap().rsa_host_key.unwrap().0);
    let keys: std::collections::HashSet<String> = keys.collect();
    assert_eq!(keys.len(), 3, "each its own");
    assert!(keys.iter().all(|key| key.contains("OPENSSH PRIVATE KEY")));
    // Where there is no such key none is made.
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (_, pool) = server.full_pool(1).await;
    let list = server.get(&format!("{pool}/instances?status=ready")).await;
    assert_eq!(driver.activated(&vm(&list["items"][0])).unwrap().rsa_host_key, None);
}
