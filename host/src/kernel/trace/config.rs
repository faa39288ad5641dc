//! What the operator says about traces, under the names of the OpenTelemetry specification.

use std::collections::{BTreeMap, HashMap};

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;

use crate::kernel::error::{Error, Result};

/// The service that spans are of, unless the operator names another.
const SERVICE: &str = "chalet";
/// The one way to a collector that is spoken here.
const PROTOCOL: &str = "http/protobuf";

/// What the operator says about traces.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The collector's base URL, such as `http://localhost:4318`, to which `/v1/traces` is added; without one traces are
    /// off. `OTEL_EXPORTER_OTLP_ENDPOINT` is the same.
    pub endpoint: Option<String>,
    /// The URL that traces are sent to, as it is. `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is the same.
    pub traces_endpoint: Option<String>,
    /// Headers for the collector, such as its credential. `OTEL_EXPORTER_OTLP_HEADERS` adds to them.
    pub headers: BTreeMap<String, String>,
    /// What spans say that they are of; `chalet` if not set. `OTEL_SERVICE_NAME` is the same.
    pub service: Option<String>,
    /// The part of requests that is sampled, from 0 to 1; all if not set. `OTEL_TRACES_SAMPLER_ARG` is the same.
    pub ratio: Option<f64>,
    #[serde(skip)]
    protocol: Option<String>,
}

// The headers are secret, and the URLs may be.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Config(..)")
    }
}

/// The same, read and found sound.
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) headers: HashMap<String, String>,
    pub(super) service: String,
    pub(super) ratio: f64,
}

impl Config {
    /// Let the environment override it; `variable` gives what is set and not empty.
    pub fn environment(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
        if variable("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true")) {
            *self = Self::default();
            return Ok(());
        }
        let (base, whole) = (variable("OTEL_EXPORTER_OTLP_ENDPOINT"), variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
        if base.is_some() || whole.is_some() {
            (self.endpoint, self.traces_endpoint) = (base, whole);
        }
        let headers = variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS"));
        for pair in headers.iter().flat_map(|pairs| pairs.split(',')).filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| bad_header("OTEL_EXPORTER_OTLP_HEADERS"))?;
            let value = percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
            self.headers.insert(name.trim().to_ascii_lowercase(), value);
        }
        self.protocol =
            variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
        self.service = variable("OTEL_SERVICE_NAME").or(self.service.take());
        if let Some(ratio) = variable("OTEL_TRACES_SAMPLER_ARG") {
            self.ratio = Some(ratio.trim().parse().map_err(|_| bad_ratio())?);
        }
        Ok(())
    }

    /// Where spans go, if anywhere. What cannot be meant is an error even where traces are off.
    pub(super) fn target(&self) -> Result<Option<Target>> {
        let ratio = self.ratio.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&ratio) {
            return Err(bad_ratio());
        }
        for (name, value) in &self.headers {
            if HeaderName::from_bytes(name.as_bytes()).is_err() || HeaderValue::from_str(value).is_err() {
                return Err(bad_header("[telemetry] headers, or of OTEL_EXPORTER_OTLP_HEADERS,"));
            }
        }
        let url = match (&self.traces_endpoint, &self.endpoint) {
            (Some(whole), _) => url(whole)?,
            (None, Some(base)) => url(&format!("{}/v1/traces", base.trim_end_matches('/')))?,
            (None, None) => return Ok(None),
        };
        if self.protocol.as_deref().is_some_and(|protocol| protocol != PROTOCOL) {
            return Err(Error::invalid(
                "traces are sent over HTTP alone; set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf, and the endpoint to the \
                 collector's port for it, usually 4318",
            ));
        }
        let headers = self.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Ok(Some(Target { url, headers, service: self.service.clone().unwrap_or_else(|| SERVICE.into()), ratio }))
    }
}

fn url(text: &str) -> Result<Url> {
    let sound = |url: &Url| {
        matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none() && url.fragment().is_none()
    };
    let url = Url::parse(text).ok().filter(sound).ok_or_else(|| {
        Error::invalid(
            "the collector of traces, [telemetry] endpoint or OTEL_EXPORTER_OTLP_ENDPOINT, must be an http or https \
             URL without a query, such as http://localhost:4318",
        )
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(
            "the URL of the collector of traces has no user name or password; give it an authorization header in \
             [telemetry] headers or OTEL_EXPORTER_OTLP_HEADERS",
        ));
    }
    Ok(url)
}

fn bad_ratio() -> Error {
    Error::invalid(
        "the ratio of traces, [telemetry] ratio or OTEL_TRACES_SAMPLER_ARG, must be a number from 0 to 1, such as 0.01",
    )
}

fn bad_header(of: &str) -> Error {
    Error::invalid(format!("a header of {of} cannot be sent; write name=value, with commas between them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, variables: &[(&str, &str)]) -> Result<Option<Target>> {
        let mut config: Config = toml::from_str(file).expect("it fits");
        config
            .environment(|name| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned()))?;
        config.target()
    }

    #[test]
    fn the_environment_overrides_the_file_under_the_names_of_the_specification() {
        assert!(read("", &[]).expect("nothing is sound").is_none());
        let file = "endpoint = 'http://one:4318/'\nratio = 0.5\nservice = 'shop'\nheaders = { a = '1', b = '2' }";
        let target = read(file, &[]).expect("sound").expect("on");
        assert_eq!(
            (target.url.as_str(), target.ratio, &target.service[..]),
            ("http://one:4318/v1/traces", 0.5, "shop")
        );

        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://two/otlp"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "b=a%20b%3D, c = 3"),
            ("OTEL_SERVICE_NAME", "plugins"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let target = read(file, &variables).expect("sound").expect("on");
        assert_eq!(
            (target.url.as_str(), target.ratio, &target.service[..]),
            ("https://two/otlp/v1/traces", 0.25, "plugins")
        );
        let headers: BTreeMap<_, _> = target.headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        assert_eq!(headers, BTreeMap::from([("a", "1"), ("b", "a b="), ("c", "3")]));

        let whole = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://three/x");
        let target = read(file, &[variables[0], whole]).expect("sound").expect("on");
        assert_eq!(target.url.as_str(), "http://three/x", "as it is");
        assert!(read(file, &[("OTEL_SDK_DISABLED", "true")]).expect("sound").is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_remedy() {
        for (variable, value, remedy) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "such as http://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317", "such as http://localhost:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector/?key=1", "without a query"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@collector", "authorization header"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key", "name=value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api key=1", "name=value"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=1%0a2", "name=value"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
            ("OTEL_TRACES_SAMPLER_ARG", "1%", "from 0 to 1"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5", "from 0 to 1"),
            ("OTEL_TRACES_SAMPLER_ARG", "-0.1", "from 0 to 1"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN", "from 0 to 1"),
        ] {
            let Err(error) = read("endpoint = 'http://localhost:4318'", &[(variable, value)]) else {
                panic!("{variable}={value} is taken");
            };
            assert!(error.message().contains(remedy), "{variable}={value}: {}", error.message());
            assert!(!error.message().contains("secret"), "{}", error.message());
        }
    }
}
