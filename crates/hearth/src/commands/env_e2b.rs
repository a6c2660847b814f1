//! `hearth env e2b`: the variables by which E2B's clients work against this server.

use serde::Serialize;

use crate::args::Globals;
use crate::failure::Failure;
use crate::text::clean_line;
use crate::{connect, output};

/// Below this the server speaks E2B's protocol.
const PREFIX: &str = "/e2b";

/// Takes away what an earlier call has set.
const UNSET: &str = "unset E2B_API_URL E2B_SANDBOX_URL";

/// How tokens begin.
const OUR_PREFIX: &str = "hearth_";
/// How the keys begin that E2B's clients know.
const THEIR_PREFIX: &str = "e2b_";

/// In the order in which they are printed.
#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct Variables {
    e2b_api_key: String,
    #[serde(flatten)]
    place: Place,
}

/// How clients reach the server.
#[derive(Serialize)]
#[serde(untagged)]
enum Place {
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    Address {
        e2b_api_url: String,
        e2b_sandbox_url: String,
    },
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    Domain { e2b_domain: String },
}

pub(crate) fn run(globals: &Globals, domain: Option<String>) -> Result<u8, Failure> {
    let (url, token) = connect::server(globals)?;
    let place = match domain {
        Some(e2b_domain) if is_domain(&e2b_domain) => Place::Domain { e2b_domain },
        Some(other) => {
            let failure = Failure::usage(format!("`{}` is no domain", clean_line(&other)));
            return Err(failure.hint("it is what the server's `--ports-domain` says, like vm.example.net"));
        }
        None => address(&url)?,
    };
    // Some of its clients take no key that begins in another way; the server takes both spellings.
    let key = match token.strip_prefix(OUR_PREFIX) {
        Some(rest) => format!("{THEIR_PREFIX}{rest}"),
        None => token,
    };
    let variables = Variables {
        e2b_api_key: key,
        place,
    };
    output::print(globals.json, &variables, |variables| {
        let mut lines = vec![("E2B_API_KEY", &variables.e2b_api_key)];
        match &variables.place {
            Place::Address {
                e2b_api_url,
                e2b_sandbox_url,
            } => lines.extend([("E2B_API_URL", e2b_api_url), ("E2B_SANDBOX_URL", e2b_sandbox_url)]),
            Place::Domain { e2b_domain } => lines.push(("E2B_DOMAIN", e2b_domain)),
        }
        // Clients look at addresses first.
        let no_addresses = matches!(variables.place, Place::Domain { .. }).then(|| UNSET.to_owned());
        let lines = lines.into_iter().map(|(name, value)| {
            // What holds a zero byte is no token and no address.
            format!("export {name}={}", shlex::try_quote(value).unwrap_or_default())
        });
        no_addresses.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    })?;
    Ok(0)
}

fn is_domain(text: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|sign| sign.is_ascii_alphanumeric() || sign == b'-');
    text.split('.').all(is_label)
}

fn address(url: &str) -> Result<Place, Failure> {
    if !url.starts_with("http") {
        return Err(Failure::new(format!("E2B's clients cannot connect to {url}")).hint(
            "name the port that the server listens at (`hearth --url http://127.0.0.1:7717 env e2b`; `hearth serve --listen` adds one), or \
             its domain, where it has a certificate for every name below it: `hearth env e2b --domain vm.example.net`",
        ));
    }
    let url = format!("{}{PREFIX}", url.trim_end_matches('/'));
    Ok(Place::Address {
        e2b_api_url: url.clone(),
        e2b_sandbox_url: url,
    })
}
