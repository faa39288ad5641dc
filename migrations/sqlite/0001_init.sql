-- The directory: what is read before a tenant is known. It holds names, ids and digests only.

create table tenants (
    id text not null primary key,
    name text not null unique,
    plan text not null,
    created_at_ms integer not null
) without rowid;

create table plans (
    name text not null primary key,
    body text not null
) without rowid;

-- `tenant_id` is null for the operator's own keys. `digest` is a keyed digest of the secret part.
create table api_keys (
    id text not null primary key,
    tenant_id text references tenants (id) on delete cascade,
    name text not null,
    digest blob not null,
    scopes text not null,
    created_at_ms integer not null
) without rowid;
create index api_keys_tenant on api_keys (tenant_id, id);

-- Work that a task has to pick up, without tenant content: written in the commit that makes the work.
create table due (
    kind text not null,
    tenant_id text not null,
    due_at_ms integer not null,
    primary key (kind, tenant_id)
) without rowid;
create index due_time on due (kind, due_at_ms);

-- Usage of invocations that committed nothing, one row a flush; (node, n) makes a retry harmless.
create table usage_batches (
    node text not null,
    n integer not null,
    sums text not null,
    primary key (node, n)
) without rowid;

-- Tenant data. Every key begins with the tenant.

-- One row a tenant: its commits are numbered by seq, which is also the version of the rows they wrote.
create table heads (
    tenant_id text not null primary key check (tenant_id <> ''),
    seq integer not null default 0,
    event_seq integer not null default 0,
    bytes integer not null default 0,
    epoch integer not null default 1,
    state text not null default 'active'
) without rowid;

-- All that a tenant stores: an ordered map per space. A counter has `counter`, any other row `value`. Not
-- `without rowid`: a search in such a table reads every row it compares with whole, so that one large value
-- would slow all its neighbours down. `value` is last, so that what stands before it is found without it.
create table rows (
    tenant_id text not null check (tenant_id <> ''),
    space text not null,
    key blob not null,
    counter integer,
    version integer not null,
    expires_at_ms integer,
    value blob,
    primary key (tenant_id, space, key),
    check ((value is null) <> (counter is null))
);
create index rows_expiry on rows (tenant_id, expires_at_ms) where expires_at_ms is not null;

-- What invocations used, by plugin and hour.
create table usage_totals (
    tenant_id text not null check (tenant_id <> ''),
    plugin text not null,
    hour_ms integer not null,
    invocations integer not null,
    failures integer not null,
    fuel integer not null,
    bytes_in integer not null,
    bytes_out integer not null,
    primary key (tenant_id, plugin, hour_ms)
) without rowid;

-- Component bytes, written before the version row that names them; never changed.
create table components (
    tenant_id text not null check (tenant_id <> ''),
    digest text not null,
    chunk integer not null,
    bytes blob not null,
    stored_at_ms integer not null,
    primary key (tenant_id, digest, chunk)
);
