//! A server on a free port, a client with its token, local git repositories, and waiting on predicates.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::{ServeError, ServeOptions, serve_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a predicate may take to hold with the fake driver.
pub const SOON: Duration = Duration::from_secs(20);
/// How long a real VM may take to boot on a busy machine without hardware virtualisation.
pub const BOOT: Duration = Duration::from_secs(400);

pub struct Server {
    pub address: SocketAddr,
    pub token: String,
    pub folder: Arc<tempfile::TempDir>,
    pub options: ServeOptions,
    http: reqwest::Client,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<Result<(), ServeError>>,
}

/// The options of a test server in this folder.
pub fn options(folder: &Path) -> ServeOptions {
    let mut options = ServeOptions::new(folder.join("data"));
    options.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()];
    options.memory_mib = 64 * 1024;
    options.database = hearth_test_postgres::wanted().map(|url| url.parse().unwrap());
    options
}

impl Server {
    /// A server with the fake driver.
    pub async fn fake(fake: FakeOptions) -> (Self, FakeDriver) {
        let driver = FakeDriver::new(1, fake);
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut options = options(folder.path());
        // Fake VMs need no processor of their own.
        options.provision_concurrency = 4;
        let made: Arc<dyn Driver> = Arc::new(driver.clone());
        (Self::start(folder, options, move |_| Ok(made)).await.unwrap(), driver)
    }

    /// A server with these VMs, which may be of one before it.
    pub async fn with_vms(
        folder: &Arc<tempfile::TempDir>,
        options: &ServeOptions,
        driver: &FakeDriver,
    ) -> Result<Self, ServeError> {
        let driver: Arc<dyn Driver> = Arc::new(driver.clone());
        Self::start(folder.clone(), options.clone(), move |_| Ok(driver)).await
    }

    pub async fn start(
        folder: Arc<tempfile::TempDir>,
        options: ServeOptions,
        make: impl FnOnce(String) -> Result<Arc<dyn Driver>, ServeError> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let stop = CancellationToken::new();
        let (ready, address) = tokio::sync::oneshot::channel();
        let mut ended = tokio::spawn({
            let (options, stop) = (options.clone(), stop.clone());
            async move {
                serve_with(
                    &options,
                    make,
                    |addresses| ready.send(addresses[0].tcp().unwrap()).unwrap(),
                    stop,
                )
                .await
            }
        });
        let address = tokio::select! {
            biased;
            Ok(address) = address => address,
            end = &mut ended => return Err(end.unwrap().expect_err("it ended before it listened")),
        };
        let token = std::fs::read_to_string(options.data_dir.join("admin-token"))
            .unwrap()
            .trim()
            .to_owned();
        install_tls();
        let http = reqwest::Client::new();
        Ok(Self {
            address,
            token,
            folder,
            options,
            http,
            stop,
            ended,
        })
    }

    /// Ends the server; its folder stays.
    pub async fn stop(self) -> (Arc<tempfile::TempDir>, ServeOptions) {
        self.stop.cancel();
        self.ended.await.unwrap().unwrap();
        (self.folder, self.options)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let path = if path.starts_with("/api")
            || ["/healthz", "/hooks", "/readyz", "/openapi.json"]
                .iter()
                .any(|root| path.starts_with(root))
        {
            path.to_owned()
        } else {
            format!("/api/v1{path}")
        };
        self.http
            .request(method, format!("http://{}{path}", self.address))
            .bearer_auth(&self.token)
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let response = request.send().await.unwrap();
        let status = response.status();
        assert!(response.headers().contains_key("x-request-id"));
        let body = response.bytes().await.unwrap();
        (
            status,
            serde_json::from_slice(&body).unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&body))),
        )
    }

    pub async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.send(self.request(method, path).json(&body)).await
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ok(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Value {
        self.ok(self.request(Method::POST, path).json(&body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Value {
        self.ok(self.request(Method::PATCH, path).json(&body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Value {
        self.ok(self.request(Method::PUT, path).json(&body)).await
    }

    async fn ok(&self, request: reqwest::RequestBuilder) -> Value {
        let (status, body) = self.send(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    /// A project; its path `/projects/{id}`. A name that is taken gets a number.
    pub async fn project(&self, mut body: Value) -> String {
        let name = body["name"].as_str().unwrap().to_owned();
        for number in 2.. {
            let (status, reply) = self.call(Method::POST, "/projects", body.clone()).await;
            if status == StatusCode::OK {
                return format!("/projects/{}", reply["id"].as_str().unwrap());
            }
            assert_eq!(status, StatusCode::CONFLICT, "{reply}");
            body["name"] = json!(format!("{name}-{number}"));
        }
        unreachable!("numbers do not end")
    }

    /// Waits until what a GET answers fulfils the predicate.
    pub async fn until(&self, patience: Duration, path: &str, blockers: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let value = self.get(path).await;
            if blockers(&value) {
                return value;
            }
            assert!(
                Instant::now() < deadline,
                "{path} never came to be as wanted: {value:#}"
            );
            pause().await;
        }
    }

    /// Waits until a pool has this many ready and nothing in the making.
    pub async fn until_full(&self, patience: Duration, project: &str, ready: u64) -> Value {
        let want = |pool: &Value| pool["status"]["ready"] == ready && pool["status"]["provisioning"] == 0;
        self.until(patience, &format!("{project}/warm-pool"), want).await
    }

    /// A project without repositories whose pool has this many ready: its path and its pool's.
    pub async fn full_pool(&self, ready: u64) -> (String, String) {
        let project = self.project(bare_project()).await;
        let pool = format!("{project}/warm-pool");
        let enable = json!({ "enabled": true, "targetSize": ready });
        self.patch(&pool, enable).await;
        self.until_full(SOON, &project, ready).await;
        (project, pool)
    }

    /// Starts a test boot and waits for its end.
    pub async fn test_boot(&self, patience: Duration, project: &str, body: Value) -> Value {
        let id = self.post(&format!("{project}/warm-pool/test"), body).await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        self.until(patience, &format!("{project}/warm-pool/instances/{id}"), |it| {
            it["status"] != "provisioning"
        })
        .await
    }
}

/// A client wants a TLS provider even for plain HTTP; the second call in a process is refused, which is fine.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The time between two looks at a predicate.
pub async fn pause() {
    // pause between two checks
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// A project's body without repositories.
pub fn bare_project() -> Value {
    json!({ "name": "demo" })
}

/// A local git repository with these files on `main`; its `file://` URL.
pub fn git_repo(parent: &Path, name: &str, files: &[(&str, &str)]) -> String {
    let folder = parent.join("repos").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    git(&folder, &["init", "--quiet", "--initial-branch=main"]);
    commit(&folder, files, "first");
    format!("file://{}", folder.display())
}

pub fn repo_folder(url: &str) -> PathBuf {
    PathBuf::from(url.strip_prefix("file://").unwrap())
}

pub fn commit(folder: &Path, files: &[(&str, &str)], message: &str) {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    git(folder, &["add", "--all"]);
    git(
        folder,
        &[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "commit",
            "--quiet",
            "-m",
            message,
        ],
    );
}

pub fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(folder).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
