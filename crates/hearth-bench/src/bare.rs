//! What a person would do by hand with the same files: `qemu-img create`, QEMU, a few words to its monitor. The command line
//! is that of a VM of Hearth's, with plain paths and without the sandbox and the namespaces around it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

/// Between two looks whether the monitor is there.
const CHECK_EVERY: Duration = Duration::from_millis(1);
/// A restore that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(30);

/// How to restore a template by hand.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    words: Vec<String>,
    /// The template's disk.
    backing: PathBuf,
    state: PathBuf,
    disk_gib: u32,
}

/// A restored VM. Ends when dropped.
pub(crate) struct Restored {
    child: Child,
    folder: PathBuf,
}

impl Recipe {
    /// From the words of a VM that was forked from the template in `template`.
    pub(crate) fn new(words: &[String], vm: &str, images: &Path, template: &Path, disk_gib: u32) -> Result<Self> {
        let templates = template.parent().unwrap_or(template);
        let initrd = words.iter().skip_while(|word| *word != "-initrd").nth(1);
        let inside = initrd
            .and_then(|path| path.split_once("/images/"))
            .map(|(inside, _)| inside.to_owned())
            .context("the VM's command line is not as expected")?;
        let replace = |word: &String| {
            word.replace(&format!("{inside}/vms/{vm}"), ".")
                .replace(&format!("{inside}/images"), &images.to_string_lossy())
                .replace(&format!("{inside}/templates"), &templates.to_string_lossy())
        };
        let mut plain = Vec::new();
        let mut idle = words.iter();
        while let Some(word) = idle.next() {
            // With its name it would be taken for one of Hearth's.
            if word == "-sandbox" || word == "-name" {
                idle.next();
            } else {
                plain.push(replace(word));
            }
        }
        let disk = plain.iter().rev().find_map(|word| {
            let path = word.split_once("node-name=layer-")?.1.split_once("filename=")?.1;
            Some(PathBuf::from(path.split(',').next()?))
        });
        Ok(Self {
            words: plain,
            backing: disk.context("the VM is based on no template")?,
            state: template.join("state"),
            disk_gib,
        })
    }

    /// Until the VM is paused, ready to be resumed.
    pub(crate) async fn restore(&self, folder: &Path) -> Result<(Restored, Duration)> {
        fs::create_dir_all(folder.join("run"))?;
        let begin = Instant::now();
        let made = Command::new("qemu-img")
            // `-u`: what lies below the template is named as QEMU sees it within Hearth's namespace.
            .args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"])
            .arg(&self.backing)
            .arg(folder.join("disk.qcow2"))
            .arg(format!("{}G", self.disk_gib))
            .status()
            .await
            .context("qemu-img cannot be started")?;
        if !made.success() {
            bail!("qemu-img failed");
        }
        let child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("QEMU cannot be started")?;
        let restored = Restored {
            child,
            folder: folder.to_owned(),
        };
        let socket = folder.join("run/qmp.sock");
        tokio::time::timeout(LIMIT, load(&socket, &self.state))
            .await
            .context("a bare restore took too long")??;
        Ok((restored, begin.elapsed()))
    }
}

impl Restored {
    pub(crate) fn pid(&self) -> Result<u32> {
        self.child.id().context("a bare QEMU has ended by itself")
    }

    pub(crate) async fn end(mut self) -> Result<()> {
        self.child.kill().await.context("a bare QEMU does not end")?;
        fs::remove_dir_all(&self.folder).context("a bare VM's folder cannot be removed")
    }
}

async fn load(socket: &Path, state: &Path) -> Result<()> {
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                tokio::time::sleep(CHECK_EVERY).await;
            }
            Err(error) => return Err(error).context("QEMU's monitor cannot be reached"),
        }
    };
    let (read, write) = stream.into_split();
    let mut monitor = Monitor {
        lines: BufReader::new(read).lines(),
        write,
        migrated: false,
    };
    monitor.ask("qmp_capabilities", json!({})).await?;
    let capabilities = json!({ "capabilities": [
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ] });
    monitor.ask("migrate-set-capabilities", capabilities).await?;
    let from = json!({ "uri": format!("file:{}", state.display()) });
    monitor.ask("migrate-incoming", from).await?;
    while !monitor.migrated {
        monitor.next().await?;
    }
    let status = monitor.ask("query-status", json!({})).await?;
    if status["status"] != "paused" {
        bail!("a bare VM is {} after its restore", status["status"]);
    }
    Ok(())
}

struct Monitor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    migrated: bool,
}

impl Monitor {
    async fn next(&mut self) -> Result<Value> {
        let line = self.lines.next_line().await?.context("QEMU closed its monitor")?;
        let value: Value = serde_json::from_str(&line)?;
        if value["event"] == "MIGRATION" {
            match value["data"]["status"].as_str() {
                Some("completed") => self.migrated = true,
                Some("failed") => bail!("QEMU could not load the saved state"),
                _ => {}
            }
        }
        Ok(value)
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.write.write_all(text.as_bytes()).await?;
        loop {
            let mut value = self.next().await?;
            if value.get("return").is_some() {
                return Ok(value["return"].take());
            }
            if value.get("error").is_some() {
                bail!("QEMU refuses {command}: {}", value["error"]["desc"]);
            }
        }
    }
}
