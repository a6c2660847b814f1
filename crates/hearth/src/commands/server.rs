//! `hearth server`: the servers that share one database, and where pools are at home.

use clap::Subcommand;
use hearth_api::page::Items;
use hearth_api::server::{PutPoolHome, ServerItem};
use hearth_api::values::Name;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output};

const AFTER_HELP: &str = "\
Examples:
  hearth server list
  hearth server move web srv_3f0c2a9b1d4e    the pool of the project web is filled there from now on

Several servers share a store in PostgreSQL: `hearth serve --database URL` on each machine, with the same secret.key (docs/postgresql.md).";

/// What to do with servers.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum ServerCommand {
    /// List them: which are alive, what each looks after
    List,
    /// Give a project's pool another home. Claimed VMs stay where they are; ready ones on the old server are removed
    Move {
        /// The project, by name or id
        project: String,
        /// The server's id, as `hearth server list` says it
        server: Name,
    },
}

pub(crate) async fn run(globals: &Globals, command: ServerCommand) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let servers = match command {
        ServerCommand::List => client.list_servers().await?,
        ServerCommand::Move { project, server } => {
            let project = connect::project(&client, &project).await?.id;
            client.put_pool_home(&project, &PutPoolHome { server }).await?
        }
    };
    output::print(globals.json, &servers, table)?;
    Ok(0)
}

fn table(servers: &Items<ServerItem>) -> String {
    if servers.items.is_empty() {
        return "one server: its store is in SQLite".to_owned();
    }
    let row = |server: &ServerItem| {
        let state = match (server.alive, server.answers) {
            (true, true) => "alive, answers".to_owned(),
            (true, false) => "alive".to_owned(),
            (false, _) => format!("silent, last heard of {}", output::ago(server.alive_until)),
        };
        [
            clean_line(&server.id),
            state,
            server.pools.to_string(),
            server.vms.to_string(),
            clean_line(server.url.as_deref().unwrap_or("none: start it with --advertise")),
            clean_line(&server.version),
            clean_line(&server.place),
        ]
    };
    output::table(
        ["Server", "State", "Pools", "VMs", "Reached at", "Version", "Place"],
        servers.items.iter().map(row),
    )
}
