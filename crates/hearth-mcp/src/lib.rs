//! Hearth's tools for agents, by the Model Context Protocol. There is one definition of them: `hearth mcp` serves it over standard input and output,
//! and the server at `/mcp`. Each tool is calls of the public HTTP API through its typed client, so scopes, limits, checks and the audit log are
//! the API's own.

mod arguments;
mod bounded;
mod files;
mod find;
mod ports;
mod projects;
mod refusal;
mod run;
mod test_boot;
mod tools;
mod vms;

use std::sync::Arc;

use hearth_api::client::{Client, ClientError};
use http::request::Parts;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::RequestContext;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, RoleServer, ServerHandler, ServiceExt as _};
use tokio_util::sync::CancellationToken;

pub use tools::tools;

/// What a client is told of the whole.
const INSTRUCTIONS: &str = "Hearth keeps prepared VMs ready. Claim one for your task (`claim`), work in it (`run`, `read_file`, …), give it back (`release`). \
     A project whose set-up fails: read the failed step (`test_setup`), change it (`change_setup`), test again (steps before the change are cached), \
     then enable the pool. VMs are named by instance ids (`wpi_…`), projects by name or id.";

/// How the tools reach the API.
pub trait Connect: Clone + Send + Sync + 'static {
    /// A client for one call; with the HTTP request that the call came by, where there is one.
    ///
    /// # Errors
    /// What keeps it from being made.
    fn client(&self, request: Option<&Parts>) -> Result<Client, ClientError>;
}

/// Every call by the same client.
#[derive(Debug, Clone)]
struct Always(Client);

impl Connect for Always {
    fn client(&self, _: Option<&Parts>) -> Result<Client, ClientError> {
        Ok(self.0.clone())
    }
}

/// The tools, for one way to the API.
#[derive(Debug, Clone)]
pub struct Agents<C>(C);

impl<C: Connect> ServerHandler for Agents<C> {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("hearth", env!("CARGO_PKG_VERSION")).with_title("Hearth"))
            .with_instructions(INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        tools().into_iter().find(|tool| tool.name == name)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let done = async {
            let client = self.0.client(context.extensions.get::<Parts>())?;
            tools::call(&client, &request.name, arguments).await
        };
        // A client that goes away, or that takes its call back, waits for nothing any more.
        let done = context.ct.run_until_cancelled(done).await;
        let result = match done {
            Some(Ok(text)) => CallToolResult::success(vec![ContentBlock::text(text)]),
            Some(Err(refusal)) => CallToolResult::error(vec![ContentBlock::text(refusal.to_string())]),
            None => CallToolResult::error(vec![ContentBlock::text("the call was cancelled")]),
        };
        Ok(result.into())
    }
}

/// What ends the service over standard input and output before its client does.
#[derive(Debug)]
pub struct Broken(String);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Serves the tools over standard input and output until that ends.
///
/// # Errors
/// When what comes is not the protocol.
pub async fn serve_stdio(client: Client) -> Result<(), Broken> {
    let broken = |error: &dyn std::error::Error| Broken(error.to_string());
    let served = Agents(Always(client)).serve(rmcp::transport::stdio()).await;
    match served {
        Ok(running) => running.waiting().await.map(drop).map_err(|error| broken(&error)),
        // Its client went away before it said a word.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => Ok(()),
        Err(error) => Err(broken(&error)),
    }
}

/// The tools over streamable HTTP. No session is kept: each request says all.
pub type HttpService<C> = StreamableHttpService<Agents<C>, NeverSessionManager>;

/// Makes that. It ends its streams when `stop` is cancelled.
pub fn http_service<C: Connect>(connect: C, stop: CancellationToken) -> HttpService<C> {
    // Who asks shows a token, which no page of a foreign site has: the name that the server was reached by says nothing. A browser, which names an
    // origin, has no business here.
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .disable_allowed_hosts()
        .enforce_origin_validation()
        .with_cancellation_token(stop);
    StreamableHttpService::new(
        move || Ok(Agents(connect.clone())),
        Arc::new(NeverSessionManager::default()),
        config,
    )
}
