//! Settings of the store behind a lake, as `[lake.storage]` and the environment give them.
//!
//! Values may be secrets: nothing prints them.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;

use crate::place::Place;
use crate::tables::LakeError;

/// Options by name, for example `region`, `endpoint`, `access_key_id`; those of the `object_store`
/// crate, and `profile` and `ca_file` beside them.
#[derive(Clone, Default)]
pub struct Storage(BTreeMap<String, String>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Storage {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(options: T) -> Self {
        Self(options.into_iter().map(|(k, v)| (k.into().to_ascii_lowercase(), v.into())).collect())
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Storage {
    /// The store behind the lake at `url`; its paths are those of the whole file system or bucket.
    /// Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`LakeError`] when address or options are not understood.
    pub fn connect(&self, url: &str) -> Result<Arc<dyn ObjectStore>, LakeError> {
        Place::parse(url)?.connect(self)
    }

    /// The first option's name.
    pub(crate) fn first(&self) -> Option<&str> {
        self.0.keys().next().map(String::as_str)
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Name and value of each option but those named.
    pub(crate) fn without<'a>(
        &'a self,
        ours: &'a [&str],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        all.filter(|(key, _)| !ours.contains(key))
    }
}

/// What the process's environment says about stores.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    pub(crate) fn of_process() -> Self {
        const ABOUT: [&str; 5] = ["AWS_", "AZURE_", "GOOGLE_", "IDENTITY_", "MSI_"];
        let all = std::env::vars_os();
        let text = all.filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let about = |key: &str| ABOUT.iter().any(|prefix| key.starts_with(prefix));
        let known = text.filter(|(k, _)| about(k) || k == "HOME" || k == "SERVICE_ACCOUNT");
        Self(known.filter(|(_, value)| !value.is_empty()).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Variables with this prefix, names in small letters.
    pub(crate) fn starting(&self, prefix: &str) -> impl Iterator<Item = (String, &str)> {
        let of = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        of.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_print_their_names_and_no_value() {
        let storage = Storage::from_iter([("secret_access_key", "hush"), ("REGION", "x")]);
        assert_eq!(format!("{storage:?}"), r#"{"region", "secret_access_key"}"#);
        assert_eq!(storage.get("region"), Some("x"));
    }
}
