//! Logs, set up once per process, and metrics, set up once per instance.

mod filter;

pub mod process;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter, MeterProvider};
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::border::request_id;
use crate::env::{Env, EnvError};
use filter::LogFilter;
pub(crate) use filter::{FilterError, current as log_filter, replace as replace_log_filter};

/// Upper bounds of latency histograms' buckets, in seconds: fine in the range of command latencies (0.3 to 25 ms), and
/// wide enough to show a broker failover.
pub const LATENCY_BUCKETS_SECS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Initializes structured logs on standard error; standard output is reserved for the results of subcommands. Panics
/// are logged, too.
///
/// Reads `LOG` and `LOG_FORMAT`. Later calls in the same process validate both and change nothing, so that every test
/// may call this.
///
/// # Errors
/// [`EnvError`] if either variable cannot be parsed.
pub fn init_logs(env: &Env) -> Result<(), EnvError> {
    // `LOG`, default `info`: filter of the log, as of the crate tracing-subscriber.
    let (filter, handle) = env.or("LOG", LogFilter::default())?.layer();
    // `LOG_FORMAT`, default `json`: `json`, one object a line, or `text`.
    let format = env.or("LOG_FORMAT", LogFormat::Json)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let turned_on = match format {
        LogFormat::Json => {
            let event = OfRequest { format, event: tracing_subscriber::fmt::format().json().flatten_event(true) };
            registry.with(lines.fmt_fields(JsonFields::new()).event_format(event)).try_init()
        }
        LogFormat::Text => {
            let event = OfRequest { format, event: tracing_subscriber::fmt::format().with_ansi(false) };
            registry.with(lines.with_ansi(false).event_format(event)).try_init()
        }
    };
    // The only possible error is that the process already has a subscriber.
    if turned_on.is_ok() {
        filter::keep(handle);
        std::panic::set_hook(Box::new(|panic| {
            let location = panic.location().map(ToString::to_string);
            let message = panic.payload_as_str().unwrap_or_default();
            tracing::error!(code.location = location, panic.message = message, "thread or task panicked");
        }));
    }
    Ok(())
}

/// A log format that appends the ids of the current request and of its trace to a line.
struct OfRequest<E> {
    format: LogFormat,
    event: E,
}

impl<S, N, E> FormatEvent<S, N> for OfRequest<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(id) = request_id() else { return self.event.format_event(context, writer, event) };
        let mut line = String::new();
        self.event.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&with_request(self.format, &line, id.as_str(), id.trace()))
    }
}

/// Appends the ids of the request and of its trace to a formatted line. An id needs no escaping.
fn with_request(format: LogFormat, line: &str, id: &str, trace: Option<&str>) -> String {
    let (line, is_json) = match (format, line.strip_suffix("}\n")) {
        (LogFormat::Json, Some(open)) => (open, true),
        (LogFormat::Json | LogFormat::Text, _) => (line.trim_end_matches('\n'), false),
    };
    let mut text = line.to_owned();
    for (name, id) in [("request.id", Some(id)), ("trace.id", trace)] {
        if let Some(id) = id {
            text += &if is_json { format!(",\"{name}\":\"{id}\"") } else { format!(" {name}={id}") };
        }
    }
    text + if is_json { "}\n" } else { "\n" }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogFormat {
    Json,
    Text,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Text => "text",
        })
    }
}

impl FromStr for LogFormat {
    type Err = UnknownLogFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(UnknownLogFormat),
        }
    }
}

#[derive(Debug)]
struct UnknownLogFormat;

impl fmt::Display for UnknownLogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be json or text")
    }
}

/// The metrics of one service instance, in their own registry. Clones are cheap and share them.
#[derive(Debug, Clone)]
pub struct Telemetry {
    service: &'static str,
    registry: Registry,
    provider: SdkMeterProvider,
    metrics: Arc<Mutex<Vec<Metric>>>,
}

/// Names of a metric's labels.
type Labels = &'static [&'static str];

/// A metric as Prometheus shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    pub name: String,
    pub kind: &'static str,
    pub labels: Labels,
    pub description: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("setting up metrics failed")]
    SetUp(#[source] OTelSdkError),
    #[error("encoding metrics as text failed")]
    Render(#[source] prometheus::Error),
}

impl Telemetry {
    /// Creates the metrics of `service`. Scope labels and `target_info` are left out: they would repeat on each series
    /// facts that the scraper already has about its target.
    pub fn new(service: &'static str) -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(TelemetryError::SetUp)?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        Ok(Self { service, registry, provider, metrics: Arc::default() })
    }

    /// Returns the metrics that were created so far.
    pub fn metrics(&self) -> Vec<Metric> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lists a metric, and returns the meter that creates its instrument. The instrument belongs to this instance as
    /// long as any clone of it exists.
    fn meter(&self, name: String, kind: &'static str, labels: Labels, description: &'static str) -> Meter {
        let metric = Metric { name, kind, labels, description };
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(metric);
        self.provider.meter(self.service)
    }

    /// Creates a counter. Its name in Prometheus is `<name>_total`.
    pub fn counter(&self, name: &'static str, labels: Labels, description: &'static str) -> Counter<u64> {
        let meter = self.meter(format!("{name}_total"), "counter", labels, description);
        meter.u64_counter(name).with_description(description).build()
    }

    /// Creates a counter like [`Self::counter`], whose values `observe` reports when they are read.
    pub fn observed_counter(
        &self,
        name: &'static str,
        labels: Labels,
        description: &'static str,
        observe: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        let meter = self.meter(format!("{name}_total"), "counter", labels, description);
        meter.u64_observable_counter(name).with_description(description).with_callback(observe).build();
    }

    /// Creates a counter of durations, whose value `observe` returns when it is read. Its name in Prometheus is
    /// `<name>_seconds_total`.
    pub fn observed_seconds_counter(
        &self,
        name: &'static str,
        description: &'static str,
        observe: impl Fn() -> Option<f64> + Send + Sync + 'static,
    ) {
        let meter = self.meter(format!("{name}_seconds_total"), "counter", &[], description);
        let counter = meter.f64_observable_counter(name).with_unit("s").with_description(description);
        let callback = move |counter: &dyn AsyncInstrument<f64>| {
            if let Some(value) = observe() {
                counter.observe(value, &[]);
            }
        };
        counter.with_callback(callback).build();
    }

    pub fn gauge(&self, name: &'static str, labels: Labels, description: &'static str) -> Gauge<u64> {
        let meter = self.meter(name.to_owned(), "gauge", labels, description);
        meter.u64_gauge(name).with_description(description).build()
    }

    /// Creates a gauge whose values `observe` reports when they are read.
    pub fn observed_gauge(
        &self,
        name: &'static str,
        labels: Labels,
        description: &'static str,
        observe: impl Fn(&dyn AsyncInstrument<u64>) + Send + Sync + 'static,
    ) {
        let meter = self.meter(name.to_owned(), "gauge", labels, description);
        meter.u64_observable_gauge(name).with_description(description).with_callback(observe).build();
    }

    /// Creates a gauge of a duration. Its name in Prometheus is `<name>_seconds`.
    pub fn seconds_gauge(&self, name: &'static str, labels: Labels, description: &'static str) -> Gauge<f64> {
        let meter = self.meter(format!("{name}_seconds"), "gauge", labels, description);
        meter.f64_gauge(name).with_unit("s").with_description(description).build()
    }

    /// Creates a gauge like [`Self::seconds_gauge`], whose values `observe` reports when they are read.
    pub fn observed_seconds_gauge(
        &self,
        name: &'static str,
        labels: Labels,
        description: &'static str,
        observe: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) {
        let meter = self.meter(format!("{name}_seconds"), "gauge", labels, description);
        meter.f64_observable_gauge(name).with_unit("s").with_description(description).with_callback(observe).build();
    }

    /// Creates a histogram of durations in seconds, with [`LATENCY_BUCKETS_SECS`]. Its name in Prometheus is
    /// `<name>_seconds`.
    pub fn latency_histogram(&self, name: &'static str, description: &'static str) -> Histogram<f64> {
        self.meter(format!("{name}_seconds"), "histogram", &[], description)
            .f64_histogram(name)
            .with_description(description)
            .with_unit("s")
            .with_boundaries(LATENCY_BUCKETS_SECS.to_vec())
            .build()
    }

    /// Returns the current values of all metrics in Prometheus's text format.
    pub fn render(&self) -> Result<String, TelemetryError> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(TelemetryError::Render)
    }
}

/// Returns an error's text followed by those of its causes, for a log line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_of_two_instances_do_not_mix() {
        let [one, other] = [Telemetry::new("one").unwrap(), Telemetry::new("other").unwrap()];
        one.counter("commands", &[], "").add(3, &[]);
        assert!(one.render().unwrap().contains("\ncommands_total 3\n"), "{}", one.render().unwrap());
        assert_eq!(other.render().unwrap(), "");
    }

    #[test]
    fn metrics_are_listed_by_the_names_and_types_that_are_shown() {
        let telemetry = Telemetry::new("one").unwrap();
        telemetry.counter("a", &[], "").add(1, &[]);
        telemetry.observed_counter("b", &[], "", |counter| counter.observe(1, &[]));
        telemetry.gauge("c", &[], "").record(1, &[]);
        telemetry.observed_gauge("d", &[], "", |gauge| gauge.observe(1, &[]));
        telemetry.seconds_gauge("e", &[], "").record(1.0, &[]);
        telemetry.observed_seconds_gauge("f", &[], "", |gauge| gauge.observe(1.0, &[]));
        telemetry.latency_histogram("g", "").record(1.0, &[]);
        telemetry.observed_seconds_counter("h", "", || Some(1.0));
        let text = telemetry.render().unwrap();
        let shown: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let listed: Vec<_> =
            telemetry.metrics().iter().map(|metric| format!("{} {}", metric.name, metric.kind)).collect();
        assert_eq!(listed, shown);
    }

    #[test]
    fn a_latency_is_shown_in_seconds_and_without_scope_or_target() {
        let telemetry = Telemetry::new("one").unwrap();
        telemetry.latency_histogram("command_duration", "From request to answer.").record(0.002, &[]);
        let text = telemetry.render().unwrap();
        assert!(text.contains("command_duration_seconds_bucket{le=\"0.001\"} 0\n"), "{text}");
        assert!(text.contains("command_duration_seconds_bucket{le=\"0.0025\"} 1\n"), "{text}");
        assert!(!text.contains("otel_scope") && !text.contains("target_info"), "{text}");
    }

    #[test]
    fn a_line_about_a_request_ends_with_its_ids() {
        let json = |trace| with_request(LogFormat::Json, "{\"a\":1}\n", "r", trace);
        assert_eq!(json(None), "{\"a\":1,\"request.id\":\"r\"}\n");
        assert_eq!(json(Some("t")), "{\"a\":1,\"request.id\":\"r\",\"trace.id\":\"t\"}\n");
        let text = |trace| with_request(LogFormat::Text, "INFO a={}\n", "r", trace);
        assert_eq!(text(None), "INFO a={} request.id=r\n");
        assert_eq!(text(Some("t")), "INFO a={} request.id=r trace.id=t\n");
    }

    #[test]
    fn logs_may_be_initialized_twice_but_not_with_invalid_settings() {
        let env = Env::from([("LOG", "warn,chassis=debug"), ("LOG_FORMAT", "text")]);
        init_logs(&env).unwrap();
        init_logs(&env).unwrap();
        assert!(init_logs(&Env::from([("LOG_FORMAT", "xml")])).is_err());
        assert!(init_logs(&Env::from([("LOG", "chassis=loud")])).is_err());
    }
}
