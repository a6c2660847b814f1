//! One life of a project, told to a server that may fail or die at one point. The client does what a good client does: it
//! repeats what failed, and starts the server again when that is gone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::fake::{ExecRule, FakeDriver, FakeOptions, Fault};
use hearth_drivers::{Driver, VmState};
use hearth_server::{Census, ServeOptions, WriteFault, WriteFaults};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::process::Process;
use crate::harness::{commit, git_repo, options, pause, repo_folder};

/// How long anything may take to come right.
const PATIENCE: Duration = Duration::from_secs(90);
/// VMs that the pool keeps.
const TARGET: usize = 2;

/// What happens once in a story.
#[derive(Debug, Clone)]
pub enum Point {
    Nowhere,
    Driver(Fault),
    Write(WriteFault),
}

/// How a story went.
pub struct Told {
    /// The point was reached.
    pub hit: bool,
    pub driver: FakeDriver,
    pub writes: WriteFaults,
}

pub struct Scenario {
    point: Point,
    folder: tempfile::TempDir,
    options: ServeOptions,
    world: FakeDriver,
    writes: WriteFaults,
    process: Option<Process>,
    http: reqwest::Client,
    token: String,
    repo: String,
    project: String,
    /// What each key was answered.
    handed: BTreeMap<&'static str, Value>,
    released: Vec<&'static str>,
}

/// In memory where that is possible: thousands of synced writes, and no crash of the host to survive.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

impl Scenario {
    pub async fn run(http: reqwest::Client, point: Point) -> Told {
        let mut scenario = Self::begin(http, point).await;
        scenario.prepare().await;
        scenario.claim_and_roll().await;
        scenario.clear_and_disable().await;
        scenario.check().await;
        scenario.delete().await
    }

    async fn begin(http: reqwest::Client, point: Point) -> Self {
        let folder = folder();
        let mut options = options(folder.path());
        options.provision_concurrency = 4;
        options.fork_concurrency = 4;
        options.requests_per_second = 0;
        options.tick = Duration::from_millis(300);
        options.probe_interval = Duration::ZERO;
        options.watch_interval = Duration::ZERO;
        let mut fake = FakeOptions {
            rules: vec![ExecRule::prints("prepare", "prepared\n")],
            ..FakeOptions::default()
        };
        let mut write = None;
        match &point {
            Point::Nowhere => {}
            Point::Driver(fault) => fake.faults.push(fault.clone()),
            Point::Write(fault) => write = Some(fault.clone()),
        }
        let (world, writes) = (FakeDriver::new(1, fake), WriteFaults::new(write));
        let repo = git_repo(folder.path(), "app", &[("a", "1")]);
        let mut scenario = Self {
            point,
            folder,
            options,
            world,
            writes,
            process: None,
            http,
            token: String::new(),
            repo,
            project: String::new(),
            handed: BTreeMap::new(),
            released: Vec::new(),
        };
        scenario.start().await;
        scenario
    }

    async fn start(&mut self) {
        self.process = Some(Process::start(self.options.clone(), &self.world, &self.writes).await);
        let token = std::fs::read_to_string(self.options.data_dir.join("admin-token")).unwrap();
        token.trim().clone_into(&mut self.token);
    }

    async fn restart(&mut self) {
        self.process.take().unwrap().stop(&self.options.data_dir).await;
        self.start().await;
    }

    /// Asks until there is an answer that is not the server's own trouble; whether it had to be asked more than once.
    async fn ask(&mut self, method: Method, path: &str, body: &Value) -> (u16, Value, bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut again = false;
        loop {
            let process = self.process.as_ref().unwrap();
            let killed = process.killed.clone();
            let request = self
                .http
                .request(method.clone(), format!("http://{}/api/v1{path}", process.address))
                .bearer_auth(&self.token)
                .json(body);
            let asking = async {
                let response = request.send().await?;
                let status = response.status().as_u16();
                Ok::<_, reqwest::Error>((status, response.bytes().await?))
            };
            let answer = tokio::select! {
                biased;
                answer = asking => Some(answer),
                () = killed.cancelled() => None,
            };
            match answer {
                Some(Ok((status, reply))) if status < 500 && status != 429 => {
                    return (status, serde_json::from_slice(&reply).unwrap(), again);
                }
                Some(Ok((status, reply))) => {
                    let reply = String::from_utf8_lossy(&reply).into_owned();
                    assert!(Instant::now() < deadline, "{:?}: {path}: {status} {reply}", self.point);
                    pause().await;
                }
                _ => {
                    assert!(killed.is_cancelled(), "{:?}: {path}: the connection broke", self.point);
                    let process = self.process.take().unwrap();
                    process.buried(&self.options.data_dir).await;
                    self.start().await;
                }
            }
            again = true;
        }
    }

    async fn ok(&mut self, method: Method, path: &str, body: Value) -> Value {
        let (status, reply, _) = self.ask(method, path, &body).await;
        assert_eq!(status, 200, "{:?}: {path}: {reply}", self.point);
        reply
    }

    async fn get(&mut self, path: &str) -> Value {
        self.ok(Method::GET, path, Value::Null).await
    }

    async fn post(&mut self, path: &str, body: Value) -> Value {
        self.ok(Method::POST, path, body).await
    }

    /// The path of a part of the pool.
    fn pool(&self, part: &str) -> String {
        format!("{}/warm-pool{part}", self.project)
    }

    /// Waits until all that is there for the pool is ready and current.
    async fn until_fresh(&mut self, ready: usize) {
        let deadline = Instant::now() + PATIENCE;
        let path = self.pool("/explain");
        loop {
            let explained = self.get(&path).await;
            let instances = explained["instances"].as_array().unwrap();
            let of_pool = || {
                let all = instances.iter().filter(|it| it["isTest"] == false);
                all.filter(|it| it["status"] == "ready" || it["status"] == "provisioning")
            };
            let current = of_pool().filter(|it| it["status"] == "ready" && it["current"] == true);
            if current.count() == ready && of_pool().count() == ready {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{:?}: never fresh: {explained:#}",
                self.point
            );
            pause().await;
        }
    }

    /// Test boots until one is ready: a server that dies, and a host in trouble, are no fault of the set-up.
    async fn test_boot(&mut self) {
        for _ in 0..3 {
            let id = self.post(&self.pool("/test"), json!({})).await["id"].clone();
            let path = self.pool(&format!("/instances/{}", id.as_str().unwrap()));
            let deadline = Instant::now() + PATIENCE;
            loop {
                let boot = self.get(&path).await;
                if boot["status"] == "ready" {
                    return;
                }
                if boot["status"] == "failed" {
                    assert!(boot["failureReason"].is_string(), "{:?}: {boot:#}", self.point);
                    break;
                }
                assert!(Instant::now() < deadline, "{:?}: {boot:#}", self.point);
                pause().await;
            }
        }
        panic!("{:?}: no test boot went well", self.point);
    }

    async fn prepare(&mut self) {
        let repos = json!([{ "repoFullName": "acme/app", "branch": "main", "url": self.repo }]);
        let body = json!({ "name": "story", "repos": repos });
        let (status, made, again) = self.ask(Method::POST, "/projects", &body).await;
        let id = if again && status == 409 {
            // The first request was carried out, and its answer lost: names are unique.
            let all = self.get("/projects").await["items"].as_array().unwrap().clone();
            assert_eq!(all.len(), 1, "{all:?}");
            all[0]["id"].clone()
        } else {
            assert_eq!(status, 200, "{made}");
            made["id"].clone()
        };
        self.project = format!("/projects/{}", id.as_str().unwrap());
        self.set_variable("first").await;
        let commands = json!([
            { "name": "one", "command": "prepare one" },
            { "name": "two", "command": "prepare two" },
        ]);
        let wish = json!({ "enabled": true, "targetSize": TARGET, "setupCommands": commands });
        self.ok(Method::PATCH, &self.pool(""), wish).await;
        self.until_fresh(TARGET).await;
        self.test_boot().await;
    }

    async fn set_variable(&mut self, value: &str) {
        let path = format!("{}/environment-variables/shared", self.project);
        let body = json!({ "variables": [{ "name": "SHARED", "value": value }] });
        self.ok(Method::PUT, &path, body).await;
    }

    async fn claim_and_roll(&mut self) {
        self.claim("one", json!({ "env": { "TASK": "one" } })).await;
        self.heartbeat("one").await;
        self.until_fresh(TARGET).await;
        self.fork_and_restore().await;
        self.until_fresh(TARGET).await;
        // The branch moves; the test boot is the first to see it.
        commit(&repo_folder(&self.repo), &[("a", "2")], "second");
        self.test_boot().await;
        self.until_fresh(TARGET).await;
        self.set_variable("second").await;
        self.claim("two", json!({ "branch": "main" })).await;
        self.until_fresh(TARGET).await;
        self.claim("one", json!({ "env": { "TASK": "one" } })).await;
        self.release("two").await;
        for _ in 0..2 {
            self.claim("three", json!({ "miss": "bypass", "env": { "TASK": "three" } }))
                .await;
        }
        self.release("three").await;
    }

    async fn clear_and_disable(&mut self) {
        self.post(&self.pool("/clear"), json!({ "replenish": true })).await;
        self.until_fresh(TARGET).await;
        self.claim("four", json!({ "env": { "TASK": "four" } })).await;
        self.ok(Method::PATCH, &self.pool(""), json!({ "enabled": false }))
            .await;
        self.until_fresh(0).await;
    }

    /// Claims with a key until that is answered: the same as ever but for the lease, which work in the VM makes longer; a VM that no other
    /// claim got, made ready for the task.
    async fn claim(&mut self, key: &'static str, mut order: Value) {
        let task = order["env"]["TASK"].as_str().map(|task| format!("TASK={task}"));
        order["taskId"] = json!(key);
        order["waitMs"] = json!(30_000);
        let reply = self.post(&self.pool("/claim"), order).await;
        for (other, before) in &self.handed {
            let same = before["id"] == reply["id"];
            assert_eq!(same, *other == key, "{:?}: {other} and {key}: {reply}", self.point);
            let is_kept = without_lease(before) == without_lease(&reply) && lease(before) <= lease(&reply);
            assert!(!same || is_kept, "{:?}: {before} is now {reply}", self.point);
        }
        let vm: hearth_api::ids::VmId = reply["instanceId"].as_str().unwrap().parse().unwrap();
        if let Some(task) = task {
            let file = self.world.file(&vm, "/home/.env").unwrap_or_default();
            let file = String::from_utf8_lossy(&file).replace(['"', '\''], "");
            assert!(file.contains(&task), "{:?}: {key} has no variables: {file}", self.point);
        }
        self.handed.insert(key, reply);
        self.exec(key).await;
    }

    /// Forks of a VM, the same when they are asked for again; a checkpoint of it, a VM of that, and the VM itself restored to it.
    async fn fork_and_restore(&mut self) {
        let (path, order) = (self.path_of("one", "fork"), json!({ "count": 2, "taskId": "fork" }));
        let forks = self.post(&path, order.clone()).await;
        let again = self.post(&path, order).await;
        for (place, key) in ["fork-1", "fork-2"].into_iter().enumerate() {
            let claim = forks["items"][place]["claim"].clone();
            assert_eq!(claim["id"], again["items"][place]["claim"]["id"], "{:?}", self.point);
            self.handed.insert(key, claim);
            self.exec(key).await;
            self.release(key).await;
        }
        let path = self.path_of("one", "checkpoint");
        let (status, reply, again) = self.ask(Method::POST, &path, &json!({ "name": "kept" })).await;
        assert!(status == 200 || again && status == 409, "{:?}: {reply}", self.point);
        let order = json!({ "taskId": "kept", "checkpoint": "kept" });
        let claim = self.post(&self.pool("/claim"), order).await;
        self.handed.insert("kept", claim);
        self.exec("kept").await;
        self.release("kept").await;
        let path = self.path_of("one", "restore");
        self.post(&path, json!({ "checkpoint": "kept" })).await;
        // A restore whose answer is lost has taken place, and is asked for again: the claim answers what is there.
        self.handed.remove("one");
        self.claim("one", json!({ "env": { "TASK": "one" } })).await;
        let (path, none) = (format!("{}/checkpoints/kept", self.project), Value::Null);
        let (status, reply, again) = self.ask(Method::DELETE, &path, &none).await;
        assert!(status == 200 || again && status == 404, "{:?}: {reply}", self.point);
    }

    fn path_of(&self, key: &str, part: &str) -> String {
        format!("/instances/{}/{part}", self.handed[key]["id"].as_str().unwrap())
    }

    async fn exec(&mut self, key: &str) {
        let done = self.post(&self.path_of(key, "exec"), json!({ "argv": ["true"] })).await;
        assert_eq!(done["exitCode"], 0, "{:?}: {done}", self.point);
    }

    async fn heartbeat(&mut self, key: &str) {
        self.post(&self.path_of(key, "heartbeat"), json!({})).await;
    }

    async fn release(&mut self, key: &'static str) {
        let path = self.path_of(key, "release");
        let (status, reply, again) = self.ask(Method::POST, &path, &json!({})).await;
        assert!(status == 200 || again && status == 404, "{:?}: {reply}", self.point);
        self.released.push(key);
        let order = json!({ "taskId": key });
        let path = self.pool("/claim");
        let (status, reply, _) = self.ask(Method::POST, &path, &order).await;
        // A released key is not handed a VM again, whatever the body.
        assert!(status == 410 || status == 409, "{:?}: {reply}", self.point);
    }

    async fn census(&self) -> Census {
        let file = self.options.data_dir.join("hearth.db");
        Census::of(&file, self.options.database.as_ref()).await.unwrap()
    }

    /// No fault any more, another server: rows and VMs agree, no claim is lost, none is double.
    async fn check(&mut self) {
        self.world.disarm();
        let _ = self.writes.disarm();
        self.restart().await;
        self.until_fresh(0).await;
        self.agree(false).await;
        self.ok(Method::PATCH, &self.pool(""), json!({ "enabled": true })).await;
        self.until_fresh(TARGET).await;
        self.claim("one", json!({ "env": { "TASK": "one" } })).await;
        self.claim("four", json!({ "env": { "TASK": "four" } })).await;
        self.agree(true).await;
    }

    /// Waits until every VM has one row and every row that is to have a VM has one, and the claims are those that were answered.
    async fn agree(&self, full: bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (rows, vms) = (self.census().await, self.world.list().await.unwrap());
            let fault = self.disagreement(
                &rows,
                vms.iter().map(|vm| (vm.id.to_string(), vm.state)).collect(),
                full,
            );
            let Some(fault) = fault else { return };
            assert!(
                Instant::now() < deadline,
                "{:?}: {fault}: {rows:#?} {vms:#?}",
                self.point
            );
            pause().await;
        }
    }

    fn disagreement(&self, rows: &Census, mut vms: BTreeMap<String, VmState>, full: bool) -> Option<String> {
        let mut ready = 0;
        for (id, vm, state) in &rows.instances {
            let found = vms.remove(vm);
            match state.as_str() {
                "ready" | "claimed" if found.is_none() => return Some(format!("{id} has no VM")),
                "claimed" if found != Some(VmState::Running) => return Some(format!("{id} does not run")),
                "archived" if found.is_some() => return Some(format!("{id} still has a VM")),
                "provisioning" | "retiring" | "deleting" => return Some(format!("{id} is {state}")),
                "ready" => ready += 1,
                _ => {}
            }
        }
        if let Some((vm, _)) = vms.pop_first() {
            return Some(format!("nobody knows {vm}"));
        }
        if full && ready != TARGET {
            return Some(format!("{ready} are ready"));
        }
        let mut wanted: Vec<String> = self
            .handed
            .iter()
            .filter(|(key, _)| !self.released.contains(key))
            .map(|(_, reply)| reply["id"].as_str().unwrap().to_owned())
            .collect();
        wanted.sort();
        let states = rows.instances.iter();
        let claimed: Vec<String> = states
            .filter(|(_, _, state)| state == "claimed")
            .map(|(id, _, _)| id.clone())
            .collect();
        let claims: Vec<String> = rows.claims.iter().map(|(_, id)| id.clone()).collect();
        (claimed != wanted || claims != wanted).then(|| format!("answered were {wanted:?}"))
    }

    /// The project goes, and with it everything.
    async fn delete(mut self) -> Told {
        let (path, none) = (self.project.clone(), Value::Null);
        let (status, reply, again) = self.ask(Method::DELETE, &path, &none).await;
        assert!(status == 200 || again && status == 404, "{:?}: {reply}", self.point);
        let is_empty = |rows: &Census| rows.instances.is_empty() && rows.claims.is_empty();
        self.until_left(is_empty, |vms, _| vms == 0).await;
        // Without room for any checkpoint, those that are not needed are removed, and templates with them: that is all of them.
        self.options.template_disk_mib = 0;
        self.restart().await;
        let is_empty = |rows: &Census| rows.checkpoints.is_empty() && rows.others == 0;
        self.until_left(is_empty, |_, checkpoints| checkpoints == 0).await;
        let data_dir: PathBuf = self.options.data_dir.clone();
        self.process.take().unwrap().stop(&data_dir).await;
        drop(self.folder);
        let hit = match &self.point {
            Point::Nowhere => true,
            Point::Driver(fault) => self.world.calls(fault.verb) >= fault.call,
            Point::Write(_) => self.writes.disarm(),
        };
        Told {
            hit,
            driver: self.world,
            writes: self.writes,
        }
    }

    async fn until_left(&self, rows_are: impl Fn(&Census) -> bool, world_is: impl Fn(usize, usize) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let world: Arc<dyn Driver> = Arc::new(self.world.clone());
        loop {
            let rows = self.census().await;
            let (vms, checkpoints) = (world.list().await.unwrap(), world.checkpoints().await.unwrap());
            if rows_are(&rows) && world_is(vms.len(), checkpoints.len()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{:?}: something is left: {rows:#?} {vms:#?} {checkpoints:#?}",
                self.point
            );
            pause().await;
        }
    }
}

/// A claim's reply without the end of its lease.
fn without_lease(reply: &Value) -> Value {
    let mut reply = reply.clone();
    reply["expiresAt"].take();
    reply
}

/// When a claim's lease ends.
fn lease(reply: &Value) -> jiff::Timestamp {
    reply["expiresAt"].as_str().unwrap().parse().unwrap()
}
