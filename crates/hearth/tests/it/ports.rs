//! `hearth ports`, `hearth share`, `hearth forward`, and what ssh is told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::claim::ClaimRequest;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use hearth_drivers::Driver;
use hearth_drivers::fake::{FakeDriver, FakeOptions};
use hearth_server::{ServeOptions, serve_with};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use crate::fake::{Fake, Reply, Request};
use crate::support::{hearth_at, run};

const PORTS: &str = r#"{"items":[
    {"port":3000,"address":"0.0.0.0","processId":617,"process":"node","command":"node --enable-source-maps /home/app/node_modules/.bin/vite","user":"root",
     "url":"http://127.0.0.1:1/api/v1/instances/wpi_1/ports/3000/"},
    {"port":5432,"address":"::1","processId":null,"process":null,"command":null,"user":null,"url":"http://x/5432/"}],
    "previews":[{"name":"app","repoFullName":"acme/web","port":4000,"url":"http://x/4000/","listening":false}]}"#;

fn route(request: &Request) -> Reply {
    if request.line.contains("/shares") {
        return Reply::ok(
            r#"{"url":"http://x/3001/?hearth_share=1-ff","port":3001,"expiresAt":"2030-01-01T00:00:00.000Z"}"#,
        );
    }
    Reply::ok(PORTS)
}

#[test]
fn ports_and_previews_are_two_tables() {
    let server = Fake::start(route);
    let ran = run(hearth_at(&server.url, &["ports", "wpi_1"]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in [
        "3000",
        "0.0.0.0",
        "617",
        "node --enable-source-maps",
        "::1",
        "app",
        "acme/web",
        "4000",
        "no",
        "\n3000: http://127.0.0.1:1/api/v1/instances/wpi_1/ports/3000/\n",
        "\n4000: http://x/4000/\n",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    let ran = run(hearth_at(&server.url, &["--json", "ports", "wpi_1"]));
    assert!(ran.stdout.contains("node_modules/.bin/vite"), "{}", ran.stdout);
}

#[test]
fn link_is_printed_alone_and_its_end_beside_it() {
    let server = Fake::start(route);
    let ran = run(hearth_at(&server.url, &["share", "wpi_1", "3001", "--for", "2h"]));
    assert_eq!(ran.stdout, "http://x/3001/?hearth_share=1-ff\n");
    assert!(ran.stderr.contains("until 2030-01-01T00:00:00Z"), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("nothing listens on port 3001 yet; `hearth ports wpi_1`"),
        "{}",
        ran.stderr
    );
    let asked = server.requests_of("POST /api/v1/instances/wpi_1/shares");
    assert!(
        asked[0].body.contains(r#""port":3001"#) && asked[0].body.contains(r#""expiresInSeconds":7200"#),
        "{asked:?}"
    );
    for wrong in ["0", "70000", "http"] {
        assert_eq!(
            run(hearth_at(&server.url, &["share", "wpi_1", wrong])).code,
            2,
            "{wrong}"
        );
    }
}

#[test]
fn busy_local_port_is_said_before_anything_is_promised() {
    let server = Fake::start(route);
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let ran = run(hearth_at(&server.url, &["forward", "wpi_1", &format!("3000:{port}")]));
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr
            .contains(&format!("this machine's port {port} cannot be used")),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains(&format!("{port}:0")), "{}", ran.stderr);
    assert_eq!(run(hearth_at(&server.url, &["forward", "wpi_1"])).code, 2);
    assert_eq!(run(hearth_at(&server.url, &["forward", "wpi_1", "x:1"])).code, 2);
}

#[test]
fn ssh_is_told_how_to_reach_and_to_know_a_vm() {
    let home = tempfile::tempdir().unwrap();
    let print = || {
        let mut command = hearth_at("http://127.0.0.1:1", &["ssh-config", "--user", "dev"]);
        command
            .env("HOME", home.path())
            .env("PATH", std::env::var_os("PATH").unwrap());
        run(command)
    };
    let ran = print();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let folder = home.path().join(".config/hearth/ssh");
    for line in [
        "Host *.hearth".to_owned(),
        format!("  ProxyCommand {} ssh-proxy %n", env!("CARGO_BIN_EXE_hearth")),
        "  User dev".to_owned(),
        format!("  IdentityFile {}/key/id_ed25519", folder.display()),
        format!("  UserKnownHostsFile {}/known_hosts/%n", folder.display()),
        "  StrictHostKeyChecking yes".to_owned(),
    ] {
        assert!(
            ran.stdout.lines().any(|printed| printed == line),
            "{line}: {}",
            ran.stdout
        );
    }
    let key = std::fs::read(folder.join("key/id_ed25519")).unwrap();
    assert_eq!(print().stdout, ran.stdout);
    assert_eq!(
        std::fs::read(folder.join("key/id_ed25519")).unwrap(),
        key,
        "the pair stays"
    );
    // The real ssh takes it.
    let config = home.path().join("config");
    std::fs::write(&config, &ran.stdout).unwrap();
    let shown = std::process::Command::new("ssh")
        .arg("-F")
        .arg(&config)
        .args(["-G", "last.hearth"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains(&format!("proxycommand {} ssh-proxy", env!("CARGO_BIN_EXE_hearth"))),
        "{shown}"
    );
    assert!(shown.contains("user dev\n"), "{shown}");
}

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers each connection with what it sent, in capitals, when it has sent all.
fn shouting_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut text = String::new();
                if connection.read_to_string(&mut text).is_ok() {
                    drop(connection.write_all(text.to_uppercase().as_bytes()));
                }
            });
        }
    });
    address
}

async fn claimed(client: &Client) -> InstanceId {
    let body = serde_json::from_str(r#"{"name":"web","repos":[]}"#).unwrap();
    let project = client.create_project(&body).await.unwrap();
    let patch = serde_json::from_str(r#"{"enabled":true,"targetSize":1}"#).unwrap();
    client.patch_pool(&project.id, &patch).await.unwrap();
    let body = ClaimRequest {
        wait_ms: Some(20_000),
        ..ClaimRequest::default()
    };
    client.claim(&project.id, &body).await.unwrap().id
}

#[tokio::test(flavor = "multi_thread")]
async fn local_ports_lead_into_the_vm_until_ctrl_c() {
    let folder = tempfile::tempdir().unwrap();
    let driver = FakeDriver::new(1, FakeOptions::default());
    let mut options = ServeOptions::new(folder.path().join("data"));
    options.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()];
    let (ready, address) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (options, stop, made) = (options.clone(), stop.clone(), driver.clone());
        let made: Arc<dyn Driver> = Arc::new(made);
        async move {
            serve_with(
                &options,
                move |_| Ok(made),
                |addresses| ready.send(addresses[0].clone()).unwrap(),
                stop,
            )
            .await
        }
    });
    let url = format!("http://{}", address.await.unwrap());
    let token = std::fs::read_to_string(options.data_dir.join("admin-token")).unwrap();
    let id = claimed(&Client::new(&url, token.trim()).unwrap()).await;

    driver.listen(3000, shouting_server());
    let work = move || {
        let mut command = hearth_at(&url, &["forward", id.as_str(), "3000:0", "4000:0"]);
        command.env("HEARTH_TOKEN", token.trim());
        let mut running = Running(command.spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let mut place = |port: u16| -> SocketAddr {
            let line = lines.next().unwrap().unwrap();
            let (local, rest) = line.split_once(" -> ").unwrap();
            assert_eq!(rest, format!("port {port} of {id}"));
            local.parse().unwrap()
        };
        let (shouts, nothing) = (place(3000), place(4000));
        let ask = |at: SocketAddr, text: &str| {
            let mut connection = TcpStream::connect(at).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // A connection that is refused inside is closed at once.
            drop(connection.write_all(text.as_bytes()));
            drop(connection.shutdown(Shutdown::Write));
            let mut answer = String::new();
            drop(connection.read_to_string(&mut answer));
            answer
        };
        assert_eq!(ask(shouts, "hello"), "HELLO");
        assert_eq!(ask(nothing, "hello"), "");
        let long = "abc".repeat(500_000);
        assert_eq!(
            ask(shouts, &long),
            long.to_uppercase(),
            "what was refused ended nothing else"
        );
        kill(Pid::from_raw(running.0.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        assert_eq!(running.0.wait().unwrap().code(), Some(130));
        let mut said = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(
            said.contains("port 4000: nothing listens on port 4000 in the VM; what does: 3000 (fake)"),
            "{said}"
        );
        assert!(TcpStream::connect(shouts).is_err());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    stop.cancel();
    served.await.unwrap().unwrap();
}
