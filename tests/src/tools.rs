//! Programs of others that tests/tools.sh has installed.

use std::path::PathBuf;

/// Where `name`, a path such as `fsck/fsck`, lies.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let cache = std::env::var_os("CUSTODY_CACHE").map(PathBuf::from);
    let home =
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/custody");
    cache.unwrap_or_else(home).join(name)
}
