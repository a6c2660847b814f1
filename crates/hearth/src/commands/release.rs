//! `hearth release`: give a claimed VM back.

use clap::Args;
use hearth_api::claim::Released;
use hearth_api::client::Client;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output, resolve};

/// `hearth release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The instances: their ids, beginnings or ends of them, the tasks they were claimed for, or `last`
    #[arg(required = true, value_name = "INSTANCE")]
    ids: Vec<String>,
}

async fn release(client: &Client, text: &str) -> Result<Released, Failure> {
    let id = resolve::instance(client, text).await?;
    Ok(client.release(&id).await?)
}

pub(crate) async fn run(globals: &Globals, args: ReleaseArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
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
