//! Git credentials of projects, with a private git server: who is fetched for with them, who in a VM is given them, and that their
//! secrets are nowhere else.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hearth_api::ids::VmId;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_guest::requests::{GuestQuestion, HostAnswer};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::extra_content::{set_submodule, use_lfs};
use crate::git_host::GitHost;
use crate::guests::{message, vm};
use crate::harness::{SOON, Server, bare_project, commit, git, options, pause};
use crate::secrets::files_with;

/// What is looked for; long and unlikely enough.
const TOKEN: &str = "ghp_tokenThatIsNowhereElse4711";
const OTHER: &str = "ghp_anotherTokenThatIsNowhere0815";

fn body(url: &str) -> Value {
    json!({ "name": "p", "repos": [{ "repoFullName": "acme/app", "branch": "main", "url": url }] })
}

fn token(host: &GitHost, token: &str) -> Value {
    json!({ "credentials": [{ "host": host.name(), "kind": "token", "secret": token, "allowHttp": true }] })
}

/// A private server with `app`, which has the submodule `lib`, next to it.
async fn private(folder: &Path) -> GitHost {
    let host = GitHost::start(&folder.join("host"), TOKEN).await;
    let lib = host.repository("lib", &[("lib.txt", "the private library")]);
    let app = host.repository("app", &[("app.txt", "the private app")]);
    set_submodule(&app, "lib", "lib", "../lib.git", &lib);
    host.publish("app");
    host
}

/// Why a test boot failed to clone; `None` when it did not fail.
async fn boot(server: &Server, project: &str) -> Option<String> {
    let instance = server.test_boot(SOON, project, json!({})).await;
    if instance["status"] == "ready" {
        return None;
    }
    assert_eq!(instance["summary"]["failedStep"], "clone_repo", "{instance:#}");
    Some(instance["failureReason"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn private_repository_is_fetched_for_the_project_with_the_credential_and_for_no_other() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let host = private(server.folder.path()).await;
    let url = host.url("app");
    let project = server.project(body(&url)).await;
    let credentials = format!("{project}/credentials");
    assert_eq!(server.get(&credentials).await, json!({ "items": [] }));
    let why = boot(&server, &project).await.unwrap();
    assert!(why.contains("hearth credential set PROJECT HOST"), "{why}");

    // A wrong one: the sentence names the server, and not what it was sent.
    server.put(&credentials, token(&host, OTHER)).await;
    let why = boot(&server, &project).await.unwrap();
    let advice = format!("`hearth credential set PROJECT {}`", host.name());
    assert!(why.contains(&advice) && !why.contains(OTHER), "{why}");

    let shown = server.put(&credentials, token(&host, TOKEN)).await;
    assert_eq!(shown["items"][0]["host"], host.name());
    assert_eq!(
        (&shown["items"][0]["kind"], &shown["items"][0]["lastUpdatedByUserId"]),
        (&json!("token"), &json!("default"))
    );
    assert!(!shown.to_string().contains(TOKEN), "{shown}");
    let instance = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(instance["status"], "ready", "{instance:#}");
    // The submodule came along.
    let asked = host.admitted();
    for part in ["/acme/app.git/git-upload-pack", "/acme/lib.git/git-upload-pack"] {
        assert!(asked.iter().any(|path| path.contains(part)), "{part}: {asked:?}");
    }
    let files = driver.files(&vm(&instance));
    let config = String::from_utf8_lossy(&files["/home/app/.git/config"]).into_owned();
    assert!(config.contains(&url), "{config}");
    let branches = server.get(&format!("{project}/branches")).await;
    assert_eq!(branches["items"][0]["branches"], json!(["main"]));

    // Its mirror is on the host, and another project of the same tenant does not get it.
    let other = server.project(body(&url)).await;
    let why = boot(&server, &other).await.unwrap();
    assert!(why.contains("hearth credential set PROJECT HOST"), "{why}");
    let branches = server.get(&format!("{other}/branches")).await;
    assert_eq!(branches["items"][0]["branches"], json!(null));
    let enable = json!({ "enabled": true, "targetSize": 1 });
    server.patch(&format!("{other}/warm-pool"), enable.clone()).await;
    let explained = server.get(&format!("{other}/warm-pool/explain")).await;
    assert_eq!(explained["repositories"][0]["commit"], json!(null), "{explained:#}");
    // One that is given a credential of its own gets it.
    server.put(&format!("{other}/credentials"), token(&host, TOKEN)).await;
    server.until_full(SOON, &other, 1).await;

    // The token is replaced: what was pushed meanwhile is seen at once, with the one that is set by then.
    server.patch(&format!("{project}/warm-pool"), enable).await;
    server.until_full(SOON, &project, 1).await;
    host.set_token(OTHER);
    let app = host.repository_folder("app");
    commit(&app, &[("app.txt", "the private app, changed")], "second");
    host.publish("app");
    let pushed = json!(git(&app, &["rev-parse", "HEAD"]));
    server.put(&credentials, token(&host, OTHER)).await;
    let explain = format!("{project}/warm-pool/explain");
    server
        .until(SOON, &explain, |it| it["repositories"][0]["commit"] == pushed)
        .await;
    let reply = server
        .call(Method::DELETE, &format!("{credentials}/{}", host.name()), Value::Null)
        .await;
    assert_eq!(reply, (StatusCode::OK, json!({ "deleted": true, "host": host.name() })));
    let reply = server
        .call(Method::DELETE, &format!("{credentials}/{}", host.name()), Value::Null)
        .await;
    assert_eq!(reply.1["deleted"], false);
    let why = boot(&server, &project).await.unwrap();
    assert!(why.contains("cannot fetch acme/app"), "{why}");

    assert!(!host.was_in_arguments(), "a process had it in its arguments");
    let data = server.options.data_dir.clone();
    let (folder, _) = server.stop().await;
    let mut found = Vec::new();
    for secret in [TOKEN, OTHER] {
        files_with(&data, secret.as_bytes(), &mut found);
    }
    assert_eq!(found, Vec::<String>::new());
    drop(folder);
    for (path, content) in files {
        assert!(
            !content.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn what_git_lfs_keeps_is_fetched_with_the_projects_credential() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let host = GitHost::start(&server.folder.path().join("host"), TOKEN).await;
    let app = host.repository("app", &[("app.txt", "the private app")]);
    use_lfs(&app);
    commit(&app, &[("app.bin", "the private large file")], "large");
    host.publish("app");
    let project = server.project(body(&host.url("app"))).await;
    server.put(&format!("{project}/credentials"), token(&host, TOKEN)).await;
    let instance = server.test_boot(SOON, &project, json!({})).await;
    assert_eq!(instance["status"], "ready", "{instance:#}");
    let asked = host.admitted();
    assert!(asked.iter().any(|path| path.contains("/lfs-objects/")), "{asked:?}");
    let files = driver.files(&vm(&instance));
    let is_it = |(path, content): (&String, &bytes::Bytes)| {
        path.contains("/lfs/objects/") && content == "the private large file"
    };
    assert!(files.iter().any(is_it), "{:?}", files.keys());
    assert!(!host.was_in_arguments(), "a process had it in its arguments");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_fetches_with_its_projects_credential_through_the_rules() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let host = private(folder.path()).await;
    let mut options = options(folder.path());
    let rule = format!("tenant=beta allow=http://{}", host.name());
    options.sources = vec![rule.parse().unwrap()];
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let mut server = Server::start(folder.clone(), options, move |_| Ok(driver))
        .await
        .unwrap();
    let tenant = json!({ "name": "b", "tenant": "beta", "scopes": ["project:read", "project:write", "claim"] });
    server.token = server.post("/tokens", tenant).await["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let body = body(&host.url("app"));
    let project = server.project(body.clone()).await;
    assert!(boot(&server, &project).await.is_some());
    server.put(&format!("{project}/credentials"), token(&host, TOKEN)).await;
    assert_eq!(boot(&server, &project).await, None);
    let other = server.project(body).await;
    assert!(boot(&server, &other).await.is_some());
    server.stop().await;
}

/// Asks until the VM's questions are read.
async fn ask(driver: &FakeDriver, vm: &VmId, question: &GuestQuestion) -> HostAnswer {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = driver.ask(vm, question.clone()).await {
            return answer;
        }
        assert!(Instant::now() < deadline, "nobody reads what is asked");
        pause().await;
    }
}

fn credential(protocol: &str, host: &str) -> GuestQuestion {
    GuestQuestion::GitCredential {
        protocol: protocol.to_owned(),
        host: host.to_owned(),
        username: None,
    }
}

fn given(username: &str, password: &str) -> HostAnswer {
    HostAnswer::GitCredential {
        username: username.to_owned(),
        password: password.to_owned(),
    }
}

/// A key as `ssh-keygen` makes it.
fn key(passphrase: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn git_in_a_vm_is_given_the_projects_credential_for_its_host_while_the_vm_is_claimed() {
    let (server, driver) = Server::fake(FakeOptions::default()).await;
    let (project, pool) = server.full_pool(1).await;
    let credentials = format!("{project}/credentials");
    let put = json!({ "credentials": [{ "host": "git.example", "kind": "token", "secret": TOKEN }] });
    server.put(&credentials, put).await;
    let question = credential("https", "git.example");
    let ready = server.get(&format!("{pool}/instances?status=ready")).await["items"][0].clone();
    assert_eq!(
        driver.ask(&vm(&ready), question.clone()).await,
        None,
        "it is not claimed"
    );

    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let its = vm(&claim);
    assert_eq!(ask(&driver, &its, &question).await, given("x-access-token", TOKEN));
    for (protocol, host) in [
        ("http", "git.example"),
        ("https", "git.example:8443"),
        ("https", "example"),
        ("ssh", "x"),
    ] {
        let answer = ask(&driver, &its, &credential(protocol, host)).await;
        assert_eq!(answer, HostAnswer::Nothing, "{protocol} {host}");
    }
    // The address may say who asks; where the credential says it too, they must agree.
    let as_whom = |username: &str| GuestQuestion::GitCredential {
        protocol: "https".to_owned(),
        host: "git.example".to_owned(),
        username: Some(username.to_owned()),
    };
    assert_eq!(ask(&driver, &its, &as_whom("me")).await, given("me", TOKEN));

    // What is set now is what the next question gets.
    let put =
        json!({ "credentials": [{ "host": "git.example", "kind": "token", "username": "bot", "secret": OTHER }] });
    server.put(&credentials, put).await;
    assert_eq!(ask(&driver, &its, &question).await, given("bot", OTHER));
    assert_eq!(ask(&driver, &its, &as_whom("me")).await, HostAnswer::Nothing);

    // Keys stay on the host: the VM learns which there are, and asks for signatures.
    let list = GuestQuestion::SshAgent {
        message: BASE64.encode([11]),
    };
    let identities = |answer: HostAnswer| match answer {
        HostAnswer::SshAgent { message } => BASE64.decode(message).unwrap()[..5].to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(identities(ask(&driver, &its, &list).await), [12, 0, 0, 0, 0]);
    let put = json!({ "credentials": [{ "host": "git.example", "kind": "key", "secret": key("") }] });
    let shown = server.put(&credentials, put).await;
    let fingerprint = shown["items"][0]["fingerprint"].as_str().unwrap();
    assert!(fingerprint.starts_with("SHA256:"), "{shown}");
    assert_eq!(identities(ask(&driver, &its, &list).await), [12, 0, 0, 0, 1]);

    // A restarted server answers, too.
    let (folder, options) = server.stop().await;
    let made: Arc<dyn Driver> = Arc::new(driver.reopen());
    let server = Server::start(folder, options, move |_| Ok(made)).await.unwrap();
    assert_eq!(ask(&driver, &its, &question).await, given("bot", OTHER));

    // Another project's VM gets nothing, and this one nothing either when it was released.
    let (_, other) = server.full_pool(1).await;
    let claim_of_other = server.post(&format!("{other}/claim"), json!({})).await;
    let answer = ask(&driver, &vm(&claim_of_other), &question).await;
    assert_eq!(answer, HostAnswer::Nothing);
    let id = claim["id"].as_str().unwrap();
    server.post(&format!("/instances/{id}/release"), json!({})).await;
    let answer = driver.ask(&its, question).await;
    assert!(!matches!(answer, Some(HostAnswer::GitCredential { .. })), "{answer:?}");
    server.stop().await;
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_refused_with_what_to_do() {
    let (server, _) = Server::fake(FakeOptions::default()).await;
    let project = server.project(bare_project()).await;
    let path = format!("{project}/credentials");
    for (credential, says) in [
        (
            json!({ "host": "git.example", "kind": "key", "secret": key("geheim") }),
            "without a passphrase",
        ),
        (
            json!({ "host": "git.example", "kind": "key", "secret": TOKEN }),
            "OpenSSH's format",
        ),
        (
            json!({ "host": "git.example", "kind": "token", "secret": "two words" }),
            "one line without blanks",
        ),
        (
            json!({ "host": "git.example", "kind": "key", "secret": key(""), "username": "git" }),
            "token only",
        ),
        (
            json!({ "host": "https://git.example", "kind": "token", "secret": TOKEN }),
            "name of a git server",
        ),
        (
            json!({ "host": "git.example", "kind": "token", "secret": "" }),
            "must not be empty",
        ),
        (json!({ "host": "git.example", "kind": "token" }), "secret"),
    ] {
        let (status, reply) = server
            .call(Method::PUT, &path, json!({ "credentials": [credential] }))
            .await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{reply}");
        assert!(reply.to_string().contains(says), "{reply}");
        assert!(!reply.to_string().contains(TOKEN), "{reply}");
    }
    assert_eq!(server.get(&path).await, json!({ "items": [] }));
    let (status, reply) = server.call(Method::DELETE, &format!("{path}/a%2Fb"), Value::Null).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{}", message(&reply));
    server.stop().await;
}

/// A git server in the VM itself: nothing of the host's loopback is reached from there. It knows the token by its digest only.
const SERVER: &str = r#"
import base64, hashlib, json, os, subprocess
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
DIGEST = os.environ["DIGEST"]
class Handler(BaseHTTPRequestHandler):
    def answer(self):
        given = self.headers.get("Authorization", "")[6:]
        password = base64.b64decode(given).split(b":", 1)[-1]
        if hashlib.sha256(password).hexdigest() != DIGEST:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length", 0))
        if path.endswith("/objects/batch"):
            asked = json.loads(self.rfile.read(length))
            at = "http://127.0.0.1:8000/lfs-objects/"
            objects = [dict(one, actions={asked["operation"]: {"href": at + one["oid"]}}) for one in asked["objects"]]
            return self.say("application/vnd.git-lfs+json", json.dumps({"transfer": "basic", "objects": objects}).encode())
        if path.startswith("/lfs-objects/"):
            place = "/srv/" + path.rsplit("/", 1)[1]
            if self.command == "PUT":
                open(place, "wb").write(self.rfile.read(length))
                return self.say("text/plain", b"")
            return self.say("application/octet-stream", open(place, "rb").read())
        env = dict(os.environ, GIT_PROJECT_ROOT="/srv/git", GIT_HTTP_EXPORT_ALL="1", REMOTE_USER="x", PATH_INFO=path,
                   QUERY_STRING=query, REQUEST_METHOD=self.command, CONTENT_TYPE=self.headers.get("Content-Type", ""),
                   CONTENT_LENGTH=str(length), HTTP_CONTENT_ENCODING=self.headers.get("Content-Encoding", ""))
        said = subprocess.run(["git", "http-backend"], input=self.rfile.read(length), env=env, stdout=subprocess.PIPE).stdout
        head, _, content = said.partition(b"\r\n\r\n")
        headers = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        self.send_response(int(dict(headers).get("Status", "200").split()[0]))
        for name, value in headers:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def say(self, kind, content):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    do_GET = do_POST = do_PUT = answer
ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a real VM (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn in_a_real_vm_git_pushes_and_fetches_with_the_projects_token_and_no_disk_holds_it() {
    use sha2::Digest as _;
    let server = crate::vms::server_with(|_| {}).await;
    let project = server.project(bare_project()).await;
    let put = json!({ "credentials": [
        { "host": "127.0.0.1:8000", "kind": "token", "secret": TOKEN, "allowHttp": true },
        { "host": "git.example", "kind": "key", "secret": key("") }
    ] });
    server.put(&format!("{project}/credentials"), put).await;
    let pool = format!("{project}/warm-pool");
    server.patch(&pool, json!({ "enabled": true, "targetSize": 1 })).await;
    server.until_full(crate::harness::BOOT, &project, 1).await;
    let claim = server.post(&format!("{pool}/claim"), json!({})).await;
    let id = claim["id"].as_str().unwrap();
    let digest = hex::encode(sha2::Sha256::digest(TOKEN));
    let write = server
        .request(Method::PUT, &format!("/instances/{id}/files?path=/srv/server.py"))
        .body(SERVER)
        .send();
    assert!(write.await.unwrap().status().is_success());
    let begin = format!(
        "for name in app lib; do
           git init -q --bare -b main /srv/git/$name.git && git -C /srv/git/$name.git config http.receivepack true
         done
         DIGEST={digest} setsid python3 /srv/server.py >/srv/log 2>&1 </dev/null &
         for n in $(seq 300); do (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null && exit 0; sleep 0.1; done; exit 1"
    );
    for (command, prints) in [
        (begin.as_str(), ""),
        (
            "git clone -q http://127.0.0.1:8000/app.git /root/app 2>&1 | grep -v empty; cd /root/app && git switch -qc main && \
             echo one >file && git add file && git commit -qm one && git push -q origin main && git -C /srv/git/app.git log --format=%s main",
            "one\n",
        ),
        // Every user of the VM.
        (
            "useradd -m dev && su - dev -c 'git clone -q http://127.0.0.1:8000/app.git && cd app && git commit -q --allow-empty -m two && \
             git push -q' && git -C /root/app fetch -q && git -C /root/app log -1 --format='%s %an' origin/main",
            "two default\n",
        ),
        // Submodules and Git LFS.
        (
            "git clone -q http://127.0.0.1:8000/lib.git /root/lib 2>/dev/null; cd /root/lib && git switch -qc main && echo l >lib.txt && \
             git add . && git commit -qm lib && git push -q origin main && cd /root/app && git pull -q origin main && git lfs install --local >/dev/null && \
             git lfs track '*.bin' >/dev/null && echo large >a.bin && git submodule --quiet add ../lib.git lib && git add . && \
             git commit -qm more && git push -q origin main 2>/dev/null && git clone -q --recurse-submodules http://127.0.0.1:8000/app.git /root/again && \
             cat /root/again/a.bin /root/again/lib/lib.txt && cat /srv/$(sha256sum </root/app/a.bin | cut -d' ' -f1)",
            "large\nl\nlarge\n",
        ),
        // Another server is not given it: git ends at once, since nobody can be asked.
        (
            "GIT_TERMINAL_PROMPT=0 git ls-remote http://127.0.0.1:8001/app.git 2>/dev/null || echo refused",
            "refused\n",
        ),
        (
            "printf 'protocol=http\\nhost=127.0.0.1:8001\\n\\n' | /usr/local/sbin/hearth-agent git-credential get",
            "",
        ),
        ("SSH_AUTH_SOCK=/run/hearth/ssh-agent.sock ssh-add -l", "(ED25519)\n"),
    ] {
        let reply = crate::vms::exec(&server, id, command).await;
        let stdout = reply["stdout"].as_str().unwrap();
        assert!(stdout.ends_with(prints), "{command}: {reply:#}");
    }
    // A replaced token is used by the next command.
    let put =
        json!({ "credentials": [{ "host": "127.0.0.1:8000", "kind": "token", "secret": OTHER, "allowHttp": true }] });
    server.put(&format!("{project}/credentials"), put).await;
    let reply = crate::vms::exec(
        &server,
        id,
        "cd /root/app && GIT_TERMINAL_PROMPT=0 git fetch 2>&1 || echo refused",
    )
    .await;
    assert!(reply["stdout"].as_str().unwrap().ends_with("refused\n"), "{reply:#}");

    let split = TOKEN.split_at(8);
    let search = format!(
        "sync; grep -rlF -- {}''{} /etc /home /root /run /srv /tmp /var 2>/dev/null || true",
        split.0, split.1
    );
    let reply = crate::vms::exec(&server, id, &search).await;
    assert_eq!(reply["stdout"], "", "{reply:#}");
    let mut found = Vec::new();
    files_with(&server.options.data_dir.join("vms"), TOKEN.as_bytes(), &mut found);
    for file in std::fs::read_dir(&server.options.data_dir).unwrap().flatten() {
        let path = file.path();
        if path.is_file()
            && std::fs::read(&path).is_ok_and(|text| text.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found.retain(|path| !path.ends_with("/memory"));
    assert_eq!(found, Vec::<String>::new());
    crate::vms::clean_up(server, &project).await;
}
