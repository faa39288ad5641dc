//! The HTTP routes of a manifest, compiled once: which of them a request's method and path match.

use matchit::Router;

use crate::services::plugins::manifest::{Manifest, Route};

/// A plugin's routes.
#[derive(Debug, Default)]
pub struct Routes {
    // Routes of one path, by path; the manifest's check has refused those that cannot be told apart.
    paths: Router<Vec<Route>>,
}

/// The route that a request matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// As the manifest has it, such as `GET /orders/{id}`.
    pub route: String,
    /// Its parameters, percent-decoded where that is UTF-8.
    pub params: Vec<(String, String)>,
}

impl Routes {
    pub(super) fn new(manifest: &Manifest) -> Self {
        let mut by_path: Vec<(String, Vec<Route>)> = Vec::new();
        for route in manifest.http.iter().flat_map(|http| &http.routes) {
            match by_path.iter_mut().find(|(path, _)| path == route.path()) {
                Some((_, routes)) => routes.push(route.clone()),
                None => by_path.push((route.path().to_owned(), vec![route.clone()])),
            }
        }
        let mut paths = Router::new();
        for (path, routes) in by_path {
            // Paths that differ only in their parameters' names are one to the router: the first one stands.
            if let Err(error) = paths.insert(path.as_str(), routes) {
                tracing::debug!(path, %error, "a route cannot be told from an earlier one");
            }
        }
        Self { paths }
    }

    /// The route for this method and percent-encoded path. HEAD is answered by a GET route.
    pub fn find(&self, method: &str, path: &str) -> Option<Matched> {
        let found = self.paths.at(path).ok()?;
        let route =
            found.value.iter().find(|route| route.allows(method) || (method == "HEAD" && route.allows("GET")))?;
        let params = found.params.iter().map(|(name, value)| (name.to_owned(), decode(value))).collect();
        Some(Matched { route: route.to_string(), params })
    }
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
}
