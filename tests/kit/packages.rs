//! What the tests use of other people's registries, installed by the registries' own clients as a lock in the sources says.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::kit::guests::root;

/// One installation at a time.
static INSTALLING: Mutex<()> = Mutex::new(());

/// A folder of the tests with the npm packages that its lock names.
pub fn npm(folder: &str) -> PathBuf {
    let folder = root().join("tests").join(folder);
    // Written last, and removed by npm with all the rest before it installs.
    let mark = folder.join("node_modules/.installed-lock.json");
    once(&folder.join("package-lock.json"), &mark, || {
        run(Command::new("npm").args(["ci", "--ignore-scripts", "--loglevel=error"]).current_dir(&folder));
    });
    folder
}

/// A folder with the Python packages that the `requirements.txt` of a folder of the tests names.
pub fn pip(folder: &str) -> PathBuf {
    let requirements = root().join("tests").join(folder).join("requirements.txt");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{folder}"));
    once(&requirements, &folder.join("installed.txt"), || {
        let _ = std::fs::remove_dir_all(&folder);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]);
        run(pip.arg("--target").arg(&folder).arg("-r").arg(&requirements));
    });
    folder
}

/// Install unless `mark` is a copy of `lock`, which it is afterwards.
fn once(lock: &Path, mark: &Path, install: impl FnOnce()) {
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let lock = std::fs::read(lock).expect("the lock is in the sources");
    if !std::fs::read(mark).is_ok_and(|installed| installed == lock) {
        install();
        std::fs::write(mark, lock).expect("the folder can be written");
    }
}

/// Run a program that must succeed.
pub fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; see tests/prepare.sh"));
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} failed: {told}{}", String::from_utf8_lossy(&done.stdout));
}
