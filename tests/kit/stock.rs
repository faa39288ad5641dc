//! Other people's libraries, so that a server meets what it will meet outside: the scripts of `tests/stock`, each a Node
//! process that answers questions.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::kit::packages;

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
            .current_dir(packages::npm("stock"))
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

/// A program of the Python packages that `requirements.txt` names.
pub fn python(program: &str) -> Command {
    let packages = packages::pip("stock");
    let mut command = Command::new("python3");
    command.arg(packages.join("bin").join(program)).env("PYTHONPATH", packages);
    command
}
