//! `hearth release`: give a claimed VM back.

use clap::Args;
use hearth_api::ids::InstanceId;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output};

/// `hearth release`.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The ids of the instances, as `hearth claim` printed them
    #[arg(required = true)]
    ids: Vec<InstanceId>,
}

pub(crate) async fn run(globals: &Globals, args: ReleaseArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    for id in &args.ids {
        let released = client.release(id).await.map_err(|error| {
            let failure = Failure::from(error);
            // With one id there is no doubt which one is meant.
            if args.ids.len() > 1 {
                failure.about(id.as_str())
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
