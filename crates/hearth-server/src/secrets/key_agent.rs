//! An SSH agent of OpenSSH's that holds a project's keys for as long as one run of git or one question lasts. A key reaches it through
//! a pipe and stays in its memory: it stands in no file and in no argument.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use ssh_key::{HashAlg, PrivateKey, PublicKey};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// So long it may take to start, and to take the keys.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than any run of git.
const LIFETIME_SECONDS: &str = "7200";
/// Between two tries to reach it meanwhile.
const AGAIN: Duration = Duration::from_millis(10);
/// Longest message of the protocol that is taken: OpenSSH's own limit.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum KeyAgentError {
    /// OpenSSH is not there.
    #[error("`{0}` cannot be run ({1}); install the package openssh-client on the server's machine")]
    NotRun(&'static str, std::io::Error),
    /// It does not start.
    #[error("the SSH agent for a project's key cannot be used: {0}")]
    Failed(String),
}

/// Ends when it is dropped.
pub struct KeyAgent {
    socket: PathBuf,
    child: Child,
    _folder: TempDir,
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        // `id` is `None` once it was waited for; only then could its number mean somebody else.
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It may just have ended by itself.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What is shown of a key: its fingerprint. Or why it cannot be used.
pub fn fingerprint(key: &str) -> Result<String, String> {
    const NEW_ONE: &str = "`ssh-keygen -t ed25519 -N '' -f FILE` makes one";
    let normal = normal(key);
    let read = match PrivateKey::from_openssh(normal.as_bytes()) {
        Ok(key) => Some((key.public_key().clone(), key.is_encrypted())),
        Err(_) => public_half(&normal),
    };
    let (key, is_encrypted) = read.ok_or_else(|| {
        format!(
            "must be a private key in OpenSSH's format, which begins with `-----BEGIN OPENSSH PRIVATE KEY-----`: {NEW_ONE}, \
             `ssh-keygen -p -N '' -f FILE` turns an older format into it"
        )
    })?;
    if is_encrypted {
        return Err(format!(
            "must be a key without a passphrase, which nobody could type: {NEW_ONE}, `ssh-keygen -p -N '' -f FILE` takes the \
             passphrase off"
        ));
    }
    if key.algorithm().to_string().starts_with("sk-") {
        return Err(format!(
            "must be a key that is whole: the secret part of this one is in a security token; {NEW_ONE}"
        ));
    }
    Ok(key.fingerprint(HashAlg::Sha256).to_string())
}

/// The public half of a key and whether it is encrypted, from the beginning of the file (OpenSSH's `PROTOCOL.key`). `ssh-key` 0.6 does not
/// read one of 256 ECDSA keys: those whose secret number begins with a zero byte.
fn public_half(key: &str) -> Option<(PublicKey, bool)> {
    let body: String = key.lines().filter(|line| !line.starts_with("-----")).collect();
    let bytes = BASE64.decode(body).ok()?;
    let mut rest = bytes.strip_prefix(b"openssh-key-v1\0")?;
    let cipher = field(&mut rest)?;
    let (_derivation, _its_options) = (field(&mut rest)?, field(&mut rest)?);
    // How many keys; there is one.
    rest = rest.get(size_of::<u32>()..)?;
    let public = PublicKey::from_bytes(field(&mut rest)?).ok()?;
    Some((public, cipher != b"none"))
}

/// Bytes with their length before them.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (field, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(field)
}

/// With the line ends that OpenSSH wants.
fn normal(key: &str) -> String {
    let lines: Vec<&str> = key.trim().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

impl KeyAgent {
    /// With these keys.
    pub async fn start<'a>(keys: impl IntoIterator<Item = &'a str> + Send) -> Result<Self, KeyAgentError> {
        let failed = |error: std::io::Error| KeyAgentError::Failed(error.to_string());
        let keys: Vec<String> = keys.into_iter().map(normal).collect();
        // Only its owner enters it.
        let folder = tempfile::Builder::new().prefix("hearth-key-").tempdir();
        let folder = folder.map_err(failed)?;
        let socket = folder.path().join("agent");
        // Within a time limit: one whose server was killed does not stay.
        let child = command("timeout")
            .args([LIFETIME_SECONDS, "ssh-agent", "-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| KeyAgentError::NotRun("ssh-agent", error))?;
        let agent = Self {
            socket,
            child,
            _folder: folder,
        };
        let prepared = async {
            drop(agent.connect().await?);
            for key in &keys {
                agent.add(key).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, prepared).await {
            Ok(prepared) => prepared?,
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Err(KeyAgentError::Failed(format!("it was not ready within {seconds} s")));
            }
        }
        Ok(agent)
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its answer to one message of the agent protocol, without the length before it.
    pub async fn ask(&self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let length = u32::try_from(message.len()).map_err(std::io::Error::other)?;
        stream.write_u32(length).await?;
        stream.write_all(message).await?;
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(std::io::Error::other("the SSH agent's answer is too long"));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    /// It listens a moment after it was started.
    async fn connect(&self) -> Result<UnixStream, KeyAgentError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(_) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(KeyAgentError::Failed(error.to_string())),
            }
        }
    }

    async fn add(&self, key: &str) -> Result<(), KeyAgentError> {
        let failed = |error: std::io::Error| KeyAgentError::Failed(error.to_string());
        let mut adding = command("ssh-add")
            .args(["-q", "-"])
            .env("SSH_AUTH_SOCK", &self.socket)
            .env("SSH_ASKPASS", "false")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| KeyAgentError::NotRun("ssh-add", error))?;
        if let Some(mut stdin) = adding.stdin.take() {
            // One that does not read says why by itself.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
        let ended = adding.wait_with_output().await.map_err(failed)?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        Err(KeyAgentError::Failed(format!("`ssh-add` did not take the key: {said}")))
    }
}

/// Nothing of the server's environment but where programs are, and no process that outlives its owner.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .process_group(0)
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key as `ssh-keygen` makes it.
    fn made(kind: &str, passphrase: &str, format: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", passphrase, "-C", "", "-f"])
            .arg(&path)
            .args(format)
            .status()
            .unwrap();
        assert!(made.success());
        std::fs::read_to_string(path).unwrap()
    }

    /// A key of nobody, whose secret number begins with a zero byte.
    const SHORT: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQS2NZaLGxPgBX6JD4HUNLBv/sFbzFYC
KHUgXQtbHJO3v6gbHqh1mTAeUdHiyDAvnZC8TKxoh9QFPcKWKIB8FxO5AAAAmJBARkqQQE
ZKAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBLY1losbE+AFfokP
gdQ0sG/+wVvMVgIodSBdC1sck7e/qBseqHWZMB5R0eLIMC+dkLxMrGiH1AU9wpYogHwXE7
kAAAAfTlBa/fKoWhgiwDo7Bz5Wg80HXEWH7GA/BYgvSH0nAwAAAAAB
-----END OPENSSH PRIVATE KEY-----
";

    #[tokio::test]
    async fn key_whose_secret_number_is_short_is_taken_as_every_other() {
        assert!(
            PrivateKey::from_openssh(SHORT).is_err(),
            "`ssh-key` reads it now: `public_half` can go"
        );
        assert!(fingerprint(SHORT).unwrap().starts_with("SHA256:"));
        KeyAgent::start([SHORT]).await.unwrap();
    }

    #[test]
    fn keys_that_cannot_be_used_are_refused_with_what_to_do() {
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let key = made(kind, "", &[]);
            assert!(fingerprint(&key).unwrap().starts_with("SHA256:"), "{kind}");
            assert_eq!(fingerprint(&key), fingerprint(&key.replace('\n', "\r\n")));
        }
        for (key, says) in [
            (made("ed25519", "geheim", &[]), "without a passphrase"),
            (made("rsa", "", &["-m", "PEM"]), "OpenSSH's format"),
            ("ghp_token".to_owned(), "OpenSSH's format"),
        ] {
            let error = fingerprint(&key).unwrap_err();
            assert!(error.contains(says) && error.contains("ssh-keygen"), "{error}");
        }
    }

    #[tokio::test]
    async fn agent_holds_its_keys_until_it_is_dropped() {
        let keys = [made("ed25519", "", &[]), made("rsa", "", &[])];
        let agent = KeyAgent::start(keys.iter().map(String::as_str)).await.unwrap();
        // SSH_AGENTC_REQUEST_IDENTITIES, answered by SSH_AGENT_IDENTITIES_ANSWER with a count.
        let answer = agent.ask(&[11]).await.unwrap();
        assert_eq!(answer[..5], [12, 0, 0, 0, 2]);
        let socket = agent.socket().to_owned();
        drop(agent);
        assert!(UnixStream::connect(&socket).await.is_err());
    }
}
