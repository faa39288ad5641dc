//! The load: wrk, with one thread, on connections that are kept.
//!
//! Every answer counts: a run in which one is no success, is late or is missing has no figures.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde::Deserialize;

/// How long an answer may take; a server that sheds load answers much earlier.
const TIMEOUT: &str = "10s";
/// How long a load may become that gets no answer at all.
const LONGEST: Duration = Duration::from_secs(30);
/// What stands for a number that no request had before, in a body or an `Idempotency-Key`.
pub const NUMBER: &str = "############";
/// What stands for a number below [`Request::random_below`], in a body.
pub const RANDOM: &str = "@@@@@@@@@@@@";

/// What a contestant is asked.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: String,
    /// The body, JSON if there is one; with [`NUMBER`] where each request differs.
    pub body: String,
    /// The content type of a body.
    pub content_type: &'static str,
    /// The `Idempotency-Key`, with [`NUMBER`] where each request differs.
    pub once: Option<&'static str>,
    /// The status of a success.
    pub status: u16,
    /// Where [`RANDOM`] ends.
    pub random_below: u64,
    /// The body of a success, where a yardstick answers the same bytes.
    pub answer: Option<&'static str>,
}

impl Request {
    /// A request without a body.
    pub fn get(path: &str) -> Self {
        Self { method: Method::GET, ..Self::post(path, "") }
    }

    /// A request with JSON.
    pub fn post(path: &str, body: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            path: path.into(),
            body: body.into(),
            content_type: "application/json",
            once: None,
            status: 200,
            random_below: 1,
            answer: None,
        }
    }

    /// The same, and a success is known by its bytes.
    pub fn answers(self, answer: &'static str) -> Self {
        Self { answer: Some(answer), ..self }
    }

    /// The same, and a success has this status.
    pub fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The same with an `Idempotency-Key`.
    pub fn once(self, key: &'static str) -> Self {
        Self { once: Some(key), ..self }
    }
}

/// Where a request goes, and who sends it.
#[derive(Clone, Debug)]
pub struct Target {
    /// The path.
    pub path: String,
    /// The key.
    pub key: String,
}

/// How requests are spread over targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Each in turn.
    Even,
    /// The n-th target gets 1/n of what the first one gets.
    Zipf,
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

/// Numbers that no earlier load of this day had begin here.
fn first_number() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is later than 1970");
    now.as_secs() % 86_400 * 10_000_000
}

/// Send the request once and look at the answer.
pub async fn try_once(url: &str, target: &Target, request: &Request) -> Result<(), String> {
    let number = format!("{:012}", first_number());
    let numbered = |text: &str| text.replace(NUMBER, &number).replace(RANDOM, "000000000000");
    let client = reqwest::Client::new();
    let mut asked = client.request(request.method.clone(), format!("{url}{}", target.path)).bearer_auth(&target.key);
    if !request.body.is_empty() {
        asked = asked.header("content-type", request.content_type).body(numbered(&request.body));
    }
    if let Some(key) = request.once {
        asked = asked.header("idempotency-key", numbered(key));
    }
    let answer = asked.send().await.map_err(|error| error.to_string())?;
    let status = answer.status().as_u16();
    let body = answer.text().await.map_err(|error| error.to_string())?;
    if status != request.status || request.answer.is_some_and(|expected| expected != body) {
        return Err(format!("{} answered {status}: {body}", target.path));
    }
    Ok(())
}

/// Send the request over and over again.
pub fn run(
    url: &str,
    targets: &[Target],
    spread: Spread,
    request: &Request,
    connections: u32,
    duration: Duration,
) -> Result<Load, String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("request.lua");
    std::fs::write(&script, lua(targets, spread, request)).expect("the folder can be written");
    let output = Command::new("wrk")
        .args(["--threads", "1", "--timeout", TIMEOUT])
        .args(["--connections", &connections.to_string()])
        .args(["--duration", &format!("{}s", duration.as_secs())])
        .arg("--script")
        .arg(&script)
        .arg(url)
        .output()
        .map_err(|error| format!("wrk does not start ({error}); install the package `wrk`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = text.lines().find(|line| line.starts_with('{')).and_then(|line| serde_json::from_str(line).ok());
    let Some(Said { requests, duration_us, p50_us, p99_us, refused, late, broken }) = said else {
        return Err(format!("wrk said {text}{}", String::from_utf8_lossy(&output.stderr)));
    };
    if requests + refused + late + broken == 0 && duration < LONGEST {
        // The machine did something else all the time.
        return run(url, targets, spread, request, connections, duration * 2);
    }
    if requests == 0 || refused + late + broken > 0 {
        return Err(format!("of {requests} answers {refused} were refusals; {late} came late, {broken} never"));
    }
    Ok(Load { requests, seconds: duration_us / 1e6, p50_ms: p50_us / 1e3, p99_ms: p99_us / 1e3 })
}

/// wrk's script: the requests, and a line of JSON at the end. Requests are put together once, with gaps where the
/// numbers go; one that never changes costs wrk no call of Lua.
fn lua(targets: &[Target], spread: Spread, request: &Request) -> String {
    let mut script = String::from("local targets = {\n");
    for Target { path, key } in targets {
        let _ = writeln!(script, "{{ [==[{path}]==], [==[Bearer {key}]==] }},");
    }
    let _ = writeln!(script, "}}\nlocal n, random_below = {}, {}", first_number(), request.random_below);
    let _ = writeln!(script, "wrk.method = '{}'\nwrk.path = targets[1][1]", request.method);
    let _ = writeln!(script, "wrk.headers['authorization'] = targets[1][2]");
    if !request.body.is_empty() {
        let _ = writeln!(script, "wrk.body = [==[{}]==]", request.body);
        let _ = writeln!(script, "wrk.headers['content-type'] = '{}'", request.content_type);
    }
    if let Some(key) = request.once {
        let _ = writeln!(script, "wrk.headers['idempotency-key'] = '{key}'");
    }
    let changes = [NUMBER, RANDOM].iter().any(|gap| request.body.contains(gap));
    if targets.len() > 1 || changes || request.once == Some(NUMBER) {
        let pick = match spread {
            Spread::Even => "turn % #targets + 1",
            Spread::Zipf => "drawn[turn % #drawn + 1]",
        };
        let _ = write!(
            script,
            r#"
            local texts, gaps, drawn, turn = {{}}, {{}}, {{}}, 0
            function init(args)
                for i, target in ipairs(targets) do
                    wrk.headers["authorization"] = target[2]
                    local text, pieces, kinds = wrk.format(nil, target[1]), {{}}, {{}}
                    local from = 1
                    while true do
                        local number = text:find("{NUMBER}", from, true)
                        local random = text:find("{RANDOM}", from, true)
                        local first = math.min(number or #text + 1, random or #text + 1)
                        pieces[#pieces + 1] = text:sub(from, first - 1)
                        if first > #text then break end
                        kinds[#pieces + 1] = first == random
                        pieces[#pieces + 1] = ""
                        from = first + {width}
                    end
                    texts[i], gaps[i] = pieces, kinds
                end
                -- The same draws in every run.
                math.randomseed(1)
                local sums, sum = {{}}, 0
                for i = 1, #targets do
                    sum = sum + 1 / i
                    sums[i] = sum
                end
                for i = 1, 65536 do
                    local wanted, low, high = math.random() * sum, 1, #targets
                    while low < high do
                        local middle = math.floor((low + high) / 2)
                        if sums[middle] < wanted then low = middle + 1 else high = middle end
                    end
                    drawn[i] = low
                end
            end
            function request()
                local target = {pick}
                local pieces, random = texts[target], gaps[target]
                turn = turn + 1
                if #pieces == 1 then return pieces[1] end
                for i = 2, #pieces, 2 do
                    n = n + 1
                    pieces[i] = string.format("%012d", random[i] and math.random(random_below) - 1 or n)
                end
                return table.concat(pieces)
            end
            "#,
            width = NUMBER.len(),
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
