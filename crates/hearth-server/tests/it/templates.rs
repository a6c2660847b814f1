//! Prepare once, fork many: what runs, what is only shown again, who waits for whom, and what happens to damaged templates.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault, FaultKind, FaultMoment, Verb};
use hearth_drivers::{Driver, VmState};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::{SOON, Server, bare_project, commit, git_repo, options, pause, repo_folder};

fn commands(texts: &[&str]) -> Value {
    let all = texts
        .iter()
        .map(|text| json!({ "name": *text, "command": format!("run-{text}") }));
    Value::Array(all.collect())
}

/// How often a command ran, over all VMs of the fake.
async fn runs(driver: &FakeDriver, of: &Value, text: &str) -> usize {
    let vm = of["instanceId"].as_str().unwrap().parse().unwrap();
    let specs = driver.commands(&vm);
    specs.iter().filter(|spec| spec.shell.as_deref() == Some(text)).count()
}

fn step<'a>(boot: &'a Value, name: &str) -> &'a Value {
    let steps = boot["steps"].as_array().unwrap();
    steps
        .iter()
        .find(|step| step["name"] == name)
        .unwrap_or_else(|| panic!("no {name}: {boot:#}"))
}

#[tokio::test]
async fn what_did_not_change_is_shown_again_and_only_the_rest_runs() {
    let rules = ["a", "b", "c", "d"].map(|text| ExecRule::prints(&format!("run-{text}"), &format!("did {text}\n")));
    let (server, driver) = Server::fake(FakeOptions {
        rules: rules.to_vec(),
        ..FakeOptions::default()
    })
    .await;
    let url = git_repo(server.folder.path(), "app", &[("a", "b")]);
    let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": url }]);
    let project = server.project(json!({ "name": "p", "repos": repos })).await;
    let put = json!({ "variables": [{ "name": "V", "value": "some-value" }] });
    server
        .put(&format!("{project}/environment-variables/shared"), put)
        .await;
    let test = async |body: Value| server.test_boot(SOON, &project, body).await;
    let first = test(json!({ "setupCommands": commands(&["a", "b", "c"]) })).await;
    assert_eq!(step(&first, "create_vm")["metadata"]["from"], "image", "{first:#}");
    assert_eq!(step(&first, "warm_pool_setup")["metadata"].get("cached"), None);
    // Nothing changed: every step is shown with what it printed, and none runs.
    let same = test(json!({})).await;
    assert_eq!(
        (
            &step(&same, "create_vm")["metadata"]["from"],
            &same["summary"]["totalSteps"]
        ),
        (&json!("template"), &json!(5))
    );
    for name in [
        "create_vm",
        "ensure_server",
        "set_env_vars",
        "clone_repo",
        "warm_pool_setup",
    ] {
        assert_eq!(step(&same, name)["metadata"]["cached"], true, "{name}");
    }
    assert_eq!(
        step(&same, "warm_pool_setup")["output"],
        step(&first, "warm_pool_setup")["output"]
    );
    assert_eq!(
        step(&same, "clone_repo")["metadata"]["commit"],
        step(&first, "clone_repo")["metadata"]["commit"]
    );
    // The last command changed: only it runs.
    let last = test(json!({ "setupCommands": commands(&["a", "b", "d"]) })).await;
    let setup = step(&last, "warm_pool_setup");
    assert_eq!(setup["output"], "did a\ndid b\ndid d\n");
    let lines = setup["metadata"]["commands"].as_array().unwrap();
    let cached: Vec<bool> = lines.iter().map(|line| line["cached"] == true).collect();
    assert_eq!(cached, [true, true, false]);
    assert_eq!(step(&last, "create_vm")["metadata"]["from"], "checkpoint");
    assert_eq!(
        (runs(&driver, &last, "run-a").await, runs(&driver, &last, "run-d").await),
        (1, 1)
    );
    assert_eq!(driver.calls(Verb::Create), 1);
    // The first changed: all of them run, in a VM with the clone done.
    let all = test(json!({ "setupCommands": commands(&["d", "b", "c"]) })).await;
    assert_eq!(step(&all, "clone_repo")["metadata"]["cached"], true);
    assert!(
        step(&all, "warm_pool_setup")["metadata"]["commands"][0]
            .get("cached")
            .is_none()
    );
    // The repository moved: it is cloned again and everything after it runs.
    commit(&repo_folder(&url), &[("new", "file")], "second");
    let moved = test(json!({})).await;
    assert_eq!(step(&moved, "clone_repo")["metadata"].get("cached"), None);
    assert_eq!(driver.calls(Verb::Create), 1);
    // Without the cache everything runs, from the image.
    let (_, reply) = server
        .call(
            Method::POST,
            &format!("{project}/warm-pool/test?cache=false"),
            json!({}),
        )
        .await;
    let path = format!("{project}/warm-pool/instances/{}", reply["id"].as_str().unwrap());
    let scratch = server.until(SOON, &path, |it| it["status"] != "provisioning").await;
    assert_eq!(step(&scratch, "create_vm")["metadata"]["from"], "image");
    assert_eq!(driver.calls(Verb::Create), 2);
}

#[tokio::test]
async fn a_pool_is_prepared_once_and_its_vms_rest_as_somebody_of_their_own() {
    let slow = ExecRule {
        takes: Duration::from_millis(300),
        ..ExecRule::prints("run-a", "")
    };
    let (server, driver) = Server::fake(FakeOptions {
        rules: vec![slow],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 8, "setupCommands": commands(&["a"]) }),
        )
        .await;
    server.until_full(SOON, &project, 8).await;
    assert_eq!(driver.calls(Verb::Create), 1);
    let list = server.get(&format!("{pool}/instances?status=ready")).await;
    let mut entropy = std::collections::BTreeSet::new();
    for item in list["items"].as_array().unwrap() {
        let vm = item["instanceId"].as_str().unwrap();
        let activated = driver.activated(&vm.parse().unwrap()).unwrap();
        assert_eq!(activated.hostname, vm);
        entropy.insert(activated.entropy);
    }
    assert_eq!(entropy.len(), 8);
    let at_rest = async || {
        let all = driver.list().await.unwrap();
        all.iter().filter(|vm| vm.state == VmState::Paused).count()
    };
    assert_eq!(at_rest().await, 8);
    // A person looks inside: it runs for as long as that takes, and is paused again.
    let id = list["items"][0]["id"].as_str().unwrap();
    server
        .post(&format!("/instances/{id}/exec"), json!({ "command": "look" }))
        .await;
    let deadline = Instant::now() + SOON;
    while at_rest().await != 8 {
        assert!(Instant::now() < deadline, "it never went to rest again");
        pause().await;
    }
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    let vm = claimed["instanceId"].as_str().unwrap().parse().unwrap();
    assert_eq!(driver.inspect(&vm).await.unwrap(), Some(VmState::Running));
    let explained = server.get(&format!("{pool}/explain")).await;
    let held = explained["conditions"].as_array().unwrap().iter();
    let held = held.filter(|it| it["status"] == true && it["type"] == "CapacityLimited");
    assert_eq!((held.count(), explained["templates"][0]["key"].is_string()), (0, true));
}

#[tokio::test]
async fn an_empty_pool_with_a_template_answers_with_a_fork_unless_the_claim_wants_a_ready_one() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let claim = format!("{project}/warm-pool/claim");
    server.test_boot(SOON, &project, json!({})).await;
    let (status, _) = server.call(Method::POST, &claim, json!({ "miss": "require" })).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let forked = server.post(&claim, json!({})).await;
    assert_eq!(forked["source"], "fork");
    let replies = join_all((0..5).map(|_| server.post(&claim, json!({})))).await;
    let vms: std::collections::BTreeSet<_> = replies.iter().map(|it| it["instanceId"].to_string()).collect();
    assert_eq!(vms.len(), 5);
}

#[tokio::test]
async fn a_damaged_template_is_found_said_and_made_anew_and_nobody_gets_its_vms() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": commands(&["a", "b"]) }),
        )
        .await;
    server.until_full(SOON, &project, 2).await;
    let templates = server.get("/templates").await;
    let items = templates["items"].as_array().unwrap();
    let template = items
        .iter()
        .find(|item| !item["recipes"].as_array().unwrap().is_empty())
        .unwrap();
    assert_eq!((items.len(), &template["needed"]), (3, &json!(true)));
    assert_eq!(template["stage"], "warm_pool_setup 2");
    let before = server.get(&format!("{pool}/instances?status=ready")).await;
    assert!(driver.damage(&template["key"].as_str().unwrap().parse().unwrap()));
    let verified = server.post("/templates/verify", json!({})).await;
    assert_eq!(verified, json!({ "checked": 3, "damaged": 1 }));
    server.until_full(SOON, &project, 2).await;
    let after = server.get(&format!("{pool}/instances?status=ready")).await;
    for item in after["items"].as_array().unwrap() {
        assert!(!before["items"].as_array().unwrap().contains(item));
    }
    let templates = server.get("/templates").await;
    assert_eq!(templates["faults"][0]["key"], template["key"]);
    assert_eq!(driver.calls(Verb::Create), 1, "the base was good");
    assert_eq!(server.post("/templates/verify", json!({})).await["damaged"], 0);
    // Found at the fork itself: the base is built again, too.
    let base = templates["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["projectId"].is_null())
        .unwrap();
    assert!(driver.damage(&base["key"].as_str().unwrap().parse().unwrap()));
    let boot = server
        .test_boot(SOON, &project, json!({ "setupCommands": commands(&["c"]) }))
        .await;
    assert_eq!(
        (&boot["status"], driver.calls(Verb::Create)),
        (&json!("ready"), 2),
        "{boot:#}"
    );
}

#[tokio::test]
async fn an_old_template_is_renewed_from_the_image_while_the_old_one_serves() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    options.template_max_age = Duration::from_secs(2);
    let driver = FakeDriver::new(1, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": commands(&["a"]) }),
        )
        .await;
    server.until_full(SOON, &project, 2).await;
    let recipe = server.get(&format!("{pool}/explain")).await["recipe"].clone();
    let deadline = Instant::now() + SOON;
    loop {
        let explained = server.get(&format!("{pool}/explain")).await;
        let instances = explained["instances"].as_array().unwrap();
        let current = instances
            .iter()
            .filter(|it| it["current"] == true && it["status"] == "ready")
            .count();
        let ready = instances.iter().filter(|it| it["status"] == "ready").count();
        assert!(ready >= 2, "the pool was emptied: {explained:#}");
        if explained["recipe"] != recipe && current == 2 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the template was never renewed: {explained:#}"
        );
        pause().await;
    }
    let listed = server.get(&format!("{pool}/instances")).await;
    assert!(
        listed["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| item["isTest"] == false)
    );
}

/// Its variables are in them: they are not kept for an hour for a later try.
#[tokio::test]
async fn templates_of_a_deleted_project_go_with_it_and_those_of_others_stay() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let mut projects = Vec::new();
    for _ in 0..2 {
        let project = server.project(bare_project()).await;
        let put = json!({ "variables": [{ "name": "KEY", "value": "a-secret-value" }] });
        server
            .put(&format!("{project}/environment-variables/shared"), put)
            .await;
        let enable = json!({ "enabled": true, "targetSize": 2, "setupCommands": commands(&["a", "b"]) });
        server.patch(&format!("{project}/warm-pool"), enable).await;
        server.until_full(SOON, &project, 2).await;
        projects.push(project);
    }
    let of = |templates: &Value, project: &str| {
        let id = project.trim_start_matches("/projects/");
        let items = templates["items"].as_array().unwrap().iter();
        items.filter(|item| item["projectId"] == id).count()
    };
    let before = server.get("/templates").await;
    let (deleted, kept) = (&projects[0], &projects[1]);
    assert!(of(&before, deleted) >= 2 && of(&before, kept) >= 2, "{before:#}");
    // One of its VMs is claimed: that is removed, too, and then the templates are no parents any more.
    server.post(&format!("{deleted}/warm-pool/claim"), json!({})).await;
    let (status, _) = server.call(Method::DELETE, deleted, Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let gone = |templates: &Value| of(templates, deleted) == 0;
    let after = server.until(SOON, "/templates", gone).await;
    assert_eq!(of(&after, kept), of(&before, kept), "{after:#}");
    let base = |templates: &Value| {
        let items = templates["items"].as_array().unwrap().iter();
        items.filter(|item| item["projectId"].is_null()).count()
    };
    assert_eq!(base(&after), base(&before), "{after:#}");
    let files = driver.checkpoints().await.unwrap();
    assert_eq!(files.len(), after["items"].as_array().unwrap().len(), "{files:#?}");
    // The other project keeps its own.
    server.post(&format!("{kept}/warm-pool/claim"), json!({})).await;
    server.until_full(SOON, kept, 2).await;
    assert_eq!(driver.calls(Verb::Create), 1);
}

/// The driver removes them and does not say so, as when it is asked meanwhile which there are.
#[tokio::test]
async fn templates_of_a_deleted_project_that_are_half_removed_are_not_called_damaged() {
    let filled = async |fake: FakeOptions| {
        let (server, driver) = Server::fake(fake).await;
        let project = server.project(bare_project()).await;
        let enable = json!({ "enabled": true, "targetSize": 1, "setupCommands": commands(&["a", "b"]) });
        server.patch(&format!("{project}/warm-pool"), enable).await;
        server.until_full(SOON, &project, 1).await;
        (server, driver, project)
    };
    let before = filled(FakeOptions::default()).await.1.calls(Verb::RemoveCheckpoint);
    let faults = (1..=10).map(|later| Fault {
        verb: Verb::RemoveCheckpoint,
        call: before + later,
        kind: FaultKind::Unknown,
        moment: FaultMoment::After,
    });
    let fake = FakeOptions {
        faults: faults.collect(),
        ..FakeOptions::default()
    };
    let (server, driver, project) = filled(fake).await;
    assert_eq!(driver.calls(Verb::RemoveCheckpoint), before);
    let (status, _) = server.call(Method::DELETE, &project, Value::Null).await;
    assert_eq!(status, StatusCode::OK);
    let is_gone = |templates: &Value| {
        let mut items = templates["items"].as_array().unwrap().iter();
        items.all(|item| item["projectId"].is_null())
    };
    let after = server.until(SOON, "/templates", is_gone).await;
    assert_eq!(after["faults"], json!([]));
    assert!(driver.calls(Verb::RemoveCheckpoint) > before);
    // What was missed shows at the next look.
    assert_eq!(server.post("/templates/verify", json!({})).await["damaged"], 0);
    assert_eq!(server.get("/templates").await["faults"], json!([]));
}

#[tokio::test]
async fn what_holds_a_pool_back_is_said() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut options = options(folder.path());
    // The base is made in a VM of this size, and the room for one is kept; forks cost less.
    options.memory_mib = 2048 + 100;
    let driver = FakeDriver::new(1, FakeOptions::default());
    let made: Arc<dyn Driver> = Arc::new(driver.clone());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 2 })).await;
    server.until_full(SOON, &project, 2).await;
    server.post(&format!("{pool}/claim"), json!({})).await;
    // What is claimed may grow to its whole size, and that leaves too little.
    let limits = |it: &Value| {
        let mut all = it["conditions"].as_array().unwrap().iter();
        all.find(|it| it["status"] == true && it["type"] == "CapacityLimited")
            .cloned()
    };
    let explained = server
        .until(SOON, &format!("{pool}/explain"), |it| limits(it).is_some())
        .await;
    let limit = limits(&explained).unwrap();
    let message = limit["message"].as_str().unwrap();
    assert!(message.contains("MiB are left"), "{message}");
    server.post(&format!("{pool}/claim"), json!({})).await;
    let (status, reply) = server
        .call(Method::POST, &format!("{pool}/claim"), json!({ "miss": "require" }))
        .await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert!(reply["error"]["message"].as_str().unwrap().contains("MiB"), "{reply}");
}

/// Every call that preparing, forking, pausing and clearing makes fails once, before and after it took effect: the pool reaches
/// its target size, and in the end nothing is left over.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_call_fails_the_pool_fills_and_nothing_leaks() {
    let verbs = [
        (Verb::Create, 1),
        (Verb::Environment, 1),
        (Verb::Checkpoint, 3),
        (Verb::Fork, 3),
        (Verb::Pause, 2),
        (Verb::Usage, 1),
        (Verb::Connect, 3),
        (Verb::Destroy, 3),
        (Verb::RemoveCheckpoint, 2),
        (Verb::Checkpoints, 1),
        (Verb::CheckCheckpoint, 1),
        (Verb::Inspect, 1),
        (Verb::List, 2),
        (Verb::Resume, 1),
    ];
    let mut points = Vec::new();
    for (verb, calls) in verbs {
        for call in 1..=calls {
            for kind in [FaultKind::Retry, FaultKind::Unknown, FaultKind::Permanent] {
                for moment in [FaultMoment::Before, FaultMoment::After] {
                    points.push(Fault {
                        verb,
                        call,
                        kind,
                        moment,
                    });
                }
            }
        }
    }
    println!("{} fault points", points.len());
    // Some at a time: each is a whole server.
    for some in points.chunks(25) {
        join_all(some.iter().cloned().map(survive)).await;
    }
}

async fn survive(fault: Fault) {
    let point = format!("{fault:?}");
    let (server, driver) = Server::fake(FakeOptions {
        faults: vec![fault],
        ..FakeOptions::default()
    })
    .await;
    let project = server.project(bare_project()).await;
    let pool = format!("{project}/warm-pool");
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 2, "setupCommands": commands(&["a", "b"]) }),
        )
        .await;
    let patience = SOON * 3;
    server.until_full(patience, &project, 2).await;
    // The fault may hit the claim itself: then the next VM is handed over.
    let claimed = server.post(&format!("{pool}/claim"), json!({ "waitMs": 30_000 })).await;
    server.until_full(patience, &project, 2).await;
    server
        .post(
            &format!("/instances/{}/release", claimed["id"].as_str().unwrap()),
            json!({}),
        )
        .await;
    server.call(Method::DELETE, &project, json!({})).await;
    let deadline = Instant::now() + patience;
    while !driver.list().await.is_ok_and(|vms| vms.is_empty()) {
        assert!(Instant::now() < deadline, "{point}: VMs are left");
        pause().await;
    }
    server.stop().await;
}
