//! Row 8: daily work in a claimed VM: processes, files and ports, each beside what a user would take instead: ssh into the same VM,
//! a connection that never leaves the VM, and Incus.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::TryStreamExt as _;
use hearth_api::claim::ClaimRequest;
use hearth_api::exec::ExecRequest;
use hearth_api::fork::{ForkReply, ForkRequest};
use hearth_api::ids::InstanceId;
use hearth_api::session::StartSession;
use tokio::process::Command;

use crate::peers::output;
use crate::project::{Project, argv_true};
use crate::report::{Unit, names};
use crate::{Bench, Row, say, vm};

/// Size of the file that is copied, MiB.
pub(crate) const COPIED_MIB: usize = 32;
/// Size of the file that is read through a port, MiB.
const SERVED_MIB: usize = 8;
/// Where things are in the VM.
const FOLDER: &str = "/root/bench";
/// The server in the VM.
const PORT: u16 = 3000;
/// How long it may take to listen: Python starts slowly where the processor is emulated.
const LISTEN_LIMIT: Duration = Duration::from_secs(60);
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Copies that are made at once.
const MANY: u64 = 10;
/// Bytes in a MiB.
const MIB: usize = 1 << 20;

/// A claimed VM, and where files are on the host.
struct Desk<'a> {
    project: &'a Project,
    id: InstanceId,
    folder: PathBuf,
    rounds: usize,
}

pub(crate) async fn measure(bench: &mut Bench, project: &Project) -> Result<()> {
    say("row 8: daily work in a claimed VM");
    let (reply, _) = project.claim(&ClaimRequest::default()).await?;
    let folder = bench.args.folder.join("work");
    fs::create_dir_all(&folder)?;
    let desk = Desk {
        project,
        id: reply.id,
        folder,
        rounds: bench.counts.work,
    };
    let done = desk.all(bench).await;
    project.release(&desk.id).await?;
    done
}

/// A file of this many MiB that no program can make smaller.
pub(crate) fn make_file(path: &Path, mib: usize) -> Result<()> {
    use std::io::Read as _;
    let mut random = fs::File::open("/dev/urandom")?.take((mib * MIB) as u64);
    std::io::copy(&mut random, &mut fs::File::create(path)?)?;
    Ok(())
}

impl Desk<'_> {
    async fn all(&self, bench: &mut Bench) -> Result<()> {
        self.shell(&format!(
            "mkdir -p {FOLDER} && cd {FOLDER} && echo x >small && head -c {served}M /dev/urandom >served && \
             head -c {COPIED_MIB}M /dev/urandom >big",
            served = SERVED_MIB
        ))
        .await?;
        self.sessions(bench).await?;
        self.files(bench).await?;
        self.copies(bench).await?;
        self.ports(bench).await?;
        self.forks(bench).await
    }

    /// A command that must succeed; what it printed.
    async fn shell(&self, command: &str) -> Result<String> {
        let body = ExecRequest {
            command: Some(command.to_owned().try_into()?),
            ..ExecRequest::default()
        };
        let reply = self.project.server.client.exec(&self.id, &body).await?;
        if reply.exit_code != Some(0) {
            bail!("a command in a claimed VM failed: {}{}", reply.stdout, reply.stderr);
        }
        Ok(reply.stdout)
    }

    async fn sessions(&self, bench: &mut Bench) -> Result<()> {
        let client = &self.project.server.client;
        let (mut started, mut ended) = (Vec::new(), Vec::new());
        for _ in 0..bench.counts.claims {
            let body = StartSession {
                request: argv_true()?,
                ..StartSession::default()
            };
            let begin = Instant::now();
            let session = client.start_session(&self.id, &body).await?;
            started.push(begin.elapsed());
            client.wait_session(&self.id, &session.id, None).await?;
            ended.push(begin.elapsed());
            client.remove_session(&self.id, &session.id).await?;
        }
        bench
            .report
            .times(Row::Work, "detached process: started (its id is here)", &started);
        bench.report.times(
            Row::Work,
            "detached /bin/true: started, and known to have ended",
            &ended,
        );
        Ok(())
    }

    async fn files(&self, bench: &mut Bench) -> Result<()> {
        for (what, file) in [
            ("first byte of a file of 2 bytes", "small"),
            ("first byte of a file of 32 MiB", "big"),
        ] {
            let path = format!("{FOLDER}/{file}");
            let mut took = Vec::new();
            for _ in 0..bench.counts.claims {
                let begin = Instant::now();
                let client = &self.project.server.client;
                let mut content = client.read_file(&self.id, &path, None, None).await?;
                let first = content.body.try_next().await?;
                took.push(begin.elapsed());
                first.context("the file is empty")?;
            }
            bench.report.times(Row::Work, what, &took);
        }
        Ok(())
    }

    fn hearth(&self, words: &[&str]) -> Command {
        let mut command = self.project.server.command();
        command.env("XDG_CONFIG_HOME", &self.folder).args(words);
        command
    }

    /// Whole programs, from their start to their end: Hearth's, and OpenSSH's over `hearth ssh-proxy`.
    async fn copies(&self, bench: &mut Bench) -> Result<()> {
        let local = self.folder.join("file");
        make_file(&local, COPIED_MIB)?;
        let (local, back) = (local.display().to_string(), self.folder.join("back"));
        let (id, back_text) = (self.id.as_str(), back.display().to_string());
        let config = self.folder.join("ssh-config");
        fs::write(&config, output(&mut self.hearth(&["ssh-config"])).await?)?;
        let scp = |from: &str, to: &str| {
            let mut command = Command::new("scp");
            self.project.server.set_env(&mut command);
            command
                .env("XDG_CONFIG_HOME", &self.folder)
                .arg("-q")
                .arg("-F")
                .arg(&config);
            command.args([from, to]);
            command
        };
        let far = |file: &str| format!("{id}:{FOLDER}/{file}");
        let host = |file: &str| format!("{id}.hearth:{FOLDER}/{file}");
        let mut took: [(&str, Vec<Duration>); 5] = [
            (names::CP_UP, Vec::new()),
            (names::SCP_UP, Vec::new()),
            (names::CP_DOWN, Vec::new()),
            (names::SCP_DOWN, Vec::new()),
            (names::EXEC_DOWN, Vec::new()),
        ];
        // The first `scp` makes the keys and the VM's server ready; that is not what is compared.
        output(&mut scp(&host("small"), &back_text)).await.context("scp")?;
        for _ in 0..self.rounds {
            for (what, took) in &mut took {
                let begin = Instant::now();
                match *what {
                    names::CP_UP => output(&mut self.hearth(&["cp", &local, &far("up")])).await?,
                    names::SCP_UP => output(&mut scp(&local, &host("up-scp"))).await?,
                    names::CP_DOWN => output(&mut self.hearth(&["cp", &far("big"), &back_text])).await?,
                    names::SCP_DOWN => output(&mut scp(&host("big"), &back_text)).await?,
                    _ => {
                        let file = fs::File::create(&back)?;
                        let big = format!("{FOLDER}/big");
                        let mut cat = self.hearth(&["exec", "--no-stdin", id, "--", "cat", &big]);
                        let status = cat.stdout(file).kill_on_drop(true).status().await?;
                        if !status.success() {
                            bail!("hearth exec -- cat failed: {status}");
                        }
                        String::new()
                    }
                };
                took.push(begin.elapsed());
                if *what != names::CP_UP
                    && *what != names::SCP_UP
                    && fs::metadata(&back)?.len() != (COPIED_MIB * MIB) as u64
                {
                    bail!("{what}: not the whole file came");
                }
                fs::remove_file(&back).or_else(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
            }
        }
        for (what, took) in &took {
            bench.report.times(Row::Work, what, took);
        }
        for (theirs, ours) in [
            (names::SCP_UP, names::CP_UP),
            (names::SCP_DOWN, names::CP_DOWN),
            (names::SCP_DOWN, names::EXEC_DOWN),
            (names::INCUS_PUSH, names::CP_UP),
        ] {
            bench.report.ratio(Row::Work, (Row::Work, theirs), (Row::Work, ours));
        }
        Ok(())
    }

    /// A server in the VM, read through Hearth's proxy and by a client in the VM itself: nothing else can reach it.
    async fn ports(&self, bench: &mut Bench) -> Result<()> {
        let client = &self.project.server.client;
        let server = format!("exec python3 -m http.server {PORT} --bind 127.0.0.1 --directory {FOLDER}");
        let body = StartSession {
            request: ExecRequest {
                command: Some(server.try_into()?),
                ..ExecRequest::default()
            },
            ..StartSession::default()
        };
        client.start_session(&self.id, &body).await?;
        let begin = Instant::now();
        while !client
            .list_ports(&self.id)
            .await?
            .items
            .iter()
            .any(|port| port.port == PORT)
        {
            if begin.elapsed() > LISTEN_LIMIT {
                bail!("the server in the VM does not listen");
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        let token = fs::read_to_string(self.project.server.data.join("admin-token"))?;
        let http = reqwest::Client::builder().build()?;
        let base = format!("{}/api/v1/instances/{}/ports/{PORT}", client.address(), self.id);
        for (file, proxied, inside) in [
            ("small", names::PROXY_SMALL, names::INSIDE_SMALL),
            ("served", names::PROXY_BIG, names::INSIDE_BIG),
        ] {
            let rounds = if file == "small" {
                bench.counts.claims
            } else {
                self.rounds
            };
            let mut took = Vec::new();
            for _ in 0..rounds {
                let begin = Instant::now();
                let request = http.get(format!("{base}/{file}")).bearer_auth(token.trim());
                let reply = request.send().await?.error_for_status()?;
                reply.bytes().await?;
                took.push(begin.elapsed());
            }
            bench.report.times(Row::Work, proxied, &took);
            let loops = format!(
                "import time, urllib.request\nfor _ in range({rounds}):\n    begin = time.monotonic()\n    \
                 urllib.request.urlopen('http://127.0.0.1:{PORT}/{file}').read()\n    print(time.monotonic() - begin)\n"
            );
            let printed = self.shell(&format!("python3 -c \"{loops}\"")).await?;
            let took: Result<Vec<Duration>, _> = printed
                .lines()
                .map(|line| line.trim().parse().map(Duration::from_secs_f64))
                .collect();
            bench
                .report
                .times(Row::Work, inside, &took.context("the VM's own client")?);
            bench.report.ratio(Row::Work, (Row::Work, proxied), (Row::Work, inside));
        }
        Ok(())
    }

    /// Copies of the VM as it is now: a server runs in it, and its page cache holds what was copied.
    async fn forks(&self, bench: &mut Bench) -> Result<()> {
        let data = &self.project.server.data;
        let parent: Vec<PathBuf> = vm::folders(data);
        let (mut single, mut stopped) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let (took, reply) = self.fork(1).await?;
            single.push(took);
            stopped.push(reply.paused_ms as f64);
            self.release_forks(&reply).await?;
        }
        let (took, reply) = self.fork(MANY).await?;
        let copies = vm::folders(data).into_iter().filter(|folder| !parent.contains(folder));
        let (mut private, mut share) = (Vec::new(), Vec::new());
        for folder in copies {
            let memory = vm::memory(vm::pid(&folder)?)?;
            private.push(memory.private);
            share.push(memory.share);
        }
        self.release_forks(&reply).await?;
        let report = &mut bench.report;
        report.times(Row::Work, "fork of the claimed VM, one copy", &single);
        report.values(Row::Work, "the VM is stopped for", Unit::Ms, stopped);
        report.times(Row::Work, "fork of the claimed VM, ten copies", &[took]);
        report.figure(
            Row::Work,
            "the same, per copy",
            Unit::Ms,
            took.as_secs_f64() * 1000.0 / MANY as f64,
        );
        report.values(Row::Work, "a copy: private", Unit::Mib, private);
        report.values(Row::Work, "a copy: private + share (PSS)", Unit::Mib, share);
        Ok(())
    }

    async fn fork(&self, count: u64) -> Result<(Duration, ForkReply)> {
        let body = ForkRequest {
            count: Some(count),
            ..ForkRequest::default()
        };
        let begin = Instant::now();
        let reply = self.project.server.client.fork(&self.id, &body).await?;
        Ok((begin.elapsed(), reply))
    }

    async fn release_forks(&self, reply: &ForkReply) -> Result<()> {
        for copy in &reply.items {
            self.project.release(&copy.claim.id).await?;
        }
        let begin = Instant::now();
        while vm::folders(&self.project.server.data).len() > 1 {
            if begin.elapsed() > LISTEN_LIMIT {
                bail!("copies that were released are not removed");
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        Ok(())
    }
}
