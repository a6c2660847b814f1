//! SSH host keys: a fork must not answer with its template's. Small keys are made here; an RSA key, which takes an emulated guest many
//! seconds, is brought by the host, with the activation or right after it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use hearth_guest::HostKey;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, LineEnding, PrivateKey};

use super::{Part, at};

const FOLDER: &str = "etc/ssh";
const PREFIX: &str = "ssh_host_";
const ED25519: &str = "ssh_host_ed25519_key";
const ECDSA: &str = "ssh_host_ecdsa_key";
const RSA: &str = "ssh_host_rsa_key";

/// What was done about host keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    /// Names of the new files.
    pub(super) made: Vec<String>,
    /// There was an RSA key, and there is none now.
    pub(super) lacks_rsa: bool,
}

/// Replaces the keys of a VM that has some. An SSH server that has none gets its keys when its service is first started, which few VMs do: a
/// fork does not wait for them. `rsa` is only used where there was such a key.
pub(super) fn replace_host_keys(root: &Path, rsa: Option<&HostKey>) -> Part<Replaced> {
    let folder = root.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Replaced::default()),
        Err(error) => return Err(at(&folder)(error)),
    };
    let mut old = Vec::new();
    for entry in entries {
        let entry = entry.map_err(at(&folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(PREFIX) {
            old.push(name);
        }
    }
    if old.is_empty() {
        return Ok(Replaced::default());
    }
    for name in &old {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(at(&path))?;
    }
    let curve = EcdsaCurve::NistP256;
    let mut made = Vec::new();
    for (name, algorithm) in [(ED25519, Algorithm::Ed25519), (ECDSA, Algorithm::Ecdsa { curve })] {
        // Always the one that every client prefers; the other where it was.
        if name == ED25519 || old.iter().any(|old| old == name) {
            let key = PrivateKey::random(&mut OsRng, algorithm).map_err(|error| format!("a new {name}: {error}"))?;
            write_key(&folder, name, &key)?;
            made.push(name.to_owned());
        }
    }
    let mut lacks_rsa = old.iter().any(|old| old == RSA);
    if lacks_rsa && let Some(key) = rsa {
        set_rsa_key(root, key)?;
        made.push(RSA.to_owned());
        lacks_rsa = false;
    }
    Ok(Replaced { made, lacks_rsa })
}

/// Writes the RSA key that the host has brought.
pub(super) fn set_rsa_key(root: &Path, key: &HostKey) -> Part<()> {
    let key = PrivateKey::from_openssh(&key.0).map_err(|error| format!("the RSA key of the host: {error}"))?;
    if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
        return Err("the host brought a key that is no RSA key".to_owned());
    }
    write_key(&root.join(FOLDER), RSA, &key)
}

fn write_key(folder: &Path, name: &str, key: &PrivateKey) -> Part<()> {
    let failed = |error: ssh_key::Error| format!("a new {name}: {error}");
    let private = key.to_openssh(LineEnding::LF).map_err(failed)?;
    let public = key.public_key().to_openssh().map_err(failed)?;
    let public_name = format!("{name}.pub");
    for (name, mode, text) in [
        (name, 0o600, private.as_str()),
        (&public_name, 0o644, &format!("{public} root\n")),
    ] {
        let path = folder.join(name);
        let mut options = fs::File::options();
        let file = options.write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(at(&path))?;
    }
    Ok(())
}

/// Makes a running server read its keys again. Only the one that listens, not those that serve a connection.
pub(super) fn reload() -> Part<()> {
    for entry in fs::read_dir("/proc").map_err(at(Path::new("/proc")))?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // A process that ends meanwhile is none to reload.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if is_listener(&stat) {
            kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(|error| format!("sshd: {}", error.desc()))?;
        }
    }
    Ok(())
}

/// From `/proc/PID/stat`: the program's name is in parentheses, its parent the second field after it.
fn is_listener(stat: &str) -> bool {
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    stat.contains("(sshd)") && parent == Some("1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        for file in files {
            fs::write(root.path().join(FOLDER).join(file), "old").unwrap();
        }
        root
    }

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root.join(FOLDER)).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn old_keys_go_and_new_ones_are_each_their_own() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2 {
            let root = root(&[
                "sshd_config",
                "ssh_host_rsa_key",
                "ssh_host_rsa_key.pub",
                "ssh_host_ecdsa_key",
                "ssh_host_ecdsa_key.pub",
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
            ]);
            let replaced = replace_host_keys(root.path(), None).unwrap();
            assert_eq!(replaced.made, [ED25519, ECDSA]);
            assert!(replaced.lacks_rsa, "the host brings it");
            let expected = [
                "ssh_host_ecdsa_key",
                "ssh_host_ecdsa_key.pub",
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "sshd_config",
            ];
            assert_eq!(names(root.path()), expected);
            for name in [ED25519, ECDSA] {
                let path = root.path().join(FOLDER).join(name);
                let key = PrivateKey::from_openssh(fs::read(&path).unwrap()).unwrap();
                let public = fs::read_to_string(path.with_extension("pub")).unwrap();
                assert!(public.starts_with(&key.public_key().to_openssh().unwrap()));
                assert!(seen.insert(public), "a key of its own");
                let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
                assert_eq!(mode & 0o777, 0o600);
                // The tool that everybody has reads it too.
                let output = std::process::Command::new("ssh-keygen").arg("-lf").arg(&path).output();
                assert!(output.is_ok_and(|output| output.status.success()));
            }
        }
    }

    fn rsa_key() -> HostKey {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let mut made = std::process::Command::new("ssh-keygen");
        let made = made
            .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "root", "-f"])
            .arg(&path);
        assert!(made.status().unwrap().success());
        HostKey(fs::read_to_string(path).unwrap())
    }

    #[test]
    fn rsa_key_of_the_host_takes_the_place_of_one_that_was_there() {
        let key = rsa_key();
        let with = root(&["sshd_config", "ssh_host_rsa_key", "ssh_host_rsa_key.pub"]);
        let replaced = replace_host_keys(with.path(), Some(&key)).unwrap();
        assert_eq!(replaced.made, [ED25519, RSA]);
        assert!(!replaced.lacks_rsa);
        let path = with.path().join(FOLDER).join(RSA);
        let output = std::process::Command::new("ssh-keygen")
            .arg("-yf")
            .arg(&path)
            .output()
            .unwrap();
        let (derived, public) = (
            String::from_utf8(output.stdout).unwrap(),
            fs::read_to_string(path.with_extension("pub")).unwrap(),
        );
        let material = |line: &str| line.split(' ').nth(1).unwrap().trim().to_owned();
        assert_eq!(material(&derived), material(&public));
        // Brought later, where it was not at hand.
        let late = root(&["sshd_config", "ssh_host_rsa_key", "ssh_host_rsa_key.pub"]);
        assert!(replace_host_keys(late.path(), None).unwrap().lacks_rsa);
        set_rsa_key(late.path(), &key).unwrap();
        assert!(late.path().join(FOLDER).join(RSA).exists());
        // None where there was none.
        let without = root(&["sshd_config"]);
        assert_eq!(
            replace_host_keys(without.path(), Some(&key)).unwrap(),
            Replaced::default()
        );
        assert!(set_rsa_key(without.path(), &HostKey("rubbish".into())).is_err());
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_client_alone_gets_no_keys() {
        let root = root(&["ssh_config"]);
        let nothing = Replaced::default();
        assert_eq!(replace_host_keys(root.path(), None).unwrap(), nothing);
        assert_eq!(replace_host_keys(&root.path().join("nowhere"), None).unwrap(), nothing);
        assert_eq!(names(root.path()), ["ssh_config"]);
    }

    #[test]
    fn only_the_listening_server_is_reloaded() {
        assert!(is_listener("77 (sshd) S 1 77 77 0"));
        assert!(!is_listener("78 (sshd) S 77 77 77 0"));
        assert!(!is_listener("79 (bash) S 1 77 77 0"));
        assert!(!is_listener(""));
    }
}
