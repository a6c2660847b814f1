//! What programs in the VM ask of the host: git's credential helper as git starts it, and clients of an SSH agent.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures::StreamExt as _;
use hearth_guest::client::AgentClient;
use hearth_guest::requests::{GuestQuestion, HostAnswer, HostReply, SSH_SOCKET};

use crate::support::{Agent, eventually};

/// No program waits longer than this for a host that does not answer.
const LONGEST: Duration = Duration::from_secs(10);

/// An agent whose programs ask in this folder.
fn agent() -> (Agent, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::start_with(&["--request-folder", folder.path().to_str().unwrap()]);
    (agent, folder)
}

/// Runs the helper as git does.
fn helper(folder: &tempfile::TempDir, action: &str, input: &str) -> impl FnOnce() -> Output + Send + 'static {
    let (folder, action, input) = (folder.path().to_owned(), action.to_owned(), input.to_owned());
    move || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hearth-agent"))
            .args(["git-credential", "--folder"])
            .arg(folder)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

async fn run(helper: impl FnOnce() -> Output + Send + 'static) -> (Output, Duration) {
    let begun = Instant::now();
    let output = tokio::task::spawn_blocking(helper).await.unwrap();
    (output, begun.elapsed())
}

/// A host that knows one credential, and says what it was asked.
fn host(client: AgentClient) -> tokio::task::JoinHandle<Vec<GuestQuestion>> {
    tokio::spawn(async move {
        let mut asked = Vec::new();
        let mut requests = client.guest_requests().await.unwrap();
        while let Some(Ok(request)) = requests.next().await {
            asked.push(request.question.clone());
            let answer = match request.question {
                GuestQuestion::GitCredential { host, .. } if host == "git.example" => HostAnswer::GitCredential {
                    username: "x".to_owned(),
                    password: "geheim".to_owned(),
                },
                GuestQuestion::GitCredential { host, .. } if host == "end" => return asked,
                GuestQuestion::SshAgent { message } => {
                    let mut message = BASE64.decode(message).unwrap();
                    message.push(42);
                    HostAnswer::SshAgent {
                        message: BASE64.encode(message),
                    }
                }
                _ => HostAnswer::Nothing,
            };
            let id = request.id;
            client.answer_request(&HostReply { id, answer }).await.unwrap();
        }
        asked
    })
}

async fn until_listening(folder: &tempfile::TempDir) {
    let socket = folder.path().join(SSH_SOCKET);
    eventually("programs can ask", async || UnixStream::connect(&socket).ok().map(drop)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_gets_what_the_host_answers_and_nothing_for_another_host() {
    let (agent, folder) = agent();
    until_listening(&folder).await;
    let host = host(agent.client().await);
    let (output, _) = run(helper(
        &folder,
        "get",
        "protocol=https\nhost=git.example\nusername=me\n\n",
    ))
    .await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "username=x\npassword=geheim\n");
    for (action, input) in [
        ("get", "protocol=https\nhost=other.example\n\n"),
        ("get", "protocol=https\n\n"),
        ("store", "protocol=https\nhost=git.example\nusername=x\npassword=y\n\n"),
        ("erase", "protocol=https\nhost=git.example\n\n"),
    ] {
        let (output, _) = run(helper(&folder, action, input)).await;
        assert!(output.status.success(), "{output:?}");
        assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0), "{output:?}");
    }
    // The host goes in the middle of a question: the helper says so, and ends.
    let (output, took) = run(helper(&folder, "get", "protocol=https\nhost=end\n\n")).await;
    assert!(took < LONGEST, "{took:?}");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no credential for end: Hearth does not answer"), "{said}");
    let asked = host.await.unwrap();
    let first = GuestQuestion::GitCredential {
        protocol: "https".to_owned(),
        host: "git.example".to_owned(),
        username: Some("me".to_owned()),
    };
    assert_eq!(asked[0], first);
    assert_eq!(asked.len(), 3, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn question_that_a_lost_host_did_not_answer_is_asked_of_the_next() {
    let (agent, folder) = agent();
    until_listening(&folder).await;
    let first = agent.client().await;
    let mut requests = first.guest_requests().await.unwrap();
    let asking = tokio::spawn(run(helper(&folder, "get", "protocol=https\nhost=git.example\n\n")));
    let lost = requests.next().await.unwrap().unwrap();
    drop((requests, first));
    let host = host(agent.client().await);
    let (output, _) = asking.await.unwrap();
    assert!(output.status.success(), "{output:?} {lost:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("geheim"));
    host.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_host_git_is_told_soon_that_the_vm_is_not_claimed() {
    let (agent, folder) = agent();
    until_listening(&folder).await;
    let (output, took) = run(helper(&folder, "get", "protocol=https\nhost=git.example\n\n")).await;
    assert!(took < LONGEST / 2, "{took:?}");
    assert!(!output.status.success() && output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("when they are claimed"), "{said}");
    drop(agent);
    let (output, took) = run(helper(&folder, "get", "protocol=https\nhost=git.example\n\n")).await;
    assert!(took < LONGEST && !output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the agent of this VM does not answer"), "{said}");
}

/// One message of the SSH agent's protocol, and its answer.
fn ssh(socket: &PathBuf, message: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], message].concat()).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_signatures_are_asked_of_the_host_and_nothing_is_added() {
    let (agent, folder) = agent();
    until_listening(&folder).await;
    let host = host(agent.client().await);
    let socket = folder.path().join(SSH_SOCKET);
    let answers = tokio::task::spawn_blocking(move || {
        // List, sign; add an identity, remove all: those fail at once.
        [&[11_u8][..], &[13, 7, 7], &[17, 1], &[19]].map(|message| ssh(&socket, message))
    });
    let answers = answers.await.unwrap();
    assert_eq!(answers, [vec![11, 42], vec![13, 7, 7, 42], vec![5], vec![5]]);
    host.abort();
}
