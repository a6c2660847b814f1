//! QEMU's machine protocol (QMP): a JSON object per line, calls that are answered by their id, events in between. Written here
//! because a dozen calls do not need every type that QEMU has: the crate that holds them took longer to compile than any other.

use std::collections::VecDeque;
use std::io;

use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

/// Longest line that is read. The answers to our calls have some hundred bytes.
const MAX_LINE: usize = 1024 * 1024;

/// Something that happened in the VM.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: Value,
}

/// Anything that QEMU sends.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Qmp<S> {
    lines: Framed<S, LinesCodec>,
    last_id: u64,
    /// Events that came while an answer was waited for.
    seen: VecDeque<Event>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Qmp<S> {
    /// Reads QEMU's greeting and leaves the mode in which only that is allowed.
    pub(super) async fn open(stream: S) -> io::Result<Self> {
        let mut qmp = Self {
            lines: Framed::new(stream, LinesCodec::new_with_max_length(MAX_LINE)),
            last_id: first_id(),
            seen: VecDeque::new(),
        };
        loop {
            let message = qmp.read().await?;
            if message.greeting.is_some() {
                break;
            }
            // A server was killed in the middle of a conversation: QEMU still sends what it had to say in that one.
            if message.id.is_none() && message.event.is_none() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "QEMU's monitor does not greet",
                ));
            }
        }
        qmp.call("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Asks for something and waits for the answer. One that belongs to a call that was given up is passed over.
    pub(super) async fn call(&mut self, name: &str, arguments: Value) -> io::Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let call = json!({ "execute": name, "arguments": arguments, "id": id });
        self.lines.send(call.to_string()).await.map_err(broken)?;
        loop {
            let message = self.read().await?;
            if let Some(event) = message.event {
                self.seen.push_back(Event {
                    name: event,
                    data: message.data,
                });
            } else if message.id == Some(id) || (message.id.is_none() && message.error.is_some()) {
                return match message.error {
                    Some(refusal) => Err(io::Error::other(refusal.desc)),
                    None => Ok(message.answer.unwrap_or_default()),
                };
            }
        }
    }

    /// The next event, those first that came while an answer was waited for.
    pub(super) async fn event(&mut self) -> io::Result<Event> {
        if let Some(event) = self.seen.pop_front() {
            return Ok(event);
        }
        loop {
            let message = self.read().await?;
            if let Some(name) = message.event {
                return Ok(Event {
                    name,
                    data: message.data,
                });
            }
        }
    }

    /// Forgets the events so far.
    pub(super) fn forget_events(&mut self) {
        self.seen.clear();
    }

    async fn read(&mut self) -> io::Result<Message> {
        let line = self.lines.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&line.map_err(broken)?)?)
    }
}

/// No conversation before had it, so that no late answer of one is taken for another's.
fn first_id() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default()
}

fn broken(error: LinesCodecError) -> io::Error {
    match error {
        LinesCodecError::Io(error) => error,
        LinesCodecError::MaxLineLengthExceeded => {
            io::Error::new(io::ErrorKind::InvalidData, "QEMU's monitor sent a line without an end")
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

    use super::*;

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

    /// A QEMU that greets, and answers each call with the next of these lines; `ID` stands for the call's id.
    async fn qemu(stream: DuplexStream, answers: &[&str]) -> Vec<Value> {
        let mut stream = BufReader::new(stream);
        stream.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
        let mut calls = Vec::new();
        for answer in answers {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let call: Value = serde_json::from_str(&line).unwrap();
            let text = answer.replace("ID", &call["id"].to_string());
            calls.push(call);
            stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
        }
        calls
    }

    #[tokio::test]
    async fn calls_are_answered_by_id_and_events_wait_their_turn() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let answers = [
            r#"{"return": {}, "id": ID}"#,
            concat!(
                r#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#,
                "\r\n",
                r#"{"return": {"status": "late"}, "id": 0}"#,
                "\r\n",
                r#"{"return": {"status": "paused"}, "id": ID}"#
            ),
            r#"{"error": {"class": "GenericError", "desc": "no such node"}, "id": ID}"#,
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
        ];
        let talk = async {
            let mut qmp = Qmp::open(ours).await.unwrap();
            let status = qmp.call("query-status", json!({})).await.unwrap();
            assert_eq!(status["status"], "paused");
            assert_eq!(qmp.event().await.unwrap().name, "STOP");
            let refused = qmp.call("blockdev-del", json!({ "node-name": "x" })).await.unwrap_err();
            assert_eq!(refused.to_string(), "no such node");
            let ended = qmp.call("cont", json!({})).await.unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
            let event = qmp.event().await.unwrap();
            assert_eq!(
                (event.name.as_str(), &event.data["status"]),
                ("MIGRATION", &json!("completed"))
            );
        };
        let (calls, ()) = tokio::join!(qemu(theirs, &answers), talk);
        let names: Vec<&Value> = calls.iter().map(|call| &call["execute"]).collect();
        assert_eq!(names, ["qmp_capabilities", "query-status", "blockdev-del", "cont"]);
        assert_eq!(calls[2]["arguments"], json!({ "node-name": "x" }));
    }

    #[tokio::test]
    async fn what_is_left_of_an_earlier_conversation_is_passed_over() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs
            .write_all(b"{\"return\": {}, \"id\": 1}\r\n{\"event\": \"STOP\"}\r\n")
            .await
            .unwrap();
        let answers = [
            concat!(
                r#"{"return": {"status": "old"}, "id": 1}"#,
                "\r\n",
                r#"{"return": {}, "id": ID}"#
            ),
            r#"{"return": {"status": "new"}, "id": ID}"#,
        ];
        let talk = async {
            let mut qmp = Qmp::open(ours).await.unwrap();
            let status = qmp.call("query-status", json!({})).await.unwrap();
            assert_eq!(status["status"], "new");
        };
        tokio::join!(qemu(theirs, &answers), talk);
    }

    #[tokio::test]
    async fn what_is_no_monitor_is_said_so() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        theirs.write_all(b"{\"return\": {}}\n").await.unwrap();
        let error = Qmp::open(ours).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let (ours, theirs) = tokio::io::duplex(4096);
        drop(theirs);
        assert_eq!(Qmp::open(ours).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
