//! Reads and writes entries as it is asked: the cost of a call that touches data.
//!
//! `POST / {"reads":[key,…],"write":key}` reads these entries of `data`, writes one, and answers how many it found:
//! `{"found"}`. Both members may be left out.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, kv};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    reads: Vec<String>,
    write: Option<String>,
}

/// What an entry holds: about a hundred bytes, as an order or a note has.
#[derive(Deserialize, Serialize)]
struct Entry {
    key: String,
    text: String,
}

#[derive(Serialize)]
struct Answer {
    found: usize,
}

/// The guest.
pub struct Work;

impl Plugin for Work {
    fn http(request: Request) -> Result<Response> {
        let Asked { reads, write } = request.json()?;
        let mut found = 0;
        for key in &reads {
            found += usize::from(kv::get::<Entry>("data", key)?.is_some());
        }
        if let Some(key) = write {
            let text = "The blue chairs are back on Thursday; call Ms Ito before they go.".to_owned();
            let entry = Entry { key, text };
            kv::put("data", &entry.key, &entry)?;
        }
        Response::json(&Answer { found })
    }
}

chalet_sdk::export!(Work: http);
