//! Other people's libraries, so that a server meets what it will meet outside: the scripts of `tests/stock`, each a Node
//! process that answers questions.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::kit::guests::root;

/// A running script; it is ended when this is dropped.
pub struct Stock {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Stock {
    /// Start a script, such as `sign`.
    pub fn start(script: &str) -> Self {
        let mut process = Command::new("node")
            .arg(format!("{script}.mjs"))
            .current_dir(installed())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Node is installed: see tests/prepare.sh");
        let questions = process.stdin.take().expect("stdin is piped");
        let answers = BufReader::new(process.stdout.take().expect("stdout is piped"));
        Self { process, questions, answers }
    }

    /// Call a function of the script. What it throws is a test's failure.
    pub fn ask(&mut self, what: &str, with: Value) -> Value {
        writeln!(self.questions, "{}", json!([what, with])).expect("the script reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the script answers");
        let mut answer: Value = serde_json::from_str(&line).expect("a line of JSON; see what the script said above");
        assert_eq!(answer["error"], Value::Null, "{what} failed");
        answer["ok"].take()
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The scripts' folder, with the libraries that its lock names; installed when they are not yet.
fn installed() -> &'static PathBuf {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let folder = root().join("tests/stock");
        let lock = std::fs::read(folder.join("package-lock.json")).expect("the lock is in the sources");
        // Written last, and removed by npm with all the rest before it installs.
        let mark = folder.join("node_modules/.installed-lock.json");
        if std::fs::read(&mark).is_ok_and(|installed| installed == lock) {
            return folder;
        }
        // What is needed is their code alone; none of them has to build anything.
        let npm =
            Command::new("npm").args(["ci", "--ignore-scripts", "--loglevel=error"]).current_dir(&folder).output();
        let npm = npm.expect("npm is installed: see tests/prepare.sh");
        assert!(npm.status.success(), "npm ci failed: {}", String::from_utf8_lossy(&npm.stderr));
        std::fs::write(&mark, lock).expect("the folder can be written");
        folder
    })
}

/// A program of the Python packages that `requirements.txt` names; they are installed when they are not yet.
pub fn python(program: &str) -> Command {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    let folder = INSTALLED.get_or_init(|| {
        let (list, folder) = (root().join("tests/stock/requirements.txt"), root().join("tests/stock/.venv"));
        let wanted = std::fs::read(&list).expect("the list is in the sources");
        let mark = folder.join(".installed-requirements.txt");
        if std::fs::read(&mark).is_ok_and(|installed| installed == wanted) {
            return folder;
        }
        let run = |command: &mut Command| {
            let done = command.output().expect("Python is installed: see tests/prepare.sh");
            assert!(done.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&done.stderr));
        };
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        let pip = folder.join("bin/pip");
        run(Command::new(pip).args(["install", "--quiet", "--no-deps", "--only-binary", ":all:", "-r"]).arg(&list));
        std::fs::write(&mark, wanted).expect("the folder can be written");
        folder
    });
    Command::new(folder.join("bin").join(program))
}
