//! Plugins written in WebAssembly text, for what no language does: `tests/guests/wat/plugin.wat` with text of a test's own.

use std::collections::HashMap;

use chalet::cli::build;
use chalet::services::plugins::manifest::Manifest;

use crate::kit::guests::root;

/// An answer of 200 without a body.
pub const OK: &str = "(call $ok (i32.const 200) (i32.const 0) (i32.const 0))";
/// A plugin in the making. It takes every request, and may use the collection and the meter `m`.
#[derive(Clone)]
pub struct Wat {
    name: &'static str,
    places: HashMap<&'static str, String>,
    webhooks: &'static str,
}

/// One of this name whose `body` is this.
pub fn plugin(name: &'static str, body: &str) -> Wat {
    Wat { name, places: HashMap::new(), webhooks: "" }.with("body", body)
}

/// A `body` that does what the number in the request's path says, of these.
pub fn cases<'a>(cases: impl IntoIterator<Item = &'a str>) -> String {
    let one = |(n, text)| format!("(if (i32.eq (global.get $case) (i32.const {n})) (then {text} return))");
    let cases: Vec<_> = cases.into_iter().enumerate().map(one).collect();
    format!("{} unreachable", cases.join("\n"))
}

impl Wat {
    /// Text for a place of the source: `body`, `fields`, `start`, `hook`, `post` or `component`.
    #[must_use]
    pub fn with(mut self, place: &'static str, text: &str) -> Self {
        self.places.insert(place, text.to_owned());
        self
    }

    /// It takes webhooks of the source `events`, too, signed as GitHub does with the secret `EVENTS`.
    #[must_use]
    pub fn with_webhooks(mut self) -> Self {
        self.webhooks = "[[webhook]]\nsource = \"events\"\nverify = \"github\"\nsecret = \"EVENTS\"";
        self
    }

    /// The component, with its manifest.
    pub fn component(&self) -> Vec<u8> {
        let mut text = std::fs::read_to_string(root().join("tests/guests/wat/plugin.wat")).expect("the source");
        for (place, own) in &self.places {
            let mark = format!(";;@{place}\n");
            assert!(text.contains(&mark), "there is no place {place}");
            text = text.replace(&mark, &format!("\n{own}\n"));
        }
        let manifest = format!(
            "name = \"{}\"\nversion = \"1.0.0\"\n[http]\nroutes = [\"ANY /{{*rest}}\"]\n{}\n\
             [grants]\nkv = [\"m\"]\nmeters = [\"m\"]",
            self.name, self.webhooks
        );
        let manifest = Manifest::from_toml(&manifest).expect("a manifest");
        let wasm = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"));
        build::embed(wasm, &manifest).expect("embedded")
    }
}
