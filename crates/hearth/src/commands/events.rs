//! `hearth events`: what happened, and what happens.

use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use hearth_api::client::{Client, ClientError, EventMessage, EventsQuery, EventsStream};
use hearth_api::event::Event;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::exec::until_stopped;
use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output};

/// Pause before a server that is away is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Events that are shown when nothing else is said.
const DEFAULT_LAST: u32 = 50;

const AFTER_HELP: &str = "\
Examples:
  hearth events                       the newest 50 events of all projects
  hearth events web --follow          those of one project, and what happens next
  hearth events --after 4711 --json   all since an event that you have: one JSON object per line

With --follow a connection that is lost is made again, and no event is missed.";

/// `hearth events`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct EventsArgs {
    /// Only of this project (name or id)
    project: Option<String>,
    /// Wait for what happens next
    #[arg(long, short)]
    follow: bool,
    /// Begin with the newest so many
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_LAST, conflicts_with = "after",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    last: u32,
    /// Begin after this event
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
}

pub(crate) async fn run(globals: &Globals, args: EventsArgs) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    let project = match &args.project {
        Some(text) => Some(connect::project(&client, text).await?.id),
        None => None,
    };
    let shows_project = project.is_none();
    let watched = Watched::new(
        client,
        EventsQuery {
            project,
            after: args.after,
            last: args.after.is_none().then_some(args.last),
            follow: args.follow,
        },
    );
    until_stopped(print(globals, watched, shows_project)).await
}

async fn print(globals: &Globals, mut watched: Watched, shows_project: bool) -> Result<u8, Failure> {
    loop {
        match watched.next().await? {
            EventMessage::Event(event) => print_event(globals, &event, shows_project)?,
            EventMessage::Reset(reset) => output::note(&format!(
                "events are missing: the server has {} to {} and continues after those",
                reset.oldest, reset.newest
            )),
            EventMessage::Begin(_) => {}
            EventMessage::End(_) => return Ok(0),
        }
    }
}

/// One line per event.
pub(super) fn print_event(globals: &Globals, event: &Event, shows_project: bool) -> Result<(), Failure> {
    if globals.json {
        let line = serde_json::to_string(event).map_err(|error| Failure::new(error.to_string()))?;
        return output::print_as_it_is(&line);
    }
    output::print_as_it_is(&line(event, shows_project, &TimeZone::system()))
}

fn line(event: &Event, shows_project: bool, zone: &TimeZone) -> String {
    let at = event.at.to_zoned_datetime(zone.clone()).strftime("%m-%d %H:%M:%S");
    let mut line = format!("{at}  {:<22}", event.kind.as_str());
    if shows_project {
        line.push_str(&format!("  {}", event.project_id));
    }
    if let Some(instance) = &event.instance_id {
        line.push_str(&format!("  {instance}"));
    }
    let detail = detail(event);
    if !detail.is_empty() {
        line.push_str(&format!("  {detail}"));
    }
    if let Some(reason) = &event.reason {
        let first = reason.lines().next().unwrap_or_default();
        line.push_str(&format!("  ({})", clean_line(first)));
    }
    line.trim_end().to_owned()
}

/// The facts of an event, without those that are too long for a line.
fn detail(event: &Event) -> String {
    let Some(facts) = event.detail.as_object() else {
        return String::new();
    };
    let facts = facts.iter().filter(|(name, value)| {
        let says_nothing = value.is_null() || value.is_object() || **value == Value::Bool(false);
        !says_nothing && !matches!(name.as_str(), "recipe" | "checkpoint")
    });
    let facts = facts.map(|(name, value)| match value.as_str() {
        Some(text) => clean_line(&format!("{name}={text}")),
        None => format!("{name}={value}"),
    });
    facts.collect::<Vec<_>>().join(" ")
}

/// Events that are watched, over as many connections as it takes.
pub(super) struct Watched {
    client: Client,
    query: EventsQuery,
    stream: Option<EventsStream>,
    is_away: bool,
}

impl Watched {
    pub(super) fn new(client: Client, query: EventsQuery) -> Self {
        Self {
            client,
            query,
            stream: None,
            is_away: false,
        }
    }

    /// The next message. A server that is away for some time is waited for, if what happens next is wanted.
    pub(super) async fn next(&mut self) -> Result<EventMessage, Failure> {
        loop {
            let message = match &mut self.stream {
                Some(stream) => match stream.next().await {
                    Some(message) => message,
                    None => {
                        self.stream = None;
                        continue;
                    }
                },
                None => match self.client.events(&self.query).await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        self.is_away = false;
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match message {
                Ok(message) => {
                    self.note(&message);
                    return Ok(message);
                }
                Err(error) if self.query.follow && is_away(&error) => self.wait(&error).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Where the next connection continues.
    fn note(&mut self, message: &EventMessage) {
        let after = match message {
            EventMessage::Begin(position) | EventMessage::End(position) => position.after,
            EventMessage::Event(event) => event.id,
            EventMessage::Reset(reset) => reset.newest,
        };
        (self.query.after, self.query.last) = (Some(after), None);
    }

    async fn wait(&mut self, error: &ClientError) {
        self.stream = None;
        if !self.is_away {
            output::note(&format!("{error}; trying again every second"));
        }
        self.is_away = true;
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn is_away(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::Unreachable { .. } | ClientError::Interrupted { .. } | ClientError::Timeout { .. }
    )
}

#[cfg(test)]
mod tests {
    use hearth_api::event::EventKind;
    use hearth_api::ids::{InstanceId, ProjectId};
    use serde_json::json;

    use super::*;

    #[test]
    fn event_is_one_line_without_control_characters() {
        let event = Event {
            id: 7,
            at: "2026-11-29T21:00:01Z".parse().unwrap(),
            project_id: ProjectId::example(0),
            instance_id: Some(InstanceId::example(1)),
            kind: EventKind::InstanceFailed,
            reason: Some("npm\u{1b}[31m said no\nand more".to_owned()),
            detail: json!({ "purpose": "pool", "recipe": "a-b" }),
        };
        let line = line(&event, false, &TimeZone::UTC);
        let instance = InstanceId::example(1);
        assert_eq!(
            line,
            format!("11-29 21:00:01  instance.failed         {instance}  purpose=pool  (npm said no)")
        );
    }
}
