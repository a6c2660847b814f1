//! `hearth uninstall`: everything that a server is and has on this machine, but the program.

use clap::Args;
use hearth_server::{DriverKind, ServeError, ServeOptions};

use super::really::really;
use super::serve_incus::{IncusArgs, RealDriver};
use super::store::DatabaseArg;
use crate::args::Globals;
use crate::failure::Failure;
use crate::{local, output, places};

const AFTER_HELP: &str = "\
Ends the data folder's VMs, removes their network and the folder: projects, variables, tokens, templates, images, mirrors. The server
must be stopped first. What Hearth did not make stays. The program goes with its package (`apt purge hearth`, which does all
this too) or by removing the file.";

/// `hearth uninstall`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct UninstallArgs {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// What has made the VMs
    #[arg(long, value_enum, default_value = "qemu", hide = true)]
    driver: RealDriver,
    #[command(flatten)]
    incus: IncusArgs,
}

pub(crate) async fn run(globals: &Globals, args: UninstallArgs) -> Result<u8, Failure> {
    let data_dir = places::data_dir(globals);
    if !hearth_server::is_data_folder(&data_dir) {
        local::forget_dead();
        return Err(
            Failure::new(format!("{} is no data folder of a Hearth server", data_dir.display())).hint(
                "name the folder with --data-dir; where there is none, nothing is left to remove but the program",
            ),
        );
    }
    if !args.yes {
        really(&format!(
            "this ends every VM of {} and removes all that is in it: projects, variables, tokens, templates, images",
            data_dir.display()
        ))?;
    }
    let mut options = ServeOptions::new(data_dir.clone());
    options.shared_images = places::shared_images();
    options.database = DatabaseArg::of_environment()
        .map(|database| database.url())
        .transpose()?;
    if args.driver == RealDriver::Incus {
        options.driver = DriverKind::Incus;
        options.incus = args.incus.settings();
    }
    let removed = hearth_server::uninstall(&options).await.map_err(|error| {
        let failure = Failure::new(hearth_api::error::chain(&error));
        match error {
            ServeError::InUse(_) => {
                failure.hint("stop it with Ctrl-C, or `systemctl stop hearth`; its VMs are ended by this command")
            }
            ServeError::StoreElsewhere(url) => Failure::new(format!(
                "the store of this data folder is in PostgreSQL, at {url}, where this server is to be forgotten, too"
            ))
            .hint("give the address, with its password, in HEARTH_DATABASE"),
            _ => failure,
        }
    })?;
    local::forget_dead();
    output::print(globals.json, &removed, |removed| {
        format!(
            "{} is removed, and {}",
            data_dir.display(),
            output::count(removed.vms, "VM")
        )
    })?;
    if !removed.left.is_empty() {
        output::note(&format!(
            "the folder stays, for what Hearth did not make: {}",
            output::lines_or_dash(removed.left.iter().map(|path| path.display().to_string())).replace('\n', ", ")
        ));
    }
    Ok(0)
}
