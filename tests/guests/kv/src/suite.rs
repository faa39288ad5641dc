//! What every host must keep of `kv.wit`, asserted from the inside: [`suite`] in one invocation, and [`committed`] in a
//! later one.

use chalet_sdk::kv::{self, PutOptions};
use chalet_sdk::{Error, Result};
use std::time::Duration;

const C: &str = "suite";

/// The rules within an invocation; it leaves what [`committed`] looks for. It may be run again.
pub fn suite() -> Result<()> {
    for entry in kv::scan(C, "").collect::<Result<Vec<_>>>()? {
        assert!(kv::delete(C, &entry.key)?);
    }
    own_writes_are_read()?;
    conditions_hold()?;
    counters_add()?;
    lists_are_ordered_and_paged()?;
    arguments_are_checked()?;
    grants_are_checked();
    expired_entries_are_absent()?;
    for entry in kv::scan(C, "").collect::<Result<Vec<_>>>()? {
        kv::delete(C, &entry.key)?;
    }

    kv::put(C, "kept", &1)?;
    kv::put(C, "also-kept", &2)?;
    kv::increment(C, "count", 7)?;
    kv::put(C, "dropped", &3)?;
    kv::delete(C, "dropped")?;
    kv::put_with(C, "for-an-hour", &4, PutOptions::new().ttl(Duration::from_secs(3_600)))?;
    Ok(())
}

/// What the last [`suite`] committed.
pub fn committed() -> Result<()> {
    let kept = kv::entry(C, "kept")?.expect("it was committed");
    let also = kv::entry(C, "also-kept")?.expect("it was committed");
    assert_eq!(kept.json::<u32>()?, 1);
    assert!(kept.version > 0);
    assert_eq!(kept.version, also.version, "one commit has one number");
    assert_eq!(kv::get::<u32>(C, "dropped")?, None);
    assert_eq!(kv::counter(C, "count")?, Some(7));
    assert_eq!(kv::get_bytes(C, "count")?, Some(b"7".to_vec()));
    assert_eq!(kv::get::<u32>(C, "for-an-hour")?, Some(4));
    let keys: Vec<_> = kv::scan(C, "").map(|entry| entry.map(|entry| entry.key)).collect::<Result<_>>()?;
    assert_eq!(keys, ["also-kept", "count", "for-an-hour", "kept"]);

    // A condition on a committed version holds once: what this invocation wrote has no version yet.
    kv::put_with(C, "kept", &10, PutOptions::new().if_version(kept.version))?;
    let again = kv::put_with(C, "kept", &11, PutOptions::new().if_version(kept.version));
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    assert_eq!(kv::entry(C, "kept")?.expect("just written").version, 0);
    assert!(matches!(kv::delete_if_version(C, "also-kept", also.version + 1), Err(Error::Conflict(_))));
    assert!(kv::delete_if_version(C, "also-kept", also.version)?);
    // An overwritten entry is again what the next call of this expects.
    kv::put(C, "kept", &1)?;
    kv::put(C, "also-kept", &2)?;
    Ok(())
}

fn own_writes_are_read() -> Result<()> {
    assert_eq!(kv::get::<String>(C, "own")?, None);
    kv::put(C, "own", "first")?;
    kv::put(C, "own", "second")?;
    let entry = kv::entry(C, "own")?.expect("just written");
    assert_eq!((entry.json::<String>()?.as_str(), entry.version), ("second", 0));
    assert!(kv::delete(C, "own")?);
    assert!(!kv::delete(C, "own")?);
    assert_eq!(kv::get_bytes(C, "own")?, None);
    kv::put_bytes(C, "bytes", &[0, 255, 10])?;
    assert_eq!(kv::get_bytes(C, "bytes")?, Some(vec![0, 255, 10]));
    kv::put_bytes(C, "empty", &[])?;
    assert_eq!(kv::get_bytes(C, "empty")?, Some(vec![]));
    Ok(())
}

fn conditions_hold() -> Result<()> {
    kv::put_with(C, "once", &1, PutOptions::new().if_absent())?;
    let again = kv::put_with(C, "once", &2, PutOptions::new().if_absent());
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    assert_eq!(kv::get::<u32>(C, "once")?, Some(1), "a refused write changes nothing");
    let absent = kv::put_with(C, "absent", &2, PutOptions::new().if_version(1_000_000));
    assert!(matches!(absent, Err(Error::Conflict(_))), "{absent:?}");
    kv::delete(C, "once")?;
    kv::put_with(C, "once", &3, PutOptions::new().if_absent())
}

fn counters_add() -> Result<()> {
    assert_eq!(kv::counter(C, "n")?, None);
    kv::increment(C, "n", 5)?;
    kv::increment(C, "n", -7)?;
    assert_eq!(kv::counter(C, "n")?, Some(-2));
    assert_eq!(kv::get_bytes(C, "n")?, Some(b"-2".to_vec()));
    kv::delete(C, "n")?;
    kv::increment(C, "n", 1)?;
    assert_eq!(kv::counter(C, "n")?, Some(1));
    kv::put(C, "text", "no counter")?;
    assert!(matches!(kv::counter(C, "text"), Err(Error::Invalid(_))));
    Ok(())
}

fn lists_are_ordered_and_paged() -> Result<()> {
    // In the order of bytes: capitals before small letters, and these before what has more bytes in UTF-8.
    let keys = ["list/A", "list/Z", "list/a", "list/a/b", "list/b", "list/ä", "list/漢"];
    for key in keys.iter().rev() {
        kv::put(C, key, key)?;
    }
    kv::put(C, "lis", "not under the prefix")?;
    kv::put(C, "list0", "not under the prefix")?;
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = kv::list(C, "list/", cursor.as_deref(), 3)?;
        assert!(page.entries.len() <= 3);
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(found, keys);
    kv::delete(C, "list/a")?;
    assert_eq!(kv::scan(C, "list/a").count(), 1);
    assert_eq!(kv::list(C, "nothing/", None, 10)?, kv::Page::default());
    Ok(())
}

fn arguments_are_checked() -> Result<()> {
    let invalid =
        |result: Result<()>, what: &str| assert!(matches!(result, Err(Error::Invalid(_))), "{what}: {result:?}");
    invalid(kv::put(C, "", &1), "an empty key");
    invalid(kv::put(C, &"k".repeat(513), &1), "a key of 513 bytes");
    invalid(kv::put(C, "nul\0", &1), "a key with NUL in it");
    invalid(kv::put_bytes(C, "large", &vec![0; 256 * 1024 + 1]), "a value above 256 KiB");
    invalid(kv::list(C, "", None, 0).map(drop), "a page of 0 entries");
    invalid(kv::list(C, "", None, 1_001).map(drop), "a page of 1,001 entries");
    kv::put(C, &"k".repeat(512), &1)?;
    kv::put_bytes(C, "large", &vec![0; 256 * 1024])?;
    kv::delete(C, "large")?;
    Ok(())
}

fn grants_are_checked() {
    let denied = |result: Result<()>| assert!(matches!(result, Err(Error::Denied(_))), "{result:?}");
    denied(kv::put("elsewhere", "k", &1));
    denied(kv::get_bytes("elsewhere", "k").map(drop));
    denied(kv::increment("readable", "k", 1));
    denied(kv::delete("readable", "k").map(drop));
    assert!(kv::get_bytes("readable", "k").is_ok());
}

fn expired_entries_are_absent() -> Result<()> {
    kv::put_with(C, "gone", &1, PutOptions::new().ttl(Duration::ZERO))?;
    assert_eq!(kv::get::<u32>(C, "gone")?, None);
    kv::put_with(C, "stays", &1, PutOptions::new().ttl(Duration::from_millis(1)))?;
    assert_eq!(kv::get::<u32>(C, "stays")?, Some(1), "the clock stands still within an invocation");
    Ok(())
}
