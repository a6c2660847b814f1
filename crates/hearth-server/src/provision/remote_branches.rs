//! Which branches a repository has on its own server, for a person who names one. Nothing is fetched.

use std::path::Path;
use std::time::Duration;

use crate::sources::{SourceError, Sources};
use crate::store::Remote;

/// A person waits for the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// No repository is there whose configuration git would read.
const NOWHERE: &str = "/";

/// The names of all branches, as the repository's server lists them; the installation's rules hold as for every fetch.
pub async fn remote_branches(sources: &Sources, remote: &Remote) -> Result<Vec<String>, SourceError> {
    let grant = sources.admit(remote)?;
    let command = ["ls-remote", "--heads"];
    let answer = sources.git(&grant, Path::new(NOWHERE), &command, &[], PATIENCE).await?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let names = text
        .lines()
        .filter_map(|line| line.split_once('\t')?.1.strip_prefix("refs/heads/"));
    Ok(names.map(str::to_owned).collect())
}
