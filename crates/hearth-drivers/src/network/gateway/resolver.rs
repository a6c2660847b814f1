//! The resolver of VMs: passes on what a VM may ask, as it was asked, and says of all other names that there are none. Before a VM has an
//! answer, it may connect to what the answer says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{self, Question};
use super::slots::{Slots, Verdict};

/// Queries that are asked upstream at a time.
const AT_ONCE: usize = 512;
/// Connections of VMs at a time.
const CONNECTIONS: usize = 256;
/// How long the upstream resolver may take; clients ask again after about this.
const UPSTREAM: Duration = Duration::from_secs(5);
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(30);
/// Failures that are written to the log.
const MOST_TOLD: usize = 100;
/// Largest UDP message.
const UDP_BYTES: usize = 65_535;

/// Answers on one address.
#[derive(Debug)]
pub(super) struct Resolver {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    slots: Arc<Slots>,
    queries: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Failures that were written to the log.
    told: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl Resolver {
    pub(super) async fn bind(address: SocketAddrV4, slots: Arc<Slots>) -> io::Result<Self> {
        Ok(Self {
            udp: Arc::new(UdpSocket::bind(address).await?),
            tcp: TcpListener::bind(address).await?,
            slots,
            queries: Arc::new(Semaphore::new(AT_ONCE)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            told: AtomicUsize::new(0),
        })
    }

    /// Until the gateway ends.
    pub(super) async fn run(self) {
        let this = Arc::new(self);
        let udp = tokio::spawn(this.clone().serve_udp());
        this.serve_tcp().await;
        let _ = udp.await;
    }

    async fn serve_udp(self: Arc<Self>) {
        let mut buffer = vec![0; UDP_BYTES];
        loop {
            let (count, from) = match self.udp.recv_from(&mut buffer).await {
                Ok(received) => received,
                // An earlier answer could not be delivered.
                Err(_) => continue,
            };
            let (SocketAddr::V4(from), Some(query)) = (from, buffer.get(..count)) else {
                continue;
            };
            // One that has no place is asked again by its client.
            let Ok(place) = self.queries.clone().try_acquire_owned() else {
                continue;
            };
            let (this, query) = (self.clone(), query.to_vec());
            tokio::spawn(async move {
                let _place = place;
                if let Some(reply) = this.reply(*from.ip(), query, Transport::Udp).await {
                    let _ = this.udp.send_to(&reply, from).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>) {
        loop {
            let accepted = self.tcp.accept().await;
            let Ok((stream, from)) = accepted else {
                // Out of file handles, most likely: some are closed in a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (IpAddr::V4(from), Ok(place)) = (from.ip(), self.connections.clone().try_acquire_owned()) else {
                continue;
            };
            let this = self.clone();
            tokio::spawn(async move {
                let _place = place;
                // It ends with the connection.
                let _ = this.converse(stream, from).await;
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, from: Ipv4Addr) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, read_framed(&mut stream)).await??;
            let Some(reply) = self.reply(from, query, Transport::Tcp).await else {
                return Ok(());
            };
            timeout(IDLE, write_framed(&mut stream, &reply)).await??;
        }
    }

    /// The answer to a query; none to what is no query.
    async fn reply(&self, from: Ipv4Addr, query: Vec<u8>, transport: Transport) -> Option<Vec<u8>> {
        let question = answer::question(&query)?;
        let (upstream, learns) = match self.slots.judge(from, &question.name) {
            Verdict::Ignore => return None,
            Verdict::Refuse => return question.no_such_name(),
            Verdict::Pass(upstream) => (upstream, false),
            Verdict::Learn(upstream) => (upstream, true),
        };
        let asked = timeout(UPSTREAM, ask(upstream, query, &question, transport)).await;
        let Ok(Ok((reply, addresses))) = asked else {
            return question.failed();
        };
        if !learns {
            return Some(reply);
        }
        match self.slots.learn(from, &question.name, &addresses).await {
            Ok(true) => Some(reply),
            Ok(false) => question.no_such_name(),
            Err(error) => {
                // A guest can bring this about as often as it likes.
                if self.told.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
                    eprintln!("an answer was not passed on: {error}");
                }
                question.failed()
            }
        }
    }
}

type Answer = (Vec<u8>, Vec<(Ipv4Addr, Duration)>);

/// Asks the upstream resolver, from a port and under a number that nobody can guess; gives its answer as it is, under the client's number.
async fn ask(
    upstream: SocketAddrV4,
    mut query: Vec<u8>,
    question: &Question,
    transport: Transport,
) -> io::Result<Answer> {
    let id: u16 = rand::rng().random();
    answer::renumber(&mut query, id);
    let read = |mut reply: Vec<u8>| {
        let addresses = question
            .addresses(&reply)
            .filter(|_| answer::number(&reply) == Some(id))?;
        answer::renumber(&mut reply, question.id);
        Some((reply, addresses))
    };
    match transport {
        Transport::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect(upstream).await?;
            socket.send(&query).await?;
            let mut buffer = vec![0; UDP_BYTES];
            loop {
                let count = socket.recv(&mut buffer).await?;
                // What is no answer to this query is not ours.
                if let Some(answer) = read(buffer.get(..count).unwrap_or_default().to_vec()) {
                    return Ok(answer);
                }
            }
        }
        Transport::Tcp => {
            let mut stream = TcpStream::connect(upstream).await?;
            write_framed(&mut stream, &query).await?;
            let reply = read_framed(&mut stream).await?;
            read(reply).ok_or_else(|| io::Error::other("the upstream resolver answered another question"))
        }
    }
}

/// A message over TCP: its length, then itself.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), message].concat();
    stream.write_all(&framed).await
}
