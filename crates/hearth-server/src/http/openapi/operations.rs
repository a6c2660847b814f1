//! What operations share: path parameters, refusals, the request id. And where the ids of a reply lead.

use hearth_api::error::ErrorCode;
use hearth_api::ids::{DeliveryId, InstanceId, ProjectId, TokenId, WebhookId};
use hearth_api::values::{CheckpointName, CredentialHost, VariableName};
use utoipa::ToSchema;
use utoipa::openapi::link::{Link, LinkBuilder};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBody;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr, Required};

use super::header_ref;
use super::refusals::response_name;
use crate::http::error::status_of;

/// The name of the header that names a request, in the document.
pub const REQUEST_ID: &str = "RequestId";

/// Completes what the handler says.
pub fn complete(path: &str, operation: &mut Operation) {
    let mut errors = vec![ErrorCode::InternalError, ErrorCode::Unavailable];
    // Only what lies under the API's base path needs a token.
    if path.starts_with(crate::http::BASE) {
        errors.extend([
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::ValidationError,
            ErrorCode::TooManyRequests,
        ]);
    } else {
        operation.security = Some(Vec::new());
    }
    let names = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<RefOr<Parameter>> = names.map(|name| RefOr::T(path_parameter(name))).collect();
    if !parameters.is_empty() {
        errors.push(ErrorCode::NotFound);
        parameters.extend(operation.parameters.take().unwrap_or_default());
        operation.parameters = Some(parameters);
    }
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        // Bytes of a file may be as many as fit into the VM.
        if body.content.contains_key("application/json") {
            errors.push(ErrorCode::PayloadTooLarge);
        }
        may_be_absent_but_not_null(body);
    }
    let responses = &mut operation.responses.responses;
    // Refusals of this operation alone are named at its handler, by their status.
    errors.extend(
        ErrorCode::ALL
            .into_iter()
            .filter(|code| responses.contains_key(status_of(*code).as_str())),
    );
    for code in errors {
        let reference = Ref::from_response_name(response_name(code));
        responses.insert(status_of(code).as_str().to_owned(), reference.into());
    }
    let links = links_of(operation.operation_id.as_deref().unwrap_or_default());
    for (status, response) in responses {
        if let RefOr::T(response) = response
            && status.starts_with('2')
        {
            response
                .headers
                .insert("x-request-id".to_owned(), RefOr::Ref(header_ref(REQUEST_ID)));
            let links = links.iter().cloned();
            response.links = links.map(|(to, link)| (to.to_owned(), RefOr::T(link))).collect();
        }
    }
}

/// An optional body is written as one that may be `null`; what it may be is missing.
fn may_be_absent_but_not_null(body: &mut RequestBody) {
    for content in body.content.values_mut() {
        let RefOr::T(content) = content else { continue };
        let Some(RefOr::T(Schema::OneOf(one_of))) = &content.schema else {
            continue;
        };
        if let Some(object) = one_of.items.iter().find(|item| matches!(item, RefOr::Ref(_))) {
            content.schema = Some(object.clone());
            body.required = Some(Required::False);
        }
    }
}

fn path_parameter(name: &str) -> Parameter {
    let refers = |name: std::borrow::Cow<'static, str>| RefOr::Ref(Ref::from_schema_name(name));
    let (description, schema) = match name {
        "projectId" => ("The project", refers(ProjectId::name())),
        "tokenId" => ("The token", refers(TokenId::name())),
        "webhookId" => ("The webhook", refers(WebhookId::name())),
        "delivery" => ("The delivery", refers(DeliveryId::name())),
        "name" => ("The variable's name", refers(VariableName::name())),
        "session" => (
            "The session's id, the id of its first process, or its tag",
            ObjectBuilder::new().schema_type(Type::String).into(),
        ),
        "host" => ("The git server", refers(CredentialHost::name())),
        "checkpoint" => ("The checkpoint's name", refers(CheckpointName::name())),
        "log" => ("The log's name", ObjectBuilder::new().schema_type(Type::String).into()),
        "port" => {
            let port = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(1))
                .maximum(Some(65535));
            ("The TCP port in the VM", port.into())
        }
        _ => ("The instance", refers(InstanceId::name())),
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some(description))
        .schema(Some(schema))
        .build()
}

/// Where a reply's ids lead.
fn links_of(operation: &str) -> Vec<(&'static str, Link)> {
    const ID: &str = "$response.body#/id";
    let link = |to: &'static str, parameters: &[(&str, &str)]| {
        let link = LinkBuilder::new().operation_id(to);
        let link = parameters
            .iter()
            .fold(link, |link, (name, from)| link.parameter(*name, *from));
        (to, link.build())
    };
    match operation {
        "create_project" => [
            "get_project",
            "get_pool",
            "patch_pool",
            "test_pool",
            "retry_pool",
            "explain_pool",
            "claim_instance",
            "get_setup",
        ]
        .map(|to| link(to, &[("projectId", ID)]))
        .into(),
        "test_pool" => vec![
            link("get_instance", &[("projectId", "$request.path.projectId"), ("id", ID)]),
            link("follow_instance", &[("id", ID)]),
            link("view_instance", &[("id", ID)]),
        ],
        "claim_instance" => [
            "view_instance",
            "explain_claim",
            "exec_in_instance",
            "stat_file",
            "list_files",
            "make_directory",
            "move_file",
            "read_file",
            "write_file",
            "remove_file",
            "watch_files",
            "read_folder",
            "write_folder",
            "start_session",
            "list_sessions",
            "list_processes",
            "list_ports",
            "share_port",
            "extend_claim",
            "heartbeat_instance",
            "pause_instance",
            "resume_instance",
            "release_instance",
            "fork_instance",
            "checkpoint_instance",
            "restore_instance",
        ]
        .map(|to| link(to, &[("id", ID)]))
        .into(),
        "start_session" => [
            "get_session",
            "attach_session",
            "read_session_output",
            "write_session_stdin",
            "resize_session",
            "signal_session",
            "wait_session",
            "remove_session",
        ]
        .map(|to| link(to, &[("id", "$request.path.id"), ("session", ID)]))
        .into(),
        "create_token" => vec![link("revoke_token", &[("tokenId", ID)])],
        "create_webhook" => ["list_deliveries", "delete_webhook"]
            .map(|to| link(to, &[("webhookId", ID)]))
            .into(),
        _ => Vec::new(),
    }
}
