//! `hearth webhook`: events are posted to a URL, signed.

use clap::{Args, Subcommand};
use hearth_api::event::EventKind;
use hearth_api::ids::{DeliveryId, WebhookId};
use hearth_api::page::Items;
use hearth_api::webhook::{CreateWebhook, Delivery, WebhookItem};

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, hint, output};

const AFTER_HELP: &str = "\
Examples:
  hearth webhook create https://example.org/hearth --kind instance.failed --kind claim.ended
  hearth webhook create https://example.org/hearth --project web
  hearth webhook deliveries whk_01a2… --failed
  hearth webhook replay whk_01a2… msg_01a2…

Deliveries are signed as Standard Webhooks (https://www.standardwebhooks.com) are: a receiver checks them with the secret and any of their libraries.";

/// What to do with webhooks.
#[derive(Debug, Subcommand)]
#[command(after_help = AFTER_HELP)]
pub(crate) enum WebhookCommand {
    /// Post events to a URL from now on; prints the secret, this once
    Create(CreateArgs),
    /// List webhooks
    List,
    /// Delete a webhook with its deliveries
    Delete {
        #[arg(value_name = "WEBHOOK")]
        id: WebhookId,
    },
    /// List what was posted: how it was answered, when it is tried next
    Deliveries {
        #[arg(value_name = "WEBHOOK")]
        id: WebhookId,
        /// Only those that were given up
        #[arg(long)]
        failed: bool,
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Send a delivery again, at once
    Replay {
        #[arg(value_name = "WEBHOOK")]
        id: WebhookId,
        #[arg(value_name = "DELIVERY")]
        delivery: DeliveryId,
    },
}

/// `hearth webhook create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Where events are posted
    #[arg(value_name = "URL")]
    receiver: String,
    /// Only events of this project (name or id)
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
    /// Only events of this kind, like instance.failed; may be repeated
    #[arg(long = "kind", value_name = "KIND")]
    kinds: Vec<EventKind>,
}

pub(crate) async fn run(globals: &Globals, command: WebhookCommand) -> Result<u8, Failure> {
    let client = connect::client(globals)?;
    match command {
        WebhookCommand::Create(args) => {
            let project = match &args.project {
                Some(text) => Some(connect::project(&client, text).await?.id),
                None => None,
            };
            let webhook = CreateWebhook {
                url: args.receiver,
                project_id: project,
                kinds: (!args.kinds.is_empty()).then_some(args.kinds),
            };
            let made = client.create_webhook(&webhook).await?;
            output::print(globals.json, &made, |made| {
                output::pairs([("id", made.id.to_string()), ("secret", made.secret.clone())])
            })?;
            if !globals.json {
                let list = hint::command(["webhook", "deliveries", made.id.as_str()]);
                output::note(&format!("the secret is shown this once; what was posted: {list}"));
            }
        }
        WebhookCommand::List => output::print(globals.json, &client.list_webhooks().await?, list)?,
        WebhookCommand::Delete { id } => {
            let gone = client.delete_webhook(&id).await?;
            output::print(globals.json, &gone, |gone| format!("deleted {}", gone.id))?;
        }
        WebhookCommand::Deliveries { id, failed, limit } => {
            let deliveries = client.list_deliveries(&id, failed, limit).await?;
            output::print(globals.json, &deliveries, deliveries_table)?;
        }
        WebhookCommand::Replay { id, delivery } => {
            let replayed = client.replay_delivery(&id, &delivery).await?;
            output::print(globals.json, &replayed, |replayed| {
                format!("{} is sent again", replayed.id)
            })?;
        }
    }
    Ok(0)
}

fn list(webhooks: &Items<WebhookItem>) -> String {
    if webhooks.items.is_empty() {
        return "no webhooks".to_owned();
    }
    let row = |webhook: &WebhookItem| {
        let project = webhook.project_id.as_ref();
        [
            webhook.id.to_string(),
            clean_line(&webhook.url),
            project.map_or_else(|| "all".to_owned(), ToString::to_string),
            match &webhook.kinds {
                Some(kinds) => kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" "),
                None => "all".to_owned(),
            },
            webhook.pending.to_string(),
            webhook.failed.to_string(),
        ]
    };
    output::table(
        ["Webhook", "URL", "Project", "Kinds", "Pending", "Failed"],
        webhooks.items.iter().map(row),
    )
}

fn deliveries_table(deliveries: &Items<Delivery>) -> String {
    if deliveries.items.is_empty() {
        return "nothing was posted".to_owned();
    }
    let row = |delivery: &Delivery| {
        [
            delivery.id.to_string(),
            delivery.event_id.to_string(),
            delivery.kind.to_string(),
            output::ago(delivery.created_at),
            delivery.status.as_str().to_owned(),
            delivery.attempts.to_string(),
            match (&delivery.last_error, delivery.last_status) {
                (Some(error), _) => clean_line(error),
                (None, Some(status)) => status.to_string(),
                (None, None) => "-".to_owned(),
            },
        ]
    };
    output::table(
        ["Delivery", "Event", "Kind", "Made", "Status", "Attempts", "Answer"],
        deliveries.items.iter().map(row),
    )
}
