//! The load: wrk, with one thread, on connections that are kept.
//!
//! Every answer counts: a run in which one is no success, is late or is missing has no figures.

use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::servers::Running;

/// How long an answer may take; a server that sheds load answers much earlier.
const TIMEOUT: &str = "10s";

/// What a contestant is asked, always by POST and with JSON.
#[derive(Clone, Copy)]
pub struct Request {
    /// The path.
    pub path: &'static str,
    /// The body.
    pub body: &'static str,
    /// The status of a success.
    pub status: u16,
    /// Whether each request has an `Idempotency-Key` that was never used before.
    pub fresh_keys: bool,
}

/// What a load found.
pub struct Load {
    /// Requests that were answered.
    pub requests: u64,
    /// How long it lasted.
    pub seconds: f64,
    /// Half of the answers came within this.
    pub p50_ms: f64,
    /// 99 of 100 answers came within this.
    pub p99_ms: f64,
}

/// What the script says at the end, in wrk's units.
#[derive(Deserialize)]
struct Said {
    requests: u64,
    duration_us: f64,
    p50_us: f64,
    p99_us: f64,
    /// Answers with a status of 400 and above.
    refused: u64,
    late: u64,
    broken: u64,
}

/// Send the request once and look at the answer.
pub async fn try_once(server: &Running, request: &Request) {
    let answer = reqwest::Client::new()
        .post(format!("{}{}", server.url(), request.path))
        .bearer_auth(server.key())
        .header("content-type", "application/json")
        .body(request.body)
        .send()
        .await
        .expect("an answer");
    let status = answer.status().as_u16();
    let body = answer.text().await.expect("text");
    assert_eq!(status, request.status, "{}: {body}", request.path);
    if request.path == crate::PRICE.path {
        assert_eq!(body, crate::bare::ANSWER, "the yardstick answers the same bytes");
    }
}

/// Send the request over and over again.
pub fn run(server: &Running, request: &Request, connections: u32, duration: Duration) -> Result<Load, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("request.lua");
    std::fs::write(&script, lua(server, request)).expect("the folder can be written");
    let output = Command::new("wrk")
        .args(["--threads", "1", "--timeout", TIMEOUT])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", duration.as_secs())])
        .arg("--script")
        .arg(&script)
        .arg(format!("{}{}", server.url(), request.path))
        .output()
        .map_err(|error| format!("wrk does not start ({error}); install the package `wrk`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find(|line| line.starts_with('{')).and_then(|line| serde_json::from_str(line).ok());
    let Some(Said { requests, duration_us, p50_us, p99_us, refused, late, broken }) = said else {
        return Err(format!("wrk said {text}{}", String::from_utf8_lossy(&output.stderr)));
    };
    if requests == 0 || refused + late + broken > 0 {
        return Err(format!("of {requests} answers {refused} were refusals; {late} came late, {broken} never"));
    }
    Ok(Load { requests, seconds: duration_us / 1e6, p50_ms: p50_us / 1e3, p99_ms: p99_us / 1e3 })
}

/// wrk's script: the request, and a line of JSON at the end.
fn lua(server: &Running, request: &Request) -> String {
    let (body, key) = (request.body, server.key());
    let mut script = format!(
        r#"
        wrk.method = "POST"
        wrk.body = [==[{body}]==]
        wrk.headers["content-type"] = "application/json"
        wrk.headers["authorization"] = "Bearer {key}"
        "#
    );
    if request.fresh_keys {
        // The request is put together once, with a gap where the number goes.
        script += &format!(
            r#"
            local head, tail
            local n = 0
            function init(args)
                wrk.headers["idempotency-key"] = "{}-@"
                head, tail = wrk.format():match("^(.-)@(.*)$")
            end
            function request()
                n = n + 1
                return head .. n .. tail
            end
            "#,
            uuid::Uuid::now_v7()
        );
    }
    script
        + r#"
        function done(summary, latency, requests)
            local errors = summary.errors
            print(string.format(
                '{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"late":%d,"broken":%d}',
                summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
                errors.status, errors.timeout, errors.connect + errors.read + errors.write))
        end
        "#
}
