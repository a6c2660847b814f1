//! A private git server on the loopback: `git http-backend` and a Git LFS of its own behind a user name and a token. It knows whether
//! the token stood in the arguments of any process while somebody asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{commit, git};

#[derive(Clone)]
pub struct GitHost(Arc<Inside>);

struct Inside {
    address: SocketAddr,
    root: PathBuf,
    token: Mutex<String>,
    lfs: Mutex<HashMap<String, Bytes>>,
    /// Requests with the right token.
    admitted: Mutex<Vec<String>>,
    in_arguments: Mutex<bool>,
}

impl GitHost {
    /// Without repositories, in this folder.
    pub async fn start(root: &Path, token: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        std::fs::create_dir_all(root).unwrap();
        let host = Self(Arc::new(Inside {
            address: listener.local_addr().unwrap(),
            root: root.to_owned(),
            token: Mutex::new(token.to_owned()),
            lfs: Mutex::default(),
            admitted: Mutex::default(),
            in_arguments: Mutex::new(false),
        }));
        let serving = host.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let host = serving.clone();
                let service = service_fn(move |request| answer(host.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        host
    }

    /// As credentials name it.
    pub fn name(&self) -> String {
        self.0.address.to_string()
    }

    /// Where a repository is.
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/acme/{name}.git", self.0.address)
    }

    /// From now on this is the token.
    pub fn set_token(&self, token: &str) {
        token.clone_into(&mut self.0.token.lock().unwrap());
    }

    /// A repository with a commit; the folder that it was made in, whose `origin` is the bare one that is served.
    pub fn repository(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let work = self.repository_folder(name);
        let bare = self.bare(name);
        std::fs::create_dir_all(&work).unwrap();
        std::fs::create_dir_all(&bare).unwrap();
        git(&bare, &["init", "--quiet", "--bare", "--initial-branch=main"]);
        git(&bare, &["config", "http.receivepack", "true"]);
        git(&work, &["init", "--quiet", "--initial-branch=main"]);
        git(&work, &["remote", "add", "origin", bare.to_str().unwrap()]);
        commit(&work, files, "first");
        self.publish(name);
        work
    }

    /// Where what is served is made.
    pub fn repository_folder(&self, name: &str) -> PathBuf {
        self.0.root.join("work").join(name)
    }

    /// Brings what was committed in the work folder to the served repository.
    pub fn publish(&self, name: &str) {
        let work = self.repository_folder(name);
        git(
            &work,
            &["-c", "core.hooksPath=/dev/null", "push", "--quiet", "origin", "main"],
        );
        let objects = work.join(".git/lfs/objects");
        let mut found = Vec::new();
        files(&objects, &mut found);
        for path in found {
            let id = path.file_name().unwrap().to_str().unwrap().to_owned();
            let content = std::fs::read(&path).unwrap().into();
            self.0.lfs.lock().unwrap().insert(id, content);
        }
    }

    /// The folder of a served repository.
    fn bare(&self, name: &str) -> PathBuf {
        self.0.root.join("acme").join(format!("{name}.git"))
    }

    /// Paths of the requests that came with the token.
    pub fn admitted(&self) -> Vec<String> {
        self.0.admitted.lock().unwrap().clone()
    }

    /// Whether a process had the token in its arguments.
    pub fn was_in_arguments(&self) -> bool {
        *self.0.in_arguments.lock().unwrap()
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn is_in_arguments(secret: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).contains(secret))
}

async fn answer(host: GitHost, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(host.answer(parts, body).await)
}

impl GitHost {
    async fn answer(&self, parts: http::request::Parts, body: Bytes) -> Response<Full<Bytes>> {
        let token = self.0.token.lock().unwrap().clone();
        if is_in_arguments(&token) {
            *self.0.in_arguments.lock().unwrap() = true;
        }
        let given = parts.headers.get(header::AUTHORIZATION);
        let given = given.and_then(|given| given.to_str().ok()?.strip_prefix("Basic "));
        let given = given.and_then(|given| String::from_utf8(BASE64.decode(given).ok()?).ok());
        if given.as_deref().and_then(|given| given.split_once(':')) != Some(("x-access-token", token.as_str())) {
            // A server that says what it was sent.
            let said = given.map_or_else(String::new, |given| format!("no such token: {given}"));
            return Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")
                .body(said.into())
                .unwrap();
        }
        let path = parts.uri.path().to_owned();
        self.0.admitted.lock().unwrap().push(path.clone());
        let query = parts.uri.query().unwrap_or_default().to_owned();
        if path.ends_with("/info/lfs/objects/batch") {
            return self.batch(&path, &serde_json::from_slice(&body).unwrap());
        }
        if let Some((_, id)) = path.rsplit_once("/lfs-objects/") {
            if parts.method == "PUT" {
                self.0.lfs.lock().unwrap().insert(id.to_owned(), body);
                return Response::new(Full::default());
            }
            let content = self.0.lfs.lock().unwrap().get(id).cloned();
            return content.map_or_else(
                || {
                    let mut missing = Response::new(Full::default());
                    *missing.status_mut() = StatusCode::NOT_FOUND;
                    missing
                },
                |content| Response::new(content.into()),
            );
        }
        let header = |name: &str| {
            let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let mut backend = tokio::process::Command::new("git")
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.0.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REMOTE_USER", "x")
            .env("REQUEST_METHOD", parts.method.as_str())
            .env("PATH_INFO", &path)
            .env("QUERY_STRING", &query)
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("CONTENT_LENGTH", body.len().to_string())
            .env("GIT_PROTOCOL", header("git-protocol"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = backend.stdin.take().unwrap();
        let feeding = tokio::spawn(async move { drop(stdin.write_all(&body).await) });
        let output = backend.wait_with_output().await.unwrap().stdout;
        feeding.await.unwrap();
        let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let mut response = Response::builder();
        for line in String::from_utf8_lossy(&output[..end]).lines() {
            let (name, value) = line.split_once(": ").unwrap();
            response = match name {
                "Status" => response.status(value.split(' ').next().unwrap().parse::<u16>().unwrap()),
                name => response.header(name, value),
            };
        }
        response.body(output[end + 4..].to_vec().into()).unwrap()
    }

    fn batch(&self, path: &str, asked: &Value) -> Response<Full<Bytes>> {
        let operation = asked["operation"].as_str().unwrap();
        let repository = path.strip_suffix("/info/lfs/objects/batch").unwrap();
        let objects = asked["objects"].as_array().unwrap().iter().map(|object| {
            let id = object["oid"].as_str().unwrap();
            let href = format!("http://{}{repository}/lfs-objects/{id}", self.0.address);
            json!({ "oid": id, "size": object["size"], "actions": { operation: { "href": href } } })
        });
        let reply = json!({ "transfer": "basic", "objects": objects.collect::<Vec<_>>() });
        Response::builder()
            .header(header::CONTENT_TYPE, "application/vnd.git-lfs+json")
            .body(reply.to_string().into())
            .unwrap()
    }
}
