//! Control state as a file, for a process that starts while Kafka is away.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use custody_schemas::json::Json;

use super::{DEPLOYMENT, State};

/// The state as a file, for a start without Kafka.
pub(super) struct Copy {
    pub(super) path: PathBuf,
    deployment: String,
}

impl Copy {
    pub(super) fn new(path: &Path, deployment: &str) -> Self {
        Self { path: path.to_owned(), deployment: deployment.to_owned() }
    }

    /// The kept state, if it is this deployment's.
    pub(super) fn read(&self) -> Option<State> {
        let values = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let state = State { values, end: 0 };
        let ours = Some(&Json::from(self.deployment.as_str()));
        (state.get(DEPLOYMENT) == ours).then_some(state)
    }

    /// Writes a file that is never half written, for its owner only.
    pub(super) fn write(&self, state: &State) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&file, &state.values)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_for_its_owner_and_its_deployment_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new folder/control.copy");
        let copy = Copy::new(&path, "audit.example");
        assert_eq!(copy.read(), None);
        let mut state = State::default();
        state.fold(0, DEPLOYMENT.as_bytes(), b"\"audit.example\"").unwrap();
        state.fold(1, b"pin/a", b"[1,2]").unwrap();
        copy.write(&state).unwrap();
        let read = copy.read().unwrap();
        assert_eq!(read.entries("").collect::<Vec<_>>(), state.entries("").collect::<Vec<_>>());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Copy::new(&path, "other.example").read(), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(copy.read(), None);
    }
}
