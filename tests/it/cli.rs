//! The commands as people type them: what they print, and how they end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::kit::engine::Engine;
use crate::kit::guests::{PLUGINS_TARGET, component, numbered, root};
use crate::kit::postgres;
use crate::kit::server::{ADMIN, Server, Setup, binary, expect};

on_both_engines! {
    an_operator_makes_a_tenant_and_deploys_a_plugin_to_it,
    a_tenant_admin_sees_what_the_plugin_did,
    secrets_and_limits_are_set_from_stdin,
    the_audit_log_is_listed_and_verified,
    errors_say_what_to_do_and_how_the_command_was_wrong,
    logs_follow_what_happens_after_they_were_asked_for,
    usage_is_shown_by_meter_time_and_group,
    a_key_is_shown_once_and_opens_doors_until_it_is_revoked,
    flags_are_set_read_and_evaluated,
    limits_are_set_read_and_looked_at_without_counting,
    a_rollback_gives_the_traffic_back_to_the_release_before,
    invocations_are_listed_the_latest_first_with_what_became_of_them,
    a_secret_is_used_and_replaced_and_never_shown,
    a_newcomer_makes_a_plugin_works_on_it_and_deploys_it,
}

/// How long a line of a running command is waited for: longer than a machine that is busy builds a plugin.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a command printed, and its exit code.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Its stdout, if it ended well.
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("--json prints JSON")
    }
}

/// `chalet` with these arguments, separated by blanks, in this folder, without what the caller's environment says.
fn command(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments.split_whitespace()).current_dir(folder);
    for name in ["CHALET_URL", "CHALET_KEY", "CHALET_TENANT", "CHALET_DATABASE_URL", "CHALET_DATABASE_OWNER_URL"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Run a command to its end.
fn run(command: &mut Command, stdin: &[u8]) -> Ended {
    let mut running = command.spawn().expect("the binary is built");
    // A command that ends without reading closes the pipe; that is its right.
    let _ = running.stdin.take().expect("stdin is piped").write_all(stdin);
    let output = running.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    Ended { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A client command against this server.
fn client(server: &Server, key: Option<&str>, arguments: &str) -> Command {
    let mut command = command(server.data.path(), arguments);
    command.env("CHALET_URL", &server.url).envs(key.map(|key| ("CHALET_KEY", key)));
    command
}

/// Run a client command against this server.
fn chalet(server: &Server, key: Option<&str>, arguments: &str, stdin: &[u8]) -> Ended {
    run(&mut client(server, key, arguments), stdin)
}

/// A client command that is still running, line by line.
struct Running {
    process: Child,
    lines: mpsc::Receiver<String>,
    /// What it said beside them, so far.
    stderr: Arc<Mutex<String>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut process = command.spawn().expect("the binary is built");
        let printed = BufReader::new(process.stdout.take().expect("stdout is piped")).lines();
        let beside = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let (tell, lines) = mpsc::channel();
        let stderr = Arc::new(Mutex::new(String::new()));
        // A line that does not come must not hold up the tests for good.
        std::thread::spawn(move || {
            for line in printed {
                let _ = tell.send(line.expect("it prints UTF-8"));
            }
        });
        let said = stderr.clone();
        std::thread::spawn(move || {
            for line in beside {
                *said.lock().expect("no panic") += &(line.expect("it prints UTF-8") + "\n");
            }
        });
        Self { process, lines, stderr }
    }

    /// The next line that contains this; what came before is passed over.
    fn line(&mut self, part: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(_) => panic!("there was no line with {part}; it said {}", self.stderr.lock().expect("no panic")),
            }
        }
    }

    /// Press Ctrl-C, and the lines that were still to be read.
    fn interrupt(mut self) -> Vec<String> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
        let mut rest = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => rest.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("Ctrl-C did not end it; a script's background job ignores it, and so does what that starts")
                }
            }
        }
        self.process.wait().expect("it ends");
        rest
    }
}

impl Drop for Running {
    /// A test that fails leaves no server behind.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn an_operator_makes_a_tenant_and_deploys_a_plugin_to_it(engine: Engine) {
    let server = engine.server().await;
    let admin = |arguments: &str| chalet(&server, Some(ADMIN), arguments, b"");
    admin("tenant create acme").ok();
    let listed = admin("tenant list").ok();
    assert!(listed.starts_with("TENANT") && listed.contains("\nacme    free"), "{listed}");
    let key = admin("key create ci --tenant acme --scope tenant:admin").ok();
    let own = |arguments: &str| chalet(&server, Some(key.trim()), arguments, b"");

    let file = server.data.path().join("notes.wasm");
    std::fs::write(&file, component("notes")).expect("the folder can be written");
    let checked = own("check notes.wasm").ok();
    assert!(checked.contains("route    POST /notes (a key)") || checked.contains("POST /notes (a key)"), "{checked}");
    assert!(checked.contains("kv: notes"), "{checked}");

    let held = own("deploy notes.wasm --tenant acme");
    assert_eq!(held.code, 1);
    assert!(held.stdout.contains("held") && held.stdout.contains("kv: notes"), "{}", held.stdout);
    assert!(held.stderr.contains("--approve"), "{}", held.stderr);
    assert!(own("deploy notes.wasm --tenant acme --approve").ok().contains("runs 1.0.0"));
    assert!(own("plugins --tenant acme").ok().contains("notes   1.0.0"));
    let versions = own("plugins notes --tenant acme --json").json();
    assert_eq!(versions["data"][0]["state"], "ready");
    let nothing = own("rollback notes --tenant acme");
    assert_eq!(nothing.code, 1);
    assert!(nothing.stderr.contains("no_earlier_release, request "), "{}", nothing.stderr);
    admin("tenant delete acme --yes").ok();
    assert_eq!(admin("tenant show acme").code, 1);
}

async fn a_tenant_admin_sees_what_the_plugin_did(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    acme.deploy("pricing").await;
    let own = |arguments: &str| chalet(&server, Some(&acme.key), arguments, b"");
    let order = json!({ "sku": "a", "quantity": 1, "list_cents": 1 });
    let answer = acme.call(Method::POST, "pricing", "/price").json(&order).send().await.expect("an answer");
    let id = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    assert!(own("invocations --tenant acme").ok().contains(&id));
    assert!(own(&format!("invocations {id} --tenant acme")).ok().contains("pricing 1.0.0"));
    assert!(own("logs --tenant acme --plugin pricing").ok().contains(&id));
    assert!(!own("logs --tenant acme --plugin guest-log").ok().contains(&id));
}

async fn secrets_and_limits_are_set_from_stdin(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str, stdin: &str| chalet(&server, Some(&acme.key), arguments, stdin.as_bytes());
    own("secret set KEY --tenant acme", "hidden\n").ok();
    assert!(own("secret list --tenant acme", "").ok().contains("KEY"));
    assert_eq!(own("secret set KEY --tenant acme", "\n").code, 2);
    let document = r#"{"limits":[{"name":"mails","rate":1,"per":"hour"}]}"#;
    own("limit set - --tenant acme", document).ok();
    assert!(own("limit check mails u1 --tenant acme", "").ok().contains("allowed, 0 of 1 left"));
    let refused = own("limit check mails u1 --tenant acme", "");
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("refused"), "{}", refused.stdout);
}

async fn the_audit_log_is_listed_and_verified(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str| chalet(&server, Some(&acme.key), arguments, b"");
    acme.secret("KEY", "hidden").await;
    let listed = own("audit list --tenant acme").ok();
    assert!(listed.contains("secrets.put") && listed.contains("/v1/tenants/acme/secrets/KEY"), "{listed}");
    assert!(!own("audit list --tenant acme --action keys.create").ok().contains("secrets.put"));
    let json: Value = serde_json::from_str(&own("audit list --tenant acme --json").ok()).expect("JSON");
    assert_eq!(json["data"][0]["action"], "secrets.put");
    assert!(own("audit verify --tenant acme").ok().starts_with("whole: records 1 to 2; the hash"));
    let denied = own("audit list");
    assert!(denied.code == 1 && denied.stderr.contains("platform:admin"), "{}", denied.stderr);
    assert!(chalet(&server, Some(ADMIN), "audit list", b"").ok().contains("tenants.create"));
    assert!(chalet(&server, Some(ADMIN), "audit verify", b"").ok().contains("records 1 to 2"));
}

async fn errors_say_what_to_do_and_how_the_command_was_wrong(engine: Engine) {
    let server = engine.server().await;
    let anonymous = chalet(&server, None, "tenant list", b"");
    assert_eq!(anonymous.code, 2, "a key is missing from the command");
    assert!(anonymous.stderr.contains("CHALET_KEY"), "{}", anonymous.stderr);
    let unknown = chalet(&server, Some(ADMIN), "tenant show nobody", b"");
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.starts_with("error: no such tenant (not_found, request "), "{}", unknown.stderr);
    assert_eq!(chalet(&server, Some(ADMIN), "tenant", b"").code, 2);
    assert_eq!(chalet(&server, Some(ADMIN), "tenant delete acme", b"").code, 2, "nobody can be asked");
    let nowhere = chalet(&server, Some(ADMIN), "tenant list --url http://127.0.0.1:1", b"");
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.stderr.contains("chalet serve"), "{}", nowhere.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_refused_until_it_is_migrated() {
    let database = tokio::task::spawn_blocking(postgres::shared).await.expect("a cluster").empty_database().await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |url: &str, arguments: &str| {
        let mut command = command(folder.path(), arguments);
        command.env("CHALET_DATABASE_URL", url).env("CHALET_MASTER_KEY", "5e".repeat(32));
        run(command.env("CHALET_LISTEN", "127.0.0.1:0").env("CHALET_ADMIN_KEY", ADMIN), b"")
    };
    let examined = |url: &str| {
        let ended = at(url, "doctor");
        let line =
            ended.stdout.lines().find(|line| line.contains("database ")).expect("a line on the database").to_owned();
        (ended.code, line, ended.stdout)
    };
    let (code, line, all) = examined(&database.url);
    assert!(code == 1 && line.starts_with("broken") && all.contains("chalet migrate"), "{all}");
    let early = at(&database.url, "serve");
    assert!(early.code == 1 && early.stderr.contains("chalet migrate"), "{}", early.stderr);

    let migrate = |arguments: &str| run(&mut command(folder.path(), &format!("migrate {arguments}")), b"");
    assert_eq!(migrate("").code, 2, "whose database is not said");
    assert_eq!(migrate("--owner-url postgres://chalet_owner@127.0.0.1:1/none").code, 1);
    for _ in 0..2 {
        let migrated = migrate(&format!("--owner-url {}", database.owner_url));
        assert!(
            migrated.code == 0 && migrated.stderr.contains("the role chalet_app may use it"),
            "{}",
            migrated.stderr
        );
    }
    let (code, line, all) = examined(&database.url);
    assert!(code == 0 && line.starts_with("ok") && line.contains("the role is as it should be"), "{all}");
    let (code, line, all) = examined(&database.owner_url);
    assert!(code == 1 && line.starts_with("broken"), "the owner may do too much: {all}");
    let server = Server::start_with(Setup::on(&database));
    chalet(&server, Some(ADMIN), "tenant create acme", b"").ok();
}

#[test]
fn the_doctor_sees_what_is_there_and_what_is_broken() {
    let server = Server::start();
    let examine = |folder: &Path, listen: &str| {
        let mut command = command(server.data.path(), &format!("doctor --data {}", folder.display()));
        run(command.env("CHALET_LISTEN", listen), b"")
    };
    let address = server.url.trim_start_matches("http://");
    let running = examine(server.data.path(), address).ok();
    assert!(running.contains(&format!("a server answers at {}", server.url)), "{running}");
    assert!(running.contains("SQLite 3.") && running.contains("can be written"), "{running}");
    assert!(running.contains("uploads are compiled without files"), "{running}");

    let other = tempfile::tempdir().expect("a folder");
    let fresh = examine(&other.path().join("data"), "127.0.0.1:0").ok();
    assert!(fresh.contains("will be made at the first start") && fresh.contains("SQLite, made at"), "{fresh}");
    std::fs::write(other.path().join("chalet.sqlite"), "no database at all").expect("the folder can be written");
    let broken = examine(other.path(), "127.0.0.1:0");
    assert!(broken.code == 1 && broken.stdout.contains("restore the file from a backup"), "{}", broken.stdout);
}

async fn logs_follow_what_happens_after_they_were_asked_for(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    acme.deploy("guest-hello").await;
    let write = |message: &str| {
        let lines = json!({ "lines": [{ "level": "warn", "message": message }], "then": null });
        expect(acme.call(Method::POST, "guest-log", "/log").json(&lines), StatusCode::NO_CONTENT)
    };
    write("before").await;
    let mut all = Running::start(client(&server, Some(&acme.key), "logs -f --tenant acme"));
    let mut one =
        Running::start(client(&server, Some(&acme.key), "logs --follow --json --tenant acme --plugin guest-log"));
    // Both follow once they have shown what was there.
    all.line("before");
    one.line("before");
    expect(acme.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
    assert!(all.line("guest-hello").contains(" http ok "));
    write("after").await;
    assert_eq!(all.line("after").trim(), "warn  after");
    let next: Value = serde_json::from_str(&one.line("{")).expect("one JSON object a line");
    assert_eq!((&next["plugin"], &next["log"][0]["message"]), (&json!("guest-log"), &json!("after")));
    assert_eq!(one.interrupt(), Vec::<String>::new(), "nothing is said twice");

    let asked = std::time::Instant::now();
    assert!(server.stop().success());
    assert!(asked.elapsed() < std::time::Duration::from_secs(10), "a follower does not hold the server up");
    assert_eq!(all.process.wait().expect("it ends").code(), Some(1), "the stream was not ended by its reader");
}

async fn usage_is_shown_by_meter_time_and_group(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-meters").await;
    for (value, model) in [("1.5", "small"), ("2", "large")] {
        let record = json!({ "meter": "tokens", "value": value, "dimensions": { "model": model }, "fail": false });
        expect(acme.call(Method::POST, "guest-meters", "/record").json(&record), StatusCode::OK).await;
    }
    let own = |arguments: &str| chalet(&server, Some(&acme.key), &format!("usage --tenant acme {arguments}"), b"");
    let meters = own("").ok();
    assert!(meters.contains("\ntokens ") && meters.contains("recorded") && meters.contains("\nfuel "), "{meters}");
    let grouped = own("--meter tokens --group-by model").ok();
    let rows: Vec<Vec<&str>> = grouped.lines().skip(1).map(|line| line.split_whitespace().skip(4).collect()).collect();
    assert_eq!(rows, [["model=large", "2"], ["model=small", "1.5"]], "{grouped}");
    assert_eq!(own("--meter tokens --window day --json").json()["data"][0]["value"], "3.5");
    assert_eq!(own("--meter invocations --json").json()["data"][0]["value"], "2");
    let before = own("--meter tokens --from 2020-01-01T00:00:00Z --to 2020-01-02T00:00:00Z --json").json();
    assert_eq!(before["data"][0]["value"], "0");
    assert_eq!(own("--meter tokens --window week").code, 2);
    assert_eq!(own("--from 2020-01-01T00:00:00Z").code, 2, "of which meter is not said");
    let unknown = own("--meter nothing");
    assert!(unknown.code == 1 && unknown.stderr.contains("meter_missing"), "{}", unknown.stderr);
}

async fn a_key_is_shown_once_and_opens_doors_until_it_is_revoked(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str| chalet(&server, Some(&acme.key), arguments, b"");
    let made = own("key create reader --tenant acme --scope tenant:read,invoke");
    assert!(made.stderr.contains("tenant:read") && made.stderr.contains("not shown again"), "{}", made.stderr);
    let key = made.ok().trim().to_owned();
    let (id, secret) = key.rsplit_once('_').expect("an id and a secret");
    let id = id.trim_start_matches("chalet_");
    let reader = |arguments: &str| chalet(&server, Some(&key), arguments, b"");
    reader("plugins --tenant acme").ok();
    let forbidden = reader("key list --tenant acme");
    assert!(forbidden.code == 1 && forbidden.stderr.contains("tenant:admin"), "{}", forbidden.stderr);
    let listed = own("key list --tenant acme").ok();
    let row = listed.lines().find(|line| line.starts_with(id)).expect("the key is listed");
    assert!(row.contains("reader") && row.contains("invoke") && !listed.contains(secret), "{listed}");
    own(&format!("key delete {id} --tenant acme")).ok();
    let revoked = reader("plugins --tenant acme");
    assert!(revoked.code == 1 && revoked.stderr.contains("unauthenticated"), "{}", revoked.stderr);
    assert_eq!(own("key create wide --tenant acme --scope platform:admin").code, 2);
    assert_eq!(own("key create none --tenant acme").code, 2, "what it may do is not said");
    assert_eq!(own(&format!("key delete {id} --tenant acme")).code, 1);
}

async fn flags_are_set_read_and_evaluated(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str, stdin: &str| chalet(&server, Some(&acme.key), arguments, stdin.as_bytes());
    assert_eq!(own("flag get --tenant acme", "").code, 1, "there is no document yet");
    let document = json!({ "flags": { "size": { "state": "ENABLED", "variants": { "small": 1, "large": 2 },
        "defaultVariant": "small", "targeting": { "if": [{ ">": [{ "var": "seats" }, 9] }, "large"] } } } });
    let set = own("flag set - --tenant acme", &document.to_string());
    assert!(set.code == 0 && set.stderr.contains("acme has 1 flag"), "{}", set.stderr);
    assert_eq!(own("flag get --tenant acme", "").json(), document);
    let evaluated = own("flag eval size --targeting-key u1 --with seats=10", "").ok();
    let facts: Vec<_> = evaluated.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(facts, [["value", "2"], ["variant", "large"], ["reason", "TARGETING_MATCH"]]);
    assert_eq!(own("flag eval size --with seats=9 --json", "").json()["value"], 1);
    let unknown = own("flag eval nothing", "");
    assert!(unknown.code == 1 && unknown.stderr.contains("FLAG_NOT_FOUND"), "{}", unknown.stderr);
    assert_eq!(own("flag eval size --with seats", "").code, 2);
    for (wrong, why) in [("{", "no JSON"), (r#"{"flags":{"x":{}}}"#, "state")] {
        let refused = own("flag set - --tenant acme", wrong);
        assert!(refused.code == 1 && refused.stderr.contains(why), "{wrong}: {}", refused.stderr);
    }
    assert_eq!(own("flag get --tenant acme", "").json(), document, "what was refused changed nothing");
    let operator = chalet(&server, Some(ADMIN), "flag eval size", b"");
    assert!(operator.code == 1 && operator.stderr.contains("tenant's key"), "{}", operator.stderr);
}

async fn limits_are_set_read_and_looked_at_without_counting(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str, stdin: &str| chalet(&server, Some(&acme.key), arguments, stdin.as_bytes());
    let file = server.data.path().join("limits.json");
    std::fs::write(&file, r#"{"limits":[{"name":"mails","rate":3,"per":"hour"}]}"#).expect("the folder can be written");
    own("limit set limits.json --tenant acme", "").ok();
    assert_eq!(own("limit get --tenant acme", "").json()["limits"][0]["name"], "mails");
    for (cost, left) in [(0, 3), (2, 1), (0, 1), (1, 0)] {
        let checked = own(&format!("limit check mails u1 --tenant acme --cost {cost}"), "").ok();
        assert_eq!(checked.trim(), format!("allowed, {left} of 3 left"));
    }
    let refused = own("limit check mails u1 --tenant acme --json", "");
    let decision: Value = serde_json::from_str(&refused.stdout).expect("JSON");
    assert!(refused.code == 1 && decision["allowed"] == false, "{decision}");
    own("limit check mails u2 --tenant acme", "").ok();
    let unknown = own("limit check nothing u1 --tenant acme", "");
    assert!(unknown.code == 1 && unknown.stderr.contains("limit_missing"), "{}", unknown.stderr);
    assert_eq!(own("limit set nowhere.json --tenant acme", "").code, 1);
    let wrong = own("limit set - --tenant acme", r#"{"limits":[{"name":"mails","rate":3,"per":"fortnight"}]}"#);
    assert!(wrong.code == 1 && wrong.stderr.contains("fortnight"), "{}", wrong.stderr);
}

async fn a_rollback_gives_the_traffic_back_to_the_release_before(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let own = |arguments: &str| chalet(&server, Some(&acme.key), arguments, b"");
    for version in ["1.0.0", "1.1.0"] {
        let file = server.data.path().join(format!("{version}.wasm"));
        std::fs::write(file, numbered("guest-hello", version)).expect("the folder can be written");
    }
    let answering = async || {
        expect(acme.call(Method::GET, "guest-hello", "/"), StatusCode::OK).await;
        own("invocations --tenant acme --limit 1 --json").json()["data"][0]["version"].clone()
    };
    own("deploy 1.0.0.wasm --tenant acme --approve").ok();
    let canary = own("deploy 1.1.0.wasm --tenant acme --percent 10").ok();
    assert!(canary.contains("1.1.0 (10%)") && canary.contains("1.0.0 (90%)"), "{canary}");
    own("deploy 1.1.0.wasm --tenant acme").ok();
    assert_eq!(answering().await, "1.1.0");
    assert!(own("rollback guest-hello --tenant acme").ok().contains("runs 1.1.0 (10%), 1.0.0 (90%)"));
    assert!(own("rollback guest-hello --tenant acme").ok().contains("guest-hello runs 1.0.0"));
    assert_eq!(answering().await, "1.0.0");
    let versions = own("plugins guest-hello --tenant acme").ok();
    let traffic: Vec<_> = versions.lines().skip(1).map(|line| line.split("  ").next().unwrap_or_default()).collect();
    assert_eq!(traffic.len(), 2, "{versions}");
    assert_eq!(own("rollback nothing --tenant acme").code, 1);
}

async fn invocations_are_listed_the_latest_first_with_what_became_of_them(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    let mut ids = Vec::new();
    for then in [json!(null), json!("fail"), json!("panic")] {
        let request = json!({ "lines": [{ "level": "info", "message": "a line" }], "then": then });
        let answer = acme.call(Method::POST, "guest-log", "/log").json(&request).send().await.expect("an answer");
        ids.push(answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned());
    }
    let own =
        |arguments: &str| chalet(&server, Some(&acme.key), &format!("invocations --tenant acme {arguments}"), b"");
    let listed = own("").ok();
    let rows: Vec<_> = listed.lines().skip(1).map(str::to_owned).collect();
    let outcomes = ["failed", "rejected", "ok"];
    for ((row, id), outcome) in rows.iter().zip(ids.iter().rev()).zip(outcomes) {
        assert!(row.contains(id) && row.contains("guest-log 1.0.0") && row.contains(outcome), "{outcome}: {listed}");
    }
    assert_eq!(own("--limit 2").ok().lines().count(), 3);
    assert_eq!(own("--limit 2 --json").json()["data"][1]["id"], ids[1].as_str());
    let failed = own(&ids[1]).ok();
    assert!(failed.contains("as the test wants") && failed.contains("info  a line"), "{failed}");
    // What a guest says does nothing to the terminal that shows it.
    acme.deploy("guest-kv").await;
    let reason = "no\u{1b}[31m\u{202e}\n         forged\u{9b}2J";
    let fail = json!({ "ops": [{ "op": "fail", "reason": reason }] });
    let answer = acme.call(Method::POST, "guest-kv", "/run").json(&fail).send().await.expect("an answer");
    let id = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    for shown in [own(&id).ok(), chalet(&server, Some(&acme.key), "logs --tenant acme --plugin guest-kv", b"").ok()] {
        let line = shown.lines().find(|line| line.contains("forged")).unwrap_or_else(|| panic!("{shown}"));
        assert!(line.ends_with("no\\u{1b}[31m\\u{202e}\\n         forged\\u{9b}2J"), "{line:?}");
    }
    let other = server.tenant("globex").await;
    let foreign = chalet(&server, Some(&other.key), &format!("invocations --tenant globex {}", ids[0]), b"");
    assert!(foreign.code == 1 && foreign.stderr.contains("not_found"), "{}", foreign.stderr);
}

async fn a_secret_is_used_and_replaced_and_never_shown(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    acme.deploy("guest-webhook").await;
    let own = |arguments: &str, stdin: &str| chalet(&server, Some(&acme.key), arguments, stdin.as_bytes());
    // GitHub's documented example: docs.github.com, "Validating webhook deliveries".
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let deliver = || acme.hook("github").header("x-hub-signature-256", signature).body("Hello, World!");
    expect(deliver(), StatusCode::SERVICE_UNAVAILABLE).await;
    own("secret set WEBHOOK_SECRET --tenant acme --value wrong", "").ok();
    expect(deliver(), StatusCode::UNAUTHORIZED).await;
    let right = "It's a Secret to Everybody";
    let stored = own("secret set WEBHOOK_SECRET --tenant acme", &format!("{right}\r\n"));
    assert!(stored.code == 0 && !stored.stderr.contains(right), "{}", stored.stderr);
    expect(deliver(), StatusCode::OK).await;
    let listed = own("secret list --tenant acme", "").ok() + &own("secret list --tenant acme --json", "").ok();
    assert!(listed.contains("WEBHOOK_SECRET") && !listed.contains(right), "{listed}");
    own("secret delete WEBHOOK_SECRET --tenant acme", "").ok();
    expect(deliver(), StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(own("secret delete WEBHOOK_SECRET --tenant acme", "").code, 1);
    let named = own("secret set lower/case --tenant acme", "x");
    assert!(named.code == 1 && named.stderr.contains("secret"), "{}", named.stderr);
}

async fn a_newcomer_makes_a_plugin_works_on_it_and_deploys_it(engine: Engine) {
    let server = engine.server().await;
    let acme = server.tenant("acme").await;
    let place = tempfile::tempdir().expect("a temporary folder");
    // Both engines' tests build in one target folder, where a name is one file.
    let name = format!("orders-{engine:?}").to_lowercase();
    let new = format!("new {name} --sdk {}", root().join("guest-sdk").display());
    assert!(run(&mut command(place.path(), &new), b"").ok().contains(&format!("made {name}")));
    let folder = place.path().join(&name);
    let here = |arguments: &str| {
        let mut command = command(&folder, arguments);
        command.env("CARGO_TARGET_DIR", PLUGINS_TARGET);
        command
    };
    let mut native = Command::new("cargo");
    let native = native.arg("test").current_dir(&folder).env("CARGO_TARGET_DIR", PLUGINS_TARGET).output();
    let native = native.expect("cargo runs");
    assert!(native.status.success(), "{}", String::from_utf8_lossy(&native.stderr));

    let mut dev = Running::start(here("dev"));
    dev.line(&format!("{name} 0.1.0 runs"));
    let elsewhere = dev.line("CHALET_URL=");
    let value = |variable: &str| {
        let word = elsewhere.split_whitespace().find_map(|word| word.strip_prefix(&format!("{variable}=")));
        word.unwrap_or_else(|| panic!("no {variable} in {elsewhere}")).to_owned()
    };
    let (url, key, http) = (value("CHALET_URL"), value("CHALET_KEY"), &server.http);
    let greet = async || {
        let request = http.post(format!("{url}/t/dev/{name}/greetings")).bearer_auth(&key);
        expect(request.json(&json!({ "name": "Ada" })), StatusCode::OK).await["times"].clone()
    };
    assert_eq!(greet().await, 1);
    dev.line("greeted Ada for the 1. time");
    // A save is enough; what was stored stays.
    let source = folder.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).expect("read");
    std::fs::write(&source, text.replace("greeting.times += 1", "greeting.times += 10")).expect("saved");
    dev.line(&format!("{name} 0.1.0+dev.1 runs"));
    assert_eq!(greet().await, 11);
    dev.interrupt();

    let mut deploy = here("deploy . --tenant acme --approve");
    run(deploy.env("CHALET_URL", &server.url).env("CHALET_KEY", &acme.key), b"").ok();
    let greeted = acme.call(Method::POST, &name, "/greetings").json(&json!({ "name": "Ada" }));
    assert_eq!(expect(greeted, StatusCode::OK).await, json!({ "name": "Ada", "times": 10 }));
    let checked = run(&mut here(&format!("check {PLUGINS_TARGET}/chalet/{name}.wasm")), b"").ok();
    assert!(checked.contains(&format!("{name} 0.1.0")) && checked.contains("POST /greetings"), "{checked}");
}

/// Whoever may write beside a node's files cannot choose what it reads or writes as its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_in_place_of_a_file_of_the_data_folder_is_refused() {
    for name in ["chalet.sqlite", "chalet.sqlite-wal", "chalet.sqlite-shm", "chalet.lock", "master.key"] {
        let (data, elsewhere) =
            (tempfile::tempdir().expect("a temporary folder"), tempfile::tempdir().expect("a temporary folder"));
        let target = elsewhere.path().join("target");
        std::os::unix::fs::symlink(&target, data.path().join(name)).expect("planted");
        let mut serve = command(data.path(), "serve --listen 127.0.0.1:0 --data .");
        let mut serving = serve.spawn().expect("the binary is built");
        let mut printed = String::new();
        BufReader::new(serving.stdout.take().expect("stdout is piped"))
            .read_line(&mut printed)
            .expect("a line, or none");
        if !printed.is_empty() {
            serving.kill().expect("it runs");
        }
        let ended = serving.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(printed.is_empty() && !ended.status.success(), "{name}: {printed}{said}");
        assert!(said.contains(name) && said.contains("symbolic link"), "{name}: {said}");
        assert!(!target.exists(), "{name}: nothing was made where the link leads");
    }
}
