//! Where repositories may come from: every route and every kind of address with a second tenant's token, with real git and a
//! real HTTP server on the loopback, which a rule has to open.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::extra_content::{set_submodule, use_lfs};
use crate::harness::{SOON, Server, commit, git, git_repo, options, repo_folder};

/// What refusals name where no rule of the installation is about the place.
const USUAL: &str = "https:// and ssh:// to public addresses only";

/// A server with these rules.
async fn start(folder: &Arc<tempfile::TempDir>, rules: &[String]) -> Server {
    let mut options = options(folder.path());
    options.watch_interval = Duration::from_millis(300);
    options.sources = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    Server::start(folder.clone(), options, move |_| Ok(driver))
        .await
        .unwrap()
}

/// The same server for another tenant.
async fn as_tenant(server: &mut Server, tenant: &str) {
    let body = json!({ "name": tenant, "tenant": tenant, "scopes": ["project:read", "project:write", "claim"] });
    server.token = server.post("/tokens", body).await["token"].as_str().unwrap().to_owned();
}

fn body(url: &str) -> Value {
    json!({ "name": "p", "repos": [{ "repoFullName": "acme/app", "branch": "main", "url": url }] })
}

/// Why a test boot of a project with this repository failed; `None` when it did not.
async fn boot(server: &Server, url: &str) -> Option<String> {
    let project = server.project(body(url)).await;
    boot_of(server, &project).await
}

async fn boot_of(server: &Server, project: &str) -> Option<String> {
    let instance = server.test_boot(SOON, project, json!({})).await;
    if instance["status"] == "ready" {
        return None;
    }
    assert_eq!(instance["summary"]["failedStep"], "clone_repo", "{instance:#}");
    Some(instance["failureReason"].as_str().unwrap().to_owned())
}

/// A server of files on the loopback that keeps every request.
struct Web {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    /// Files below this folder.
    async fn files(folder: PathBuf) -> Self {
        git(&folder, &["update-server-info"]);
        Self::answering(move |path| match std::fs::read(folder.join(file_of(path))) {
            Ok(content) => ("200 OK".to_owned(), content),
            Err(_) => ("404 Not Found".to_owned(), Vec::new()),
        })
        .await
    }

    /// Redirects every request to another place.
    async fn leading_to(target: String) -> Self {
        Self::answering(move |path| (format!("302 Found\r\nlocation: {target}{path}"), Vec::new())).await
    }

    async fn answering(answer: impl Fn(&str) -> (String, Vec<u8>) + Send + Sync + 'static) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), answer).await
    }

    async fn at(ip: IpAddr, answer: impl Fn(&str) -> (String, Vec<u8>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut head, mut line) = (String::new(), String::new());
                while stream.read_line(&mut line).await.unwrap_or_default() > 2 {
                    head.push_str(&line);
                    line.clear();
                }
                let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
                let mut content = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
                stream.read_exact(&mut content).await.unwrap();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                kept.lock().unwrap().push(head);
                let (status, content) = answer(&path);
                let head = format!(
                    "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    content.len()
                );
                let _ = stream.write_all(&[head.into_bytes(), content].concat()).await;
            }
        });
        Self { address, requests }
    }

    fn url(&self) -> String {
        format!("http://{}/acme/app.git", self.address)
    }

    fn rule(&self, tenant: &str) -> String {
        format!("tenant={tenant} allow=http://{}", self.address)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// The file of the repository that a request's path asks for.
fn file_of(path: &str) -> &str {
    let path = path.split('?').next().unwrap_or_default();
    path.trim_start_matches("/acme/app.git/")
}

/// The mirror that the first tenant's project has on the host.
fn mirror(data: &Path) -> PathBuf {
    let mut mirrors = std::fs::read_dir(data.join("mirrors"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    mirrors
        .find(|path| path.extension().is_some_and(|end| end == "git"))
        .unwrap()
}

#[tokio::test]
async fn another_tenant_is_refused_every_private_address_on_every_route() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut server = start(&folder, &["tenant=gamma allow=file:///srv/git/*".to_owned()]).await;
    let secret = git_repo(folder.path(), "secret", &[("a", "1")]);
    let web = Web::files(repo_folder(&secret).join(".git")).await;
    // The first tenant fetches from everywhere, as ever.
    let own = server.address;
    for url in [&secret, &web.url()] {
        assert_eq!(boot(&server, url).await, None, "{url}");
    }
    let asked = web.requests().len();
    let mirror = format!("file://{}", mirror(&server.options.data_dir).display());

    as_tenant(&mut server, "beta").await;
    let project = server.project(json!({ "name": "empty" })).await;
    for (url, says) in [
        (secret.as_str(), "a path on the server"),
        (&mirror, "a path on the server"),
        ("file:///srv/git/app", "a path on the server"),
        (&web.url(), "not encrypted"),
        (&format!("http://{own}/acme/app"), "not encrypted"),
        ("http://git.example.org/acme/app", "not encrypted"),
        (&format!("https://{own}/acme/app"), "that is not public (127.0.0.0/8)"),
        ("https://localhost/acme/app", "the server itself"),
        ("https://git.localhost./acme/app", "the server itself"),
        ("https://2130706433/acme/app", "that is not public (127.0.0.0/8)"),
        ("https://0x7f.1/acme/app", "that is not public (127.0.0.0/8)"),
        ("https://0.0.0.0/acme/app", "that is not public (0.0.0.0/8)"),
        ("https://10.0.0.5:8443/acme/app", "that is not public (10.0.0.0/8)"),
        ("https://100.100.100.200/acme/app", "that is not public (100.64.0.0/10)"),
        (
            "https://169.254.169.254/latest/meta-data",
            "that is not public (169.254.0.0/16)",
        ),
        ("https://[::1]/acme/app", "that is not public (::/96)"),
        ("https://[::ffff:10.0.0.5]/acme/app", "that is not public (10.0.0.0/8)"),
        ("https://[fd00:ec2::254]/acme/app", "that is not public (fc00::/7)"),
        ("ssh://git@192.168.1.1/acme/app", "that is not public (192.168.0.0/16)"),
        ("ssh://git@[fe80::1]:2222/acme/app", "that is not public (fe80::/10)"),
        ("git@172.16.0.1:acme/app", "that is not public (172.16.0.0/12)"),
        ("localhost:acme/app", "the server itself"),
    ] {
        for (method, path) in [(Method::POST, "/projects"), (Method::PATCH, project.as_str())] {
            let (status, reply) = server.call(method.clone(), path, body(url)).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{method} {url}: {reply}");
            let fault = &reply["error"]["details"][0];
            assert_eq!(fault["path"], "repos[0].url", "{method} {url}: {reply}");
            let message = fault["message"].as_str().unwrap();
            for part in ["the tenant `beta`", says, USUAL] {
                assert!(message.contains(part), "{url}: {message}");
            }
        }
    }
    // What is no address at all is refused for everybody.
    for url in [
        "ext::sh -c id",
        "FILE:///etc/passwd",
        "File:///etc/passwd",
        "file://localhost/etc",
        "file:/etc/app",
        "/etc/passwd",
        "../app.git",
        "-oProxyCommand=id:acme/app",
        "-oProxyCommand@h:acme/app",
        "--upload-pack=id",
        "ssh://-oProxyCommand=id/acme/app",
        "https://user:password@git.example.org/acme/app",
        "https://token@git.example.org/acme/app",
        "git://git.example.org/acme/app",
    ] {
        let (status, reply) = server.call(Method::POST, "/projects", body(url)).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{url}: {reply}");
    }
    // Public ones are taken.
    for url in [
        "https://git.example.org/acme/app",
        "git@git.example.org:acme/app",
        "https://8.8.8.8/acme/app",
    ] {
        server.project(body(url)).await;
    }
    assert_eq!(web.requests().len(), asked, "nobody was asked");
}

#[tokio::test]
async fn the_servers_own_base_url_is_open_to_others_by_a_rule_alone() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    git_repo(folder.path(), "acme/app.git", &[("a", "1")]);
    let base = format!("file://{}", folder.path().join("repos").display());
    let mut options = options(folder.path());
    options.git_base_url.clone_from(&base);
    options.sources = vec![format!("tenant=beta allow={base}/*").parse().unwrap()];
    let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(1, FakeOptions::default()));
    let mut server = Server::start(folder, options, move |_| Ok(driver)).await.unwrap();
    let first = server.token.clone();
    let repos = json!({ "name": "p", "repos": [{ "repoFullName": "acme/app", "branch": "main" }] });
    for (tenant, status) in [
        (None, StatusCode::OK),
        (Some("beta"), StatusCode::OK),
        (Some("gamma"), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        server.token.clone_from(&first);
        if let Some(tenant) = tenant {
            as_tenant(&mut server, tenant).await;
        }
        let (got, reply) = server.call(Method::POST, "/projects", repos.clone()).await;
        assert_eq!(got, status, "{tenant:?}: {reply}");
        if status == StatusCode::OK {
            let project = format!("/projects/{}", reply["id"].as_str().unwrap());
            assert_eq!(boot_of(&server, &project).await, None, "{tenant:?}");
        }
    }
}

#[tokio::test]
async fn a_rule_that_is_gone_stops_every_fetch_and_is_named() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let url = git_repo(folder.path(), "app", &[("a", "1")]);
    git(&repo_folder(&url), &["branch", "topic"]);
    let mut server = start(&folder, &[format!("tenant=beta allow={url}")]).await;
    as_tenant(&mut server, "beta").await;
    let project = server.project(body(&url)).await;
    let pool = format!("{project}/warm-pool");
    assert_eq!(boot_of(&server, &project).await, None);
    let token = server.token.clone();
    let (folder, _) = server.stop().await;

    let mut server = start(&folder, &["tenant=beta deny=file:///*".to_owned()]).await;
    server.token = token;
    let rule = "the rule `tenant=beta deny=file:///*`";
    let reason = boot_of(&server, &project).await.unwrap();
    assert!(reason.contains(rule) && reason.contains("acme/app"), "{reason}");
    // The watch, and a request for the explanation.
    server.patch(&pool, json!({ "enabled": true })).await;
    let explain = format!("{pool}/explain");
    let unreachable = |explained: &Value| {
        let conditions = explained["conditions"].as_array().unwrap();
        conditions
            .iter()
            .any(|it| it["type"] == "RepositoryUnreachable" && it["message"].as_str().unwrap().contains(rule))
    };
    server.until(SOON, &explain, unreachable).await;
    // The setup object: the repository cannot be looked at.
    let setup = server.get(&format!("{project}/setup")).await;
    assert_eq!(setup["legacyHooks"]["checkComplete"], false, "{setup}");
    // Claims: with a branch, strict, and as they are.
    for claim in [json!({ "branch": "topic" }), json!({ "strict": true }), json!({})] {
        let (status, reply) = server.call(Method::POST, &format!("{pool}/claim"), claim.clone()).await;
        assert_ne!(status, StatusCode::OK, "{claim}: {reply}");
    }
}

#[tokio::test]
async fn what_one_tenant_fetched_is_not_anothers_to_read() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let repo = git_repo(folder.path(), "app", &[("a", "1")]);
    let files = repo_folder(&repo).join(".git");
    git(&files, &["update-server-info"]);
    let is_open = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let open = is_open.clone();
    let web = Web::answering(move |path| {
        let file = files.join(file_of(path));
        match std::fs::read(file) {
            Ok(content) if open.load(std::sync::atomic::Ordering::SeqCst) => ("200 OK".to_owned(), content),
            _ => ("404 Not Found".to_owned(), Vec::new()),
        }
    })
    .await;
    let mut server = start(&folder, &[web.rule("beta"), web.rule("gamma")]).await;
    // Read on behalf of two tenants; then it is readable no more.
    assert_eq!(boot(&server, &web.url()).await, None);
    as_first_then(&mut server, "beta").await;
    assert_eq!(boot(&server, &web.url()).await, None);
    is_open.store(false, std::sync::atomic::Ordering::SeqCst);
    as_first_then(&mut server, "gamma").await;
    let project = server.project(body(&web.url())).await;
    let pool = format!("{project}/warm-pool");
    let reason = boot_of(&server, &project).await.unwrap();
    assert!(
        reason.contains("cannot fetch acme/app") && reason.contains("credentials"),
        "{reason}"
    );
    // Nor where its branches are.
    let explained = server.get(&format!("{pool}/explain")).await;
    let commit = git(&repo_folder(&repo), &["rev-parse", "HEAD"]);
    assert!(!explained.to_string().contains(&commit), "{explained:#}");
}

async fn as_first_then(server: &mut Server, tenant: &str) {
    let admin = std::fs::read_to_string(server.options.data_dir.join("admin-token")).unwrap();
    server.token = admin.trim().to_owned();
    as_tenant(server, tenant).await;
}

#[tokio::test]
async fn a_listed_host_is_fetched_from_and_leads_nowhere_else() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let repo = git_repo(folder.path(), "app", &[("a", "1")]);
    let files = repo_folder(&repo).join(".git");
    let web = Web::files(files.clone()).await;
    let hidden = Web::files(files).await;
    let plain = Web::leading_to(format!("http://{}", hidden.address)).await;
    let secure = Web::leading_to(format!("https://{}", hidden.address)).await;
    let denied = Web::leading_to(format!("http://{}", web.address)).await;
    let listed = Web::leading_to(format!("http://{}", web.address)).await;
    let narrow = Web::leading_to(format!("http://{}", web.address)).await;
    let rules = [
        web.rule("beta"),
        plain.rule("beta"),
        secure.rule("beta"),
        listed.rule("beta"),
        format!("tenant=beta allow=http://{}/acme/*", narrow.address),
        denied.rule("gamma"),
        format!("tenant=gamma deny=http://{}", web.address),
    ];
    let mut server = start(&folder, &rules).await;
    as_tenant(&mut server, "beta").await;
    assert_eq!(boot(&server, &web.url()).await, None);
    assert_eq!(
        boot(&server, &listed.url()).await,
        None,
        "a listed host may lead to a listed host"
    );
    for (from, says) in [
        (&plain, "plain http:// is not encrypted"),
        (&secure, "that is not public (127.0.0.0/8)"),
    ] {
        let reason = boot(&server, &from.url()).await.unwrap();
        let target = format!("://{}`", hidden.address);
        for part in [says, &target, USUAL, "the tenant `beta`"] {
            assert!(reason.contains(part), "{reason}");
        }
        assert_eq!(from.requests().len(), 1);
    }
    // Who may have some paths of a host is led to no others.
    let reason = boot(&server, &narrow.url()).await.unwrap();
    assert!(reason.contains("cannot fetch acme/app"), "{reason}");
    let (status, _) = server
        .call(
            Method::POST,
            "/projects",
            body(&format!("http://{}/other/app", narrow.address)),
        )
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    as_first_then(&mut server, "gamma").await;
    let asked = web.requests().len();
    let reason = boot(&server, &denied.url()).await.unwrap();
    assert!(reason.contains(&rules[6]), "{reason}");
    assert_eq!(web.requests().len(), asked);
    assert_eq!(hidden.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_name_is_judged_by_the_address_that_is_connected_to() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut server = start(&folder, &[]).await;
    as_tenant(&mut server, "beta").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A text that no rule of addresses knows, and that the resolver takes for 127.0.0.1.
    let reason = boot(&server, &format!("ssh://git@127.1:{port}/acme/app"))
        .await
        .unwrap();
    for part in [
        "its name leads to an address that is not public (127.0.0.0/8)",
        USUAL,
        "tenant=beta allow=ssh://127.1",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
    let nobody = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await;
    assert!(nobody.is_err(), "it was connected to");
}

#[tokio::test]
async fn a_path_that_a_rule_names_leads_nowhere_else() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let (open, secret) = (
        git_repo(folder.path(), "open/app", &[("a", "1")]),
        git_repo(folder.path(), "secret", &[("a", "1")]),
    );
    let root = folder.path().join("repos/open");
    std::os::unix::fs::symlink(repo_folder(&secret), root.join("link")).unwrap();
    let at = |rest: &str| format!("file://{}/{rest}", root.display());
    let mut server = start(&folder, &[format!("tenant=beta allow={}", at("*"))]).await;
    as_tenant(&mut server, "beta").await;
    assert_eq!(boot(&server, &open).await, None);
    let reason = boot(&server, &at("link")).await.unwrap();
    assert!(reason.contains("leads out of"), "{reason}");
    for rest in ["../secret", "%2e%2e/secret", "app/../../secret"] {
        let (status, reply) = server.call(Method::POST, "/projects", body(&at(rest))).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{rest}: {reply}");
    }
    let reason = boot(&server, &at("missing")).await.unwrap();
    assert!(reason.contains("cannot be read on the server"), "{reason}");
}

#[tokio::test]
#[ignore = "needs git-lfs (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn submodules_and_lfs_of_another_tenant_pass_the_same_rules() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let make = |name: &str| repo_folder(&git_repo(folder.path(), name, &[("a", "1")]));
    let (secret, holder, large) = (make("secret"), make("holder"), make("large"));
    set_submodule(&holder, "s", "deps/s", &format!("file://{}", secret.display()), &secret);
    use_lfs(&large);
    commit(&large, &[("large.bin", "large")], "large");
    let holder = Web::files(holder.join(".git")).await;
    let large = Web::files(large.join(".git")).await;
    let mut server = start(&folder, &[holder.rule("beta"), large.rule("beta")]).await;
    as_tenant(&mut server, "beta").await;
    let reason = boot(&server, &holder.url()).await.unwrap();
    let says = [
        "the submodule `s` at deps/s of acme/app",
        "it is a path on the server",
        USUAL,
    ];
    for part in says {
        assert!(reason.contains(part), "{reason}");
    }
    let reason = boot(&server, &large.url()).await.unwrap();
    assert!(reason.contains("what Git LFS keeps of acme/app"), "{reason}");
    let mut without = body(&large.url());
    without["name"] = json!("without");
    without["lfs"] = json!(false);
    let project = server.project(without).await;
    assert_eq!(boot_of(&server, &project).await, None);
}

/// An address of this machine that is no loopback: git-lfs speaks to those past any proxy.
fn own_address() -> Option<IpAddr> {
    let all = hearth_drivers::host_addresses().unwrap();
    all.into_iter().find(|ip| ip.is_ipv4() && !ip.is_loopback())
}

#[tokio::test]
#[ignore = "needs git-lfs and a network address besides the loopback (all: cargo xtask test; alone: cargo xtask test NAME)"]
async fn git_lfs_of_another_tenant_reaches_what_the_rules_let_it() {
    let ip = own_address().unwrap();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let hidden = Web::answering(|_| ("200 OK".to_owned(), b"large".to_vec())).await;
    // The object is at its repository, or where the one that is listed sends to.
    let forge = async |name: &str, lfs: Option<&str>, sends_to: Option<String>| {
        let repo = repo_folder(&git_repo(folder.path(), name, &[("a", "1")]));
        use_lfs(&repo);
        commit(&repo, &[("large.bin", "large")], "large");
        if let Some(url) = lfs {
            commit(
                &repo,
                &[(".lfsconfig", &format!("[lfs]\n\turl = {url}\n"))],
                "elsewhere",
            );
        }
        git(&repo, &["update-server-info"]);
        let listed = git(&repo, &["lfs", "ls-files", "--long"]);
        let id = listed.split(' ').next().unwrap().to_owned();
        let files = repo.join(".git");
        let own: Arc<std::sync::OnceLock<SocketAddr>> = Arc::default();
        let address = own.clone();
        let web = Web::at(ip, move |path| {
            if path.ends_with("/objects/batch") {
                let here = || format!("http://{}/object", address.get().unwrap());
                let href = sends_to.clone().unwrap_or_else(here);
                let actions = json!({ "download": { "href": href } });
                let objects = json!([{ "oid": id, "size": 5, "authenticated": true, "actions": actions }]);
                let reply = json!({ "transfer": "basic", "objects": objects }).to_string();
                let status = "200 OK\r\ncontent-type: application/vnd.git-lfs+json";
                return (status.to_owned(), reply.into_bytes());
            }
            if path == "/object" {
                return ("200 OK".to_owned(), b"large".to_vec());
            }
            match std::fs::read(files.join(file_of(path))) {
                Ok(content) => ("200 OK".to_owned(), content),
                Err(_) => ("404 Not Found".to_owned(), Vec::new()),
            }
        })
        .await;
        own.set(web.address).unwrap();
        web
    };
    let good = forge("good", None, None).await;
    let sends_on = forge("sends_on", None, Some(format!("http://{}/object", hidden.address))).await;
    let to_file = forge("to_file", Some(&format!("file://{}", folder.path().display())), None).await;
    let to_http = forge("to_http", Some(&hidden.url()), None).await;
    let rules = [&good, &sends_on, &to_file, &to_http].map(|web| web.rule("beta"));
    let mut server = start(&folder, &rules).await;
    as_tenant(&mut server, "beta").await;
    let fetched = boot(&server, &good.url()).await;
    let has_landlock = !fetched.as_deref().unwrap_or_default().contains("Landlock");
    if has_landlock {
        assert_eq!(fetched, None);
        assert!(
            good.requests()
                .iter()
                .any(|request| request.starts_with("GET") && request.contains("/object"))
        );
    }
    for (web, says) in [
        (&to_file, "it is a path on the server"),
        (&to_http, "plain http:// is not encrypted"),
    ] {
        let reason = boot(&server, &web.url()).await.unwrap();
        assert!(reason.contains(says) && reason.contains(USUAL), "{reason}");
    }
    let reason = boot(&server, &sends_on.url()).await.unwrap();
    assert!(reason.contains("what Git LFS keeps of acme/app"), "{reason}");
    assert_eq!(hidden.requests(), Vec::<String>::new(), "{reason}");
}
