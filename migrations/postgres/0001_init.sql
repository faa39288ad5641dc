-- The same tables as on SQLite, under forced row-level security, and the functions that a server uses:
-- each sets the tenant and does its work in one call, so that no statement ever sees two tenants and no
-- lock is held across a round trip to the client. All of it is in the schema `public`.
--
-- After the migration, `select chalet_grant('chalet_app')` makes or completes the server's role; `chalet
-- migrate` does that each time. The role owns nothing and needs no other right.

-- The directory: what is read before a tenant is known. It holds names, ids and digests only.

create table tenants (
    id text collate "C" not null primary key,
    name text collate "C" not null unique,
    plan text collate "C" not null,
    created_at_ms bigint not null
);

create table plans (
    name text collate "C" not null primary key,
    body text not null
);

-- `tenant_id` is null for the operator's own keys. `digest` is a keyed digest of the secret part.
create table api_keys (
    id text collate "C" not null primary key,
    tenant_id text collate "C" references tenants (id) on delete cascade,
    name text not null,
    digest bytea not null,
    scopes text not null,
    created_at_ms bigint not null
);
create index api_keys_tenant on api_keys (tenant_id, id);

-- Work that a task has to pick up, without tenant content: written in the commit that makes the work.
create table due (
    kind text collate "C" not null,
    tenant_id text collate "C" not null,
    due_at_ms bigint not null,
    primary key (kind, tenant_id)
);
create index due_time on due (kind, due_at_ms);

-- Tenant data. Every key begins with the tenant.

-- One row a tenant: its commits are numbered by seq, which is also the version of the rows they wrote.
-- Every commit updates its row; a page that is nearly empty takes the new version beside the old one.
create table heads (
    tenant_id text collate "C" not null primary key check (tenant_id <> ''),
    seq bigint not null default 0,
    event_seq bigint not null default 0,
    bytes bigint not null default 0,
    epoch bigint not null default 1,
    state text collate "C" not null default 'active'
) with (fillfactor = 10);

-- All that a tenant stores: an ordered map per space. A counter has `counter`, any other row `value`.
create table rows (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    space text collate "C" not null,
    key bytea not null,
    value bytea,
    counter bigint,
    version bigint not null,
    expires_at_ms bigint,
    primary key (tenant_id, space, key),
    check ((value is null) <> (counter is null))
) with (fillfactor = 85);
create index rows_expiry on rows (tenant_id, expires_at_ms) where expires_at_ms is not null;

-- What invocations used, by plugin and hour.
create table usage_totals (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    plugin text collate "C" not null,
    hour_ms bigint not null,
    invocations bigint not null,
    failures bigint not null,
    fuel bigint not null,
    bytes_in bigint not null,
    bytes_out bigint not null,
    primary key (tenant_id, plugin, hour_ms)
) with (fillfactor = 50);

-- Component bytes, written before the version row that names them; never changed.
create table components (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    digest text collate "C" not null,
    chunk bigint not null,
    bytes bytea not null,
    stored_at_ms bigint not null,
    primary key (tenant_id, digest, chunk)
);

-- Who is working on a request with an idempotency key, so that its repetition can be told to wait. Losing
-- a row harms nobody: that an effect happens once rests on the answer row in the commit. So it is not logged, and
-- empty after a crash of the database, which ends all connections that claimed.
create unlogged table claims (
    tenant_id text collate "C" not null check (tenant_id <> ''),
    scope text collate "C" not null,
    fingerprint bytea not null,
    owner text collate "C" not null,
    process int not null,
    claimed_us bigint not null,
    lease_until_ms bigint not null,
    primary key (tenant_id, scope)
);
create index claims_lease on claims (tenant_id, lease_until_ms);

-- A row of these tables exists only for the tenant that the transaction names, and without a name there is
-- none. The restrictive twin keeps a later permissive policy from widening that.
do $$
declare
    tenant_table text;
    rule constant text := $rule$ tenant_id = nullif(current_setting('app.tenant', true), '') $rule$;
begin
    foreach tenant_table in array array['heads', 'rows', 'usage_totals', 'components', 'claims'] loop
        execute format('alter table %I enable row level security', tenant_table);
        execute format('alter table %I force row level security', tenant_table);
        execute format('create policy tenant on %I using (%s) with check (%2$s)', tenant_table, rule);
        execute format('create policy tenant_only on %I as restrictive using (%s) with check (%2$s)', tenant_table, rule);
    end loop;
end $$;

-- The host's time follows this one.
create function chalet_now_ms() returns bigint
language sql volatile
return (extract(epoch from clock_timestamp()) * 1000)::bigint;

create function chalet_us(p_time timestamptz) returns bigint
language sql immutable
return (extract(epoch from p_time) * 1000000)::bigint;

-- The planner cannot know how long an array is, and the right plan is always the same: one look into the
-- primary key per element. So every function below forbids the others and keeps its plan. Where rows are looked
-- up by an array, that stands in a lateral `limit 1`, which cannot become a join: of a join, the planner may fetch
-- all that the tenant has, if it takes tenants for small, as it does in a new database.

-- Rows of these keys with the head they belong to, from one statement and so from one snapshot. `n` is the
-- key's place; a tenant without a head gives no row at all.
create function chalet_read(p_tenant text, p_spaces text[], p_keys bytea[])
returns table (epoch bigint, seq bigint, n bigint, value bytea, counter bigint, version bigint, expires_at_ms bigint)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('app.tenant', p_tenant, true);
    return query
        select h.epoch, h.seq, w.n, r.value, r.counter, r.version, r.expires_at_ms
        from heads h
        left join unnest(p_spaces, p_keys) with ordinality as w (space, key, n) on true
        left join lateral (
            select * from rows where rows.tenant_id = p_tenant and rows.space = w.space and rows.key = w.key limit 1
        ) r on true
        where h.tenant_id = p_tenant;
end $$;

-- At most `p_limit` live rows of a range in key order, with the head they belong to. `p_to` is never null:
-- a range to the end of its space ends at a key longer than any that is stored.
create function chalet_scan(
    p_tenant text, p_space text, p_from bytea, p_to bytea, p_now_ms bigint, p_limit bigint
)
returns table (epoch bigint, seq bigint, key bytea, value bytea, counter bigint, version bigint, expires_at_ms bigint)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('app.tenant', p_tenant, true);
    return query
        select h.epoch, h.seq, r.key, r.value, r.counter, r.version, r.expires_at_ms
        from heads h
        left join lateral (
            select * from rows
            where rows.tenant_id = p_tenant and rows.space = p_space and rows.key >= p_from and rows.key < p_to
                and (rows.expires_at_ms is null or rows.expires_at_ms > p_now_ms)
            order by rows.tenant_id, rows.space, rows.key
            limit p_limit
        ) r on true
        where h.tenant_id = p_tenant
        order by r.key;
end $$;

-- The head, and one read that is no longer true, if there is one: keys by their version (0: absent), ranges
-- by the number of live rows and the highest version among them. One statement, one snapshot.
create function chalet_holds(
    p_tenant text, p_now_ms bigint,
    r_space text[], r_key bytea[], r_version bigint[],
    g_space text[], g_from bytea[], g_to bytea[], g_count bigint[], g_version bigint[]
)
returns table (epoch bigint, seq bigint, space text, key bytea)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    perform set_config('app.tenant', p_tenant, true);
    return query
        select h.epoch, h.seq, changed.space, changed.key
        from heads h
        left join lateral (
            select k.space, k.key
            from unnest(r_space, r_key, r_version) as k (space, key, version)
            left join lateral (
                select * from rows where rows.tenant_id = p_tenant and rows.space = k.space and rows.key = k.key limit 1
            ) r on r.expires_at_ms is null or r.expires_at_ms > p_now_ms
            where coalesce(r.version, 0) <> k.version
            union all
            select g.space, g.from_key
            from unnest(g_space, g_from, g_to, g_count, g_version) as g (space, from_key, to_key, count, version)
            cross join lateral (
                select count(*) as count, coalesce(max(r.version), 0) as version from rows r
                where r.tenant_id = p_tenant and r.space = g.space and r.key >= g.from_key and r.key < g.to_key
                    and (r.expires_at_ms is null or r.expires_at_ms > p_now_ms)
            ) present
            where present.count <> g.count or present.version <> g.version
            limit 1
        ) changed on true
        where h.tenant_id = p_tenant;
end $$;

-- The first half of the advisory locks' keys: each tenant has a gate, which every commit passes and which
-- somebody may hold. Tenants whose names fall together share one, which costs time and nothing else.
create function chalet_gates() returns int
language sql immutable
return 1128811604;

-- Close the tenant's gate, when the commits on their way have ended: from then on only the node that holds it
-- commits, until the transaction ends. It is for fairness alone: no commit is right or wrong by it. The database ends it after `p_for_ms` without a
-- word from the holder, so that a node that stopped holds up nobody.
create function chalet_close_gate(p_tenant text, p_for_ms bigint) returns void
language plpgsql volatile security invoker
set search_path = public, pg_temp
as $$
begin
    perform set_config('idle_in_transaction_session_timeout', p_for_ms::text, true);
    perform pg_advisory_xact_lock(chalet_gates(), hashtext(p_tenant));
end $$;

-- Commit sets of one tenant in their order, and say what became of each.
--
-- The head is locked in a statement of its own; every statement after it sees all that earlier commits
-- wrote. Then the sets are taken run by run: `s_run` names a run's last set, and a run is made by the caller
-- so that no set of it writes what a later one of it reads or, additions aside, writes. A set is checked
-- against the database if its state (`s_epoch`, `s_seq`) is not the head's at the start, or if `s_check` says
-- that an earlier set of the call writes into its reads. If a set of a run is refused, the run is taken
-- again set by set, so that a refusal costs nobody else anything.
--
-- `s_reads`, `s_ranges` and `s_writes` are the numbers of entries of all sets up to and including that one.
-- `w_kind`: 0 put bytes, 1 put the counter `w_number`, 2 delete, 3 add `w_number`, 4 delete if expired at
-- `w_number`. `outcome`: 0 committed as `seq`, 1 conflict at (space, key), 2 no such tenant, 3 not a
-- counter, 4 counter overflow, 5 storage used up.
--
-- After `p_not_after_ms` the call changes nothing (error CH001): whoever lost the connection to an earlier
-- call and finds its rows missing after that time knows that they will never come. `p_lock` is false only in
-- a test that has to see the lock missing. `p_gated` is true on the node that holds the tenant's gate; all
-- others wait while it is held.
create function chalet_commit(
    p_tenant text, p_not_after_ms bigint, p_lock boolean, p_gated boolean,
    s_run int[], s_epoch bigint[], s_seq bigint[], s_check boolean[], s_now_ms bigint[], s_quota bigint[],
    s_reads int[], s_ranges int[], s_writes int[], s_due_at_ms bigint[],
    s_plugin text[], s_hour_ms bigint[], s_invocations bigint[], s_failures bigint[], s_fuel bigint[],
    s_bytes_in bigint[], s_bytes_out bigint[],
    r_set int[], r_space text[], r_key bytea[], r_version bigint[],
    g_set int[], g_space text[], g_from bytea[], g_to bytea[], g_count bigint[], g_version bigint[],
    w_set int[], w_space text[], w_key bytea[], w_kind int[], w_value bytea[], w_number bigint[],
    w_expires_at_ms bigint[], w_charged boolean[]
)
returns table (outcome int, epoch bigint, seq bigint, space text, key bytea)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    total constant int := cardinality(s_run);
    v_epoch bigint;
    v_start bigint;
    v_seq bigint;
    v_bytes bigint;
    v_state text;
    v_outcome int[] := array_fill(null::int, array[total]);
    v_made bigint[] := array_fill(null::bigint, array[total]);
    v_space text[] := array_fill(null::text, array[total]);
    v_key bytea[] := array_fill(null::bytea, array[total]);
    v_stale boolean[] := array_fill(false, array[total]);
    v_refusal int[] := array_fill(null::int, array[total]);
    v_delta bigint[] := array_fill(0::bigint, array[total]);
    v_next_bytes bigint;
    any_stale boolean;
    any_left boolean;
    refused boolean;
    first_set int := 1;
    last_set int;
    alone_until int := 0;
    a int;
    b int;
    found_row record;
begin
    perform set_config('app.tenant', p_tenant, true);
    -- Durable before it is answered, whatever the role's or the database's default is.
    if current_setting('synchronous_commit') not in ('on', 'remote_apply') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    if not p_gated then
        perform pg_advisory_xact_lock_shared(chalet_gates(), hashtext(p_tenant));
    end if;
    if p_lock then
        select h.epoch, h.seq, h.bytes, h.state into v_epoch, v_start, v_bytes, v_state
        from heads h where h.tenant_id = p_tenant for update;
    else
        select h.epoch, h.seq, h.bytes, h.state into v_epoch, v_start, v_bytes, v_state
        from heads h where h.tenant_id = p_tenant;
    end if;
    if chalet_now_ms() > p_not_after_ms then
        raise exception 'the commit came after its time' using errcode = 'CH001';
    end if;
    if v_state is distinct from 'active' then
        return query select 2, v_epoch, v_start, null::text, null::bytea from generate_series(1, total);
        return;
    end if;
    v_seq := v_start;

    while first_set <= total loop
        last_set := case when first_set <= alone_until then first_set else s_run[first_set] end;

        -- What these sets read must still be so.
        any_stale := false;
        for i in first_set..last_set loop
            v_stale[i] := s_check[i] or s_epoch[i] is distinct from v_epoch or s_seq[i] is distinct from v_start;
            any_stale := any_stale or v_stale[i];
        end loop;
        if any_stale then
            a := coalesce(s_reads[first_set - 1], 0) + 1;
            b := s_reads[last_set];
            if a <= b then
                for found_row in
                    select distinct on (k.set) k.set, k.space, k.key
                    from unnest(r_set[a:b], r_space[a:b], r_key[a:b], r_version[a:b]) as k (set, space, key, version)
                    left join lateral (
                        select * from rows
                        where rows.tenant_id = p_tenant and rows.space = k.space and rows.key = k.key limit 1
                    ) r on r.expires_at_ms is null or r.expires_at_ms > s_now_ms[k.set]
                    where v_stale[k.set] and coalesce(r.version, 0) <> k.version
                    order by k.set
                loop
                    v_outcome[found_row.set] := 1;
                    v_space[found_row.set] := found_row.space;
                    v_key[found_row.set] := found_row.key;
                end loop;
            end if;
            a := coalesce(s_ranges[first_set - 1], 0) + 1;
            b := s_ranges[last_set];
            if a <= b then
                for found_row in
                    select distinct on (g.set) g.set, g.space, g.from_key
                    from unnest(g_set[a:b], g_space[a:b], g_from[a:b], g_to[a:b], g_count[a:b], g_version[a:b])
                        as g (set, space, from_key, to_key, count, version)
                    cross join lateral (
                        select count(*) as count, coalesce(max(r.version), 0) as version from rows r
                        where r.tenant_id = p_tenant and r.space = g.space and r.key >= g.from_key and r.key < g.to_key
                            and (r.expires_at_ms is null or r.expires_at_ms > s_now_ms[g.set])
                    ) present
                    where v_stale[g.set] and v_outcome[g.set] is null
                        and (present.count <> g.count or present.version <> g.version)
                    order by g.set
                loop
                    v_outcome[found_row.set] := 1;
                    v_space[found_row.set] := found_row.space;
                    v_key[found_row.set] := found_row.from_key;
                end loop;
            end if;
        end if;

        -- By how much each set changes the bytes that the quota counts, and whether an addition is impossible.
        a := coalesce(s_writes[first_set - 1], 0) + 1;
        b := s_writes[last_set];
        if a <= b then
            for found_row in
                select w.set, min(w.refusal) as refusal, sum(w.delta)::bigint as delta
                from (
                    select w.set,
                        case
                            when w.kind <> 3 then null
                            when live and r.counter is null then 3
                            -- Whose clock decides, if several sets add to a counter that expires? Each one's: one by one.
                            when r.expires_at_ms is not null and count(*) over same > 1 then 4
                            when (case when live then r.counter else 0 end) + sum(w.number) over in_order
                                not between -9223372036854775808 and 9223372036854775807 then 4
                        end as refusal,
                        case
                            when not w.charged then 0
                            -- Only the first addition to a counter changes what it takes.
                            when w.kind = 3 and row_number() over in_order > 1 then 0
                            else case w.kind
                                    when 0 then octet_length(w.key) + octet_length(w.value)
                                    when 1 then octet_length(w.key) + 8
                                    when 3 then octet_length(w.key) + 8
                                    else 0
                                end
                                - case
                                    when r.version is null or (w.kind = 4 and not gone) then 0
                                    else octet_length(w.key) + coalesce(octet_length(r.value), 8)
                                end
                        end as delta
                    from unnest(w_set[a:b], w_space[a:b], w_key[a:b], w_kind[a:b], w_value[a:b], w_number[a:b], w_charged[a:b])
                        as w (set, space, key, kind, value, number, charged)
                    left join lateral (
                        select * from rows
                        where rows.tenant_id = p_tenant and rows.space = w.space and rows.key = w.key limit 1
                    ) r on true
                    cross join lateral (
                        select r.version is not null and (r.expires_at_ms is null or r.expires_at_ms > s_now_ms[w.set]) as live,
                            coalesce(w.kind = 4 and r.expires_at_ms <= w.number, false) as gone
                    ) judged
                    -- What neither counts nor adds needs no look.
                    where v_outcome[w.set] is null and (w.charged or w.kind = 3)
                    window same as (partition by w.space, w.key), in_order as (partition by w.space, w.key order by w.set)
                ) w
                group by w.set
            loop
                v_refusal[found_row.set] := found_row.refusal;
                v_delta[found_row.set] := found_row.delta;
            end loop;
        end if;
        v_next_bytes := v_bytes;
        refused := false;
        for i in first_set..last_set loop
            if v_outcome[i] is not null then
                continue;
            end if;
            if v_refusal[i] is null and v_delta[i] > 0 and v_next_bytes + v_delta[i] > s_quota[i] then
                v_refusal[i] := 5;
            end if;
            if v_refusal[i] is null then
                v_next_bytes := v_next_bytes + v_delta[i];
            elsif first_set = last_set then
                v_outcome[i] := v_refusal[i];
            else
                refused := true;
            end if;
        end loop;
        if refused then
            for i in first_set..last_set loop
                v_refusal[i] := null;
                v_delta[i] := 0;
            end loop;
            alone_until := last_set;
            continue;
        end if;

        any_left := false;
        for i in first_set..last_set loop
            if v_outcome[i] is null then
                v_seq := v_seq + 1;
                v_made[i] := v_seq;
                v_outcome[i] := 0;
                any_left := true;
            end if;
        end loop;
        v_bytes := v_next_bytes;

        if any_left and a <= b then
            insert into rows (tenant_id, space, key, value, counter, version, expires_at_ms)
            select p_tenant, w.space, w.key, w.value, w.counter, w.version, w.expires_at_ms
            from (
                select w.space, w.key, w.value,
                    case w.kind
                        when 1 then w.number
                        when 3 then ((case when live then r.counter else 0 end) + sum(w.number) over same)::bigint
                    end as counter,
                    v_made[w.set] as version,
                    case when w.kind = 3 then case when live then r.expires_at_ms end else w.expires_at_ms end as expires_at_ms,
                    row_number() over (partition by w.space, w.key order by w.set desc) as from_last
                from unnest(w_set[a:b], w_space[a:b], w_key[a:b], w_kind[a:b], w_value[a:b], w_number[a:b], w_expires_at_ms[a:b])
                    as w (set, space, key, kind, value, number, expires_at_ms)
                left join lateral (
                    select * from rows
                    where w.kind = 3 and rows.tenant_id = p_tenant and rows.space = w.space and rows.key = w.key limit 1
                ) r on true
                cross join lateral (
                    select r.version is not null and (r.expires_at_ms is null or r.expires_at_ms > s_now_ms[w.set]) as live
                ) judged
                where v_made[w.set] is not null and w.kind in (0, 1, 3)
                window same as (partition by w.space, w.key)
            ) w
            where w.from_last = 1
            on conflict (tenant_id, space, key) do update set
                value = excluded.value, counter = excluded.counter,
                version = excluded.version, expires_at_ms = excluded.expires_at_ms;

            if w_kind[a:b] && array[2, 4] then
                for found_row in
                    select w.space, w.key, w.kind, w.number
                    from unnest(w_set[a:b], w_space[a:b], w_key[a:b], w_kind[a:b], w_number[a:b])
                        as w (set, space, key, kind, number)
                    where v_made[w.set] is not null and w.kind in (2, 4)
                loop
                    delete from rows r
                    where r.tenant_id = p_tenant and r.space = found_row.space and r.key = found_row.key
                        and (found_row.kind = 2 or r.expires_at_ms <= found_row.number);
                end loop;
            end if;
        end if;
        first_set := last_set + 1;
    end loop;

    if v_seq > v_start then
        update heads set seq = v_seq, bytes = v_bytes where heads.tenant_id = p_tenant;

        insert into usage_totals as t (tenant_id, plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out)
        select p_tenant, u.plugin, u.hour_ms, sum(u.invocations), sum(u.failures),
            least(sum(u.fuel), 9223372036854775807), sum(u.bytes_in), sum(u.bytes_out)
        from unnest(v_made, s_plugin, s_hour_ms, s_invocations, s_failures, s_fuel, s_bytes_in, s_bytes_out)
            as u (made, plugin, hour_ms, invocations, failures, fuel, bytes_in, bytes_out)
        where u.made is not null and u.plugin is not null
        group by u.plugin, u.hour_ms
        on conflict (tenant_id, plugin, hour_ms) do update set
            invocations = t.invocations + excluded.invocations, failures = t.failures + excluded.failures,
            fuel = least(t.fuel::numeric + excluded.fuel, 9223372036854775807)::bigint,
            bytes_in = t.bytes_in + excluded.bytes_in, bytes_out = t.bytes_out + excluded.bytes_out;

        insert into due (kind, tenant_id, due_at_ms)
        select 'sweep', p_tenant, min(d.due_at_ms)
        from unnest(v_made, s_due_at_ms) as d (made, due_at_ms)
        where d.made is not null and d.due_at_ms is not null
        having count(*) > 0
        on conflict (kind, tenant_id) do update set due_at_ms = excluded.due_at_ms
        where excluded.due_at_ms < due.due_at_ms;
    end if;

    return query
        select o.outcome, v_epoch, o.made, o.space, o.key
        from unnest(v_outcome, v_made, v_space, v_key) with ordinality as o (outcome, made, space, key, n)
        order by o.n;
end $$;

-- Whether the server process that had this number at this time still runs; numbers come again.
create function chalet_runs(p_process int, p_at_us bigint) returns boolean
language sql volatile
return exists (
    select from pg_stat_activity a where a.pid = p_process and chalet_us(a.backend_start) <= p_at_us
);

-- After a lost connection: the versions of these rows, which only the lost call can have written, seen once
-- its head lock is free. `dead` says that the call can no longer change anything: its time is over, or the
-- server process that it ran in (`p_process`, `p_started_us`) is gone.
create function chalet_outcome(
    p_tenant text, p_not_after_ms bigint, p_process int, p_started_us bigint, p_spaces text[], p_keys bytea[]
)
returns table (epoch bigint, dead boolean, n bigint, version bigint)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_epoch bigint;
    v_dead boolean;
begin
    perform set_config('app.tenant', p_tenant, true);
    select h.epoch into v_epoch from heads h where h.tenant_id = p_tenant for update;
    v_dead := chalet_now_ms() > p_not_after_ms or not chalet_runs(p_process, p_started_us);
    return query
        select v_epoch, v_dead, w.n, r.version
        from unnest(p_spaces, p_keys) with ordinality as w (space, key, n)
        left join lateral (
            select * from rows where rows.tenant_id = p_tenant and rows.space = w.space and rows.key = w.key limit 1
        ) r on true;
end $$;

-- The head, and the bytes that count against the storage quota.
create function chalet_head(p_tenant text)
returns table (epoch bigint, seq bigint, bytes bigint)
language plpgsql volatile security invoker
set search_path = public, pg_temp
as $$
#variable_conflict use_column
begin
    perform set_config('app.tenant', p_tenant, true);
    return query select h.epoch, h.seq, h.bytes from heads h where h.tenant_id = p_tenant;
end $$;

-- Built-in usage by plugin between two hours, the second excluded.
create function chalet_usage(p_tenant text, p_from_ms bigint, p_to_ms bigint)
returns setof usage_totals
language plpgsql volatile security invoker
set search_path = public, pg_temp
as $$
begin
    perform set_config('app.tenant', p_tenant, true);
    return query
        select * from usage_totals u
        where u.tenant_id = p_tenant and u.hour_ms >= p_from_ms and u.hour_ms < p_to_ms
        order by u.hour_ms, u.plugin;
end $$;

-- Claim scopes for their owners, each for its `c_lease_ms`. Of each, in their order: 0 claimed, 1 somebody else works
-- on it for `wait_ms` more, 2 it is in work with another fingerprint. An owner asks once. A claim is taken over when its
-- lease is over, or when the connection that made it is gone, as after the crash of its node. This and its opposite
-- are the only writes that need not be durable; both go through scopes in one order, so that none waits for another in a ring.
create function chalet_claim(
    p_tenant text, c_scope text[], c_fingerprint bytea[], c_owner text[], c_lease_ms bigint[]
)
returns table (outcome int, wait_ms bigint)
language plpgsql volatile security invoker
set search_path = public, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_now constant bigint := chalet_now_ms();
    v_outcome int[] := array_fill(null::int, array[cardinality(c_scope)]);
    v_wait_ms bigint[] := array_fill(0::bigint, array[cardinality(c_scope)]);
    found_row record;
begin
    perform set_config('app.tenant', p_tenant, true);
    perform set_config('synchronous_commit', 'off', true);
    -- What a crashed node left behind and nobody asks for again, a few at a time.
    delete from claims where tenant_id = p_tenant and scope in (
        select c.scope from claims c
        where c.tenant_id = p_tenant and c.lease_until_ms < v_now - 600000 and c.scope <> all (c_scope)
        order by c.lease_until_ms limit 8 for update skip locked
    );
    while array_position(v_outcome, null) is not null loop
        for found_row in
            with made as (
                insert into claims as c (tenant_id, scope, fingerprint, owner, process, claimed_us, lease_until_ms)
                select p_tenant, a.scope, a.fingerprint, a.owner, pg_backend_pid(), chalet_us(clock_timestamp()), v_now + a.lease_ms
                from (
                    select distinct on (scope) *
                    from unnest(c_scope, c_fingerprint, c_owner, c_lease_ms, v_outcome) with ordinality
                        as a (scope, fingerprint, owner, lease_ms, outcome, n)
                    where a.outcome is null
                    order by scope, n
                ) a
                order by a.scope
                on conflict (tenant_id, scope) do update set
                    fingerprint = excluded.fingerprint, owner = excluded.owner, process = excluded.process,
                    claimed_us = excluded.claimed_us, lease_until_ms = excluded.lease_until_ms
                where c.lease_until_ms <= v_now or not chalet_runs(c.process, c.claimed_us)
                returning c.owner
            )
            select array_position(c_owner, made.owner) as n from made
        loop
            v_outcome[found_row.n] := 0;
        end loop;
        -- Whose scope is not there now was released between the two statements, and is taken next time.
        for found_row in
            select a.n, c.fingerprint = a.fingerprint as same, greatest(c.lease_until_ms - v_now, 0) as wait_ms
            from unnest(c_scope, c_fingerprint, v_outcome) with ordinality as a (scope, fingerprint, outcome, n)
            cross join lateral (
                select * from claims where claims.tenant_id = p_tenant and claims.scope = a.scope limit 1
            ) c
            where a.outcome is null
        loop
            v_outcome[found_row.n] := case when found_row.same then 1 else 2 end;
            v_wait_ms[found_row.n] := found_row.wait_ms;
        end loop;
    end loop;
    return query select * from unnest(v_outcome, v_wait_ms);
end $$;

-- Give claims back, each if it is still this owner's.
create function chalet_release(p_tenant text, c_scope text[], c_owner text[]) returns void
language plpgsql volatile security invoker
set search_path = public, pg_temp
as $$
declare
    given record;
begin
    perform set_config('app.tenant', p_tenant, true);
    perform set_config('synchronous_commit', 'off', true);
    for given in select * from unnest(c_scope, c_owner) as a (scope, owner) order by a.scope loop
        delete from claims where tenant_id = p_tenant and scope = given.scope and owner = given.owner;
    end loop;
end $$;

-- Make the server's role, if there is none, and give it what it needs: rows, no ownership, no truncation.
create function chalet_grant(p_role text) returns void
language plpgsql volatile security invoker
set search_path = public, pg_temp
as $$
begin
    if not exists (select from pg_roles where rolname = p_role) then
        execute format('create role %I login', p_role);
    end if;
    execute format('grant usage on schema public to %I', p_role);
    execute format('grant select, insert, update, delete on all tables in schema public to %I', p_role);
    if to_regclass('public._sqlx_migrations') is not null then
        execute format('revoke insert, update, delete on _sqlx_migrations from %I', p_role);
    end if;
    execute format('grant execute on all functions in schema public to %I', p_role);
    execute format('revoke execute on function chalet_grant(text) from %I', p_role);
end $$;
revoke execute on function chalet_grant(text) from public;
