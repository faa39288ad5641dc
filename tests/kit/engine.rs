//! The databases that a promise is tested on. A test that is listed in `on_both_engines!` gets each of them, empty.

use crate::kit::server::{Server, Setup};
use crate::kit::store::Bench;

/// What keeps tenants' rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A file in the data folder.
    Sqlite,
    /// A database of its own in the tests' cluster.
    Postgres,
}

impl Engine {
    /// What a server needs to use it.
    pub async fn setup(self) -> Setup {
        match self {
            Self::Sqlite => Setup::sqlite(),
            Self::Postgres => Setup::postgres().await,
        }
    }

    /// A server on it.
    pub async fn server(self) -> Server {
        Server::start_with(self.setup().await)
    }

    /// The database below any service.
    pub async fn bench(self) -> Bench {
        match self {
            Self::Sqlite => Bench::sqlite().await,
            Self::Postgres => Bench::postgres().await,
        }
    }
}

/// Make two tests of each behaviour, an async function of an [`Engine`] in the same file: `on_sqlite::behaviour`
/// and `on_postgres::behaviour`.
macro_rules! on_both_engines {
    ($($behaviour:ident),* $(,)?) => {
        on_both_engines!(@engine on_sqlite Sqlite $($behaviour)*);
        on_both_engines!(@engine on_postgres Postgres $($behaviour)*);
    };
    (@engine $module:ident $engine:ident $($behaviour:ident)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::$behaviour($crate::kit::engine::Engine::$engine).await;
            })*
        }
    };
}
