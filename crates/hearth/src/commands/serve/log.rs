//! The server's log on standard error, and its traces.

use std::io::IsTerminal as _;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::{RecordFields, VisitOutput as _};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::LogFormat;
use crate::failure::Failure;

/// What the server is called in traces.
const SERVICE: &str = "hearth";
/// Where collectors take traces, by the specification of OTLP.
const TRACES_PATH: &str = "/v1/traces";
/// How long one sending may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last one may take, when the server ends.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

/// The address of a collector, without the path.
pub(super) fn parse_endpoint(text: &str) -> Result<String, String> {
    let wanted = || "write the address of a collector that takes OTLP over HTTP, like http://127.0.0.1:4318".to_owned();
    let url = reqwest::Url::parse(text).map_err(|_| wanted())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wanted());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it must not hold credentials: put them into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    let text = text.trim_end_matches('/');
    Ok(text.strip_suffix(TRACES_PATH).unwrap_or(text).to_owned())
}

/// The traces that are not sent yet.
pub(super) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Sends what is left.
    pub(super) async fn end(self) {
        if let Some(provider) = self.0 {
            // It waits, and what sends runs here.
            let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_TIMEOUT));
            if let Ok(Err(error)) = ended.await {
                tracing::warn!(%error, "the last traces could not be sent");
            }
        }
    }
}

/// From here on there is a log, and traces where an endpoint is named.
pub(super) fn start(format: LogFormat, endpoint: Option<&str>) -> Result<Traces, Failure> {
    // Of the calls of agents the library would write each with all it says, which may be a secret; the audit log has who did what.
    let quiet = || "rmcp=warn".parse().ok();
    let filter = || {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        match quiet() {
            Some(quiet) => filter.add_directive(quiet),
            None => filter,
        }
    };
    let log = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let log = match format {
        LogFormat::Text => log
            .fmt_fields(WithoutOtel)
            .with_ansi(std::io::stderr().is_terminal())
            .with_filter(filter())
            .boxed(),
        LogFormat::Json => log.json().with_filter(filter()).boxed(),
    };
    let provider = endpoint.map(provider).transpose()?;
    let traces = provider.as_ref().map(|provider| {
        // Spans of our own crates, and their events; what the sending itself does would never end.
        let ours = filter_fn(|of| of.target().starts_with(SERVICE));
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_filter(LevelFilter::INFO.and(ours))
    });
    tracing_subscriber::registry().with(log).with(traces).init();
    Ok(Traces(provider))
}

/// Fields as they are usually written, without those that only say how a span is shown in a trace.
struct WithoutOtel;

impl<'w> FormatFields<'w> for WithoutOtel {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> std::fmt::Result {
        let mut shown = Shown(DefaultVisitor::new(writer, true));
        fields.record(&mut shown);
        shown.0.finish()
    }
}

/// Passes on what is shown.
struct Shown<'w>(DefaultVisitor<'w>);

impl Shown<'_> {
    fn shows(field: &Field) -> bool {
        !field.name().starts_with("otel.")
    }
}

impl Visit for Shown<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if Self::shows(field) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        if Self::shows(field) {
            self.0.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if Self::shows(field) {
            self.0.record_debug(field, value);
        }
    }
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, Failure> {
    let failed = |error: String| Failure::new(format!("traces cannot be sent to {endpoint}: {error}"));
    // A second one finds the provider of TLS installed; both are the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let sender = Sender {
        client,
        runtime: tokio::runtime::Handle::current(),
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(sender)
        .with_endpoint(format!("{endpoint}{TRACES_PATH}"))
        .with_timeout(SEND_TIMEOUT)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    let resource = Resource::builder()
        .with_service_name(SERVICE)
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build())
}

/// Sends on the server's runtime: the thread that collects spans has none.
#[derive(Debug)]
struct Sender {
    client: reqwest::Client,
    runtime: tokio::runtime::Handle,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let (client, request) = (self.client.clone(), reqwest::Request::try_from(request)?);
        let sent = self.runtime.spawn(async move {
            let response = client.execute(request).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        });
        let (status, headers, body) = sent.await??;
        let mut reply = http::Response::new(body);
        *reply.status_mut() = status;
        *reply.headers_mut() = headers;
        Ok(reply)
    }
}
