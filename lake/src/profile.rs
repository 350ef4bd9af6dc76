//! Profiles of the AWS command line: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Keys that somebody replaces in the file are used within a minute. A profile that asks for
//! something we do not do (single sign-on, a helper program, another profile's role) is refused
//! with what to do instead, never passed over.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as S3Key, AwsCredential};
use tokio::sync::Mutex;

use crate::storage::Environment;
use crate::tables::LakeError;

/// How old keys may be that were read from the file.
const READ_AGAIN: Duration = Duration::from_secs(60);
/// Settings that name keys in ways we do not follow.
const NOT_OURS: [&str; 4] =
    ["credential_process", "sso_session", "sso_start_url", "source_profile"];

/// Gives the builder what the profile `name` says, or without a name that of `AWS_PROFILE`, or
/// `default` if there is one.
///
/// # Errors
/// [`LakeError::Storage`] when a profile that was asked for is absent or asks for too much.
pub(crate) fn apply(
    builder: AmazonS3Builder,
    name: Option<&str>,
    environment: &Environment,
) -> Result<AmazonS3Builder, LakeError> {
    let asked = name.or_else(|| environment.get("AWS_PROFILE"));
    let name = asked.unwrap_or("default");
    let files = Files::of(environment);
    let profile = files.profile(name);
    match (profile.is_empty(), asked) {
        (true, None) => Ok(builder),
        (true, Some(name)) => Err(wrong(name, &format!("it is in neither of {files}"))),
        (false, _) => configured(builder, name, files, &profile),
    }
}

fn configured(
    mut builder: AmazonS3Builder,
    name: &str,
    files: Files,
    profile: &Settings,
) -> Result<AmazonS3Builder, LakeError> {
    for (setting, key) in [("region", S3Key::Region), ("endpoint_url", S3Key::Endpoint)] {
        if builder.get_config_value(&key).is_none()
            && let Some(value) = profile.get(setting)
        {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(credential) = credential(profile) {
        let read = Mutex::new((Instant::now(), Arc::new(credential)));
        let provider = ProfileCredentials { name: name.to_owned(), files, read };
        return Ok(builder.with_credentials(Arc::new(provider)));
    }
    if let (Some(role), Some(token)) =
        (profile.get("role_arn"), profile.get("web_identity_token_file"))
    {
        builder = builder
            .with_config(S3Key::RoleArn, role)
            .with_config(S3Key::WebIdentityTokenFile, token);
        return Ok(builder);
    }
    match NOT_OURS.into_iter().find(|setting| profile.contains_key(*setting)) {
        Some(setting) => {
            let what = format!(
                "it uses {setting}, which custody does not follow: put its keys into the \
                 environment (aws configure export-credentials --profile {name} --format env)"
            );
            Err(wrong(name, &what))
        }
        None => Ok(builder),
    }
}

fn wrong(name: &str, problem: &str) -> LakeError {
    LakeError::Storage { problem: format!("AWS profile {name:?}: {problem}") }
}

type Settings = BTreeMap<String, String>;

fn credential(profile: &Settings) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: profile.get("aws_access_key_id")?.clone(),
        secret_key: profile.get("aws_secret_access_key")?.clone(),
        token: profile.get("aws_session_token").cloned(),
    })
}

/// The two files.
#[derive(Clone, Debug)]
struct Files {
    credentials: PathBuf,
    config: PathBuf,
}

impl std::fmt::Display for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} and {}", self.credentials.display(), self.config.display())
    }
}

impl Files {
    fn of(environment: &Environment) -> Self {
        let home = Path::new(environment.get("HOME").unwrap_or(".")).join(".aws");
        let file = |variable: &str, name: &str| {
            environment.get(variable).map_or_else(|| home.join(name), PathBuf::from)
        };
        Self {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            config: file("AWS_CONFIG_FILE", "config"),
        }
    }

    /// Both files' settings of a profile; those of `credentials` win.
    fn profile(&self, name: &str) -> Settings {
        let title = if name == "default" { name.to_owned() } else { format!("profile {name}") };
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let mut settings = section(&read(&self.config), &title);
        settings.extend(section(&read(&self.credentials), name));
        settings
    }
}

/// The settings of one section; indented lines belong to settings with parts, which we skip.
fn section(text: &str, title: &str) -> Settings {
    let mut inside = false;
    let mut settings = Settings::new();
    for line in text.lines() {
        if let Some(name) = line.trim().strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.split_whitespace().eq(title.split_whitespace());
            continue;
        }
        let starts = line.starts_with(|c: char| c.is_ascii_alphanumeric());
        if inside
            && starts
            && let Some((key, value)) = line.split_once('=')
            && !value.trim().is_empty()
        {
            settings.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    settings
}

/// A profile's keys, read again now and then.
struct ProfileCredentials {
    name: String,
    files: Files,
    read: Mutex<(Instant, Arc<AwsCredential>)>,
}

impl std::fmt::Debug for ProfileCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProfileCredentials").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ProfileCredentials {
    async fn current(&self, now: Instant) -> Arc<AwsCredential> {
        let mut read = self.read.lock().await;
        if now.duration_since(read.0) >= READ_AGAIN {
            let (files, name) = (self.files.clone(), self.name.clone());
            let fresh = tokio::task::spawn_blocking(move || credential(&files.profile(&name)));
            match fresh.await.ok().flatten() {
                Some(credential) => read.1 = Arc::new(credential),
                None => tracing::warn!(profile = %self.name, "keys are gone; the last ones stay"),
            }
            read.0 = now;
        }
        Arc::clone(&read.1)
    }
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.current(Instant::now()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "\
[default]
aws_access_key_id = one
aws_secret_access_key = first
[work]
# rotated in spring
aws_access_key_id=two
aws_secret_access_key=second
aws_session_token=token
";
    const CONFIG: &str = "\
[default]
region = eu-central-1
[profile work]
region = us-west-2
s3 =
  max_concurrent_requests = 20
endpoint_url = https://store.example
[profile login]
sso_session = clinic
";

    fn home() -> (tempfile::TempDir, Environment) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        std::fs::write(folder.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(folder.path().join(".aws/config"), CONFIG).unwrap();
        let environment = Environment::from([("HOME", folder.path().to_str().unwrap())]);
        (folder, environment)
    }

    #[test]
    fn a_profile_is_read_from_both_files() {
        let (_folder, environment) = home();
        let files = Files::of(&environment);
        let work = files.profile("work");
        let keys = credential(&work).unwrap();
        assert_eq!((keys.key_id.as_str(), keys.token.as_deref()), ("two", Some("token")));
        assert_eq!(work["endpoint_url"], "https://store.example");
        assert!(!work.contains_key("max_concurrent_requests"));
        let builder = apply(AmazonS3Builder::new(), Some("work"), &environment).unwrap();
        assert_eq!(builder.get_config_value(&S3Key::Region).as_deref(), Some("us-west-2"));
        assert_eq!(files.profile("default")["region"], "eu-central-1");
    }

    #[test]
    fn a_profile_that_is_absent_or_asks_for_too_much_is_refused_with_what_to_do() {
        let (_folder, environment) = home();
        let absent = apply(AmazonS3Builder::new(), Some("wrok"), &environment).unwrap_err();
        assert!(absent.to_string().contains(".aws/credentials"), "{absent}");
        let login = apply(AmazonS3Builder::new(), Some("login"), &environment).unwrap_err();
        assert!(login.to_string().contains("export-credentials"), "{login}");
        apply(AmazonS3Builder::new(), None, &Environment::default()).unwrap();
    }

    #[tokio::test]
    async fn keys_that_are_replaced_in_the_file_are_used_a_minute_later() {
        let (folder, environment) = home();
        let files = Files::of(&environment);
        let start = Instant::now();
        let first = credential(&files.profile("default")).unwrap();
        let read = Mutex::new((start, Arc::new(first)));
        let provider = ProfileCredentials { name: "default".to_owned(), files, read };
        let path = folder.path().join(".aws/credentials");
        std::fs::write(&path, CREDENTIALS.replace("= one", "= three")).unwrap();
        assert_eq!(provider.current(start).await.key_id, "one");
        assert_eq!(provider.current(start + READ_AGAIN).await.key_id, "three");
        std::fs::remove_file(path).unwrap();
        assert_eq!(provider.current(start + READ_AGAIN * 2).await.key_id, "three");
    }
}
