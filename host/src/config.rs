//! Settings: `chalet.toml`, overridden by `CHALET_*` variables, and for traces those of OpenTelemetry, overridden by flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::gateway::serve;
use crate::kernel::error::{Error, Result};
use crate::kernel::trace;
use crate::services::egress;

/// Everything that an operator can set. Every field has a default, and an unknown one is refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the data is; `./chalet-data` if not set.
    pub data: Option<PathBuf>,
    /// Where to listen; 127.0.0.1:8080 if not set.
    pub listen: Option<SocketAddr>,
    /// Connections to it.
    pub connections: serve::Config,
    /// The operator's first key.
    pub admin: Admin,
    /// The database.
    pub database: Database,
    /// Encryption at rest.
    pub secrets: Secrets,
    /// Outgoing HTTP.
    pub egress: egress::Config,
    /// Feature flags.
    pub flags: Flags,
    /// Traces for the operator.
    pub telemetry: trace::Config,
}

/// The operator's first key.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// 32 to 128 of `A-Z a-z 0-9 _ -`; made at the first start if not set.
    pub key: Option<String>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin(..)")
    }
}

/// The database.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `sqlite:PATH` or `postgres://…` (the application role); SQLite in the data folder if not set.
    pub url: Option<String>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database(..)")
    }
}

/// Encryption at rest.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Secrets {
    /// 64 hexadecimal digits; a file `master.key` in the data folder if not set.
    pub master_key: Option<String>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// Feature flags.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flags {
    /// A flagd document whose flags every tenant has unless its own document defines them.
    pub defaults: Option<PathBuf>,
}

impl Config {
    /// Read the file, if one is named or `chalet.toml` stands in the working folder, and the environment.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let usual = Path::new("chalet.toml");
        let file = file.or_else(|| usual.is_file().then_some(usual));
        let mut config = match file {
            None => Self::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Error::invalid(format!("{} cannot be read: {error}", path.display())))?;
                toml::from_str(&text).map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?
            }
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(data) = variable("CHALET_DATA") {
            config.data = Some(data.into());
        }
        if let Some(listen) = variable("CHALET_LISTEN") {
            let bad = |_| Error::invalid("CHALET_LISTEN must be ADDRESS:PORT, such as 127.0.0.1:8080");
            config.listen = Some(listen.parse().map_err(bad)?);
        }
        config.admin.key = variable("CHALET_ADMIN_KEY").or(config.admin.key);
        config.database.url = variable("CHALET_DATABASE_URL").or(config.database.url);
        config.secrets.master_key = variable("CHALET_MASTER_KEY").or(config.secrets.master_key);
        if let Some(list) = variable("CHALET_EGRESS_LOCAL") {
            config.egress.local = list.split(',').map(|one| one.trim().to_owned()).collect();
        }
        if let Some(path) = variable("CHALET_FLAGS_DEFAULTS") {
            config.flags.defaults = Some(path.into());
        }
        config.telemetry.environment(variable)?;
        Ok(config)
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| "chalet-data".into())
    }

    /// The address to listen on.
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)))
    }
}
