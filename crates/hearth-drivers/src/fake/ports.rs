//! TCP ports of fake VMs. Nothing listens unless a test says so, and then all VMs have that port: it leads to a server of the test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hearth_guest::paths;
use hearth_guest::ports::{ListeningPort, PortList};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::io::ReaderStream;

use super::agent::{Refusal, Reply, query};

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

    pub(super) fn list(&self) -> Reply {
        let ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let items = ports.keys().map(|port| ListeningPort {
            port: *port,
            address: "127.0.0.1".into(),
            process_id: Some(4711),
            process: Some("fake".into()),
            command: Some("fake server".into()),
            user: Some("root".into()),
        });
        let list = PortList { items: items.collect() };
        let text = serde_json::to_vec(&list).unwrap_or_default();
        Response::new(
            Full::new(Bytes::from(text))
                .map_err(|never| match never {})
                .boxed_unsync(),
        )
    }

    pub(super) async fn connect(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        let port = query(&request, paths::PORT).and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or_else(|| (StatusCode::BAD_REQUEST, "no port".to_owned()))?;
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
