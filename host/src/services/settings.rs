//! Settings of a plugin in a tenant that are no secrets: names and texts that the tenant's administrator
//! sets, and that the plugin reads as they are set, outside of its snapshot.

use crate::effects::{Effects, Key, Space};
use crate::kernel::error::{Error, Kind, Result};

const SPACE: Space = Space::named("settings");
/// Bytes of a setting's name.
const NAME_BYTES: usize = 256;
/// Bytes of a setting: a page of text, or a key of a public API.
pub const VALUE_BYTES: usize = 16 << 10;

/// The setting's value. `name` may come from a guest.
pub async fn get(effects: &Effects, plugin: &str, name: &str) -> Result<Option<String>> {
    let Some(row) = effects.setting(&key(plugin, name)?).await? else {
        return Ok(None);
    };
    let value = String::from_utf8(row.value.to_bytes().into()).map_err(Error::internal)?;
    Ok(Some(value))
}

/// Set a setting, or with none remove it.
pub fn set(effects: &mut Effects, plugin: &str, name: &str, value: Option<&str>) -> Result<()> {
    let key = key(plugin, name)?;
    match value {
        None => effects.delete(key),
        Some(value) if value.len() <= VALUE_BYTES => effects.put(key, value.as_bytes().to_vec(), None),
        Some(_) => Err(Error::invalid(format!("a setting has at most {VALUE_BYTES} bytes"))),
    }
}

fn key(plugin: &str, name: &str) -> Result<Key> {
    if name.is_empty() || name.len() > NAME_BYTES || name.contains('\0') {
        return Err(Error::new(
            Kind::Invalid,
            "bad_request",
            format!("a setting's name has 1 to {NAME_BYTES} bytes and no NUL"),
        ));
    }
    Ok(SPACE.key(format!("{plugin}\0{name}").into_bytes()))
}
