//! Keeps notes: the smallest plugin that writes and reads back.
//!
//! `POST /notes {"text"}` answers 201 with the new note's `{"id"}`; `GET /notes/{id}` answers `{"id","text"}` or 404;
//! `GET /notes?cursor=&limit=` lists `{"data":[…],"next":cursor|null}`, oldest first. A note is kv `notes/{id}`.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::{Plugin, Result, context, kv, reject};
use serde::{Deserialize, Serialize};

/// Notes a page lists if the caller does not say.
const PAGE: u32 = 50;

/// Most notes a page lists; a note may be large, and an answer is bounded.
const MAX_PAGE: u32 = 200;

#[derive(Deserialize)]
struct New {
    text: String,
}

#[derive(Serialize)]
struct Created<'a> {
    id: &'a str,
}

#[derive(Serialize, Deserialize)]
struct Note {
    id: String,
    text: String,
}

#[derive(Serialize)]
struct Listed {
    data: Vec<Note>,
    next: Option<String>,
}

/// The plugin.
pub struct Notes;

impl Plugin for Notes {
    fn http(request: Request) -> Result<Response> {
        match request.route() {
            "POST /notes" => create(&request),
            "GET /notes" => list(&request),
            _ => read(&request),
        }
    }
}

fn create(request: &Request) -> Result<Response> {
    let New { text } = request.json()?;
    let note = Note { id: context::unique_id(), text };
    kv::put("notes", &note.id, &note)?;
    Ok(Response::json(&Created { id: &note.id })?.with_status(201))
}

fn read(request: &Request) -> Result<Response> {
    match kv::get::<Note>("notes", request.param("id")?)? {
        Some(note) => Response::json(&note),
        None => Ok(Response::not_found()),
    }
}

fn list(request: &Request) -> Result<Response> {
    let limit = match request.query_param("limit") {
        Some(limit) => limit.parse()?,
        None => PAGE,
    };
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(reject(format!("limit is 1 to {MAX_PAGE}")));
    }
    let page = kv::list("notes", "", request.query_param("cursor").as_deref(), limit)?;
    let data = page.entries.iter().map(kv::Entry::json).collect::<Result<_>>()?;
    Response::json(&Listed { data, next: page.cursor })
}

chalet_sdk::export!(Notes: http);
