//! TLS: certificates from files and by ACME, the client that trusts their authority, and what happens when they change.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use crate::server::{self, Server};
use crate::support::{Ran, eventually, run};

/// An authority, and the files of a certificate that it signed.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.join(name);
        fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// Writes a certificate for this machine, and its key.
    fn sign(&self, certificate: &Path, key: &Path) {
        let own = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let signed = CertificateParams::new(names)
            .unwrap()
            .signed_by(&own, &self.issuer)
            .unwrap();
        fs::write(certificate, signed.pem()).unwrap();
        fs::write(key, own.serialize_pem()).unwrap();
    }
}

fn asked(server: &Server, url: &str, ca: Option<&Path>) -> Ran {
    let mut command = server.client(&["project", "list"]);
    command.env("HEARTH_URL", url).env("HEARTH_TOKEN", server.token());
    if let Some(ca) = ca {
        command.env("HEARTH_CA", ca);
    }
    run(command)
}

#[test]
fn certificate_from_files_is_served_and_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let first = Authority::new(folder.path(), "first.pem");
    first.sign(&certificate, &key);
    let args = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert_arg, key_arg) = (args(&certificate), args(&key));
    let server = Server::start(
        folder.path(),
        &[
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            &cert_arg,
            "--tls-key",
            &key_arg,
        ],
    );
    let url = format!("https://127.0.0.1:{}", server.port());
    let good = asked(&server, &url, Some(&first.file));
    assert_eq!(good.code, 0, "{}", good.stderr);
    // Who does not know the authority is told how to.
    let unknown = asked(&server, &url, None);
    assert!(
        unknown.code == 3 && unknown.stderr.contains("--ca"),
        "{}",
        unknown.stderr
    );
    let plain = asked(&server, &url.replace("https", "http"), None);
    assert!(plain.code == 3 && plain.stderr.contains("https://"), "{}", plain.stderr);
    // Clients on this machine need no certificate.
    assert!(server.url().starts_with("unix:"), "{}", server.url());
    server.ok(&["project", "create", "demo"]);

    // A fault in the new files leaves the old certificate in use.
    let second = Authority::new(folder.path(), "second.pem");
    fs::write(&certificate, "no certificate").unwrap();
    server.signal(Signal::SIGHUP);
    server.says("it holds no certificate in PEM");
    assert_eq!(asked(&server, &url, Some(&first.file)).code, 0);
    second.sign(&certificate, &key);
    server.signal(Signal::SIGHUP);
    eventually("the new certificate is served", || {
        asked(&server, &url, Some(&second.file)).code == 0
    });
    assert_eq!(asked(&server, &url, Some(&first.file)).code, 3);

    // Without a signal the files are checked now and then.
    first.sign(&certificate, &key);
    eventually("the changed files are noticed", || {
        asked(&server, &url, Some(&first.file)).code == 0
    });
    let private = fs::read_to_string(&key).unwrap();
    let secret = private.lines().nth(1).unwrap();
    assert!(!server.log().contains(secret));
}

#[test]
fn certificate_that_cannot_be_used_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "ca.pem");
    let path = |name: &str| folder.path().join(name);
    authority.sign(&path("one.pem"), &path("one.key"));
    authority.sign(&path("two.pem"), &path("two.key"));
    fs::write(path("text"), "a text").unwrap();
    for (certificate, key, why) in [
        ("one.pem", "two.key", "cannot be used together"),
        ("text", "one.key", "it holds no certificate in PEM"),
        ("one.pem", "text", "it holds no private key in PEM"),
        ("missing", "one.key", "No such file"),
    ] {
        let (certificate, key) = (path(certificate), path(key));
        let args = [
            "--listen",
            "0",
            "--tls-cert",
            certificate.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
        ];
        let mut command = server::command(folder.path(), &args);
        command.stderr(std::process::Stdio::piped());
        let refused = run(command);
        // Of the settings: a service manager does not try again.
        assert_eq!(refused.code, 2, "{why}: {}", refused.stderr);
        let error = refused.stderr.split("error: ").nth(1).unwrap_or_default();
        assert!(
            error.contains(why) && error.contains("hint: "),
            "{why}: {}",
            refused.stderr
        );
    }
}

/// An authority that speaks ACME, as Let's Encrypt does; it ends with this.
struct Pebble {
    child: Child,
    directory: String,
    management: u16,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl Pebble {
    /// One whose certificates hold for 36 seconds, and which finds the server that it checks at this port. Its own certificate is signed by
    /// `authority`.
    fn start(folder: &Path, authority: &Authority, checked: u16) -> Self {
        let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/pebble/usr/bin");
        let programs = std::env::var_os("HEARTH_PEBBLE").map_or_else(|| PathBuf::from(unpacked), PathBuf::from);
        let (certificate, key) = (folder.join("pebble.pem"), folder.join("pebble.key"));
        authority.sign(&certificate, &key);
        let (port, management) = (free_port(), free_port());
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": free_port(),
            "tlsPort": checked,
            "certificateValidityPeriod": 36,
        } });
        let file = folder.join("pebble.json");
        fs::write(&file, config.to_string()).unwrap();
        let log = fs::File::create(folder.join("pebble.log")).unwrap();
        let child = Command::new(programs.join("pebble"))
            .arg("-config")
            .arg(file)
            // It refuses some requests, as the protocol allows, and those are sent again; but it does not sleep.
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("pebble does not start: `cargo xtask test acme` fetches it");
        let directory = format!("https://127.0.0.1:{port}/dir");
        Self {
            child,
            directory,
            management,
        }
    }

    /// Writes the certificate that all its certificates come from.
    fn write_root(&self, file: &Path) {
        eventually("the authority listens", || {
            let root = Command::new("curl")
                .args(["--silent", "--fail", "--insecure"])
                .arg(format!("https://127.0.0.1:{}/roots/0", self.management))
                .output()
                .unwrap();
            fs::write(file, &root.stdout).unwrap();
            root.status.success()
        });
    }
}

#[test]
#[ignore = "needs Debian's package pebble (all: cargo xtask test; alone: cargo xtask test NAME)"]
fn certificate_comes_from_an_authority_by_acme_and_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let own = Authority::new(folder.path(), "own.pem");
    let port = free_port();
    let pebble = Pebble::start(folder.path(), &own, port);
    let root = folder.path().join("root.pem");
    pebble.write_root(&root);
    let directory = pebble.directory.clone();
    let listen = format!("127.0.0.1:{port}");
    let args = [
        "--listen",
        &listen,
        "--acme-domain",
        "localhost",
        "--acme-contact",
        "ops@example.com",
        "--acme-directory",
        &directory,
        "--acme-ca",
        own.file.to_str().unwrap(),
    ];
    let mut server = Server::start(folder.path(), &args);
    let url = format!("https://localhost:{port}");
    eventually("the authority's certificate is served", || {
        asked(&server, &url, Some(&root)).code == 0
    });
    let kept = folder.path().join("data/certificates");
    let certificate = || {
        let files = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
        let mut certificates = files.filter(|path| path.to_string_lossy().contains("cached_cert"));
        fs::read_to_string(certificates.next().unwrap()).unwrap()
    };
    eventually("it is kept", || fs::read_dir(&kept).unwrap().count() == 2);
    let first = certificate();
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);

    // After two thirds of its time there is a new one, and no request is refused.
    eventually("it is renewed", || {
        assert_eq!(asked(&server, &url, Some(&root)).code, 0);
        certificate() != first
    });
    // A server that begins again has it at once.
    let second = certificate();
    server.signal(Signal::SIGTERM);
    server.wait();
    drop(pebble);
    let server = Server::start(folder.path(), &args);
    eventually("the kept certificate is served", || {
        asked(&server, &url, Some(&root)).code == 0
    });
    assert_eq!(certificate(), second);
    // And says why it gets no other: the authority is away.
    server.says("could not be got or renewed by ACME");
    let key = second.lines().nth(1).unwrap();
    assert!(!server.log().contains(key));
}
