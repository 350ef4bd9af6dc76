//! The stores of other machines: Amazon S3 and what speaks its protocol, Azure, Google Cloud.
//!
//! Credentials come from `[lake.storage]`, else from the environment, else on S3 from a profile,
//! else from the identity of the machine. Options win over the environment as a whole set: a key
//! of one is never sent with the session token of the other. Every request has a time limit and a
//! bounded number of attempts. An option that nobody knows is an error, not a surprise later.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as S3Key};
use object_store::azure::{AzureConfigKey as AzureKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey as GoogleKey};
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::place::{Kind, Place};
use crate::profile;
use crate::storage::{Environment, Storage};
use crate::tables::LakeError;

/// How often a request is tried again.
const RETRIES: usize = 4;
/// No request is begun again after this. One request has 30 s, or the option `timeout`.
const RETRY_FOR: Duration = Duration::from_secs(20);

/// Options that we read ourselves.
const OURS: [&str; 2] = ["profile", "ca_file"];
/// What makes up a set of S3 credentials, without the prefix `aws_`.
const CREDENTIALS: [&str; 8] = [
    "access_key_id",
    "secret_access_key",
    "session_token",
    "token",
    "web_identity_token_file",
    "role_arn",
    "container_credentials_relative_uri",
    "container_credentials_full_uri",
];

/// A store, and where it answers, for messages.
type Connected = (Arc<dyn ObjectStore>, String);

/// The store behind a bucket. Nothing is asked of it yet.
///
/// # Errors
/// [`LakeError::Storage`] when an option is not understood or a credential is missing.
pub(crate) fn connect(place: &Place, storage: &Storage) -> Result<Connected, LakeError> {
    connect_in(place, storage, &Environment::of_process())
}

fn connect_in(
    place: &Place,
    storage: &Storage,
    environment: &Environment,
) -> Result<Connected, LakeError> {
    match place.kind {
        Kind::Azure => azure(place, storage, environment),
        Kind::Google => google(place, storage, environment),
        Kind::S3 | Kind::Local => {
            let (builder, endpoint) = s3(place, storage, environment)?;
            Ok((Arc::new(builder.build().map_err(not_built)?), endpoint))
        }
    }
}

fn s3(
    place: &Place,
    storage: &Storage,
    environment: &Environment,
) -> Result<(AmazonS3Builder, String), LakeError> {
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client(storage)?)
        .with_retry(retry())
        .with_url(place.root.as_str());
    let has = |key: &str| storage.get(key).or_else(|| storage.get(&format!("aws_{key}"))).is_some();
    let (own_credentials, own_endpoint) = (CREDENTIALS.into_iter().any(has), has("endpoint"));
    let own_profile = storage.get("profile").is_some();
    for (name, value) in environment.starting("AWS_") {
        let plain = name.strip_prefix("aws_").unwrap_or(&name);
        let about_credentials = CREDENTIALS.contains(&plain);
        let hidden = (own_credentials || own_profile) && about_credentials
            || own_endpoint && plain.starts_with("endpoint");
        if !hidden && let Ok(key) = S3Key::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    builder =
        configured(builder, storage, |builder, key: S3Key, value| builder.with_config(key, value))?;
    if !identified(&builder) {
        builder = profile::apply(builder, storage.get("profile"), environment)?;
    }
    let value = |key| builder.get_config_value(&key);
    let endpoint = value(S3Key::S3Endpoint).or_else(|| value(S3Key::Endpoint));
    let region = || value(S3Key::Region).unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = endpoint.unwrap_or_else(|| format!("Amazon S3 in {}", region()));
    Ok((builder, endpoint))
}

/// Whether it is known already who asks.
fn identified(builder: &AmazonS3Builder) -> bool {
    [
        S3Key::AccessKeyId,
        S3Key::WebIdentityTokenFile,
        S3Key::ContainerCredentialsRelativeUri,
        S3Key::ContainerCredentialsFullUri,
    ]
    .iter()
    .any(|key| builder.get_config_value(key).is_some())
        || builder.get_config_value(&S3Key::SkipSignature).is_some_and(|skip| skip == "true")
}

fn azure(
    place: &Place,
    storage: &Storage,
    environment: &Environment,
) -> Result<Connected, LakeError> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_client_options(client(storage)?)
        .with_retry(retry())
        .with_url(place.root.as_str());
    for (name, value) in environment.starting("AZURE_") {
        if let Ok(key) = AzureKey::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = environment.get("IDENTITY_ENDPOINT") {
        builder = builder.with_config(AzureKey::MsiEndpoint, endpoint);
    }
    builder = configured(builder, storage, |builder, key: AzureKey, value| {
        builder.with_config(key, value)
    })?;
    let endpoint = builder.get_config_value(&AzureKey::Endpoint);
    let endpoint = endpoint.unwrap_or_else(|| "Azure Blob Storage".to_owned());
    Ok((Arc::new(builder.build().map_err(not_built)?), endpoint))
}

fn google(
    place: &Place,
    storage: &Storage,
    environment: &Environment,
) -> Result<Connected, LakeError> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_client_options(client(storage)?)
        .with_retry(retry())
        .with_url(place.root.as_str());
    if let Some(path) = environment.get("SERVICE_ACCOUNT") {
        builder = builder.with_service_account_path(path);
    }
    for (name, value) in environment.starting("GOOGLE_") {
        if let Ok(key) = GoogleKey::from_str(&name) {
            builder = builder.with_config(key, value);
        }
    }
    builder = configured(builder, storage, |builder, key: GoogleKey, value| {
        builder.with_config(key, value)
    })?;
    let store = builder.build().map_err(not_built)?;
    Ok((Arc::new(store), "Google Cloud Storage".to_owned()))
}

/// Gives the builder every option that is not ours.
fn configured<B, K: FromStr>(
    builder: B,
    storage: &Storage,
    with: fn(B, K, &str) -> B,
) -> Result<B, LakeError> {
    storage.without(&OURS).try_fold(builder, |builder, (name, value)| {
        let key = K::from_str(name).map_err(|_| LakeError::Storage {
            problem: format!("{name:?} is no option of this kind of store"),
        })?;
        Ok(with(builder, key, value))
    })
}

/// The HTTP client's options; a private certificate authority stands in a file of ours.
fn client(storage: &Storage) -> Result<ClientOptions, LakeError> {
    let mut options = ClientOptions::new();
    let Some(path) = storage.get("ca_file") else { return Ok(options) };
    let problem =
        |error: String| LakeError::Storage { problem: format!("ca_file {path:?}: {error}") };
    let pem = std::fs::read(path).map_err(|e| problem(e.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| problem(e.to_string()))?;
    if certificates.is_empty() {
        return Err(problem("it holds no certificate".to_owned()));
    }
    for certificate in certificates {
        options = options.with_root_certificate(certificate);
    }
    Ok(options)
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_FOR, ..RetryConfig::default() }
}

/// The builders' messages name keys, never values of secrets.
fn not_built(error: object_store::Error) -> LakeError {
    let problem = if let object_store::Error::Generic { source, .. } = error {
        source.to_string()
    } else {
        error.to_string()
    };
    LakeError::Storage { problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3_with(
        options: &[(&str, &str)],
        environment: &Environment,
    ) -> Result<AmazonS3Builder, LakeError> {
        let place = Place::parse("s3://records/custody").unwrap();
        let storage = Storage::from_iter(options.iter().copied());
        Ok(s3(&place, &storage, environment)?.0)
    }

    #[test]
    fn options_of_the_file_win_over_the_environment_and_never_mix_with_its_credentials() {
        let environment = Environment::from([
            ("AWS_ACCESS_KEY_ID", "env"),
            ("AWS_SECRET_ACCESS_KEY", "env"),
            ("AWS_SESSION_TOKEN", "env"),
            ("AWS_ENDPOINT_URL_S3", "https://env.example"),
            ("AWS_REGION", "env-1"),
        ]);
        let from_env = s3_with(&[], &environment).unwrap();
        assert_eq!(from_env.get_config_value(&S3Key::Token).as_deref(), Some("env"));
        let options = [
            ("access_key_id", "file"),
            ("secret_access_key", "file"),
            ("endpoint", "https://file.example"),
        ];
        let both = s3_with(&options, &environment).unwrap();
        let value = |key| both.get_config_value(&key);
        assert_eq!(value(S3Key::AccessKeyId).as_deref(), Some("file"));
        assert_eq!(value(S3Key::Token), None);
        assert_eq!(value(S3Key::S3Endpoint), None);
        assert_eq!(value(S3Key::Endpoint).as_deref(), Some("https://file.example"));
        assert_eq!(value(S3Key::Region).as_deref(), Some("env-1"));
    }

    #[test]
    fn an_option_that_nobody_knows_or_understands_is_an_error_that_names_it() {
        let keys = [("access_key_id", "a"), ("secret_access_key", "hush")];
        let place = Place::parse("s3://records").unwrap();
        for (wrong, told) in [(("regoin", "x"), "regoin"), (("allow_http", "maybe"), "maybe")] {
            let storage = Storage::from_iter(keys.into_iter().chain([wrong]));
            let error = connect_in(&place, &storage, &Environment::default()).unwrap_err();
            assert!(matches!(error, LakeError::Storage { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(told) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn stores_of_azure_and_google_are_made_from_their_settings() {
        let key = "a2V5";
        let azure = [("account_name", "clinic"), ("account_key", key)];
        let place = Place::parse("az://records/custody").unwrap();
        let none = Environment::default();
        let (store, _) = connect_in(&place, &Storage::from_iter(azure), &none).unwrap();
        assert!(store.to_string().contains("clinic"), "{store}");
        let place = Place::parse("gs://records/custody").unwrap();
        let google = Storage::from_iter([("skip_signature", "true")]);
        let (store, _) = connect_in(&place, &google, &none).unwrap();
        assert!(store.to_string().contains("records"), "{store}");
        let google = Storage::from_iter([("ca_file", "/does/not/exist.pem")]);
        let error = connect_in(&place, &google, &none).unwrap_err();
        assert!(error.to_string().contains("ca_file"), "{error}");
    }
}
