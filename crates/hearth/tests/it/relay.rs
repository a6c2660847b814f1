//! Hooks of cloud agents, tried with stand-ins for the vendors' side: their variables, files, webhooks and exit codes, as their documents say
//! them, against a real server with the fake driver.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hearth_drivers::fake::{ExecRule, Special};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::attached::House;
use crate::fake::{Fake, Reply};
use crate::support::{Ran, eventually, run};

/// The worker's secret, which is to be nowhere but in its VM's memory.
const SECRET: &str = "eyJhbGciOi.one-use-work-order.Zm9vYmFy";
/// Hook to worker, from a warm pool.
const REGISTERED_P95: Duration = Duration::from_secs(1);

/// A git repository with one commit on `main` and one on `feature`; its URL.
fn repository(folder: &Path) -> String {
    let place = folder.join("acme/app");
    std::fs::create_dir_all(&place).unwrap();
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(&place)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org"])
            .args(args)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let Ran { code, stderr, .. } = run(command);
        assert_eq!(code, 0, "{args:?}: {stderr}");
    };
    git(&["init", "--quiet", "--initial-branch", "main"]);
    git(&["commit", "--quiet", "--allow-empty", "--message", "one"]);
    git(&["branch", "feature"]);
    format!("file://{}", place.display())
}

/// A server in whose VMs workers run until they are ended.
struct Server(House);

impl Server {
    fn client(&self, args: &[&str]) -> Command {
        self.0.command(args)
    }

    fn ok(&self, args: &[&str]) -> String {
        let Ran { code, stdout, stderr } = run(self.client(args));
        assert_eq!(code, 0, "{args:?}: {stdout}{stderr}");
        stdout
    }

    /// Files of the server that hold a text.
    fn files_with(&self, text: &str) -> Vec<PathBuf> {
        files_with(Path::new(&self.0.token_file()).parent().unwrap(), text)
    }
}

/// A server with a project of that repository, so many VMs ready.
fn warm(folder: &Path, ready: usize) -> (Server, String) {
    warm_with(folder, ready, vec![ExecRule::does("worker", Special::NeverEnds)])
}

/// The same, where commands do what these say, and else end at once.
fn warm_with(folder: &Path, ready: usize, rules: Vec<ExecRule>) -> (Server, String) {
    let url = repository(folder);
    let server = Server(House::start(rules));
    server.ok(&["project", "create", "web", "--repo", &url]);
    server.ok(&["pool", "set", "web", "--enabled", "--target", &ready.to_string()]);
    eventually("the pool is full", || pool(&server)["status"]["ready"] == ready);
    (server, url)
}

fn pool(server: &Server) -> Value {
    serde_json::from_str(&server.ok(&["pool", "status", "web", "--json"])).unwrap()
}

fn claims(server: &Server) -> Vec<Value> {
    let claims: Value = serde_json::from_str(&server.ok(&["claims", "--json"])).unwrap();
    let all = claims["items"].as_array().unwrap().iter();
    all.filter(|claim| claim["projectName"] == "web").cloned().collect()
}

fn id(claim: &Value) -> &str {
    claim["id"].as_str().unwrap()
}

fn sessions(server: &Server, instance: &str) -> Vec<Value> {
    let sessions: Value = serde_json::from_str(&server.ok(&["ps", instance, "--json"])).unwrap();
    sessions["items"].as_array().or(sessions.as_array()).unwrap().clone()
}

/// The `spawn-runner` hook as the orchestrator runs it.
struct SpawnRunner<'a> {
    server: &'a Server,
    work_order: PathBuf,
    repository: &'a str,
    revision: &'a str,
}

impl SpawnRunner<'_> {
    fn command(&self, order: &str, args: &[&str]) -> Command {
        let mut command = self.server.client(&[&["relay", "claude-code"], args].concat());
        command
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("CLAUDE_RUNNER_WORK_ORDER_FILE", &self.work_order)
            .env("CLAUDE_RUNNER_ORDER_ID", order)
            .env("CLAUDE_RUNNER_SESSION_ID", "session_01")
            .env("CLAUDE_RUNNER_ATTEMPT", "0")
            .env("CLAUDE_RUNNER_POOL_ID", "ccpool_01")
            .env("CLAUDE_RUNNER_PRIMARY_REPO_URL", self.repository)
            .env("CLAUDE_RUNNER_PRIMARY_REPO_REVISION", self.revision)
            .env("CLAUDE_RUNNER_ACCOUNT_EMAIL", "ada@example.org");
        command
    }

    fn run(&self, order: &str) -> Ran {
        run(self.command(order, &[]))
    }
}

fn work_order(folder: &Path) -> PathBuf {
    let file = folder.join("work-order");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    file
}

/// All bytes of all files below a folder, and what they are in, that hold a text.
fn files_with(folder: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if let Ok(bytes) = std::fs::read(&path)
            && bytes.windows(text.len()).any(|part| part == text.as_bytes())
        {
            found.push(path);
        }
    }
    found
}

#[test]
fn an_order_of_claude_code_gets_one_vm_with_its_runner_which_is_released_with_it() {
    const ORDERS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (server, url) = warm(folder.path(), ORDERS);
    let hook = SpawnRunner {
        server: &server,
        work_order: work_order(elsewhere.path()),
        repository: &format!("{url}.git"),
        revision: "refs/heads/main",
    };
    // Hook to worker, one order after the other.
    let mut times = Vec::new();
    for number in 0..ORDERS {
        let began = Instant::now();
        let Ran { code, stderr, .. } = hook.run(&format!("order-{number}"));
        times.push(began.elapsed());
        assert_eq!(code, 0, "{stderr}");
        assert!(!stderr.contains(SECRET) && !stderr.contains("ada@"), "{stderr}");
    }
    times.sort();
    println!(
        "hook with worker started: p50 {:?}, longest {:?}",
        times[ORDERS / 2],
        times[ORDERS - 1]
    );
    assert!(times[ORDERS - 1] <= REGISTERED_P95, "{times:?}");
    let held = claims(&server);
    assert_eq!(held.len(), ORDERS);
    let first = held.iter().find(|claim| claim["taskId"] == "order-0").unwrap();
    let end: jiff::Timestamp = first["expiresAt"].as_str().unwrap().parse().unwrap();
    let hours = end.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((22..=24).contains(&hours), "{first}");
    let [worker] = sessions(&server, id(first)).try_into().unwrap();
    assert_eq!(
        (&worker["tag"], &worker["status"]),
        (&json!("worker"), &json!("running"))
    );
    let argv: Vec<&str> = worker["argv"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    assert_eq!(
        argv[4..],
        ["claude", "self-hosted-runner", "--capacity", "1"],
        "{argv:?}"
    );
    assert_eq!(worker["cwd"], "/home/app");

    // Delivered again, also at the same time: the same VM, the same worker.
    let again: Vec<_> = (0..8).map(|_| hook.command("order-0", &[]).spawn().unwrap()).collect();
    for child in again {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!((claims(&server).len(), sessions(&server, id(first)).len()), (ORDERS, 1));

    // The runner ends: its VM is released, and the order gets no other.
    server.ok(&["kill", id(first), "worker", "--signal", "KILL"]);
    eventually("the VM is released", || claims(&server).len() == ORDERS - 1);
    let Ran { code, stderr, .. } = hook.run("order-0");
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("gets no second one"), "{stderr}");
    assert_eq!(claims(&server).len(), ORDERS - 1);

    // The secret is in no file of the server, and not in what it says.
    assert_eq!(server.files_with(SECRET), Vec::<PathBuf>::new());
    assert!(!server.ok(&["audit", "--json"]).contains(SECRET));
    assert!(!server.ok(&["ps", id(&held[1]), "--json"]).contains(SECRET));
}

#[test]
fn exit_codes_say_whether_an_order_may_be_tried_again_or_needs_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (server, url) = warm(folder.path(), 1);
    let hook = SpawnRunner {
        server: &server,
        work_order: work_order(elsewhere.path()),
        repository: &url,
        revision: "",
    };
    let code = |what: &str, mut command: Command, says: &str| {
        command.env_remove("NOTHING");
        let Ran { code, stderr, stdout } = run(command);
        assert!(stderr.contains(says), "{what}: {stderr}{stdout}");
        assert!(!stderr.contains(SECRET), "{what}: {stderr}");
        code
    };
    // 2: a person has to do something.
    let mut command = hook.command("o", &[]);
    command.env_remove("CLAUDE_RUNNER_ORDER_ID");
    assert_eq!(code("no order", command, "CLAUDE_RUNNER_ORDER_ID is not set"), 2);
    let mut command = hook.command("o", &[]);
    command.env("CLAUDE_RUNNER_PRIMARY_REPO_URL", "https://git.example.org/acme/unknown");
    assert_eq!(code("repository", command, "no project has the repository"), 2);
    let mut command = hook.command("o", &[]);
    command.env("CLAUDE_RUNNER_PRIMARY_REPO_URL", "");
    assert_eq!(code("pre-warming", command, "name the project for such orders"), 2);
    let mut command = hook.command("o", &[]);
    command.env("HEARTH_TOKEN", "hearth_unknown");
    assert_eq!(code("token", command, "not known"), 2);
    let empty = elsewhere.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let mut command = hook.command("o", &[]);
    command.env("CLAUDE_RUNNER_WORK_ORDER_FILE", &empty);
    assert_eq!(code("empty work order", command, "is empty"), 2);
    let mut command = hook.command("o", &[]);
    command.env("CLAUDE_RUNNER_WORK_ORDER_FILE", elsewhere.path());
    assert_eq!(code("folder as work order", command, "work order"), 2);
    // 1: the same may work later.
    let mut command = hook.command("o", &[]);
    command.env("CLAUDE_RUNNER_WORK_ORDER_FILE", elsewhere.path().join("gone"));
    assert_eq!(code("work order", command, "cannot be read"), 1);
    let mut command = hook.command("o", &[]);
    command
        .env("HEARTH_URL", "http://127.0.0.1:9")
        .env("HEARTH_TOKEN", "hearth_x");
    assert_eq!(code("server", command, "no Hearth server answers"), 1);
    // 0: an order without a repository, too, where a project is named for it.
    let mut command = hook.command("warm", &["--project", "web"]);
    command.env("CLAUDE_RUNNER_PRIMARY_REPO_URL", "");
    assert_eq!(code("pre-warming", command, "runs in"), 0);
    // 1: there is no VM, and the pool is to make none for it.
    server.ok(&["project", "set", "web", "--max-claims", "1"]);
    let command = hook.command("second", &["--wait", "0"]);
    assert_eq!(code("full", command, "hold"), 1);
}

#[test]
fn deliveries_at_the_same_moment_whose_worker_ends_at_once_need_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = warm_with(folder.path(), 2, Vec::new());
    for order in ["one", "two", "three"] {
        let deliver = || {
            let args = ["relay", "command", "--order", order, "--repo", &url, "--", "true"];
            let mut command = server.client(&args);
            command.env("PATH", std::env::var_os("PATH").unwrap());
            run(command)
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..12).map(|_| scope.spawn(deliver)).collect();
            for one in all {
                let Ran { code, stderr, .. } = one.join().unwrap();
                assert!(code == 0 || code == 1, "{order}: {code}: {stderr}");
            }
        });
        let Ran { code, stderr, .. } = deliver();
        assert!(code == 0 && stderr.contains("it gets no second one"), "{stderr}");
    }
    assert!(claims(&server).is_empty());
}

#[test]
fn a_worker_of_cursor_gets_another_vm_only_when_the_one_before_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = warm(folder.path(), 2);
    let spawn = || {
        let mut command = server.client(&["relay", "cursor", "--pass", "EXTRA"]);
        command
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("CURSOR_API_KEY", SECRET)
            .env("CURSOR_AGENT_WORKER_ID", "pw-42")
            .env("CURSOR_REQUEST_ID", "bc-42")
            .env("CURSOR_POOL", "hearth")
            .env("CURSOR_REPO_URL", &url)
            .env("EXTRA", "more");
        run(command)
    };
    for _ in 0..3 {
        let Ran { code, stderr, .. } = spawn();
        assert_eq!(code, 0, "{stderr}");
    }
    let [only] = claims(&server).try_into().unwrap();
    assert_eq!(only["taskId"], "bc-42/pw-42");
    let [worker] = sessions(&server, id(&only)).try_into().unwrap();
    assert!(
        worker["argv"][6].as_str().unwrap().contains("agent worker --pool"),
        "{worker}"
    );
    server.ok(&["kill", id(&only), "worker", "--signal", "KILL"]);
    eventually("the VM is released", || claims(&server).is_empty());
    let Ran { code, stderr, .. } = spawn();
    assert_eq!(code, 0, "{stderr}");
    let [next] = claims(&server).try_into().unwrap();
    assert_eq!(next["taskId"], "bc-42/pw-42~2");
    assert_eq!(server.files_with(SECRET), Vec::<PathBuf>::new());
}

/// The vendor's side of webhooks: the API that says what a session is, and signed deliveries.
struct Vendor {
    receiver: std::process::Child,
    url: String,
    http: reqwest::Client,
}

impl Drop for Vendor {
    fn drop(&mut self) {
        let _ = self.receiver.kill();
        let _ = self.receiver.wait();
    }
}

const WEBHOOK_KEY: &[u8] = b"a key that both sides have";

impl Vendor {
    fn start(server: &Server, log: &Path, api: &str) -> Self {
        let mut command = server.client(&[
            "relay",
            "openai",
            "--listen",
            "127.0.0.1:0",
            "--project",
            "web",
            "--api",
            api,
        ]);
        command
            .env(
                "OPENAI_WEBHOOK_SECRET",
                format!("whsec_{}", STANDARD.encode(WEBHOOK_KEY)),
            )
            .env("OPENAI_API_KEY", "sk-application")
            .env("OPENAI_EXECUTOR_API_KEY", SECRET)
            .stderr(std::fs::File::create(log).unwrap());
        let receiver = command.spawn().unwrap();
        let mut url = None;
        eventually("webhooks are received", || {
            let said = std::fs::read_to_string(log).unwrap();
            url = said
                .lines()
                .find_map(|line| Some(line.split_once("webhooks at ")?.1.to_owned()));
            url.is_some()
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            receiver,
            url: url.unwrap(),
            http: reqwest::Client::new(),
        }
    }

    /// Delivers an event; the status of the answer.
    async fn deliver(&self, key: &[u8], event: &Value) -> u16 {
        let (id, time, body) = (
            "msg_1",
            jiff::Timestamp::now().as_second().to_string(),
            event.to_string(),
        );
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(format!("{id}.{time}.{body}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let request = self
            .http
            .post(&self.url)
            .header("webhook-id", id)
            .header("webhook-timestamp", time)
            .header("webhook-signature", format!("v1,{signature}"))
            .body(body);
        request.send().await.unwrap().status().as_u16()
    }
}

#[test]
fn a_thousand_deliveries_of_one_session_of_openai_make_one_vm() {
    use futures::StreamExt as _;
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (server, _) = warm(folder.path(), 2);
    let api = Fake::start(|request| {
        assert!(
            request.headers.contains("authorization: bearer sk-application"),
            "{}",
            request.headers
        );
        match request.line.ends_with("/agents/sessions/sess_1") {
            true => Reply::ok(
                r#"{"id":"sess_1","status":"idle","required_actions":[{"type":"environment_connection","environment_id":"env_1"}],
                    "environment":{"type":"self_hosted","id":"env_1","remote_url":"https://api.example.org/v1/agents/api"}}"#,
            ),
            false => Reply::not_found(),
        }
    });
    let log = elsewhere.path().join("relay.log");
    let vendor = Vendor::start(&server, &log, &api.url);
    let asks = |session: &str| {
        json!({ "id": "evt_1", "object": "event", "created_at": 1, "type": "agent.session.action_required",
                "data": { "id": session, "required_action": { "type": "environment_connection" } } })
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        assert_eq!(vendor.deliver(b"another key", &asks("sess_1")).await, 400);
        assert_eq!(vendor.deliver(WEBHOOK_KEY, &asks("sess_gone")).await, 200);
        let began = Instant::now();
        assert_eq!(vendor.deliver(WEBHOOK_KEY, &asks("sess_1")).await, 200);
        println!("webhook with worker started: {:?}", began.elapsed());
        assert!(began.elapsed() <= REGISTERED_P95);
        let event = asks("sess_1");
        let all = futures::stream::iter(0..1000).map(|_| vendor.deliver(WEBHOOK_KEY, &event));
        let statuses: Vec<u16> = all.buffer_unordered(16).collect().await;
        // Those that came too fast for the token's pace are to be delivered once more.
        let done = statuses.iter().filter(|status| **status == 200).count();
        let later = statuses.iter().filter(|status| **status == 503).count();
        println!("{done} answered as done, {later} to be delivered again");
        assert!(done > 0 && done + later == 1000, "{statuses:?}");
    });
    let [only] = claims(&server).try_into().unwrap();
    let [worker] = sessions(&server, id(&only)).try_into().unwrap();
    let argv: Vec<&str> = worker["argv"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let wanted = [
        "codex",
        "exec-server",
        "--remote",
        "https://api.example.org/v1/agents/api",
        "--environment-id",
        "env_1",
    ];
    assert_eq!(argv[4..], wanted);
    // The session failed: its VM is of no use any more.
    let failed = json!({ "type": "agent.session.failed", "data": { "id": "sess_1" } });
    assert_eq!(runtime.block_on(vendor.deliver(WEBHOOK_KEY, &failed)), 200);
    eventually("the VM is released", || claims(&server).is_empty());
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains(SECRET) && !said.contains("sk-application"), "{said}");
    assert_eq!(server.files_with(SECRET), Vec::<PathBuf>::new());
}
