//! `chalet logs`: what plugins log, and how their invocations end, as it happens.

use std::collections::VecDeque;

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, Connection, ForTenant};
use super::terminal::{Ink, field, ink, say, time};
use super::{Failure, Result};

/// Bytes of one event at most: an invocation's log is bounded by far less.
const EVENT_BYTES: usize = 16 << 20;

/// Print what plugins log, and how their invocations end.
#[derive(Debug, Args)]
pub(super) struct Logs {
    #[command(flatten)]
    of: ForTenant,
    /// Go on as invocations come, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Only this plugin's.
    #[arg(long)]
    plugin: Option<String>,
}

impl Logs {
    pub(super) async fn run(self, connection: &Connection) -> Result<()> {
        let client = Client::new(connection)?;
        let mut tail = Tail::open(&client, &self.of, self.plugin.as_deref(), self.follow).await?;
        while let Some(invocation) = tail.next().await? {
            if connection.json {
                say(invocation.to_string());
            } else {
                print(&invocation);
            }
        }
        if self.follow { Err(Failure::Failed("the server ended the stream".into())) } else { Ok(()) }
    }
}

/// A tenant's invocations as they end.
pub(super) struct Tail {
    answer: reqwest::Response,
    lines: Lines,
    waiting: VecDeque<Value>,
}

impl Tail {
    /// Begin with the latest; `follow` goes on with those to come.
    pub(super) async fn open(client: &Client, of: &ForTenant, plugin: Option<&str>, follow: bool) -> Result<Self> {
        let mut request = client.request(Method::GET, &of.path(&["logs"])).query(&[("follow", follow)]);
        if let Some(plugin) = plugin {
            request = request.query(&[("plugin", plugin)]);
        }
        let answer = client.stream(request).await?;
        Ok(Self { answer, lines: Lines::default(), waiting: VecDeque::new() })
    }

    /// The next invocation with its log; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(invocation) = self.waiting.pop_front() {
                return Ok(Some(invocation));
            }
            let chunk = self.answer.chunk().await;
            match chunk.map_err(|error| Failure::Failed(format!("the stream of logs broke off: {error}")))? {
                Some(chunk) => self.waiting.extend(self.lines.take(&chunk)?),
                None => return Ok(None),
            }
        }
    }
}

/// Server-sent events out of pieces of a stream, as far as this API uses them: one `data` line an event.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, chunk: &[u8]) -> Result<Vec<Value>> {
        self.rest.extend_from_slice(chunk);
        if self.rest.len() > EVENT_BYTES {
            return Err(Failure::Failed("the stream of logs is not understood".into()));
        }
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let data = whole.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data:"));
        Ok(data.filter_map(|data| serde_json::from_slice(data.trim_ascii()).ok()).collect())
    }
}

/// An invocation in one line, and its log below.
pub(super) fn print(invocation: &Value) {
    let started = time(&invocation["started_at"]);
    let clock = started.split_once(' ').map_or(started.as_str(), |(_, clock)| clock);
    let ok = invocation["outcome"] == "ok";
    let outcome = format!("{} {}", field(invocation, "outcome"), field(invocation, "code"));
    let mut line = format!(
        "{} {} {} {} {}",
        ink(Ink::Dim, clock),
        field(invocation, "plugin"),
        field(invocation, "trigger"),
        ink(if ok { Ink::Green } else { Ink::Red }, outcome.trim()),
        ink(Ink::Dim, &format!("{} ms {}", invocation["duration_ms"], field(invocation, "id"))),
    );
    let error = field(invocation, "error");
    if !ok && !error.is_empty() {
        line.push_str("\n         ");
        line.push_str(&error);
    }
    say(line);
    print_log(invocation);
}

/// The lines that a plugin wrote.
pub(super) fn print_log(invocation: &Value) {
    for line in invocation["log"].as_array().into_iter().flatten() {
        let level = field(line, "level");
        let colour = match level.as_str() {
            "error" => Ink::Red,
            "warn" => Ink::Yellow,
            _ => Ink::Dim,
        };
        say(format!("         {} {}", ink(colour, &format!("{level:5}")), field(line, "message")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_out_of_pieces() {
        let mut lines = Lines::default();
        assert!(lines.take(b": keep-alive\n\nid: 1\nda").unwrap().is_empty());
        assert!(lines.take(b"ta: {\"id\":\"1\"").unwrap().is_empty());
        let events = lines.take(b"}\n\ndata: {\"id\":\"2\"}\n\n").unwrap();
        assert_eq!(events.iter().map(|event| field(event, "id")).collect::<Vec<_>>(), ["1", "2"]);
    }
}
