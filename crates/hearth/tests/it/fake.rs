//! A server for tests of the command line: real sockets and HTTP, replies chosen by each test. It knows no rule of the API.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// What arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// `GET /api/v1/projects?limit=100`
    pub(crate) line: String,
    /// All headers, lower case.
    pub(crate) headers: String,
    /// The body.
    pub(crate) body: String,
}

/// What goes back.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: &'static str,
    body: String,
    /// Wait for the client to close the connection.
    hold: bool,
    /// The length that is announced, when it is not the body's.
    promises: Option<usize>,
}

impl Reply {
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: "content-type: application/json\r\n",
            body: body.to_owned(),
            hold: false,
            promises: None,
        }
    }

    pub(crate) fn ok(body: &str) -> Self {
        Self::json(200, body)
    }

    pub(crate) fn not_found() -> Self {
        Self::json(
            404,
            r#"{"error":{"code":"not_found","message":"there is no such thing"}}"#,
        )
    }

    /// Server-sent events; the stream ends after them.
    pub(crate) fn events(events: &[(&str, &str)]) -> Self {
        let body = events
            .iter()
            .map(|(name, data)| format!("event: {name}\ndata: {data}\n\n"))
            .collect();
        Self {
            status: 200,
            headers: "content-type: text/event-stream\r\n",
            body,
            hold: false,
            promises: None,
        }
    }

    /// A body that ends before this many bytes have come.
    pub(crate) fn promising(mut self, bytes: usize) -> Self {
        self.promises = Some(bytes);
        self
    }

    pub(crate) fn held_open(mut self) -> Self {
        self.hold = true;
        self
    }

    pub(crate) fn with(mut self, headers: &'static str) -> Self {
        self.headers = headers;
        self
    }
}

/// A running server.
pub(crate) struct Fake {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Gets a word when a client closed a connection that was held open.
    pub(crate) closed: Receiver<()>,
}

impl Fake {
    /// Starts one that answers with what `route` says. It knows no look-ups, as an older server does not, and does not note them.
    pub(crate) fn start(route: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::begin(false, route)
    }

    /// The same where `route` answers look-ups too.
    pub(crate) fn with_look_ups(route: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::begin(true, route)
    }

    fn begin(looks_up: bool, route: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (tell, closed) = channel();
        let route = Arc::new(route);
        let log = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (route, log, tell) = (Arc::clone(&route), Arc::clone(&log), tell.clone());
                std::thread::spawn(move || serve(stream, looks_up, &*route, &log, &tell));
            }
        });
        Self { url, requests, closed }
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Those whose first line starts so.
    pub(crate) fn requests_of(&self, start: &str) -> Vec<Request> {
        self.requests()
            .into_iter()
            .filter(|request| request.line.starts_with(start))
            .collect()
    }
}

fn serve(
    mut stream: TcpStream,
    looks_up: bool,
    route: &dyn Fn(&Request) -> Reply,
    log: &Mutex<Vec<Request>>,
    tell: &Sender<()>,
) {
    let Some(request) = read(&stream) else { return };
    let reply = if looks_up || !request.line.contains("/api/v1/find/") {
        log.lock().unwrap().push(request.clone());
        route(&request)
    } else {
        Reply::not_found()
    };
    let head = format!(
        "HTTP/1.1 {} X\r\n{}connection: close\r\nx-request-id: req-1\r\n",
        reply.status, reply.headers
    );
    // Without a length the end of the connection is the end of the body.
    let length = if let Some(length) = reply.promises {
        format!("content-length: {length}\r\n")
    } else if reply.hold || reply.headers.contains("event-stream") {
        String::new()
    } else {
        format!("content-length: {}\r\n", reply.body.len())
    };
    let _ = write!(stream, "{head}{length}\r\n{}", reply.body);
    let _ = stream.flush();
    if reply.hold {
        // Ends when the client closes its side.
        let _ = stream.read(&mut [0]);
        let _ = tell.send(());
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let (mut headers, mut length) = (String::new(), 0);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).ok()? == 0 || header == "\r\n" {
            break;
        }
        let header = header.to_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        headers.push_str(&header);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if headers.contains("transfer-encoding: chunked") {
        read_chunks(&mut reader, &mut body)?;
    }
    Some(Request {
        line,
        headers,
        body: String::from_utf8(body).ok()?,
    })
}

/// A body that comes in chunks, each with its length before it.
fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Option<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; length + "\r\n".len()];
        reader.read_exact(&mut chunk).ok()?;
        if length == 0 {
            return Some(());
        }
        body.extend_from_slice(&chunk[..length]);
    }
}
