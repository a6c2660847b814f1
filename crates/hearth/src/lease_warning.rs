//! Who works in a claimed VM from a terminal learns before its lease ends, and how to make that later.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use console::Style;
use hearth_api::client::Client;
use hearth_api::ids::InstanceId;
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinHandle;

use crate::{hint, output};

/// The last warning, besides the one whose time the project says.
const LAST: SignedDuration = SignedDuration::from_mins(1);
/// The server is asked again so soon when it did not answer.
const AGAIN: Duration = Duration::from_secs(60);
/// A lease that is far from its end is checked again after so long: its end only ever moves away.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);
/// An open connection has renewed a lease within this time.
const RENEWED_WITHIN: Duration = Duration::from_secs(45);
/// So many minutes are proposed.
const PROPOSED_MINUTES: &str = "120";

/// Warns until it is dropped.
#[derive(Debug)]
pub(crate) struct LeaseWarning(Option<JoinHandle<()>>);

impl Drop for LeaseWarning {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What a command does to the lease of the VM that it works in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meanwhile {
    /// An open connection renews it, so that it seldom ends: whether it does not is seen by its end, which stays where it was.
    Renews,
    /// Nothing, while nobody uses what it offers.
    Nothing,
}

/// Begins to warn, where somebody can read it.
pub(crate) fn watch(client: &Client, id: &InstanceId, meanwhile: Meanwhile) -> LeaseWarning {
    if !std::io::stderr().is_terminal() {
        return LeaseWarning(None);
    }
    let (client, id) = (client.clone(), id.clone());
    LeaseWarning(Some(tokio::spawn(async move { warn(&client, &id, meanwhile).await })))
}

async fn warn(client: &Client, id: &InstanceId, meanwhile: Meanwhile) {
    let (mut told, mut last_end) = (None, None);
    loop {
        let Ok(view) = client.view_instance(id).await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let (Some(end), minutes @ 1..) = (view.expires_at, view.lease_warning_minutes) else {
            return;
        };
        let first = SignedDuration::from_mins(minutes.into());
        let left = end.duration_since(Timestamp::now());
        let (due, wait) = moment(left, first);
        if due.is_some() && meanwhile == Meanwhile::Renews && last_end.replace(end) != Some(end) {
            tokio::time::sleep(RENEWED_WITHIN.min(wait)).await;
            continue;
        }
        if due.is_some() && told != due && left.is_positive() {
            say(id, end, left);
        }
        told = due;
        tokio::time::sleep(wait).await;
    }
}

/// Which warning is due when so much is left, and how long it takes until the next one may be.
fn moment(left: SignedDuration, first: SignedDuration) -> (Option<SignedDuration>, Duration) {
    let moments = [LAST.min(first), first];
    let due = moments.into_iter().find(|moment| left <= *moment);
    let next = moments.into_iter().rev().find(|moment| left > *moment);
    let wait = next.map_or(AGAIN, |next| Duration::try_from(left - next).unwrap_or(AGAIN));
    (due, wait.clamp(Duration::from_millis(100), LONGEST_WAIT))
}

/// One sentence, also where a terminal passes on every byte as it is.
fn say(id: &InstanceId, end: Timestamp, left: SignedDuration) {
    let in_all = Duration::try_from(left).unwrap_or_default();
    let extend = hint::command(["claim", "extend", id.as_str(), "--by", PROPOSED_MINUTES]);
    let text = format!(
        "hearth: the lease of {id} ends in {} ({end:.0}), and its VM with it; later: {extend}",
        output::whole_seconds(in_all)
    );
    let dim = Style::new().for_stderr().dim();
    let mut stderr = std::io::stderr().lock();
    // A terminal that is gone reads nothing.
    let _ = write!(stderr, "\r\n{}\r\n", dim.apply_to(hint::complete(&text))).and_then(|()| stderr.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_warnings_are_given_and_the_next_one_is_waited_for() {
        let minutes = SignedDuration::from_mins;
        let wait = |count: u64| Duration::from_secs(60 * count);
        for (left, first, due, next) in [
            (minutes(30), minutes(10), None, wait(20)),
            (minutes(10), minutes(10), Some(minutes(10)), wait(9)),
            (minutes(3), minutes(10), Some(minutes(10)), wait(2)),
            (minutes(1), minutes(10), Some(minutes(1)), AGAIN),
            (minutes(0), minutes(10), Some(minutes(1)), AGAIN),
            (minutes(600), minutes(10), None, LONGEST_WAIT),
            (minutes(1), minutes(1), Some(minutes(1)), AGAIN),
        ] {
            assert_eq!(moment(left, first), (due, next), "{left:#} of {first:#}");
        }
    }
}
