//! What claimed VMs of a project may connect to: who may set it, when it is in force, and what is shown of it.

use hearth_api::egress::{EgressMode, EgressPolicy, RefusedAttempt, RefusedProtocol};
use hearth_api::ids::VmId;
use hearth_drivers::Driver as _;
use hearth_drivers::fake::{FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{BOOT, SOON, Server, pause};
use crate::vms::{clean_up, exec, server_with};

fn list() -> Value {
    json!({ "mode": "allow", "hosts": ["github.com", "*.npmjs.org"], "cidrs": ["203.0.113.0/24"] })
}

async fn held(driver: &FakeDriver, vm: &VmId) -> EgressPolicy {
    driver.egress(vm).await.unwrap().policy
}

async fn claim(server: &Server, project: &str) -> (VmId, String) {
    let claim = server.post(&format!("{project}/warm-pool/claim"), json!({})).await;
    let vm = claim["instanceId"].as_str().unwrap().parse().unwrap();
    (vm, format!("/instances/{}", claim["id"].as_str().unwrap()))
}

fn failing(call: u64) -> Fault {
    Fault {
        verb: Verb::HoldEgress,
        call,
        kind: FaultKind::Retry,
        moment: FaultMoment::Before,
    }
}

#[tokio::test]
async fn policy_holds_from_the_claim_on_and_a_change_at_once() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, _) = server.full_pool(2).await;
    let egress = format!("{project}/egress");
    assert_eq!(
        server.get(&egress).await,
        json!({ "mode": "open", "hosts": [], "cidrs": [], "updatedAt": null, "pending": [] })
    );
    let (first, first_path) = claim(&server, &project).await;
    assert_eq!(
        driver.calls(Verb::HoldEgress),
        0,
        "a project without a policy costs nothing"
    );

    let set = server.put(&egress, list()).await;
    assert_eq!(
        (&set["mode"], &set["hosts"], &set["pending"]),
        (&json!("allow"), &list()["hosts"], &json!([]))
    );
    assert!(set["updatedAt"].is_string(), "{set}");
    let policy: EgressPolicy = serde_json::from_value(list()).unwrap();
    assert_eq!(held(&driver, &first).await, policy, "in the VM that runs");

    let (second, _) = claim(&server, &project).await;
    assert_eq!(held(&driver, &second).await, policy, "from the claim on");
    // What stands ready is held to nothing: nobody works in it.
    server.until_full(SOON, &project, 2).await;
    let instances = server.get(&format!("{project}/warm-pool/instances")).await;
    for instance in instances["items"].as_array().unwrap() {
        if instance["status"] == "ready" {
            let vm: VmId = instance["instanceId"].as_str().unwrap().parse().unwrap();
            assert_eq!(held(&driver, &vm).await, EgressPolicy::default());
        }
    }

    let attempt = RefusedAttempt {
        target: "example.com".to_owned(),
        protocol: RefusedProtocol::Dns,
        count: 2,
        first_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        last_at: "2026-01-01T00:00:05Z".parse().unwrap(),
    };
    assert!(driver.refuse(&first, attempt));
    let shown = server.get(&format!("{first_path}/egress")).await;
    assert_eq!(
        shown,
        json!({
            "policy": list(), "upToDate": true, "more": false,
            "refused": [{
                "target": "example.com", "protocol": "dns", "count": 2,
                "firstAt": "2026-01-01T00:00:00.000Z", "lastAt": "2026-01-01T00:00:05.000Z"
            }]
        })
    );

    server.put(&egress, json!({ "mode": "open" })).await;
    for vm in [&first, &second] {
        assert_eq!(held(&driver, vm).await.mode, EgressMode::Open);
    }
}

#[tokio::test]
async fn closed_networks_are_opened_by_the_hosts_admin_alone_and_some_by_nobody() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let as_tenant = async |scopes: Value, tenant: &str| {
        let body = json!({ "name": tenant, "tenant": tenant, "scopes": scopes });
        server.post("/tokens", body).await["token"].as_str().unwrap().to_owned()
    };
    let with = async |token: &str, method: Method, path: &str, body: Value| {
        let url = format!("http://{}/api/v1{path}", server.address);
        let request = reqwest::Client::new().request(method, url).bearer_auth(token);
        server.send(request.json(&body)).await
    };
    let beta = as_tenant(json!(["admin"]), "beta").await;
    let (status, project) = with(&beta, Method::POST, "/projects", json!({ "name": "p" })).await;
    assert_eq!(status, StatusCode::OK, "{project}");
    let egress = format!("/projects/{}/egress", project["id"].as_str().unwrap());
    let set = async |cidrs: Value| with(&beta, Method::PUT, &egress, json!({ "mode": "allow", "cidrs": cidrs })).await;
    for network in ["10.1.0.0/16", "169.254.169.254", "192.168.1.1", "168.63.129.16"] {
        let (status, reply) = set(json!(["203.0.113.7", network])).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{network}: {reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(network) && !message.contains("203.0.113.7"),
            "{message}"
        );
    }
    assert_eq!(set(json!(["203.0.113.7", "0.0.0.0/0"])).await.0, StatusCode::OK);

    let mine = format!("{}/egress", server.project(json!({ "name": "q" })).await);
    server
        .put(&mine, json!({ "mode": "open", "cidrs": ["10.1.0.0/16"] }))
        .await;
    for network in ["127.0.0.1", "10.0.9.3", "198.18.16.1", "224.0.0.1"] {
        let body = json!({ "mode": "open", "cidrs": ["10.1.0.0/16", network] });
        let (status, reply) = server.call(Method::PUT, &mine, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{network}: {reply}");
        assert_eq!(reply["error"]["details"][0]["path"], "cidrs[1]", "{reply}");
    }
    for body in [
        json!({ "mode": "closed" }),
        json!({ "hosts": [] }),
        json!({ "mode": "allow", "hosts": ["https://github.com"] }),
        json!({ "mode": "allow", "cidrs": ["fd00::/8"] }),
    ] {
        let (status, reply) = server.call(Method::PUT, &mine, body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
    }
    // Another tenant's is not there, and what nobody has claimed was refused nothing.
    assert_eq!(
        with(&beta, Method::GET, &mine, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn vm_that_cannot_be_held_is_not_handed_over_and_a_change_that_failed_is_tried_again() {
    let (server, driver) = Server::fake(FakeOptions {
        faults: vec![failing(1), failing(3)],
        ..FakeOptions::default()
    })
    .await;
    let (project, _) = server.full_pool(2).await;
    let egress = format!("{project}/egress");
    server.put(&egress, list()).await;
    let (vm, path) = claim(&server, &project).await;
    assert_eq!(driver.calls(Verb::HoldEgress), 2, "the first VM was given up");
    assert_eq!(held(&driver, &vm).await.mode, EgressMode::Allow);

    let changed = server.put(&egress, json!({ "mode": "allow", "hosts": [] })).await;
    let pending = changed["pending"].as_array().unwrap();
    assert_eq!(pending.len(), 1, "{changed}");
    assert_eq!(format!("/instances/{}", pending[0]["id"].as_str().unwrap()), path);
    let shown = server.get(&format!("{path}/egress")).await;
    assert_eq!(shown["upToDate"], false, "{shown}");
    server
        .until(SOON, &egress, |policy| policy["pending"] == json!([]))
        .await;
    assert!(held(&driver, &vm).await.hosts.is_empty());

    // After a restart every claimed VM is told again: the one before may have failed.
    let calls = driver.calls(Verb::HoldEgress);
    let (folder, options) = server.stop().await;
    let next: std::sync::Arc<dyn hearth_drivers::Driver> = std::sync::Arc::new(driver.reopen());
    let _server = Server::start(folder, options, move |_| Ok(next)).await.unwrap();
    let deadline = tokio::time::Instant::now() + SOON;
    while driver.calls(Verb::HoldEgress) == calls {
        assert!(tokio::time::Instant::now() < deadline, "the VM was not told again");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn real_claimed_vm_is_held_to_its_list_and_never_reaches_the_server() {
    /// The exit code of each attempt, in a line.
    const TRY: &str = "try() { curl --silent --max-time 20 --output /dev/null --head \"$1\"; printf '%s ' $?; }";
    let server = server_with(|_| {}).await;
    let project = server.project(json!({ "name": "egress", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(BOOT, &project, 1).await;
    let egress = format!("{project}/egress");
    server
        .put(&egress, json!({ "mode": "allow", "hosts": ["deb.debian.org"] }))
        .await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    server.patch(&pool, json!({ "enabled": false })).await;
    let id = claim["id"].as_str().unwrap();
    let attempts = async |urls: &[&str]| {
        let tries: Vec<String> = urls.iter().map(|url| format!("try {url}")).collect();
        let reply = exec(&server, id, &format!("{TRY}; {}", tries.join("; "))).await;
        reply["stdout"].as_str().unwrap().trim().to_owned()
    };
    let port = server.address.port();
    let api =
        ["10.0.2.2", "127.0.0.1", "10.0.9.2", "198.18.0.1"].map(|address| format!("http://{address}:{port}/healthz"));
    let api: Vec<&str> = api.iter().map(String::as_str).collect();
    assert_eq!(attempts(&api).await, "7 7 7 7");
    let urls = [
        "http://deb.debian.org/",
        "http://pypi.org/",
        "http://1.1.1.1/",
        "http://169.254.169.254/",
    ];
    assert_eq!(attempts(&urls).await, "0 6 7 7");
    let shown = server.get(&format!("/instances/{id}/egress")).await;
    let refused: Vec<&str> = shown["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| attempt["target"].as_str().unwrap())
        .collect();
    for target in ["pypi.org", "1.1.1.1:80", "169.254.169.254:80"] {
        assert!(refused.contains(&target), "{target}: {refused:?}");
    }
    let set = server.put(&egress, json!({ "mode": "open" })).await;
    assert_eq!(set["pending"], json!([]));
    assert_eq!(attempts(&urls).await, "0 0 0 7");
    assert_eq!(attempts(&api).await, "7 7 7 7");
    clean_up(server, &project).await;
}

#[tokio::test]
async fn copies_and_restored_vms_are_held_to_the_list_before_they_run() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, _) = server.full_pool(1).await;
    server.put(&format!("{project}/egress"), list()).await;
    let policy: EgressPolicy = serde_json::from_value(list()).unwrap();
    let (_, path) = claim(&server, &project).await;
    server
        .post(&format!("{path}/checkpoint"), json!({ "name": "kept" }))
        .await;
    let forked = server.post(&format!("{path}/fork"), json!({ "count": 3 })).await;
    let restored = server
        .post(&format!("{path}/restore"), json!({ "checkpoint": "kept" }))
        .await;
    let copies = forked["items"].as_array().unwrap().iter().map(|item| &item["claim"]);
    for claim in copies.chain([&restored]) {
        let vm: VmId = claim["instanceId"].as_str().unwrap().parse().unwrap();
        assert_eq!(held(&driver, &vm).await, policy, "{claim}");
        assert_eq!(
            driver.inspect(&vm).await.unwrap(),
            Some(hearth_drivers::VmState::Running)
        );
    }
    // A change reaches them as every other claimed VM.
    let open = server
        .put(
            &format!("{project}/egress"),
            json!({ "mode": "open", "hosts": [], "cidrs": [] }),
        )
        .await;
    assert_eq!(open["pending"], json!([]));
    for item in forked["items"].as_array().unwrap() {
        let vm: VmId = item["claim"]["instanceId"].as_str().unwrap().parse().unwrap();
        assert_eq!(held(&driver, &vm).await, EgressPolicy::default());
    }
}
