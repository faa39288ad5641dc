//! Writes log lines as a test gives them.
//!
//! `POST /log {"lines":[{"level","message","times":1}],"then":"fail"|"panic"}` writes them, and fails afterwards if it is
//! told to.

use chalet_sdk::http::{Request, Response};
use chalet_sdk::log::{self, Level};
use chalet_sdk::{Plugin, Result, reject};
use serde::Deserialize;

#[derive(Deserialize)]
struct Log {
    lines: Vec<Line>,
    then: Option<Then>,
}

#[derive(Deserialize)]
struct Line {
    level: Severity,
    message: String,
    #[serde(default = "once")]
    times: u32,
}

fn once() -> u32 {
    1
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Then {
    Fail,
    Panic,
}

/// The guest.
pub struct Logs;

impl Plugin for Logs {
    fn http(request: Request) -> Result<Response> {
        let Log { lines, then } = request.json()?;
        for line in lines {
            let level = match line.level {
                Severity::Trace => Level::Trace,
                Severity::Debug => Level::Debug,
                Severity::Info => Level::Info,
                Severity::Warn => Level::Warn,
                Severity::Error => Level::Error,
            };
            for _ in 0..line.times {
                log::write(level, &line.message);
            }
        }
        match then {
            None => Ok(Response::new(204)),
            Some(Then::Fail) => Err(reject("as the test wants")),
            Some(Then::Panic) => panic!("as the test wants"),
        }
    }
}

chalet_sdk::export!(Logs: http);
