//! The published document: OpenAPI 3.1, generated from the handlers and the wire types and then completed here with what all
//! operations share: the token, path parameters, refusals, the request id, examples. The same document checks request bodies
//! ([`super::schema`]), so what it says is what the server does.

mod examples;
mod operations;
mod refusals;
mod replies;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use hearth_api::error::ErrorBody;
use hearth_api::event::{Event, EventsData, EventsPosition, EventsReset};
use hearth_api::exec::{ExecExit, ExecMessage, ExecRequest};
use hearth_api::file::FileChange;
use hearth_api::instance::FollowEvent;
use hearth_api::port::TunnelMessage;
use hearth_api::session::{ReadUntil, SessionBegin, SessionDropped, SessionMessage};
use hearth_api::settings::Settings;
use hearth_api::terminal::TerminalMessage;
use hearth_api::values::{Cursor, TerminalKind, Word};
use serde_json::{Map, Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Components, Header, Ref, RefOr};
use utoipa::{OpenApi, ToSchema as _};

/// Where the document is served.
pub const PATH: &str = "/openapi.json";
/// Where the schema of repositories' settings files is served.
pub const SETTINGS_PATH: &str = "/schemas/settings.json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hearth",
        description = "Keeps virtual machines warm for coding agents: configure a project's pool, test its set-up, claim a \
                       ready VM when a task starts.\n\nErrors have one shape, `{\"error\":{\"code\",\"message\",\"details\"?}}`; \
                       a request that is malformed in any way is 422. Lists take `limit` and the opaque `cursor` of the \
                       page before. Timestamps are RFC 3339, UTC, with milliseconds.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact()
    ),
    // Wherever the document was fetched from: a server does not know the names that proxies give it.
    servers((url = "/")),
    security(("token" = [])),
    tags(
        (name = "projects", description = "Repositories, variables and set-up of a project"),
        (name = "warm pool", description = "How many VMs are kept ready, test boots, instances"),
        (name = "claims", description = "Taking a VM, working in it, giving it back"),
        (name = "files", description = "Files in a VM"),
        (name = "sessions", description = "Commands in a VM that outlive who started them, and its processes"),
        (name = "ports", description = "TCP ports in a VM: HTTP, WebSockets, raw connections, links for others"),
        (name = "events", description = "What happens, as it happens"),
        (name = "audit", description = "Who did what"),
        (name = "tokens", description = "API tokens"),
        (name = "server", description = "Whether the server works")
    ),
    components(schemas(
        Cursor,
        ErrorBody,
        Event,
        EventsData,
        EventsPosition,
        EventsReset,
        ExecExit,
        ExecMessage,
        FileChange,
        FollowEvent,
        ReadUntil,
        SessionBegin,
        SessionDropped,
        SessionMessage,
        Settings,
        TerminalKind,
        TerminalMessage,
        TunnelMessage,
        Word
    ))
)]
pub struct Base;

/// The whole document.
pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = super::routes().into_openapi();
    complete(&mut document);
    // Plain structs with string keys: serialising them cannot fail.
    serde_json::to_value(document).unwrap_or_default()
});

/// The schema of a repository's settings file, whole in itself.
pub static SETTINGS_SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut whole = DOCUMENT["components"]["schemas"]["Settings"].clone();
    let definitions = reached(&whole);
    whole["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    whole["title"] = json!("Hearth repository settings");
    whole["properties"]["$schema"] = json!({ "type": "string" });
    whole["$defs"] = Value::Object(definitions);
    point_to_definitions(&mut whole);
    whole
});

/// How the document refers to one of its schemas.
pub const REFERENCE: &str = "#/components/schemas/";

pub fn schema_name(reference: &str) -> Option<&str> {
    reference.strip_prefix(REFERENCE)
}

/// The schemas of the document that are used from here, by their names.
pub fn reached(from: &Value) -> Map<String, Value> {
    let schemas = &DOCUMENT["components"]["schemas"];
    let mut names = BTreeSet::new();
    reach(from, schemas, &mut names);
    let named = names.into_iter().map(|name| {
        let schema = schemas[&name].clone();
        (name, schema)
    });
    named.collect()
}

/// The names of all schemas that are used from here.
pub fn reach(from: &Value, schemas: &Value, into: &mut BTreeSet<String>) {
    match from {
        Value::Object(object) => {
            if let Some(name) = object.get("$ref").and_then(Value::as_str).and_then(schema_name)
                && into.insert(name.to_owned())
            {
                reach(&schemas[name], schemas, into);
            }
            object.values().for_each(|value| reach(value, schemas, into));
        }
        Value::Array(values) => values.iter().for_each(|value| reach(value, schemas, into)),
        _ => {}
    }
}

fn point_to_definitions(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(Value::String(reference)) = object.get_mut("$ref")
                && let Some(name) = schema_name(reference)
            {
                *reference = format!("#/$defs/{name}");
            }
            object.values_mut().for_each(point_to_definitions);
        }
        Value::Array(values) => values.iter_mut().for_each(point_to_definitions),
        _ => {}
    }
}

/// All operations of a path.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ]
    .into_iter()
    .flatten()
}

fn complete(document: &mut utoipa::openapi::OpenApi) {
    document.paths.paths.extend(replies::document_paths());
    let components = document.components.get_or_insert_with(Components::new);
    replies::close(components, &document.paths);
    exactly_one(components, &ExecRequest::name(), &ExecRequest::ALTERNATIVES);
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token: `hearth_…`"))
        .build();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    components.headers = headers();
    components.responses = refusals::responses();
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            operations::complete(path, operation);
            replies::describe(operation);
        }
    }
}

/// An object holds exactly one of these fields. JSON Schema says that beside the object's properties, for which the derive has no
/// words.
fn exactly_one(components: &mut Components, schema: &str, alternatives: &[&str]) {
    if let Some(RefOr::T(Schema::Object(object))) = components.schemas.get_mut(schema) {
        let branches: Vec<Value> = alternatives.iter().map(|name| json!({ "required": [name] })).collect();
        object.extensions = Some(Extensions::from_iter([("oneOf", branches)]));
    }
}

/// The headers that replies have.
fn headers() -> BTreeMap<String, RefOr<Header>> {
    let header = |description: &str, schema: ObjectBuilder| {
        let header = HeaderBuilder::new()
            .description(Some(description))
            .schema(Some(schema))
            .extensions(Some(Extensions::from_iter([("required", true)])));
        RefOr::T(header.build())
    };
    let text = ObjectBuilder::new().schema_type(Type::String);
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    [
        (
            operations::REQUEST_ID,
            header("Names this request in the server's log.", text),
        ),
        (
            refusals::RETRY_AFTER,
            header("Seconds to wait before asking again.", seconds),
        ),
    ]
    .map(|(name, header)| (name.to_owned(), header))
    .into()
}

/// Where the document says what a header is.
fn header_ref(name: &str) -> Ref {
    Ref::new(format!("#/components/headers/{name}"))
}

#[cfg(test)]
mod tests {
    use hearth_api::claim::MAX_LEASE_MINUTES;
    use hearth_api::terminal::TerminalSize;

    use super::*;

    /// The derive's attributes take numbers only, so what the code counts with stands there a second time.
    #[test]
    fn bounds_of_the_code_are_those_of_the_document() {
        let schemas = &DOCUMENT["components"]["schemas"];
        let most = |schema: &str, field: &str| schemas[schema]["properties"][field]["maximum"].as_u64();
        assert_eq!(most("ExtendRequest", "minutes"), Some(MAX_LEASE_MINUTES));
        assert_eq!(most("ClaimRequest", "ttlMinutes"), Some(MAX_LEASE_MINUTES));
        for field in ["rows", "cols"] {
            assert_eq!(most("TerminalSize", field), Some(TerminalSize::MOST.into()));
            let parameters = &DOCUMENT["paths"]["/api/v1/instances/{id}/terminal"]["get"]["parameters"];
            let named = |parameter: &&Value| parameter["name"] == field;
            let parameter = parameters.as_array().unwrap().iter().find(named).unwrap();
            assert_eq!(parameter["schema"]["maximum"], TerminalSize::MOST);
        }
    }

    #[test]
    fn exactly_one_of_two_fields_is_said_beside_the_properties() {
        let exec = &DOCUMENT["components"]["schemas"]["ExecRequest"];
        assert_eq!(
            exec["oneOf"],
            json!([{ "required": ["command"] }, { "required": ["argv"] }])
        );
        for name in ExecRequest::ALTERNATIVES {
            assert!(exec["properties"][name].is_object(), "{name}");
        }
    }

    /// The derive writes `"default": null` into every field of a struct with `#[serde(default)]`, which for most is no value that they
    /// take: the attribute belongs to the fields.
    #[test]
    fn no_default_is_null() {
        assert!(!DOCUMENT.to_string().contains(r#""default":null"#));
    }
}
