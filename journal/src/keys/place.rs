//! Key files: only their owner may read them, and none ever exists half written or is overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use custody_schemas::seal::key::Signer;

use super::KeysError;

/// The key in a file that only its owner may read.
pub(super) fn read(path: &Path) -> Result<Signer, KeysError> {
    let io = |source| KeysError::Io { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(io)?;
    if fs::metadata(path).map_err(io)?.permissions().mode() & 0o077 != 0 {
        return Err(KeysError::Exposed(path.to_owned()));
    }
    Signer::parse(&text).map_err(|source| KeysError::Key { path: path.to_owned(), source })
}

/// Writes a key file that never exists half written.
pub(super) fn store(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let new = path.with_extension(format!("{:08x}.new", rand::random::<u32>()));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    // a hard link does not replace a key that another process has made meanwhile
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new)?;
    linked?;
    File::open(dir)?.sync_all()
}
