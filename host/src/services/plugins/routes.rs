//! The HTTP routes of a manifest: which of them a request's method and path match.

use crate::services::plugins::manifest::{Manifest, Route};

/// A plugin's routes, those that say more first: a literal segment before a parameter, and that before the rest of a path.
#[derive(Debug, Default)]
pub struct Routes(Vec<Route>);

/// The route that a request matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// As the manifest has it, such as `GET /orders/{id}`.
    pub route: String,
    /// Its parameters, percent-decoded where that is UTF-8.
    pub params: Vec<(String, String)>,
}

impl Routes {
    pub(crate) fn new(manifest: &Manifest) -> Self {
        let mut routes: Vec<_> = manifest.http.iter().flat_map(|http| &http.routes).cloned().collect();
        // Those that say the same of a path stay in the manifest's order.
        routes.sort_by_cached_key(|route| {
            let vagueness = |segment: &str| u8::from(segment.starts_with('{')) + u8::from(segment.starts_with("{*"));
            route.path().split('/').map(vagueness).collect::<Vec<_>>()
        });
        Self(routes)
    }

    /// The route for this method and percent-encoded path. HEAD is answered by a GET route.
    pub fn find(&self, method: &str, path: &str) -> Option<Matched> {
        // All are looked at, at most some hundred short texts: an index by path would hide a route of one method behind a
        // more literal one of another.
        let allowed = |route: &&Route| route.allows(method) || (method == "HEAD" && route.allows("GET"));
        self.0
            .iter()
            .filter(allowed)
            .find_map(|route| Some(Matched { params: params(route, path)?, route: route.to_string() }))
    }
}

/// The parameters of a path, if the route's path stands for it.
fn params(route: &Route, path: &str) -> Option<Vec<(String, String)>> {
    let mut params = Vec::new();
    let mut left = Some(path.strip_prefix('/')?);
    for pattern in route.path().strip_prefix('/')?.split('/') {
        let here = left?;
        let name = pattern.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        if let Some(name) = name.and_then(|name| name.strip_prefix('*')) {
            params.push((name.to_owned(), decode(here)));
            return (!here.is_empty()).then_some(params);
        }
        let (segment, behind) = here.split_once('/').map_or((here, None), |(segment, behind)| (segment, Some(behind)));
        match name {
            Some(name) if !segment.is_empty() => params.push((name.to_owned(), decode(segment))),
            None if segment == pattern => {}
            _ => return None,
        }
        left = behind;
    }
    left.is_none().then_some(params)
}

fn decode(value: &str) -> String {
    percent_encoding::percent_decode_str(value).decode_utf8().map_or_else(|_| value.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_finds_its_route_and_parameters() {
        let manifest = Manifest::from_toml(
            "name = \"a\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"GET /o/{id}\", \"POST /o\", \"ANY /any/{*rest}\", \"GET /\"]",
        )
        .expect("a manifest");
        let routes = Routes::new(&manifest);
        let found = routes.find("GET", "/o/a%20b").expect("matches");
        assert_eq!((found.route.as_str(), found.params), ("GET /o/{id}", vec![("id".into(), "a b".into())]));
        assert!(routes.find("HEAD", "/o/1").is_some() && routes.find("DELETE", "/any/x/y").is_some());
        assert!(routes.find("GET", "/").is_some());
        assert_eq!(routes.find("GET", "/o"), None);
        assert_eq!(routes.find("POST", "/o/1"), None);
    }

    #[test]
    fn no_route_is_hidden_by_another_of_another_method_or_parameter() {
        let manifest = Manifest::from_toml(
            "name = \"a\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"GET /{*rest}\", \"GET /o/{id}\", \"PUT /o/{name}\", \"POST /o/new\", \"GET /o/{id}/x\"]",
        )
        .expect("a manifest");
        let routes = Routes::new(&manifest);
        let found = |method, path| routes.find(method, path).map(|found| found.route);
        for (method, path, route) in [
            ("GET", "/o/1", "GET /o/{id}"),
            ("PUT", "/o/1", "PUT /o/{name}"),
            ("POST", "/o/new", "POST /o/new"),
            ("GET", "/o/new", "GET /o/{id}"),
            ("GET", "/o/1/x", "GET /o/{id}/x"),
            ("GET", "/o/1/y", "GET /{*rest}"),
            ("GET", "/o/", "GET /{*rest}"),
        ] {
            assert_eq!(found(method, path).as_deref(), Some(route), "{method} {path}");
        }
        assert_eq!(found("GET", "/"), None);
        assert_eq!(found("POST", "/o/1"), None);
    }
}
