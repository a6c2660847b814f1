//! What programs in a fake VM ask of the host, passed on as the real agent does it.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hearth_guest::requests::{GuestQuestion, GuestRequest, HostAnswer, HostReply};
use http::{Method, Request};
use hyper::body::{Frame, Incoming};
use tokio::sync::{mpsc, oneshot};

use super::agent::{Refusal, Reply, bad, done, stream, whole};

/// Those of one guest.
#[derive(Debug, Default)]
pub(super) struct Questions(Mutex<Inside>);

#[derive(Debug, Default)]
struct Inside {
    host: Option<mpsc::Sender<io::Result<Frame<Bytes>>>>,
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<HostAnswer>>,
}

impl Questions {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host reads, or answers.
    pub(super) async fn take(&self, request: Request<Incoming>) -> Result<Reply, Refusal> {
        if request.method() == Method::GET {
            let (sender, reply) = stream();
            self.inside().host = Some(sender);
            return Ok(reply);
        }
        let body = whole(request).await?;
        let HostReply { id, answer } = serde_json::from_slice(&body).map_err(|error| bad(&error))?;
        if let Some(waiting) = self.inside().waiting.remove(&id) {
            // The test that asked may have ended.
            drop(waiting.send(answer));
        }
        Ok(done())
    }

    /// Asks the host that reads; `None` when there is none.
    pub(super) async fn ask(&self, question: GuestQuestion) -> Option<HostAnswer> {
        let (sender, answer) = oneshot::channel();
        let (host, request) = {
            let mut inside = self.inside();
            let host = inside.host.clone()?;
            inside.next += 1;
            let id = inside.next;
            inside.waiting.insert(id, sender);
            (host, GuestRequest { id, question })
        };
        let mut line = serde_json::to_vec(&request).ok()?;
        line.push(b'\n');
        host.send(Ok(Frame::data(line.into()))).await.ok()?;
        tokio::select! {
            answer = answer => answer.ok(),
            () = host.closed() => None,
        }
    }
}
