//! `hearth env e2b`: the variables by which E2B's clients work against this server.

use serde::Serialize;

use crate::args::Globals;
use crate::failure::Failure;
use crate::{connect, output};

/// Below this the server speaks E2B's protocol.
const PREFIX: &str = "/e2b";

/// How tokens begin.
const OUR_PREFIX: &str = "hearth_";
/// How the keys begin that E2B's clients know.
const THEIR_PREFIX: &str = "e2b_";

/// In the order in which they are printed.
#[derive(Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
struct Variables {
    e2b_api_key: String,
    e2b_api_url: String,
    e2b_sandbox_url: String,
}

pub(crate) fn run(globals: &Globals) -> Result<u8, Failure> {
    let (url, token) = connect::server(globals)?;
    if !url.starts_with("http") {
        return Err(Failure::new(format!("E2B's clients cannot connect to {url}"))
            .hint("let the server listen at a port too (`hearth serve --listen 127.0.0.1:7717`), and name it: `hearth --url http://127.0.0.1:7717 env e2b`"));
    }
    let url = format!("{}{PREFIX}", url.trim_end_matches('/'));
    // Some of its clients take no key that begins in another way; the server takes both spellings.
    let key = match token.strip_prefix(OUR_PREFIX) {
        Some(rest) => format!("{THEIR_PREFIX}{rest}"),
        None => token,
    };
    let variables = Variables {
        e2b_api_key: key,
        e2b_api_url: url.clone(),
        e2b_sandbox_url: url,
    };
    output::print(globals.json, &variables, |variables| {
        let line = |name: &str, value: &str| {
            // What holds a zero byte is no token and no address.
            let quoted = shlex::try_quote(value).unwrap_or_default();
            format!("export {name}={quoted}")
        };
        [
            line("E2B_API_KEY", &variables.e2b_api_key),
            line("E2B_API_URL", &variables.e2b_api_url),
            line("E2B_SANDBOX_URL", &variables.e2b_sandbox_url),
        ]
        .join("\n")
    })?;
    Ok(0)
}
