//! The log and the traces of one claim: a collector gets the whole of it, from the request to the agent, and every record of the log
//! names the request.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Attribute;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;

use crate::server::{self, Server};
use crate::support::{eventually, run_with_stdin};

/// What is looked for; long and unlikely enough.
const SECRET: &str = "value-of-a-variable-0815";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OUTER_SPAN: &str = "00f067aa0ba902b7";
const REQUEST_ID: &str = "request-4711";

/// A collector of traces.
struct Collector {
    url: String,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = Arc::clone(&all);
                std::thread::spawn(move || {
                    while let Some(body) = take(&stream) {
                        all.lock().unwrap().push(body)
                    }
                });
            }
        });
        Self { url, bodies }
    }

    fn spans(&self) -> Vec<Span> {
        let bodies = self.bodies.lock().unwrap();
        let requests = bodies
            .iter()
            .map(|body| ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
        let resources = requests.flat_map(|request| request.resource_spans);
        resources
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }
}

/// One request to the collector: its body.
fn take(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    assert!(line.starts_with("POST /v1/traces HTTP/1.1"), "{line}");
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut stream = stream;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?;
    Some(body)
}

/// Claims a VM that is made for this claim; the reply.
fn claim(server: &Server, project: &str) -> (String, Value) {
    let body = r#"{"taskId":"T1","miss":"bypass","waitMs":60000}"#;
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    let request = format!(
        "POST /api/v1/projects/{project}/warm-pool/claim HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         x-request-id: {REQUEST_ID}\r\ntraceparent: 00-{TRACE}-{OUTER_SPAN}-01\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        server.token(),
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
    (head.to_owned(), serde_json::from_str(body).unwrap())
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a str> {
    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Attribute::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn one_claim_is_one_trace_and_one_request_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start();
    let mut command = server::command(folder.path(), &["--listen", "0", "--log-format", "json"]);
    command
        .args(["--otlp-endpoint", &collector.url])
        .env(
            "RUST_LOG",
            "hearth_server=debug,hearth_drivers=debug,hearth_store=debug,info",
        )
        .env("OTEL_BSP_SCHEDULE_DELAY", "100");
    let mut server = Server::started(folder.path(), command);
    let created: Value = serde_json::from_str(&server.ok(&["project", "create", "demo", "--json"])).unwrap();
    let project = created["id"].as_str().unwrap().to_owned();
    let set = run_with_stdin(server.client(&["env", "set", "demo", "KEY"]), SECRET.as_bytes());
    assert_eq!(set.code, 0, "{}", set.stderr);
    server.ok(&["pool", "set", "demo", "--target", "1"]);
    let (head, reply) = claim(&server, &project);
    let id = reply["id"].as_str().unwrap().to_owned();
    assert!(
        head.to_ascii_lowercase()
            .contains(&format!("x-request-id: {REQUEST_ID}")),
        "{head}"
    );

    // Every record about this VM belongs to the request.
    let log = server.log();
    let records: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let about = records.iter().filter(|record| record.to_string().contains(&id));
    let mut count = 0;
    for record in about {
        let spans = record["spans"]
            .as_array()
            .unwrap_or_else(|| panic!("no request: {record}"));
        assert_eq!(spans[0]["id"], REQUEST_ID, "{record}");
        assert_eq!(spans[0]["project"], project.as_str(), "{record}");
        count += 1;
    }
    assert!(count >= 3, "{count} records in {log}");
    assert!(
        log.contains("an instance is ready") && log.contains("handed over"),
        "{log}"
    );

    // What is left is sent when the server ends.
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().success());
    let mut spans = Vec::new();
    eventually("the collector has the request", || {
        spans = collector.spans();
        spans.retain(|span| hex(&span.trace_id) == TRACE);
        spans.iter().any(|span| hex(&span.parent_span_id) == OUTER_SPAN)
    });
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    // From a span up to the client's own.
    let way = |span: &Span| {
        let mut names = vec![span.name.clone()];
        let mut parent = &span.parent_span_id;
        while let Some(above) = by_id.get(parent.as_slice()) {
            names.push(above.name.clone());
            parent = &above.parent_span_id;
        }
        assert_eq!(hex(parent), OUTER_SPAN, "{names:?}");
        names.join(" < ")
    };
    let ways: Vec<String> = spans.iter().map(way).collect();
    let request = "POST /api/v1/projects/{projectId}/warm-pool/claim";
    for wanted in [
        request.to_owned(),
        format!("claim < {request}"),
        format!("wait < claim < {request}"),
        format!("boot < claim < {request}"),
        format!("create_vm < boot < claim < {request}"),
        format!("set_env_vars < boot < claim < {request}"),
        format!("hand_over < claim < {request}"),
        format!("resume < hand_over < claim < {request}"),
    ] {
        assert!(ways.contains(&wanted), "{wanted} in {ways:#?}");
    }
    // Down to the agent, at the hand-over and in the boot.
    for above in ["hand_over < claim", "boot < claim"] {
        assert!(
            ways.iter().any(|way| way.starts_with("P") && way.contains(above)),
            "{above} in {ways:#?}"
        );
    }
    let boot = spans.iter().find(|span| span.name == "boot").unwrap();
    assert_eq!(attribute(boot, "instance"), Some(id.as_str()));
    assert_eq!(attribute(boot, "project"), Some(project.as_str()));
    assert!(boot.end_time_unix_nano > boot.start_time_unix_nano);
    // The secret went through all of it, and is in nothing of it.
    let token = server.token();
    for needle in [SECRET, token.as_str()] {
        assert!(!log.contains(needle));
        let bodies = collector.bodies.lock().unwrap();
        assert!(
            !bodies
                .iter()
                .any(|body| body.windows(needle.len()).any(|window| window == needle.as_bytes()))
        );
    }
}

#[test]
fn collector_that_is_not_there_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{gone}");
    let mut server = Server::start(folder.path(), &["--listen", "0", "--otlp-endpoint", &endpoint]);
    server.ok(&["project", "create", "demo"]);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(server.wait().success());
    for endpoint in ["nowhere", "ftp://x", "http://user:password@host"] {
        let mut command = server::command(folder.path(), &["--otlp-endpoint", endpoint]);
        command.stderr(std::process::Stdio::piped());
        let refused = crate::support::run(command);
        assert!(
            refused.code == 2 && refused.stderr.contains("--otlp-endpoint"),
            "{}",
            refused.stderr
        );
    }
}
