//! `hearth mcp`: tools for agents over standard input and output.

use clap::Args;

use crate::args::Globals;
use crate::connect;
use crate::failure::Failure;

/// `hearth mcp`.
#[derive(Debug, Args)]
#[command(after_help = "\
An agent's program starts this command and speaks the Model Context Protocol with it. It uses the server that other commands would use, and its
token: make one that may do no more than the agent has to.

  hearth token create my-agent --scope project:read,project:write,claim --name-prefix mcp- --max-vms 3
  claude mcp add hearth --env HEARTH_URL=http://127.0.0.1:7717 --env HEARTH_TOKEN=hearth_... -- hearth mcp")]
pub(crate) struct McpArgs {}

pub(crate) async fn run(globals: &Globals, _: McpArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    hearth_mcp::serve_stdio(client)
        .await
        .map_err(|error| Failure::new(format!("the client does not speak the Model Context Protocol: {error}")))?;
    Ok(0)
}
