//! RSA keys for the SSH servers of forks, made ahead: a fork must not answer with its template's key, and making one takes a host some
//! tenths of a second and an emulated guest many seconds. None is made until a VM needs one. They live in memory only.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_guest::HostKey;
use tokio::process::Command;

/// Keys that are kept at hand: as many forks as may come at once, and some more.
const AT_HAND: usize = 8;
/// What `ssh-keygen` makes by default.
const BITS: &str = "3072";
/// File systems that lie in memory: a key is not written to a disk.
const IN_MEMORY: [&str; 2] = ["/dev/shm", "/run"];

/// Keys that no VM has yet.
#[derive(Debug, Clone, Default)]
pub struct HostKeys(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    keys: Vec<HostKey>,
    /// One was needed: more will be.
    needed: bool,
    /// More are being made.
    making: bool,
}

impl HostKeys {
    /// One that is at hand; none until one was needed.
    pub fn take_spare(&self) -> Option<HostKey> {
        let key = self.with(|kept| kept.keys.pop());
        self.fill();
        key
    }

    /// No other VM has had it.
    pub fn give_back(&self, key: HostKey) {
        self.with(|kept| kept.keys.push(key));
    }

    /// One that is made now, unless one came to hand meanwhile.
    pub async fn make(&self) -> Result<HostKey, String> {
        let key = self.with(|kept| {
            kept.needed = true;
            kept.keys.pop()
        });
        let key = match key {
            Some(key) => key,
            None => make_key().await?,
        };
        self.fill();
        Ok(key)
    }

    /// Makes what is missing, one after the other, while no caller waits.
    fn fill(&self) {
        let begins = self.with(|kept| {
            let begins = kept.needed && !kept.making && kept.keys.len() < AT_HAND;
            kept.making |= begins;
            begins
        });
        if !begins {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                match make_key().await {
                    Ok(key) => {
                        let full = this.with(|kept| {
                            kept.keys.push(key);
                            kept.making = kept.keys.len() < AT_HAND;
                            !kept.making
                        });
                        if full {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no RSA host keys can be made ahead");
                        this.with(|kept| kept.making = false);
                        return;
                    }
                }
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn make_key() -> Result<HostKey, String> {
    let memory = IN_MEMORY.into_iter().map(Path::new).find_map(|place| {
        // Readable by its owner alone.
        tempfile::Builder::new().prefix("hearth-key-").tempdir_in(place).ok()
    });
    let folder = memory.ok_or("there is no file system in memory to make a key in")?;
    let path = folder.path().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", BITS, "-N", "", "-C", "root", "-f"])
        .arg(&path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let made = made.map_err(|error| {
        format!("`ssh-keygen` cannot be run ({error}); install the package openssh-client on this host")
    })?;
    if !made.status.success() {
        return Err(format!(
            "`ssh-keygen` failed: {}",
            String::from_utf8_lossy(&made.stderr).trim()
        ));
    }
    let key = std::fs::read_to_string(&path).map_err(|error| format!("the new key cannot be read: {error}"))?;
    Ok(HostKey(key))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn keys_are_made_ahead_once_one_was_needed_and_none_is_given_twice() {
        let keys = HostKeys::default();
        assert!(keys.take_spare().is_none(), "nobody needs one");
        let first = keys.make().await.unwrap();
        assert!(first.0.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----"));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        let take_spare = loop {
            if let Some(key) = keys.take_spare() {
                break key;
            }
            assert!(tokio::time::Instant::now() < deadline);
            // pause between two checks
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_ne!(take_spare, first);
        assert_ne!(keys.make().await.unwrap(), take_spare);
    }
}
