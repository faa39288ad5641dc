//! `chalet:platform/log`: lines that are kept with the invocation's record.

use wasmtime::component::Linker;

use crate::engine::bindings::chalet::platform::log;
use crate::engine::guest::{self, Call, Guest, Level};

pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    guest::interface!(linker, "chalet:platform/log@0.1.0", log, { "write" => write(level, message) })
}

impl log::Host for Call<'_> {
    async fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let guest = self.enter(0)?;
        assert!(!(guest.breaks().panic && message == "panic"), "as the test wants");
        let limit = guest.budget().log_bytes as usize;
        guest.log.write(level.into(), &message, limit);
        Ok(())
    }
}

impl From<log::Level> for Level {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Trace => Self::Trace,
            log::Level::Debug => Self::Debug,
            log::Level::Info => Self::Info,
            log::Level::Warn => Self::Warn,
            log::Level::Error => Self::Error,
        }
    }
}
