//! What a store's error means for whoever runs the lake, and what to look at.
//!
//! Stores answer in XML and clients in chains of causes; here both become one sentence with the
//! lake's address, the problem, and the setting to check. Nothing of a request is repeated: no
//! key, no signature, no name of a file.

use std::error::Error;

use crate::place::{Kind, Place};
use crate::tables::LakeError;

/// What a store's answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Bucket,
    Credentials,
    NoCredentials,
    Rights,
    Region,
    Clock,
    PlainHttp,
    Certificate,
    Silence,
}

/// The error with its meaning, when it has one that we know; otherwise the error as it is.
pub(crate) fn explained(place: &Place, error: LakeError) -> LakeError {
    if !place.is_remote() || error.is_final() {
        return error;
    }
    let text = chain(&error);
    let Some((about, problem)) = read(&text) else { return error };
    tracing::debug!(%error, "the store's own words");
    let advice = advice(about, place);
    LakeError::Unreachable { lake: place.to_string(), problem, advice }
}

fn read(text: &str) -> Option<(About, String)> {
    if let Some(code) = between(text, "<Code>", "</Code>") {
        let about = of_code(code)?;
        return Some((about, format!("the store says {code}")));
    }
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let told = |about, problem: &str| Some((about, problem.to_owned()));
    // Instance metadata and the like are asked only when nobody has said who we are.
    if has(&["169.254.169.254", "169.254.170.2", "metadata.google", "instance metadata"]) {
        return told(About::NoCredentials, "there are no credentials");
    }
    if has(&["URL scheme is not allowed", "BadScheme"]) {
        return told(About::PlainHttp, "the endpoint is plain HTTP");
    }
    if has(&["certificate", "UnknownIssuer"]) {
        return told(About::Certificate, "the endpoint's TLS certificate is not trusted");
    }
    if has(&["Received redirect", "301 Moved", "PermanentRedirect"]) {
        return told(About::Region, "the store sends us elsewhere");
    }
    if has(&["401 Unauthorized", "403 Forbidden"]) {
        return told(About::Credentials, "the store refuses the credentials");
    }
    if has(&["dns error", "failed to lookup"]) {
        return told(About::Silence, "its name is not known");
    }
    if has(&["Connection refused", "tcp connect error", "error trying to connect"]) {
        return told(About::Silence, "nothing accepts a connection there");
    }
    if has(&["operation timed out", "no answer within", "TimedOut", "Kind: Timeout"]) {
        return told(About::Silence, "it does not answer in time");
    }
    // Of causes below this one the log's reader keeps no trace.
    if has(&["error sending request", "connection closed before", "Connection reset"]) {
        return told(About::Silence, "it does not answer");
    }
    None
}

/// The codes of S3 and Azure.
fn of_code(code: &str) -> Option<About> {
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" | "InvalidBucketName" | "ContainerBeingDeleted" => {
            About::Bucket
        }
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired"
        | "AuthenticationFailed"
        | "InvalidSecurity"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "InvalidIdentityToken" => About::Credentials,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AuthorizationFailure"
        | "AuthorizationPermissionMismatch"
        | "AccountProblem" => About::Rights,
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "IllegalLocationConstraintException"
        | "InvalidRegion" => About::Region,
        "RequestTimeTooSkewed" => About::Clock,
        _ => return None,
    })
}

fn advice(about: About, place: &Place) -> String {
    let bucket = &place.bucket;
    let keys = match place.kind {
        Kind::Azure => "account_name and account_key (or another credential)",
        Kind::Google => "service_account or GOOGLE_APPLICATION_CREDENTIALS",
        Kind::S3 | Kind::Local => "access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID …",
    };
    match about {
        About::Bucket => format!("create {bucket:?}, or correct [lake] url"),
        About::Credentials => format!("check {keys} in [lake.storage] or the environment"),
        About::NoCredentials => {
            format!("set {keys} in [lake.storage] or the environment, or a profile or role")
        }
        About::Rights => format!(
            "let this identity list {bucket:?} and read, write and delete objects under [lake] url"
        ),
        About::Region => "check region and endpoint in [lake.storage]".to_owned(),
        About::Clock => "correct this machine's clock".to_owned(),
        About::PlainHttp => {
            "use https, or set allow_http = \"true\" in [lake.storage] on a network you trust"
                .to_owned()
        }
        About::Certificate => "name its authority as ca_file in [lake.storage]".to_owned(),
        About::Silence => "check endpoint in [lake.storage], the network, and the store".to_owned(),
    }
}

/// The error and its causes, as one text.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str("; ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    text.split_once(start)?.1.split_once(end).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let place = Place::parse("s3://records/custody").unwrap();
        let source = text.to_owned().into();
        let error = object_store::Error::Generic { store: "S3", source };
        explained(&place, error.into()).to_string()
    }

    #[test]
    fn what_a_store_says_becomes_a_sentence_with_the_setting_to_check() {
        let xml = |code: &str| {
            format!("<Error><Code>{code}</Code><AWSAccessKeyId>AKIAHUSH</AWSAccessKeyId></Error>")
        };
        let cases = [
            (xml("NoSuchBucket"), "create \"records\""),
            (xml("SignatureDoesNotMatch"), "secret_access_key"),
            (xml("AccessDenied"), "let this identity list"),
            (xml("AuthorizationHeaderMalformed"), "check region"),
            (xml("RequestTimeTooSkewed"), "clock"),
            ("GET http://169.254.169.254/latest: timed out".to_owned(), "there are no credentials"),
            ("tcp connect error: Connection refused".to_owned(), "check endpoint"),
            ("invalid peer certificate: UnknownIssuer".to_owned(), "ca_file"),
        ];
        for (text, expected) in cases {
            let told = told(&text);
            assert!(told.contains(expected), "{text} → {told}");
            assert!(told.starts_with("lake s3://records/custody"), "{told}");
            assert!(!told.contains("AKIAHUSH"), "{told}");
        }
    }

    #[test]
    fn what_nobody_knows_is_told_in_the_store_s_own_words() {
        assert!(told("<Code>Strange</Code>").contains("<Code>Strange</Code>"));
    }
}
