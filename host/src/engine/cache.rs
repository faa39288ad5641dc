//! Machine code on disk, which only this node can have written.
//!
//! A file holds the code, and behind it a seal: an HMAC over the format, wasmtime's version, everything
//! that decides code generation, the component's digest and the code. A file is opened once; the seal is
//! checked and the code mapped through that descriptor. Whatever is wrong with a file, the answer is that
//! there is none, and the component is compiled again.
//!
//! The code is mapped, not read: pages that no invocation needs stay on disk. Who can write to the node's
//! own files while it runs is not kept out.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::engine::config::Compatibility;
use crate::engine::inspect::Digest;
use crate::kernel::breaks::Breaks;
use crate::kernel::error::{Error, Result};
use crate::kernel::secret::Master;

/// The first bytes of a seal; changes when the format does.
const FORMAT: &[u8; 16] = b"chalet-code-1\0\0\0";
/// Bytes of a seal: the format, the code's length, the HMAC.
const SEAL_BYTES: u64 = 16 + 8 + 32;
/// The end of a file's name.
const SUFFIX: &str = ".code";
/// The end of the name of a file that is being written.
const TEMPORARY: &str = ".tmp";
/// Bytes read at a time while a seal is checked.
const CHUNK_BYTES: usize = 64 << 10;

/// The folder of machine code.
pub(super) struct Cache {
    folder: PathBuf,
    bytes: u64,
    master: Master,
    compatibility: Compatibility,
    breaks: Breaks,
}

impl Cache {
    /// Open the folder, or make it; remove what a crash left half-written.
    pub(super) fn open(
        folder: &Path,
        bytes: u64,
        master: Master,
        compatibility: Compatibility,
        breaks: Breaks,
    ) -> Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(Error::internal)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(Error::internal)?;
        for (path, _) in files(folder)? {
            if path.extension().is_some_and(|extension| extension == &TEMPORARY[1..]) {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(Self { folder: folder.to_owned(), bytes, master, compatibility, breaks })
    }

    /// The code of a component, if there is a file of it that this node wrote for this engine.
    pub(super) fn load(&self, engine: &Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        let mut file = OpenOptions::new().read(true).custom_flags(no_follow()).open(&path).ok()?;
        match self.check(&mut file, digest) {
            Ok(length) => match map(engine, &mut file, length) {
                Ok(component) => return Some(component),
                Err(error) => tracing::warn!(%digest, %error, "sealed code does not load; compiling again"),
            },
            Err(reason) => tracing::warn!(%digest, reason, "a file of code is not ours; compiling again"),
        }
        None
    }

    /// Keep code that the compile worker has made. It appears whole or not at all.
    pub(super) fn store(&self, digest: &Digest, code: &[u8]) -> Result<()> {
        let temporary = self.folder.join(format!("{}{TEMPORARY}", crate::kernel::id::new()));
        let written = self.write(&temporary, digest, code).and_then(|()| {
            std::fs::rename(&temporary, self.path(digest))?;
            File::open(&self.folder)?.sync_all()
        });
        if let Err(error) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(Error::internal(error));
        }
        self.sweep()
    }

    fn write(&self, path: &Path, digest: &Digest, code: &[u8]) -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
        file.write_all(code)?;
        file.write_all(FORMAT)?;
        file.write_all(&(code.len() as u64).to_le_bytes())?;
        file.write_all(&self.seal(digest, &Sha256::digest(code).into()))?;
        file.sync_all()
    }

    /// Remove the oldest files until the folder is within its bytes. What is mapped stays mapped.
    fn sweep(&self) -> Result<()> {
        let mut files = files(&self.folder)?;
        let mut bytes: u64 = files.iter().map(|(_, file)| file.len()).sum();
        files.sort_by_key(|(_, file)| (file.mtime(), file.mtime_nsec()));
        for (path, file) in files {
            if bytes <= self.bytes {
                break;
            }
            if std::fs::remove_file(path).is_ok() {
                bytes -= file.len();
            }
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        // Another version of the host has files of its own, so that going back does not compile again.
        self.folder.join(format!("{digest}-{}{SUFFIX}", hex::encode(&self.compatibility.digest[..8])))
    }

    fn seal(&self, digest: &Digest, code: &[u8; 32]) -> [u8; 32] {
        let version = self.compatibility.version.as_bytes();
        let parts = [FORMAT, version, &self.compatibility.digest, digest.as_bytes(), code];
        let mut sealed = Vec::new();
        for part in parts {
            sealed.extend_from_slice(&(part.len() as u64).to_le_bytes());
            sealed.extend_from_slice(part);
        }
        self.master.digest("code", None, &sealed)
    }

    /// The length of the code in a file that carries our seal.
    fn check(&self, file: &mut File, digest: &Digest) -> Result<u64, &'static str> {
        let unreadable = |_| "it cannot be read";
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() || metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o377 != 0
        {
            return Err("its kind, owner or mode is wrong");
        }
        let length = metadata.len().checked_sub(SEAL_BYTES).ok_or("it is too short")?;
        let mut code = Sha256::new();
        let mut left = length;
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let wanted = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            file.read_exact(&mut chunk[..wanted]).map_err(unreadable)?;
            code.update(&chunk[..wanted]);
            left -= wanted as u64;
        }
        let mut seal = [0; SEAL_BYTES as usize];
        file.read_exact(&mut seal).map_err(unreadable)?;
        let (format, rest) = seal.split_at(FORMAT.len());
        let (stated, mac) = rest.split_at(8);
        if format != FORMAT || stated != length.to_le_bytes() {
            return Err("its format is another");
        }
        if self.breaks.seal || bool::from(self.seal(digest, &code.finalize().into()).ct_eq(mac)) {
            Ok(length)
        } else {
            Err("its seal is broken")
        }
    }
}

/// Map the code of a file whose seal was checked through this descriptor.
#[expect(unsafe_code, reason = "loading machine code is what the seal is for; this is the only place that does")]
fn map(engine: &Engine, file: &mut File, length: u64) -> wasmtime::Result<Component> {
    // wasmtime maps a path. This one is the descriptor itself, whatever has become of the file's name.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the seal says that these bytes are what a compile worker of this version made from the
    // component with this digest, and that this node stored them. The folder is the node's own, and its files are
    // written once, so that they do not change under the mapping.
    let mapped = unsafe { Component::deserialize_file(engine, path) };
    mapped.or_else(|error| {
        // A file system without executable mappings, or without /proc: a copy does as well. It is read through
        // the same descriptor.
        tracing::debug!(%error, "code cannot be mapped; copying it");
        let mut code = vec![0; usize::try_from(length)?];
        file.seek(SeekFrom::Start(0))?;
        file.read_exact(&mut code)?;
        // SAFETY: as above.
        unsafe { Component::deserialize(engine, code) }
    })
}

fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

fn files(folder: &Path) -> Result<Vec<(PathBuf, std::fs::Metadata)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::internal)? {
        let entry = entry.map_err(Error::internal)?;
        // A file that another load has just removed is no file.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.push((entry.path(), metadata));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::config::{self, Start};

    struct Bench {
        folder: tempfile::TempDir,
        engine: Engine,
        master: Master,
        code: Vec<u8>,
        digest: Digest,
    }

    impl Bench {
        fn new() -> Self {
            let engine = config::node(4, Start::Copied).unwrap();
            let wasm = wat::parse_str("(component (core module (func (export \"f\"))))").unwrap();
            let code = config::compiler(Start::Copied).unwrap().precompile_component(&wasm).unwrap();
            Self {
                folder: tempfile::tempdir().unwrap(),
                engine,
                master: Master::generate(),
                code,
                digest: Digest::of(&wasm),
            }
        }

        fn cache(&self, master: &Master) -> Cache {
            let compatibility = Compatibility::of(&self.engine).unwrap();
            Cache::open(self.folder.path(), 1 << 30, master.clone(), compatibility, Breaks::default()).unwrap()
        }

        fn forge(&self, path: &Path, bytes: &[u8], mode: u32) {
            let _ = std::fs::remove_file(path);
            std::fs::write(path, bytes).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    fn stored_code_loads_and_is_the_owners_alone() {
        let bench = Bench::new();
        let cache = bench.cache(&bench.master);
        assert!(cache.load(&bench.engine, &bench.digest).is_none());
        cache.store(&bench.digest, &bench.code).unwrap();
        assert!(cache.load(&bench.engine, &bench.digest).is_some());
        assert_eq!(std::fs::metadata(cache.path(&bench.digest)).unwrap().mode() & 0o777, 0o400);
        assert_eq!(std::fs::metadata(bench.folder.path()).unwrap().mode() & 0o777, 0o700);
        cache.store(&bench.digest, &bench.code).unwrap();
        assert!(bench.cache(&bench.master).load(&bench.engine, &bench.digest).is_some());
    }

    #[test]
    fn code_that_this_node_did_not_seal_for_this_component_is_not_loaded() {
        let bench = Bench::new();
        let cache = bench.cache(&bench.master);
        cache.store(&bench.digest, &bench.code).unwrap();
        let path = cache.path(&bench.digest);
        let good = std::fs::read(&path).unwrap();
        let ours = |bytes: &[u8], mode| {
            bench.forge(&path, bytes, mode);
            cache.load(&bench.engine, &bench.digest).is_some()
        };
        assert!(ours(&good, 0o400));
        assert!(!ours(&good, 0o600), "a mode that allows writing");
        assert!(!ours(&good, 0o440), "a mode that others can read");
        for at in [0, good.len() / 2, good.len() - SEAL_BYTES as usize, good.len() - 40, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(!ours(&bad, 0o400), "byte {at}");
        }
        for length in [0, 10, SEAL_BYTES as usize, good.len() - 1] {
            assert!(!ours(&good[..length], 0o400), "{length} bytes");
        }
        assert!(!ours(&bench.code, 0o400), "code without a seal");
        assert!(!ours(&[&good[..], b"more"].concat(), 0o400));

        bench.forge(&path, &good, 0o400);
        assert!(bench.cache(&Master::generate()).load(&bench.engine, &bench.digest).is_none(), "another node's key");
        let other = Digest::of(b"another component");
        std::fs::copy(&path, cache.path(&other)).unwrap();
        assert!(cache.load(&bench.engine, &other).is_none(), "another component's file");
        let link = Digest::of(b"a link");
        std::os::unix::fs::symlink(&path, cache.path(&link)).unwrap();
        assert!(cache.load(&bench.engine, &link).is_none());
    }

    #[test]
    fn code_of_another_version_is_not_loaded_even_under_its_name() {
        let bench = Bench::new();
        let cache = bench.cache(&bench.master);
        let mut compatibility = Compatibility::of(&bench.engine).unwrap();
        compatibility.version = "48.0.7".into();
        let older =
            Cache::open(bench.folder.path(), 1 << 30, bench.master.clone(), compatibility, Breaks::default()).unwrap();
        older.store(&bench.digest, &bench.code).unwrap();
        assert_eq!(older.path(&bench.digest), cache.path(&bench.digest));
        assert!(cache.load(&bench.engine, &bench.digest).is_none());
        cache.store(&bench.digest, &bench.code).unwrap();
        assert!(cache.load(&bench.engine, &bench.digest).is_some());
    }

    #[test]
    fn the_folder_is_bounded_and_a_crash_leaves_nothing() {
        let bench = Bench::new();
        let file = bench.code.len() as u64 + SEAL_BYTES;
        std::fs::write(bench.folder.path().join("0123.tmp"), b"half").unwrap();
        let compatibility = Compatibility::of(&bench.engine).unwrap();
        let cache =
            Cache::open(bench.folder.path(), 2 * file, bench.master.clone(), compatibility, Breaks::default()).unwrap();
        let digests: Vec<_> = (0..4_u8).map(|n| Digest::of(&[n])).collect();
        for digest in &digests {
            cache.store(digest, &bench.code).unwrap();
        }
        assert_eq!(files(bench.folder.path()).unwrap().len(), 2);
        assert!(cache.load(&bench.engine, &digests[3]).is_some());
        assert!(cache.load(&bench.engine, &digests[0]).is_none());
    }
}
