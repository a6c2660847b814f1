//! `hearth logs`: what background processes in a VM print.

use std::io;

use bytesize::ByteSize;
use clap::Args;
use futures::StreamExt as _;
use hearth_api::client::{AttachOptions, Client};
use hearth_api::ids::InstanceId;
use hearth_api::log::{InstanceLog, LogKind};
use hearth_api::page::Items;
use hearth_api::session::{ReadUntil, Session};

use super::exec::{pass_on, until_stopped};
use super::session;
use super::session::follow::{Mode, follow};
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output, resolve};

const AFTER_HELP: &str = "\
Examples:
  hearth logs wpi_…
  hearth logs wpi_… web
  hearth logs wpi_… exec-1 --follow
  hearth logs last build --follow

NAME is a log, or a session (hearth ps) by its id, tag or process id. Without NAME the logs are listed: those of background
set-up commands, by their names, and one for each command that left processes running (`server &`), exec-1 and so on. What
such processes print is kept in the VM, the newest 1 to 2 MiB; of a session the newest 4 MiB, both outputs each in its place.";

/// `hearth logs`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct LogsArgs {
    #[arg(value_name = "INSTANCE", help = resolve::INSTANCE_HELP)]
    id: String,
    /// The log, or session, to print
    name: Option<String>,
    /// Follow the log until its processes have ended
    #[arg(long, short, requires = "name")]
    follow: bool,
}

pub(crate) async fn run(globals: &Globals, args: LogsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let id = resolve::instance(&client, &args.id).await?;
    let logs = client.list_logs(&id).await?;
    let Some(name) = args.name else {
        output::print(globals.json, &Items { items: logs }, |list| table(&list.items))?;
        if !globals.json
            && let Ok(sessions) = client.list_sessions(&id).await
            && !sessions.is_empty()
        {
            let count = output::count(sessions.len() as u64, "session");
            let list = hint::command(["ps", id.as_str()]);
            output::note(&format!("and {count} whose output can be read by id or tag: `{list}`"));
        }
        return Ok(0);
    };
    let Some(log) = logs.iter().find(|log| log.name == name) else {
        if let Some(session) = session_of(&client, &id, &name).await {
            return print_session(&client, &id, &session, args.follow).await;
        }
        let failure = Failure::new(format!(
            "there is no log and no session `{}` in this VM",
            clean_line(&name)
        ));
        let names: Vec<&str> = logs.iter().map(|log| log.name.as_str()).collect();
        return Err(match names[..] {
            [] => failure
                .hint("there are no logs: no command in it runs in the background; `hearth ps` lists the sessions"),
            _ => failure.hint(format!(
                "there are: {}; `hearth ps` lists the sessions",
                names.join(", ")
            )),
        });
    };
    if log.dropped_bytes > 0 {
        eprintln!("the first {} are not kept any more", ByteSize(log.dropped_bytes));
    }
    until_stopped(async {
        let mut text = client.read_log(&id, &name, args.follow).await?;
        while let Some(chunk) = text.next().await {
            pass_on(&mut io::stdout().lock(), &chunk?)?;
        }
        Ok(0)
    })
    .await
}

/// The session that a person means; none where there is none, or the server or the agent knows of none.
async fn session_of(client: &Client, id: &InstanceId, name: &str) -> Option<Session> {
    let all = client.list_sessions(id).await.ok()?;
    session::choose(all, id, name).ok()
}

async fn print_session(client: &Client, id: &InstanceId, session: &Session, follows: bool) -> Result<u8, Failure> {
    let options = AttachOptions {
        until: if follows { ReadUntil::Closed } else { ReadUntil::Now },
        ..AttachOptions::default()
    };
    until_stopped(follow(client, id, session, options, Mode::Read)).await?;
    Ok(0)
}

fn table(logs: &[InstanceLog]) -> String {
    if logs.is_empty() {
        return "no logs: no command that ended has left one running in the background".to_owned();
    }
    let row = |log: &InstanceLog| {
        let what = match (log.kind, &log.command) {
            (LogKind::Setup, _) => "background command of the set-up".to_owned(),
            (LogKind::Exec, Some(command)) => clean_line(command),
            (LogKind::Exec, None) => "left by a command".to_owned(),
        };
        let mut size = ByteSize(log.bytes).to_string();
        if log.dropped_bytes > 0 {
            size.push_str(&format!(" ({} dropped)", ByteSize(log.dropped_bytes)));
        }
        [
            log.name.clone(),
            what,
            size,
            match log.open {
                Some(true) => "yes",
                Some(false) => "no",
                None => "",
            }
            .to_owned(),
            log.updated_at.map_or_else(String::new, output::ago),
        ]
    };
    output::table(["Log", "Of", "Size", "Runs", "Last written"], logs.iter().map(row))
}
