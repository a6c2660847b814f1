//! What programs of this VM ask of the host, over two sockets that every user may connect to. The host reads questions from a reply
//! that it keeps open (`GET /v1/guest-requests`) while the VM is claimed, and sends the answers (`POST`). Nothing of them is kept.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hearth_guest::requests::{
    GuestQuestion, GuestRequest, HostAnswer, HostReply, MAX_LINE, MAX_SSH_MESSAGE, SOCKET, SSH_SOCKET,
};
use http::Request;
use hyper::body::Incoming;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::small_json;
use crate::reply::{self, Fault, Reply};

/// How long a program waits for the host, which may be starting again.
const PATIENCE: Duration = Duration::from_secs(8);
/// The same in a VM where no host has ever read questions: it is being set up, or was claimed this moment.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// Questions that wait for the host to read them.
const WAITING: usize = 64;
/// A client of the SSH agent that says nothing for so long has to connect again.
const IDLE: Duration = Duration::from_secs(120);
/// Programs that ask at a time at each socket; more wait.
const AT_ONCE: usize = 64;
/// After an error of a socket, before it takes connections again.
const PAUSE: Duration = Duration::from_millis(200);
/// Everybody in the VM may ask: all of it is one owner's.
const EVERYBODY: u32 = 0o666;

/// Messages of the SSH agent's protocol: what clients ask that is passed on, and the answer to all else.
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
const FAILURE: [u8; 1] = [5];

const NOT_CLAIMED: &str = "this VM has no git credentials: a project's VMs get them when they are claimed";
const NO_HOST: &str = "Hearth does not answer: its server is not running, or is busy; try again";

static REQUESTS: LazyLock<Requests> = LazyLock::new(Requests::default);

#[derive(Debug)]
struct Requests {
    inside: Mutex<Inside>,
    host: watch::Sender<Host>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<HostAnswer>>,
}

/// Who reads questions.
#[derive(Debug, Default)]
struct Host {
    lines: Option<mpsc::Sender<Bytes>>,
}

impl Host {
    fn reads(&self) -> bool {
        self.lines.as_ref().is_some_and(|lines| !lines.is_closed())
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            inside: Mutex::default(),
            host: watch::Sender::new(Host::default()),
        }
    }
}

/// A question that somebody waits for.
struct Waiting {
    id: u64,
    answer: oneshot::Receiver<HostAnswer>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        REQUESTS.inside().waiting.remove(&self.id);
    }
}

impl Requests {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> Waiting {
        let (sender, answer) = oneshot::channel();
        let mut inside = self.inside();
        inside.next += 1;
        let id = inside.next;
        inside.waiting.insert(id, sender);
        Waiting { id, answer }
    }

    /// Asks the host that reads, and the next one when that is gone.
    async fn ask(&self, question: GuestQuestion) -> HostAnswer {
        let had_host = self.host.borrow().lines.is_some();
        let patience = if had_host { PATIENCE } else { FIRST_PATIENCE };
        let begun = Instant::now();
        let mut waiting = self.begin();
        let request = GuestRequest {
            id: waiting.id,
            question,
        };
        // Our own type always has a JSON form.
        let mut line = serde_json::to_vec(&request).unwrap_or_default();
        line.push(b'\n');
        let line = Bytes::from(line);
        let mut host = self.host.subscribe();
        let asked = async {
            loop {
                let lines = match host.wait_for(Host::reads).await {
                    Ok(host) => host.lines.clone(),
                    // The sender is ours and lives as long as the process.
                    Err(_) => None,
                };
                let lines = lines?;
                if lines.send(line.clone()).await.is_err() {
                    continue;
                }
                tokio::select! {
                    biased;
                    answer = &mut waiting.answer => return answer.ok(),
                    () = lines.closed() => {}
                }
            }
        };
        // Once somebody reads, the answer may take as long as with a host that was there before.
        let mut asked = std::pin::pin!(asked);
        let mut answered = timeout_at(begun + patience, &mut asked).await;
        if answered.is_err() && !had_host && self.host.borrow().reads() {
            answered = timeout_at(begun + PATIENCE, &mut asked).await;
        }
        let has_host = had_host || self.host.borrow().lines.is_some();
        answered.ok().flatten().unwrap_or_else(|| HostAnswer::Failed {
            message: if has_host { NO_HOST } else { NOT_CLAIMED }.to_owned(),
        })
    }
}

/// `GET /v1/guest-requests`: this host reads questions from now on.
pub(crate) fn read() -> Reply {
    let (sender, mut lines) = mpsc::channel(WAITING);
    REQUESTS.host.send_replace(Host { lines: Some(sender) });
    let lines = futures::stream::poll_fn(move |context| lines.poll_recv(context));
    reply::stream(futures::StreamExt::map(lines, Ok))
}

/// `POST /v1/guest-requests`: an answer. One that nobody waits for any more is dropped.
pub(crate) async fn answer(request: Request<Incoming>) -> Result<Reply, Fault> {
    let HostReply { id, answer } = small_json(request, "an answer").await?;
    let waiting = REQUESTS.inside().waiting.remove(&id);
    if let Some(waiting) = waiting {
        // The program that asked may have ended this moment.
        drop(waiting.send(answer));
    }
    Ok(reply::done())
}

/// Takes questions of programs at the two sockets in this folder, to the end.
pub(crate) async fn serve(folder: PathBuf) {
    let bound = std::fs::create_dir_all(&folder)
        .and_then(|()| Ok((listen(&folder.join(SOCKET))?, listen(&folder.join(SSH_SOCKET))?)));
    match bound {
        Ok((questions, keys)) => {
            let both = futures::future::join(accept(questions, answer_program), accept(keys, answer_ssh));
            both.await;
        }
        Err(error) => {
            eprintln!(
                "hearth-agent: git in this VM gets no credentials, {} cannot be used: {error}",
                folder.display()
            );
            std::future::pending::<()>().await;
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // A leftover of an agent that was killed.
    drop(std::fs::remove_file(path));
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(EVERYBODY))?;
    Ok(listener)
}

async fn accept<F>(listener: UnixListener, answer: impl Fn(UnixStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answered = answer(stream);
                tokio::spawn(async move {
                    // A program that has gone needs no answer.
                    drop(answered.await);
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// One question in a line, one answer in another.
async fn answer_program(stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let mut reader = BufReader::new(reader.take(limit));
    // One that says nothing holds no place for long.
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => REQUESTS.ask(question).await,
        Err(error) => HostAnswer::Failed {
            message: format!("the agent does not understand the question: {error}"),
        },
    };
    let mut answer = serde_json::to_vec(&answer)?;
    answer.push(b'\n');
    writer.write_all(&answer).await
}

/// A client of an SSH agent: what keys there are, and signatures, are asked of the host; nothing can be added.
async fn answer_ssh(mut stream: UnixStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u32()).await??;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_SSH_MESSAGE {
            return Err(io::Error::other("the message is too long"));
        }
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await?;
        let answer = match message.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => ask_ssh(&message).await,
            _ => FAILURE.to_vec(),
        };
        stream
            .write_u32(u32::try_from(answer.len()).map_err(io::Error::other)?)
            .await?;
        stream.write_all(&answer).await?;
    }
}

async fn ask_ssh(message: &[u8]) -> Vec<u8> {
    let message = BASE64.encode(message);
    let answer = match REQUESTS.ask(GuestQuestion::SshAgent { message }).await {
        HostAnswer::SshAgent { message } => BASE64.decode(message).ok(),
        _ => None,
    };
    answer.unwrap_or_else(|| FAILURE.to_vec())
}
