//! Promises that a test may break, to see that its checker notices. Nothing else sets them, and a release cannot.

/// What does not hold in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaks {
    /// A later read of another state is taken as it is (rule R2).
    pub opacity: bool,
    /// Ranges are not validated (rule R3).
    pub ranges: bool,
    /// Reads are not validated at commit (rule R7).
    pub reads: bool,
    /// Sets of one batch do not see each other (rule R7).
    pub overlay: bool,
    /// PostgreSQL: the head is not locked (rule R7).
    pub lock: bool,
    /// The cache is not told of commits, and takes rows of any state (rule R4).
    pub cache: bool,
    /// The cache keeps the rows of all tenants as if they were one's.
    pub cache_tenant: bool,
    /// A tenant's key opens every tenant.
    pub tenant: bool,
    /// The time of a refusal tells what another tenant has: its name is looked up, and the answer is not held back.
    pub names: bool,
    /// Changes leave no record in the audit log.
    pub audit: bool,
    /// SQLite: the write-ahead log is never copied into the file.
    pub checkpoint: bool,
    /// Compile workers give nothing up, and get the node's environment.
    pub confine: bool,
    /// Code is run whatever its seal says.
    pub seal: bool,
    /// Guests compute without waiting for their turn, and a tenant's commits go before those of whoever came later.
    pub turns: bool,
    /// A guest that logs `panic` makes the host function panic.
    pub panic: bool,
}

impl Breaks {
    /// What `CHALET_BREAK` names.
    pub fn from_environment() -> Self {
        if !cfg!(debug_assertions) {
            return Self::default();
        }
        std::env::var("CHALET_BREAK").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// The promises named in `text`, separated by commas.
    fn parse(text: &str) -> Self {
        let has = |name: &str| text.split(',').any(|part| part == name);
        Self {
            opacity: has("opacity"),
            ranges: has("ranges"),
            reads: has("reads"),
            overlay: has("overlay"),
            lock: has("lock"),
            cache: has("cache"),
            cache_tenant: has("cache_tenant"),
            tenant: has("tenant"),
            names: has("names"),
            audit: has("audit"),
            checkpoint: has("checkpoint"),
            confine: has("confine"),
            seal: has("seal"),
            turns: has("turns"),
            panic: has("panic"),
        }
    }
}
