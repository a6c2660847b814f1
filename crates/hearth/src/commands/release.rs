//! `hearth release`: give a claimed VM back.

use clap::Args;
use hearth_api::claim::Released;
use hearth_api::client::Client;
use hearth_api::error::ErrorCode;
use hearth_api::page::Items;

use super::really::really;
use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output, resolve};

/// `hearth release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The instances: their ids, beginnings or ends of them, the tasks they were claimed for, or `last`
    #[arg(required_unless_present = "all", value_name = "INSTANCE")]
    ids: Vec<String>,
    /// Everything that `hearth claims` lists: what is claimed with this token, or for an admin by anybody
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// With --all: only of this project (name or id)
    #[arg(long, requires = "all")]
    project: Option<String>,
    /// With --all: do not ask
    #[arg(long, requires = "all")]
    yes: bool,
}

/// Gives back everything that is claimed.
async fn release_all(globals: &Globals, client: &Client, args: &ReleaseArgs) -> Result<u8, Failure> {
    let project = match &args.project {
        Some(text) => Some(connect::project(client, text).await?.id),
        None => None,
    };
    let claims = client.list_claims(project.as_ref()).await?.items;
    if !claims.is_empty() && !args.yes {
        let count = output::count(claims.len() as u64, "claimed VM");
        really(&format!("this destroys {count} with the work in it"))?;
    }
    let mut released = Vec::new();
    for claim in claims {
        match client.release(&claim.id).await {
            Ok(reply) => {
                if !globals.json {
                    output::print_line(&format!("released {}: its VM is being destroyed", reply.id))?;
                }
                released.push(reply);
            }
            // Its owner, or the end of its lease, was faster.
            Err(error) if matches!(error.code(), Some(ErrorCode::NotFound | ErrorCode::Gone)) => {}
            Err(error) => return Err(Failure::from(error).about(claim.id.as_str())),
        }
    }
    if globals.json {
        output::print_json(&Items { items: released })?;
    } else if released.is_empty() {
        output::print_line("nothing is claimed")?;
    }
    Ok(0)
}

async fn release(client: &Client, text: &str) -> Result<Released, Failure> {
    let id = resolve::instance(client, text).await?;
    Ok(client.release(&id).await?)
}

pub(crate) async fn run(globals: &Globals, args: ReleaseArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    if args.all {
        return release_all(globals, &client, &args).await;
    }
    for text in &args.ids {
        let released = release(&client, text).await.map_err(|failure| {
            // With one id there is no doubt which one is meant.
            if args.ids.len() > 1 {
                failure.about(text)
            } else {
                failure
            }
        })?;
        output::print(globals.json, &released, |reply| {
            format!("released {}: its VM is being destroyed", reply.id)
        })?;
    }
    Ok(0)
}
