//! The folder of code: what stands in it is whole, and runs only if this node sealed it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::{Method, StatusCode};

use crate::kit::guests::component;
use crate::kit::server::{Server, Setup, Tenant};
use crate::upload::compiles;

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn unfinished(folder: &Path) -> bool {
    files(folder).iter().any(|path| path.extension().is_some_and(|extension| extension == "tmp"))
}

/// Put these bytes in place of a file of code, with the mode that the node gives its own.
fn forge(path: &Path, bytes: &[u8]) {
    std::fs::remove_file(path).expect("the file is there");
    std::fs::write(path, bytes).expect("the folder can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400)).expect("the file is ours");
}

/// A change of a plugin's file of code, which sees that of another plugin as well.
type Change = fn(&mut Vec<u8>, &[u8]);

/// What `guest-hello` answers after each of these changes to its code, made while its node was down, and how often the
/// node compiled to answer that.
async fn answers(breaks: &str, changes: &[Change]) -> Vec<(String, f64)> {
    let mut server = Server::start_with(Setup::sqlite().with("CHALET_BREAK", breaks));
    let folder = server.data.path().join("code");
    let (key, file) = {
        let tenant = server.tenant("acme").await;
        tenant.deploy("guest-hello").await;
        let file = files(&folder).remove(0);
        tenant.deploy("guest-context").await;
        (tenant.key, file)
    };
    let other = files(&folder).into_iter().find(|path| *path != file).expect("the other's code");
    let other = std::fs::read(other).expect("bytes");
    let mut answers = Vec::new();
    for change in changes {
        server.kill();
        let mut code = std::fs::read(&file).expect("bytes");
        change(&mut code, &other);
        forge(&file, &code);
        server.crash_and_restart();
        let tenant = Tenant { server: &server, name: "acme".into(), key: key.clone() };
        let answer = tenant.call(Method::GET, "guest-hello", "/").send().await.expect("an answer");
        answers.push((answer.text().await.expect("text"), compiles(&server).await));
    }
    answers
}

/// One byte of each greeting in the code.
fn other_greeting(code: &mut [u8]) {
    let places: Vec<_> = (0..code.len() - 5).filter(|&at| &code[at..at + 5] == b"hello").collect();
    assert!(!places.is_empty(), "the greeting is not in the code");
    places.into_iter().for_each(|at| code[at] = b'j');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn code_that_was_changed_on_disk_is_not_run() {
    let changes: [(&str, Change, f64); 6] = [
        ("what was not changed", |_, _| {}, 0.0),
        ("another greeting", |code, _| other_greeting(code), 1.0),
        ("another plugin's code under this one's name", |code, other| *code = other.to_vec(), 1.0),
        ("half of it", |code, _| code.truncate(code.len() / 2), 1.0),
        ("nothing", |code, _| code.clear(), 1.0),
        ("no seal", |code, _| code.truncate(code.len() - 56), 1.0),
    ];
    let answered = answers("", &changes.map(|(_, change, _)| change)).await;
    for ((what, _, compiled), answer) in changes.iter().zip(answered) {
        assert_eq!(answer, ("hello".into(), *compiled), "{what}");
    }
    let unsealed = answers("seal", &[|code, _| other_greeting(code)]).await;
    assert_eq!(unsealed, [("jello".into(), 0.0)], "without the seal it is run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_stores_code_leaves_none_that_is_half_written() {
    let mut server = Server::start();
    let folder = server.data.path().join("code");
    let key = server.tenant("acme").await.key;
    for _ in 0..40 {
        let upload = {
            let tenant = Tenant { server: &server, name: "acme".into(), key: key.clone() };
            let request = tenant.api(Method::PUT, "/plugins/guest-kv").body(component("guest-kv"));
            tokio::spawn(request.send())
        };
        // Killed at the sight of a file that is being written.
        let ended = Arc::new(AtomicBool::new(false));
        let (sight, stop) = (folder.clone(), ended.clone());
        let watching = std::thread::spawn(move || {
            while !unfinished(&sight) && !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        tokio::task::block_in_place(|| {
            while !watching.is_finished() && !upload.is_finished() {
                std::thread::yield_now();
            }
        });
        server.kill();
        ended.store(true, Ordering::Relaxed);
        watching.join().expect("no panic");
        let _ = upload.await;
        let seen = unfinished(&folder);
        server.crash_and_restart();
        assert!(!unfinished(&folder), "what was half written stays");
        let tenant = Tenant { server: &server, name: "acme".into(), key: key.clone() };
        let again = tenant.upload("guest-kv", component("guest-kv")).await;
        assert!(again.status().is_success(), "{}", again.status());
        assert_eq!(files(&folder).len(), 1);
        if seen {
            return;
        }
        // The next one begins without code and without the version.
        let gone = tenant.api(Method::DELETE, "/plugins/guest-kv").send().await.expect("an answer");
        assert_eq!(gone.status(), StatusCode::NO_CONTENT);
        server.kill();
        std::fs::remove_file(&files(&folder)[0]).expect("it can be removed");
        server.crash_and_restart();
    }
    panic!("no kill came while a file was being written");
}
