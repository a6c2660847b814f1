//! The tester of the HTTP API that is not ours: Schemathesis (from PyPI, in a virtual environment below the target folder)
//! makes requests from the checked-in `openapi.json`, good ones and bad ones, and checks every reply against it. The server
//! it asks is the real binary with the fake driver, which runs no command.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{process, python, workspace};

/// The tester: its folder, its environment and its program.
const TOOL: &str = "schemathesis";
/// How long the server may take to answer.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long one reply may take, seconds.
const REPLY_SECONDS: &str = "30";
/// What webhooks are signed with, for a server that lives as long as the run.
const WEBHOOK_SECRET: &str = "the-tester's-webhook-secret";
/// Claims wait no longer: the tester asks for up to an hour.
const CLAIM_WAIT: &str = "500ms";

/// Installs the tester if need be and runs it; it must find nothing.
pub(crate) fn run() -> Result<()> {
    let program = python::install(TOOL, TOOL)?;
    let folder = workspace::target().join("schemathesis-run");
    // What an earlier run left.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let mut server = Server::start(&folder)?;
    let done = server.try_out(&program, &folder);
    let ended = process::end(&mut server.child);
    done?;
    ended?;
    fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be removed", folder.display()))
}

struct Server {
    child: Child,
    runtime: PathBuf,
    data: PathBuf,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let (data, runtime) = (folder.join("data"), folder.join("run"));
        let log = File::create(folder.join("server.log"))?;
        let child = Command::new(program())
            .args(["serve", "--driver", "fake", "--listen", "127.0.0.1:0"])
            .args(["--requests-per-second", "0", "--longest-claim-wait", CLAIM_WAIT])
            .arg("--data-dir")
            .arg(&data)
            .env("HEARTH_RUNTIME_DIR", &runtime)
            .env("HEARTH_WEBHOOK_SECRET", WEBHOOK_SECRET)
            // The tester's repositories are made up: nothing may be fetched over a network.
            .env("GIT_ALLOW_PROTOCOL", "file")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the server cannot be started")?;
        let mut server = Self { child, runtime, data };
        let answers = process::wait_until(START_LIMIT, || server.hearth(&["project", "list"]).is_ok());
        if !matches!(answers, Ok(true)) {
            process::end(&mut server.child)?;
            answers?;
            bail!("the server did not answer; its log is in {}", folder.display());
        }
        Ok(server)
    }

    /// What a command of the binary prints as JSON.
    fn hearth(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut command = Command::new(program());
        command
            .args(args)
            .arg("--json")
            .env("HEARTH_RUNTIME_DIR", &self.runtime);
        let output =
            process::output_of(&mut command).with_context(|| format!("`{}` failed", process::shown(&command)))?;
        Ok(serde_json::from_str(&output)?)
    }

    fn url(&self) -> Result<String> {
        for entry in fs::read_dir(&self.runtime)? {
            let text = fs::read_to_string(entry?.path())?;
            let entry: serde_json::Value = serde_json::from_str(&text)?;
            if let Some(url) = entry["url"].as_str() {
                return Ok(url.to_owned());
            }
        }
        bail!("the server left no entry in {}", self.runtime.display())
    }

    fn try_out(&self, tester: &Path, folder: &Path) -> Result<()> {
        // A claimed instance that is really there, for the operations that work in one.
        self.hearth(&["project", "create", "tried", "--size", "small"])?;
        let claim = self.hearth(&["claim", "tried", "--task", "tester", "--wait", "30"])?;
        let instance = claim["id"].as_str().context("the claim's reply has no id")?;
        let config = folder.join("schemathesis.toml");
        // In the file and not in the arguments, where every user of the machine could read it.
        let token = fs::read_to_string(self.data.join("admin-token"))?;
        let mut text = fs::read_to_string(python::sources(TOOL).join("schemathesis.toml"))?;
        text.push_str(&format!(
            "\n[headers]\nAuthorization = \"Bearer {}\"\n\n[[operations]]\ninclude-name = [\"GET /api/v1/instances/{{id}}\", \"GET /api/v1/instances/{{id}}/follow\", \
             \"GET /api/v1/instances/{{id}}/claim\", \"GET /api/v1/instances/{{id}}/terminal\", \
             \"POST /api/v1/instances/{{id}}/exec\", \"POST /api/v1/instances/{{id}}/heartbeat\", \
             \"GET /api/v1/instances/{{id}}/ports\", \"POST /api/v1/instances/{{id}}/shares\", \
             \"GET /api/v1/instances/{{id}}/tcp/{{port}}\", \"POST /api/v1/instances/{{id}}/ssh/keys\", \
             \"GET /api/v1/instances/{{id}}/ssh\"]\n\
             parameters.id = \"{instance}\"\n\n[[operations]]\ninclude-name = \"POST /hooks/git\"\n\
             headers = {{ X-Gitlab-Token = \"{WEBHOOK_SECRET}\", X-Gitlab-Event = \"Push Hook\" }}\n",
            token.trim()
        ));
        fs::write(&config, text)?;
        process::run(
            Command::new(tester)
                .arg("--config-file")
                .arg(&config)
                .arg("run")
                .arg(workspace::root().join("openapi.json"))
                .args([
                    "--url",
                    &self.url()?,
                    "--checks",
                    "all",
                    "--continue-on-failure",
                    "--no-color",
                ])
                .args(["--request-timeout", REPLY_SECONDS, "--warnings", "off"])
                .current_dir(folder),
        )
    }
}

fn program() -> PathBuf {
    workspace::target().join("debug/hearth")
}
