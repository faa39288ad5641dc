-- What is no tenant's: the operator's audit log and the answers to the operator's requests stand under an id of
-- their own, with a head like any tenant's. The directory has no row of it.
insert into heads (tenant_id) values ('platform');
