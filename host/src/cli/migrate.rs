//! `chalet migrate`: the schema of a PostgreSQL database. SQLite's is the server's own business.

use clap::Args;

use super::Result;
use super::terminal::note;
use crate::kernel::db;

/// Bring a PostgreSQL database to this version, as the role that owns its tables. May be run at any time.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// The owner's database URL: postgres://owner:password@host/database.
    #[arg(long, value_name = "URL", env = "CHALET_DATABASE_OWNER_URL", hide_env_values = true)]
    owner_url: String,
    /// The role of the server, which gets the rights it needs and no others; made if it does not exist.
    #[arg(long, default_value = db::APP_ROLE)]
    role: String,
}

impl Migrate {
    pub(super) async fn run(self) -> Result<()> {
        db::migrate(&self.owner_url, Some(&self.role)).await?;
        note(format!("the database has this version's schema, and the role {} may use it", self.role));
        Ok(())
    }
}
