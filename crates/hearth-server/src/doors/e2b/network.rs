//! What a sandbox may connect to. Hearth lets everything public through, or a list; a client of E2B makes its own list within what the
//! project allows.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use hearth_api::egress::{EgressMode, EgressPolicy};
use hearth_api::ids::InstanceId;
use hearth_api::values::{EgressHost, EgressNetwork};
use serde_json::{Value, json};

use super::access::{Key, managed};
use super::body::Json;
use super::fault::Refusal;
use super::pause::row_of;
use crate::http::AppState;
use crate::store::E2bRow;

/// Everything.
const ALL: [&str; 2] = ["0.0.0.0/0", "::/0"];
/// What of a network is not served.
const UNSERVED: [&str; 5] = ["dnsServers", "egressProxy", "maskRequestHost", "httpsPorts", "rules"];
/// Beside the network as it was asked for: whether there is one at all.
const INTERNET: &str = "allowInternetAccess";

fn texts(network: Option<&Value>, field: &str) -> Result<Vec<String>, Refusal> {
    match network.and_then(|network| network.get(field)) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| Refusal::wrong(format!("`network.{field}` must be a list of texts"))),
    }
}

/// The policy that a network stands for; `None`: what the project's says.
pub fn policy(internet: Option<bool>, network: Option<&Value>) -> Result<Option<EgressPolicy>, Refusal> {
    for field in UNSERVED {
        let value = network.and_then(|network| network.get(field));
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        if value.is_some_and(|value| !is_empty(value)) {
            let why = format!("`network.{field}` is not served by Hearth; leave it out");
            return Err(Refusal::wrong(why).never_again());
        }
    }
    let (allow, deny) = (texts(network, "allowOut")?, texts(network, "denyOut")?);
    let denies_all = internet == Some(false) || deny.iter().any(|text| ALL.contains(&text.as_str()));
    let mut opens_all = false;
    let mut policy = EgressPolicy {
        mode: EgressMode::Allow,
        ..EgressPolicy::default()
    };
    for text in allow {
        if ALL.contains(&text.as_str()) {
            opens_all = true;
        } else if let Ok(network) = EgressNetwork::try_from(text.as_str()) {
            policy.cidrs.push(network);
        } else if let Ok(host) = EgressHost::try_from(text.to_lowercase().as_str()) {
            policy.hosts.push(host);
        } else {
            let why = format!("`network.allowOut`: `{text}` is no name, IPv4 address or IPv4 network");
            return Err(Refusal::wrong(why));
        }
    }
    if let Some(text) = deny.first().filter(|_| !denies_all) {
        let why = format!(
            "`network.denyOut` can be everything (0.0.0.0/0) with exceptions in `allowOut`, and not `{text}` alone: Hearth lets \
             everything public through, or a list"
        );
        return Err(Refusal::wrong(why).never_again());
    }
    Ok((denies_all && !opens_all).then_some(policy))
}

/// Whether its ports need no token.
pub fn is_public(network: Option<&Value>) -> bool {
    network.and_then(|network| network.get("allowPublicTraffic")) == Some(&json!(true))
}

/// What is kept of what was asked for.
pub fn kept(internet: Option<bool>, network: Option<Value>) -> Option<Value> {
    if internet.is_none() && network.is_none() {
        return None;
    }
    let mut kept = network.filter(Value::is_object).unwrap_or_else(|| json!({}));
    kept[INTERNET] = json!(internet.unwrap_or(true));
    Some(kept)
}

/// Whether it may connect to anything that is not listed.
pub fn internet(kept: Option<&Value>) -> bool {
    kept.and_then(|kept| kept.get(INTERNET)) != Some(&json!(false))
}

/// The network as it was asked for.
pub fn said(kept: Option<Value>) -> Option<Value> {
    let mut said = kept?;
    said.as_object_mut()?.remove(INTERNET);
    said.as_object()
        .is_some_and(|fields| !fields.is_empty())
        .then_some(said)
}

/// Holds a sandbox to it, whether or not its VM runs.
pub async fn hold(state: &AppState, id: &InstanceId, policy: Option<&EgressPolicy>) -> Result<(), Refusal> {
    let Some(row) = state.store.instance(id).await? else {
        return Err(Refusal::no_sandbox(super::access::sandbox_id(id)));
    };
    let held = state.egress.narrow(id, &row.project, &row.vm, policy).await;
    held.map_err(|error| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
}

/// Changes what a sandbox may connect to.
pub async fn update(
    State(state): State<AppState>,
    key: Key,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Result<StatusCode, Refusal> {
    let seen = managed(&state, &key, &name).await?;
    let internet = ["allow_internet_access", INTERNET]
        .iter()
        .find_map(|field| body.get(*field).and_then(Value::as_bool));
    let policy = policy(internet, Some(&body))?;
    hold(&state, &seen.id, policy.as_ref()).await?;
    let row = row_of(&seen);
    let public_traffic = match body.get("allowPublicTraffic") {
        Some(_) => is_public(Some(&body)),
        None => row.public_traffic,
    };
    let row = E2bRow {
        network: kept(internet, Some(body)),
        public_traffic,
        ..row
    };
    state.store.put_e2b(&seen.id, &row).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_becomes_a_list_or_nothing_or_is_refused() {
        let of = |internet, network: Value| policy(internet, Some(&network));
        assert_eq!(of(None, json!({})).unwrap(), None);
        assert_eq!(of(None, json!({ "allowOut": ["example.org"] })).unwrap(), None);
        let closed = of(Some(false), json!({})).unwrap().unwrap();
        assert_eq!(
            (closed.mode, closed.hosts.len(), closed.cidrs.len()),
            (EgressMode::Allow, 0, 0)
        );
        let some = json!({ "allowOut": ["Example.org", "203.0.113.7", "198.51.100.0/24"], "denyOut": ["0.0.0.0/0"] });
        let some = of(None, some).unwrap().unwrap();
        assert_eq!(some.hosts[0].as_str(), "example.org");
        assert_eq!(some.cidrs.len(), 2);
        for refused in [
            json!({ "denyOut": ["203.0.113.7"] }),
            json!({ "rules": { "a": [] } }),
            json!({ "denyOut": ["0.0.0.0/0"], "allowOut": ["not a name"] }),
            json!({ "denyOut": 5 }),
        ] {
            assert!(of(None, refused.clone()).is_err(), "{refused}");
        }
    }
}
