//! TCP ports of fake VMs. Nothing listens unless a test says so, and then all VMs have that port: it leads to a server of the test. An SSH
//! connection leads to what stands for port 22.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_guest::paths;
use hearth_guest::ports::{ListeningPort, PortList};
use hearth_guest::ssh::SshHost;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::io::ReaderStream;

use super::agent::{Refusal, Reply, json, query};

/// What SSH servers listen on.
const SSH_PORT: u16 = 22;

/// Which port of the VMs leads where.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports(Arc<Mutex<BTreeMap<u16, SocketAddr>>>);

impl Ports {
    pub(super) fn open(&self, port: u16, server: SocketAddr) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(port, server);
    }

    /// Whether a request with this path is for [`Ports::answer`].
    pub(super) fn knows(path: &str) -> bool {
        [paths::PORTS, paths::PORT_STREAM, paths::SSH_KEYS, paths::SSH].contains(&path)
    }

    pub(super) async fn answer(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        match request.uri().path() {
            paths::PORTS => Ok(self.list()),
            paths::SSH_KEYS => {
                let host_keys = vec!["ssh-ed25519 AAAAfake".to_owned()];
                Ok(json(StatusCode::OK, &SshHost { host_keys }))
            }
            paths::SSH => self.connect(request, SSH_PORT).await,
            _ => {
                let port = query(&request, paths::PORT).and_then(|port| port.parse().ok());
                let port = port.ok_or_else(|| (StatusCode::BAD_REQUEST, "no port".to_owned()))?;
                self.connect(request, port).await
            }
        }
    }

    fn list(&self) -> Reply {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let items = ports.keys().map(|port| ListeningPort {
            port: *port,
            address: "127.0.0.1".into(),
            process_id: Some(4711),
            process: Some("fake".into()),
            command: Some("fake server".into()),
            user: Some("root".into()),
        });
        json(StatusCode::OK, &PortList { items: items.collect() })
    }

    async fn connect(&self, request: Request<Incoming>, port: u16) -> Result<Reply, Refusal> {
        let server = {
            let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ports.get(&port).copied()
        };
        let refused = || {
            (
                StatusCode::BAD_GATEWAY,
                format!("nothing listens on port {port} in the VM"),
            )
        };
        let connection = TcpStream::connect(server.ok_or_else(refused)?).await;
        let (reader, mut writer) = connection.map_err(|_| refused())?.into_split();
        let mut body = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(chunk) = frame.into_data()
                    && writer.write_all(&chunk).await.is_err()
                {
                    return;
                }
            }
            drop(writer.shutdown().await);
        });
        let chunks = futures::StreamExt::map(ReaderStream::new(reader), |chunk| chunk.map(Frame::data));
        Ok(Response::new(StreamBody::new(chunks).boxed_unsync()))
    }
}
