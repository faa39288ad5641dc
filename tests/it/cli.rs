//! The commands as people type them: what they print, and how they end.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::kit::guests::component;
use crate::kit::server::{ADMIN, Server, binary};

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

/// Run `chalet` with these arguments, separated by blanks, against this server.
fn chalet(server: &Server, key: Option<&str>, arguments: &str, stdin: &[u8]) -> Ended {
    let mut command = Command::new(binary());
    command.args(arguments.split_whitespace()).env("CHALET_URL", &server.url).env_remove("CHALET_KEY");
    command.env_remove("CHALET_TENANT").current_dir(server.data.path());
    if let Some(key) = key {
        command.env("CHALET_KEY", key);
    }
    let mut running = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary is built");
    // A command that ends without reading closes the pipe; that is its right.
    let _ = running.stdin.take().expect("stdin is piped").write_all(stdin);
    let output = running.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    Ended { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_makes_a_tenant_and_deploys_a_plugin_to_it() {
    let server = Server::start();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_admin_sees_what_the_plugin_did() {
    let server = Server::start();
    let acme = server.tenant("acme").await;
    acme.deploy("guest-log").await;
    acme.deploy("pricing").await;
    let own = |arguments: &str| chalet(&server, Some(&acme.key), arguments, b"");
    let order = serde_json::json!({ "sku": "a", "quantity": 1, "list_cents": 1 });
    let answer = acme.call(reqwest::Method::POST, "pricing", "/price").json(&order).send().await.expect("an answer");
    let id = answer.headers()["chalet-invocation"].to_str().expect("an id").to_owned();
    assert!(own("invocations --tenant acme").ok().contains(&id));
    assert!(own(&format!("invocations {id} --tenant acme")).ok().contains("pricing 1.0.0"));
    assert!(own("logs --tenant acme --plugin pricing").ok().contains(&id));
    assert!(!own("logs --tenant acme --plugin guest-log").ok().contains(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_and_limits_are_set_from_stdin() {
    let server = Server::start();
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

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_and_how_the_command_was_wrong() {
    let server = Server::start();
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
