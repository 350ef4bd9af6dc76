//! Where a lake lies: its address, read once, and the store behind it.
//!
//! `file:` and plain paths are folders of this machine; `s3:`, `az:`, `abfss:` and `gs:` are
//! buckets (on Azure, containers) with a prefix. Whatever cannot be opened is refused with what to
//! write instead, and no address may carry credentials.

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use url::Url;

use crate::remote;
use crate::storage::Storage;
use crate::store::DurableFileSystem;
use crate::tables::LakeError;

/// Who keeps the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// This machine's file system.
    Local,
    /// Amazon S3, or a store that speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Google,
}

/// The address of a lake.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    /// The folder of the tables, ending with a slash.
    pub(crate) root: Url,
    /// The bucket or container; empty on this machine.
    pub(crate) bucket: String,
    /// Where the store answers, for messages; empty when that is its provider's usual place.
    pub(crate) endpoint: String,
}

impl Place {
    /// Reads an address.
    ///
    /// # Errors
    /// [`LakeError::Url`].
    pub(crate) fn parse(url: &str) -> Result<Self, LakeError> {
        let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        let kind = match scheme.as_deref() {
            Some("s3" | "s3a") => Kind::S3,
            Some("az" | "abfs" | "abfss" | "azure" | "adl") => Kind::Azure,
            Some("gs") => Kind::Google,
            Some(other) if other.len() > 1 && other != "file" => {
                return Err(wrong(url, "no store of that kind is known"));
            }
            Some(_) | None => return Self::folder(url),
        };
        Self::bucket(kind, url)
    }

    /// A folder of this machine.
    fn folder(url: &str) -> Result<Self, LakeError> {
        let path = url.strip_prefix("file:").map_or(url, |path| {
            // `file:///folder` and `file:folder`, but not `file://host/folder`.
            path.strip_prefix("//").unwrap_or(path)
        });
        if path.is_empty() {
            return Err(wrong(url, "it names no folder"));
        }
        let path =
            std::path::absolute(PathBuf::from(path)).map_err(|e| wrong(url, &e.to_string()))?;
        // `./x/../y` would be another name for the same table in its own log: one spelling only.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let root = Url::from_directory_path(path).map_err(|()| wrong(url, "it is no path"))?;
        Ok(Self { kind: Kind::Local, root, bucket: String::new(), endpoint: String::new() })
    }

    /// A bucket and a prefix in it.
    fn bucket(kind: Kind, url: &str) -> Result<Self, LakeError> {
        let mut root = Url::parse(url).map_err(|e| wrong(url, &e.to_string()))?;
        let host = root.host_str().unwrap_or_default().to_owned();
        // Hadoop's form: `abfss://container@account.dfs.core.windows.net/prefix`.
        let container = if kind == Kind::Azure { root.username() } else { "" };
        let bucket = if container.is_empty() { host } else { container.to_owned() };
        if bucket.is_empty() {
            return Err(wrong(url, "it names no bucket"));
        }
        let has_user = kind != Kind::Azure && !root.username().is_empty();
        if has_user || root.password().is_some() || root.query().is_some() {
            let problem = "it may hold nothing but bucket and prefix; credentials and options \
                           belong into [lake.storage] or the environment";
            // The address itself would be a secret in the message.
            return Err(wrong(&format!("{}://…", root.scheme()), problem));
        }
        root.set_fragment(None);
        if !root.path().ends_with('/') {
            root.set_path(&format!("{}/", root.path()));
        }
        Ok(Self { kind, root, bucket, endpoint: String::new() })
    }

    /// The store behind the address. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`LakeError::Storage`] when the options are not understood.
    pub(crate) fn connect(&mut self, storage: &Storage) -> Result<Arc<dyn ObjectStore>, LakeError> {
        if self.kind == Kind::Local {
            return match storage.first() {
                None => Ok(Arc::new(DurableFileSystem::new())),
                Some(key) => Err(LakeError::Storage {
                    problem: format!("{key:?} is no option of a lake in a folder"),
                }),
            };
        }
        let (store, endpoint) = remote::connect(self, storage)?;
        self.endpoint = endpoint;
        Ok(store)
    }

    /// Whether another machine may write there too.
    pub(crate) fn is_remote(&self) -> bool {
        self.kind != Kind::Local
    }
}

/// The address with the place where the store answers, for messages.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.root.as_str().trim_end_matches('/'))?;
        if self.endpoint.is_empty() { Ok(()) } else { write!(f, " at {}", self.endpoint) }
    }
}

fn wrong(url: &str, problem: &str) -> LakeError {
    LakeError::Url { url: url.to_owned(), problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_store_its_bucket_and_a_prefix_that_ends_with_a_slash() {
        let cases = [
            ("s3://records/custody", Kind::S3, "records", "s3://records/custody/"),
            ("s3://records", Kind::S3, "records", "s3://records/"),
            ("gs://records/a/b/", Kind::Google, "records", "gs://records/a/b/"),
            ("az://records/x", Kind::Azure, "records", "az://records/x/"),
            (
                "abfss://records@clinic.dfs.core.windows.net/x",
                Kind::Azure,
                "records",
                "abfss://records@clinic.dfs.core.windows.net/x/",
            ),
        ];
        for (url, kind, bucket, root) in cases {
            let place = Place::parse(url).unwrap();
            assert_eq!((place.kind, place.bucket.as_str()), (kind, bucket), "{url}");
            assert_eq!(place.root.as_str(), root);
            assert!(place.is_remote());
        }
        for folder in ["file:./lake", "file:///tmp/lake", "./lake", "/tmp/lake"] {
            let place = Place::parse(folder).unwrap();
            assert_eq!(place.kind, Kind::Local, "{folder}");
            assert!(place.root.as_str().starts_with("file:///"), "{}", place.root);
        }
    }

    #[test]
    fn an_address_with_a_secret_in_it_is_refused_and_not_repeated() {
        for url in ["s3://key:hush@records/x", "s3://hush@records/x", "az://records/x?sig=hush"] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(error.contains("[lake.storage]"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_folder_takes_no_settings_of_a_store() {
        let storage = Storage::from_iter([("region", "eu-central-1")]);
        let error = Place::parse("file:./lake").unwrap().connect(&storage).unwrap_err();
        assert!(error.to_string().contains("\"region\""), "{error}");
    }
}
