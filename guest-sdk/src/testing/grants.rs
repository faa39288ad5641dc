//! What a manifest grants, and which of its routes a request matches.
//!
//! The platform checks manifests in full when they are built and uploaded; this reads what a test needs.

use serde::Deserialize;

use crate::error::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) name: String,
    pub(super) version: String,
    #[serde(default)]
    http: Http,
    #[serde(default)]
    grants: Grants,
}

#[derive(Debug, Default, Deserialize)]
struct Http {
    #[serde(default)]
    routes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Grants {
    kv: Vec<String>,
    kv_read: Vec<String>,
    egress: Vec<String>,
    secrets: Vec<String>,
    flags: Vec<String>,
    meters: Vec<String>,
    limits: Vec<String>,
    config: Vec<String>,
}

/// What a host call wants to reach.
#[derive(Debug, Clone, Copy)]
pub(super) enum Grant {
    KvRead,
    KvWrite,
    Egress,
    Secret,
    Flag,
    Meter,
    Limit,
    Config,
}

impl Manifest {
    pub(super) fn parse(plugin_toml: &str) -> Result<Self> {
        toml::from_str(plugin_toml).map_err(|error| Error::Invalid(error.to_string()))
    }

    /// Fails with [`Error::Denied`] if the manifest does not name the thing.
    pub(super) fn check(&self, grant: Grant, name: &str) -> Result<()> {
        let grants = &self.grants;
        let named = |list: &[String]| list.iter().any(|known| known == name);
        let (granted, list) = match grant {
            Grant::KvRead => (named(&grants.kv) || named(&grants.kv_read), "kv_read"),
            Grant::KvWrite => (named(&grants.kv), "kv"),
            Grant::Egress => (named(&grants.egress), "egress"),
            Grant::Secret => (named(&grants.secrets), "secrets"),
            Grant::Flag => (named(&grants.flags), "flags"),
            Grant::Meter => (named(&grants.meters), "meters"),
            Grant::Limit => (named(&grants.limits), "limits"),
            Grant::Config => (named(&grants.config), "config"),
        };
        if granted {
            return Ok(());
        }
        Err(Error::Denied(format!("`{name}` is not in [grants] {list} of plugin.toml")))
    }

    /// The route that a request matches, and its parameters, decoded. Literal segments go before parameters.
    pub(super) fn route(&self, method: &str, path: &str) -> Option<(String, Vec<(String, String)>)> {
        let mut matches: Vec<_> = self
            .http
            .routes
            .iter()
            .filter_map(|route| {
                let (known, pattern) = route.split_once(' ')?;
                let params = match_path(pattern, path).filter(|_| known == method || known == "ANY")?;
                Some((params.len(), route.clone(), params))
            })
            .collect();
        matches.sort_by_key(|(params, ..)| *params);
        matches.into_iter().next().map(|(_, route, params)| (route, params))
    }
}

fn match_path(pattern: &str, path: &str) -> Option<Vec<(String, String)>> {
    let mut params = Vec::new();
    let mut rest = path.strip_prefix('/')?;
    let mut segments = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        if let Some(name) = segment.strip_prefix("{*").and_then(|name| name.strip_suffix('}')) {
            params.push((name.to_owned(), decode_path(rest)));
            return (!rest.is_empty()).then_some(params);
        }
        let (value, after) = match rest.split_once('/') {
            Some((value, after)) => (value, Some(after)),
            None => (rest, None),
        };
        match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
            Some(name) if !value.is_empty() => params.push((name.to_owned(), decode_path(value))),
            Some(_) => return None,
            None if segment == value => {}
            None => return None,
        }
        match (after, segments.peek()) {
            (Some(after), Some(_)) => rest = after,
            (None, None) => return Some(params),
            _ => return None,
        }
    }
    None
}

/// `%41` decoded; bytes that are not UTF-8 are replaced.
fn decode_path(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_match_by_segments_and_literals_win() {
        let manifest = Manifest::parse(
            "name = \"a\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"GET /n/{id}\", \"GET /n/new\", \"GET /f/{*rest}\", \"GET /\"]",
        )
        .expect("a manifest");
        let route = |method, path| manifest.route(method, path);
        assert_eq!(route("GET", "/n/new"), Some(("GET /n/new".into(), vec![])));
        assert_eq!(route("GET", "/n/a%20b"), Some(("GET /n/{id}".into(), vec![("id".into(), "a b".into())])));
        assert_eq!(route("GET", "/f/a/b"), Some(("GET /f/{*rest}".into(), vec![("rest".into(), "a/b".into())])));
        assert_eq!(route("GET", "/"), Some(("GET /".into(), vec![])));
        assert_eq!(route("POST", "/n/1"), None);
        assert_eq!(route("GET", "/n/"), None);
        assert_eq!(route("GET", "/n/1/2"), None);
        assert_eq!(route("GET", "/n"), None);
    }
}
