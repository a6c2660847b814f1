//! `hearth store`: where the server's data are kept.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_server::{CopyProgress, MoveError, PostgresUrl, ServeError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{hint, output, places};

/// Where the address of the database may be said, with its password: arguments can be read by every user of a machine.
const VARIABLE: &str = "HEARTH_DATABASE";

const AFTER_HELP: &str = "\
The server must be stopped; its VMs keep running, and the next start takes them over. Everything is copied in one transaction and
compared row by row; hearth.db is kept as hearth.db.moved. What was interrupted is done by the same command again.

Examples:
  createdb hearth                                                       an empty database
  HEARTH_DATABASE=postgres://hearth:PASSWORD@db/hearth hearth store move    arguments can be read by others, variables not
  hearth store move --to 'postgres://hearth@db/hearth?sslmode=verify-full'  the password stands in ~/.pgpass";

/// `hearth store`.
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Move the server's data from SQLite to PostgreSQL
    Move(MoveArgs),
}

/// The address of a PostgreSQL, not yet understood: an error of the command line's own would quote it with its password.
#[derive(Clone)]
pub(crate) struct DatabaseArg(String);

impl FromStr for DatabaseArg {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for DatabaseArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseArg")
    }
}

impl DatabaseArg {
    /// What the environment says.
    pub(crate) fn of_environment() -> Option<Self> {
        std::env::var(VARIABLE).ok().filter(|text| !text.is_empty()).map(Self)
    }

    /// What it says.
    pub(crate) fn url(&self) -> Result<PostgresUrl, Failure> {
        self.0.parse().map_err(|error| {
            Failure::usage(format!("the address of the database cannot be used: {error}"))
                .hint("write it like postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full")
        })
    }
}

/// `hearth store move`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct MoveArgs {
    /// The PostgreSQL database to move to, empty, like `postgres://hearth@db.example/hearth?sslmode=verify-full`
    /// [env: HEARTH_DATABASE, which may hold the password, too]
    #[arg(long, value_name = "URL")]
    to: Option<DatabaseArg>,
}

/// What was moved.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Moved {
    database: String,
    tables: Vec<MovedTable>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MovedTable {
    name: &'static str,
    rows: u64,
    /// The same of SQLite's rows and of PostgreSQL's.
    checksum: String,
}

pub(crate) async fn run(globals: &Globals, command: StoreCommand) -> Result<u8, Failure> {
    match command {
        StoreCommand::Move(args) => move_to(globals, args).await,
    }
}

async fn move_to(globals: &Globals, args: MoveArgs) -> Result<u8, Failure> {
    let data_dir = places::data_dir(globals);
    let Some(to) = args.to.or_else(DatabaseArg::of_environment) else {
        return Err(Failure::usage("it is not said where to")
            .hint(format!("name an empty PostgreSQL database with --to or in {VARIABLE}")));
    };
    let url = to.url()?;
    let bar = progress_bar();
    let progress = |progress: CopyProgress| {
        bar.set_length(progress.all);
        bar.set_position(progress.done);
        bar.set_message(progress.table);
    };
    let copied = hearth_server::move_store(&data_dir, &url, progress).await;
    bar.finish_and_clear();
    let copied = copied.map_err(|error| refused(&error))?;
    let tables = copied.iter().map(|table| MovedTable {
        name: table.name,
        rows: table.sum.rows,
        checksum: format!("{:032x}", table.sum.sum),
    });
    let moved = Moved {
        database: url.to_string(),
        tables: tables.collect(),
    };
    output::print(globals.json, &moved, |moved| {
        let rows: u64 = moved.tables.iter().map(|table| table.rows).sum();
        let tables = moved.tables.iter().filter(|table| table.rows > 0);
        let lines = tables.map(|table| [table.name.to_owned(), table.rows.to_string(), table.checksum.clone()]);
        format!(
            "{}\n{} of {} are in {}, each the same as before",
            output::table(["TABLE", "ROWS", "CHECKSUM"], lines),
            output::count(rows, "row"),
            output::count(moved.tables.len() as u64, "table"),
            moved.database
        )
    })?;
    output::note(&format!(
        "start the server with `{}` (with a password: {VARIABLE}=… `{}`); hearth.db.moved can be removed when all is well",
        hint::command_at(&data_dir, &["serve", "--database", &moved.database]),
        hint::command_at(&data_dir, &["serve"]),
    ));
    Ok(0)
}

fn progress_bar() -> ProgressBar {
    /// Between two pictures of it.
    const TICK: Duration = Duration::from_millis(200);
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} rows, {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

fn refused(error: &MoveError) -> Failure {
    let failure = Failure::new(hearth_api::error::chain(error));
    match error {
        MoveError::Folder(ServeError::InUse(_)) => {
            failure.hint("stop it with Ctrl-C, or `systemctl stop hearth`; its VMs keep running meanwhile")
        }
        MoveError::NoStore(_) => failure.hint("a store that was moved is called hearth.db.moved"),
        _ => failure,
    }
}
