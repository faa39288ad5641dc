-- What is no tenant's: the operator's audit log and the answers to the operator's requests stand under an id of
-- their own, with a head like any tenant's, under the same row-level security. The directory has no row of it.
select set_config('app.tenant', 'platform', true);
insert into heads (tenant_id) values ('platform');
select set_config('app.tenant', '', true);
