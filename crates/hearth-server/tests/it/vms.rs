//! Real VMs: QEMU, the built image, real git repositories, packages from the real registries.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hearth_drivers::Driver;
use hearth_drivers::qemu::{Accel, QemuDriver, QemuOptions};
use hearth_server::{ServeError, ServeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{BOOT, Server, commit, git, git_repo, options, repo_folder};
use crate::secrets::files_with;

/// Time limit of one set-up command in these tests: an install under emulation fits, a hanging command does not cost much.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(240);
/// A value with everything that shells, JSON and files stumble over.
const NASTY: &str = "with spaces, 'single' and \"double\" quotes, $HOME `id` # no comment \\ \nand-a-second-line";

/// A server with real VMs on the image that `cargo xtask test` has built.
async fn server(command_timeout: Duration) -> Server {
    server_with(|options| options.command_timeout = command_timeout).await
}

/// A server's folder. When its test ends without having cleaned up, the VMs that are left are ended: they would slow down all others.
struct Left(Arc<tempfile::TempDir>);

impl Drop for Left {
    fn drop(&mut self) {
        for vm in std::fs::read_dir(self.0.path().join("data/vms"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let pid = vm
                .file_name()
                .to_str()
                .and_then(qemu_of)
                .and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid {
                // It may just have ended on its own.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

thread_local! {
    /// Dropped with the test's thread, however the test ends.
    static LEFT: RefCell<Vec<Left>> = const { RefCell::new(Vec::new()) };
}

/// The same, told otherwise.
pub async fn server_with(tell: impl FnOnce(&mut ServeOptions)) -> Server {
    let data = std::env::var_os("HEARTH_TEST_DATA")
        .expect("HEARTH_TEST_DATA is not set: `cargo xtask test NAME` builds a guest image and sets it");
    let folder = Arc::new(tempfile::tempdir().unwrap());
    LEFT.with_borrow_mut(|left| left.push(Left(folder.clone())));
    let mut options = options(folder.path());
    options.command_timeout = COMMAND_TIMEOUT;
    tell(&mut options);
    std::fs::create_dir_all(&options.data_dir).unwrap();
    std::os::unix::fs::symlink(Path::new(&data).join("images"), options.data_dir.join("images")).unwrap();
    let qemu = QemuOptions {
        data_dir: options.data_dir.clone(),
        images_dir: options.data_dir.join("images"),
        shared_images: Vec::new(),
        installation: String::new(),
        accel: Accel::Auto,
        vm_user: None,
        gateway: hearth_drivers::gateway_program(),
        dns_upstream: options.dns_upstream,
    };
    let make = move |installation| -> Result<Arc<dyn Driver>, ServeError> {
        Ok(Arc::new(QemuDriver::open(QemuOptions { installation, ..qemu })?))
    };
    Server::start(folder, options, make).await.unwrap()
}

/// Deletes the project and waits until no VM, folder or process of this server is left.
pub async fn clean_up(server: Server, project: &str) {
    server.call(Method::DELETE, project, json!({})).await;
    until_no_vm_is_left(&server).await;
    server.stop().await;
}

/// Its projects were deleted: waits until their VMs are.
pub async fn until_no_vm_is_left(server: &Server) {
    let vms = server.options.data_dir.join("vms");
    let deadline = tokio::time::Instant::now() + BOOT;
    while std::fs::read_dir(&vms).unwrap().count() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "VMs are left");
        crate::harness::pause().await;
    }
}

/// The process that runs a VM, by the id in its arguments.
pub fn qemu_of(vm: &str) -> Option<u32> {
    processes()
        .find(|(_, arguments)| arguments.contains("qemu-system") && arguments.contains(vm))
        .map(|(pid, _)| pid)
}

fn processes() -> impl Iterator<Item = (u32, String)> {
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&arguments).replace('\0', " ")))
    })
}

pub async fn exec(server: &Server, id: &str, command: &str) -> Value {
    server
        .post(&format!("/instances/{id}/exec"), json!({ "command": command }))
        .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn two_repositories_five_variables_and_packages_from_the_registries() {
    let server = server(COMMAND_TIMEOUT).await;
    let parent = server.folder.path();
    let hooks = r#"{"hooks":{"setup":["echo hook >>/home/order",{"command":"pwd >>/home/order"}]}}"#;
    let package = r#"{"name":"app","version":"1.0.0","dependencies":{"is-number":"7.0.0"}}"#;
    let app = git_repo(
        parent,
        "app",
        &[(".capy/settings.json", hooks), ("package.json", package)],
    );
    let lib = git_repo(parent, "lib", &[("readme", "lib")]);
    git(&repo_folder(&lib), &["checkout", "--quiet", "-b", "dev"]);
    commit(&repo_folder(&lib), &[("dev", "dev")], "dev");
    let head = git(&repo_folder(&lib), &["rev-parse", "HEAD"]);
    git(&repo_folder(&lib), &["checkout", "--quiet", "main"]);
    let repos = json!([
        { "repoFullName": "acme/app", "branch": "main", "url": app },
        { "repoFullName": "acme/lib", "branch": "dev", "url": lib },
    ]);
    let project = server
        .project(json!({ "name": "two", "repos": repos, "vmSize": "small" }))
        .await;
    let values = [
        ("PLAIN", "plain-value-1"),
        ("NASTY", NASTY),
        ("URL", "https://x.example/?a=b&c=%20"),
        ("TOKEN", "tok-4f9a8b7c"),
        ("UNICODE", "größe→∞"),
    ];
    let variables: Vec<_> = values
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    server
        .put(
            &format!("{project}/environment-variables/shared"),
            json!({ "variables": variables }),
        )
        .await;
    let commands = json!([
        { "name": "order", "command": "echo pool >>/home/order" },
        { "name": "leak", "command": "echo \"$NASTY\"; echo \"$TOKEN\" >&2; env; set; cat /home/.env" },
        { "name": "apt", "command": "apt-get update -qq && apt-get install -y -qq figlet && figlet -v | head -1" },
        { "name": "npm", "command": "cd app && npm install --no-audit --no-fund && test -d node_modules/is-number" },
        { "name": "pip", "command": "python3 -m venv /opt/v && /opt/v/bin/pip install -q six && /opt/v/bin/python -c 'import six'" },
        { "name": "web", "command": "exec python3 -m http.server 8000", "background": true },
    ]);
    let boot = server
        .test_boot(BOOT, &project, json!({ "setupCommands": commands }))
        .await;
    assert_eq!(boot["status"], "ready", "{boot:#}");
    let steps: Vec<_> = boot["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        steps,
        [
            "create_vm",
            "ensure_server",
            "set_env_vars",
            "clone_repo",
            "clone_repo",
            "init_repo",
            "warm_pool_setup"
        ]
    );
    assert_eq!(boot["steps"][4]["metadata"]["commit"], head.as_str());
    let id = boot["id"].as_str().unwrap();
    let facts = exec(&server, id, "cat order; git -C lib status -sb; git -C lib rev-parse HEAD; git -C app remote get-url origin; cat app/.git/config lib/dev; stat -c %a .env; curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/; test -s /var/log/hearth/web.log && echo logged").await;
    let facts = facts["stdout"].as_str().unwrap();
    assert!(
        facts.starts_with(&format!("hook\n/home/app\npool\n## dev...origin/dev\n{head}\n{app}\n")),
        "{facts}"
    );
    assert!(facts.ends_with("dev600\n200logged\n"), "{facts}");
    for (name, value) in values {
        let sourced = exec(
            &server,
            id,
            &format!("unset {name}; set -a; . /home/.env; set +a; printf %s \"${name}\""),
        )
        .await;
        assert_eq!(sourced["stdout"], value, "{name}");
        let other = json!({ "argv": ["printenv", name], "user": "nobody" });
        assert_eq!(
            server.post(&format!("/instances/{id}/exec"), other).await["stdout"],
            format!("{value}\n")
        );
    }
    no_secret_anywhere(&server, &boot, &values);
    clean_up(server, &project).await;
}

/// The values are in no reply, no process's arguments, and no file of the server; the VMs' own disks apart.
fn no_secret_anywhere(server: &Server, boot: &Value, values: &[(&str, &str)]) {
    let shown = boot.to_string();
    let mut found = Vec::new();
    for (name, value) in values {
        for line in value.lines() {
            assert!(
                !shown.contains(line) && !shown.contains(&line.replace('"', "\\\"")),
                "{name} is shown: {shown}"
            );
            assert!(
                processes().all(|(_, arguments)| !arguments.contains(line)),
                "{name} is in a process's arguments"
            );
            for entry in std::fs::read_dir(&server.options.data_dir).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() && !["vms", "images", "templates"].iter().any(|own| path.ends_with(own)) {
                    files_with(&path, line.as_bytes(), &mut found);
                } else if path.is_file()
                    && std::fs::read(&path)
                        .unwrap()
                        .windows(line.len())
                        .any(|w| w == line.as_bytes())
                {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_failing_and_a_hanging_command_end_with_their_whole_tree() {
    const LIMIT: Duration = Duration::from_secs(20);
    let server = server(LIMIT).await;
    let project = server.project(json!({ "name": "bad", "vmSize": "small" })).await;
    let fails =
        json!({ "setupCommands": [{ "name": "x", "command": "echo whole log; echo 'cannot go on' >&2; exit 7" }] });
    let failed = server.test_boot(BOOT, &project, fails).await;
    assert_eq!(
        (&failed["status"], &failed["summary"]["failedStep"]),
        (&json!("failed"), &json!("warm_pool_setup"))
    );
    assert_eq!(failed["summary"]["error"], "exit code 7: cannot go on");
    let output = failed["steps"].as_array().unwrap().last().unwrap()["output"]
        .as_str()
        .unwrap();
    assert!(
        output.contains("whole log") && output.contains("cannot go on"),
        "{output}"
    );
    let hangs = "sleep 7001 & setsid sleep 7002 & (trap '' TERM; sleep 7003); sleep 7004";
    let hung = server
        .test_boot(
            BOOT,
            &project,
            json!({ "setupCommands": [{ "name": "x", "command": hangs }] }),
        )
        .await;
    assert_eq!(hung["status"], "failed");
    assert!(
        hung["summary"]["error"]
            .as_str()
            .unwrap()
            .starts_with("timed out after 20 s"),
        "{hung:#}"
    );
    // The VM of a failed test boot is kept for a look inside.
    let left = exec(
        &server,
        hung["id"].as_str().unwrap(),
        "pgrep -f 'sleep 700[0-9]' | grep -v $$ || true",
    )
    .await;
    assert_eq!(left["stdout"], "");
    clean_up(server, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn a_pool_of_three_serves_ten_claims_and_replaces_a_killed_vm() {
    let server = server(COMMAND_TIMEOUT).await;
    let project = server.project(json!({ "name": "pool", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    let web = json!([{ "name": "web", "command": "exec python3 -m http.server 8000", "background": true }]);
    server
        .patch(&pool, json!({ "enabled": true, "targetSize": 3, "setupCommands": web }))
        .await;
    server.until_full(BOOT, &project, 3).await;
    let ready = server.get(&format!("{pool}/instances?status=ready")).await;
    let victim = ready["items"][0]["instanceId"].as_str().unwrap().to_owned();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(qemu_of(&victim).unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let noticed = |list: &Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["instanceId"] == victim.as_str())
    };
    server
        .until(
            Duration::from_secs(10),
            &format!("{pool}/instances?status=failed"),
            noticed,
        )
        .await;
    server.until_full(BOOT, &project, 3).await;
    let claim = format!("{pool}/claim");
    let patient = json!({ "waitMs": 120_000 });
    let replies = join_all((0..10).map(|_| server.call(Method::POST, &claim, patient.clone()))).await;
    let mut got: Vec<_> = replies
        .iter()
        .filter(|(status, _)| *status == StatusCode::OK)
        .map(|(_, body)| body)
        .collect();
    // Three stand ready; the others are forked for their claims.
    assert_eq!(got.len(), 10, "{replies:?}");
    got.sort_by_key(|body| body["instanceId"].as_str().map(str::to_owned));
    got.dedup_by_key(|body| body["instanceId"].as_str().map(str::to_owned));
    assert_eq!(got.len(), 10, "the same VM twice: {replies:?}");
    let mut strangers = BTreeSet::new();
    let mut services = BTreeSet::new();
    for reply in &got {
        let id = reply["id"].as_str().unwrap();
        let name = exec(&server, id, "hostname").await;
        assert_eq!(name["stdout"], format!("{}\n", reply["instanceId"].as_str().unwrap()));
        let own =
            "cat /etc/machine-id /proc/sys/kernel/random/uuid; python3 -c 'import os; print(os.getrandom(16).hex())'";
        let own = exec(&server, id, own).await["stdout"].as_str().unwrap().to_owned();
        strangers.extend(own.lines().map(str::to_owned));
        let clock = exec(&server, id, "date +%s").await["stdout"]
            .as_str()
            .unwrap()
            .trim()
            .parse::<i64>()
            .unwrap();
        assert!((jiff::Timestamp::now().as_second() - clock).abs() <= 2);
        let web = exec(
            &server,
            id,
            "pgrep -f 'http[.]server'; curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8000/",
        )
        .await;
        services.insert(web["stdout"].as_str().unwrap().to_owned());
    }
    assert_eq!(strangers.len(), 30, "two forks have something in common: {strangers:?}");
    // The same process answers in all of them: it was started once, before the template was frozen.
    assert!(
        services.len() == 1 && services.first().unwrap().ends_with("\n200"),
        "{services:?}"
    );
    let released = got[0]["id"].as_str().unwrap();
    server.post(&format!("/instances/{released}/release"), json!({})).await;
    clean_up(server, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn docker_builds_and_runs_an_image_in_a_fork() {
    let server = server(COMMAND_TIMEOUT).await;
    let project = server.project(json!({ "name": "docker", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    // Without what the package only recommends: what Docker then lacks, the VM must not ask of it.
    let docker = "apt-get -q update && DEBIAN_FRONTEND=noninteractive \
                  apt-get -q -y --no-install-recommends install docker.io && docker info --format '{{.Driver}}'";
    let program = r#"mkdir /root/hello && cd /root/hello &&
        echo 'int puts(const char *); int main(void) { return puts("hello from scratch") < 0; }' >hello.c &&
        gcc -static -o hello hello.c && printf 'FROM scratch\nCOPY hello /\nCMD ["/hello"]\n' >Dockerfile"#;
    let commands = json!([{ "name": "docker", "command": docker }, { "name": "program", "command": program }]);
    server
        .patch(
            &pool,
            json!({ "enabled": true, "targetSize": 1, "setupCommands": commands }),
        )
        .await;
    server.until_full(BOOT + COMMAND_TIMEOUT, &project, 1).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claimed["id"].as_str().unwrap();
    let ran = exec(
        &server,
        id,
        "cd /root/hello && docker build -q -t hello . >/dev/null && docker run --rm hello",
    )
    .await;
    assert_eq!(ran["stdout"], "hello from scratch\n", "{ran}");
    clean_up(server, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn the_setup_objects_scripts_work_in_a_real_vm() {
    let server = server(COMMAND_TIMEOUT).await;
    let parent = server.folder.path();
    let app = git_repo(parent, "app", &[("version", "main\n")]);
    git(&repo_folder(&app), &["checkout", "--quiet", "-b", "feature"]);
    commit(&repo_folder(&app), &[("version", "feature\n")], "feature");
    git(&repo_folder(&app), &["checkout", "--quiet", "main"]);
    let lib = git_repo(parent, "lib", &[("a", "b")]);
    let repos = json!([
        { "repoFullName": "acme/app", "branch": "main", "url": app },
        { "repoFullName": "acme/lib", "branch": "main", "url": lib },
    ]);
    let project = server.project(json!({ "name": "scripts", "repos": repos })).await;
    let none: Value = Value::Null;
    let setup = json!({ "vmSize": "small", "repositories": [
        { "repository": "acme/app", "branch": "main",
          "scripts": { "initialize": "pwd >/home/initialized", "updateAfterCheckout": "cp version /home/updated; env >/home/update-env",
                       "startup": "nohup python3 -m http.server 8123 >/tmp/web.log 2>&1 &" },
          "commands": [{ "name": "version", "command": "cat version" }] },
        { "repository": "acme/lib", "branch": "main",
          "scripts": { "initialize": "sleep 1; echo \"lib $SHARED\"", "updateAfterCheckout": none, "startup": none }, "commands": [] }
    ] });
    server.patch(&format!("{project}/setup"), setup).await;
    let variables = |name: &str, value: &str| json!({ "variables": [{ "name": name, "value": value }] });
    let path = |whose: &str| format!("{project}/environment-variables/{whose}");
    server.put(&path("shared"), variables("SHARED", "geheim-shared")).await;
    server.put(&path("personal"), variables("OWN", NASTY)).await;
    let claim = json!({ "branch": "feature", "waitMs": 400_000 });
    let claimed = server.post(&format!("{project}/warm-pool/claim"), claim).await;
    let id = claimed["id"].as_str().unwrap();
    assert_eq!(
        (&claimed["repos"][0]["branch"], &claimed["repos"][1]["branch"]),
        (&json!("feature"), &json!("main"))
    );
    let detail = server.get(&format!("{project}/warm-pool/instances/{id}")).await;
    let steps = detail["steps"].as_array().unwrap();
    let scripts: Vec<_> = steps.iter().filter(|step| step["name"] == "repo_setup").collect();
    assert_eq!(scripts.len(), 3, "{detail:#}");
    assert!(scripts.iter().any(|step| step["output"] == "lib ***\n"), "{detail:#}");
    for (command, prints) in [
        ("cat /home/initialized", "/home/app\n"),
        ("cat /home/updated", "feature\n"),
        // The service that was started when the VM became ready serves the checkout as it is now.
        (
            "curl -sS --retry 20 --retry-connrefused http://127.0.0.1:8123/version",
            "feature\n",
        ),
        ("printf %s \"$OWN\"", NASTY),
        ("grep -c geheim-shared /home/update-env", "1\n"),
    ] {
        assert_eq!(exec(&server, id, command).await["stdout"], prints, "{command}");
    }
    let view = server.get(&format!("/instances/{id}")).await;
    assert_eq!(view["commands"][0]["path"], "/home/app");
    clean_up(server, &project).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn commands_in_a_real_vm_say_how_they_ended_and_what_they_leave_running_lives() {
    let server = server(COMMAND_TIMEOUT).await;
    let project = server.project(json!({ "name": "ends", "vmSize": "small" })).await;
    let pool = format!("{project}/warm-pool");
    // Something that prints is frozen with the template, and continues in its forks.
    let ticker = json!([{ "name": "ticker", "command": "(while :; do echo tick; sleep 0.2; done) & sleep 0.5" }]);
    let enable = json!({ "enabled": true, "targetSize": 1, "setupCommands": ticker });
    server.patch(&pool, enable).await;
    server.until_full(BOOT, &project, 1).await;
    let claimed = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claimed["id"].as_str().unwrap();
    let logs = format!("/instances/{id}/logs");
    let first = server.get(&logs).await["items"][0]["bytes"].as_u64().unwrap();
    let grown = |logs: &Value| logs["items"][0]["bytes"].as_u64().unwrap() > first;
    server.until(BOOT, &logs, grown).await;
    // A server that a command has started answers the next one, and has a log.
    let web = "cd / && python3 -m http.server 9000 & sleep 0.1";
    let log = exec(&server, id, web).await["log"].as_str().unwrap().to_owned();
    let ask = "curl -sS --retry 30 --retry-connrefused -o /dev/null -w %{http_code} http://127.0.0.1:9000/";
    for _ in 0..2 {
        assert_eq!(exec(&server, id, ask).await["stdout"], "200");
    }
    let text = server
        .request(Method::GET, &format!("{logs}/{log}"))
        .send()
        .await
        .unwrap();
    assert!(text.text().await.unwrap().contains("\"GET / HTTP/1.1\" 200"));
    let eats = exec(
        &server,
        id,
        "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 24))'",
    )
    .await;
    assert_eq!(
        (&eats["signal"], &eats["oomKilled"]),
        (&json!("SIGKILL"), &json!(true)),
        "{eats}"
    );
    assert!(eats["error"].as_str().unwrap().contains("killed python3"), "{eats}");
    // However often: the agent is there again.
    for _ in 0..7 {
        let killed = exec(&server, id, "echo before; kill -9 -1; sleep 60").await;
        let error = killed["error"].as_str().unwrap();
        assert!(error.starts_with("the agent in the VM died"), "{killed}");
        assert_eq!(killed["exitCode"], Value::Null);
    }
    assert_eq!(exec(&server, id, "echo well").await["stdout"], "well\n");
    clean_up(server, &project).await;
}
