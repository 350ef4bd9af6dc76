//! The lake that the configuration names.

use custody_lake::LakeOptions;

use crate::config::Config;

/// Opens it, and makes its tables where they are not there.
#[cfg(feature = "ingest")]
pub async fn open(config: &Config) -> anyhow::Result<custody_lake::Lake> {
    Ok(custody_lake::Lake::open(&config.lake.url, &options(config)).await?)
}

/// How it is opened.
pub fn options(config: &Config) -> LakeOptions {
    LakeOptions {
        storage: config.lake.storage.0.clone().into_iter().collect(),
        ..LakeOptions::new(&config.deployment.name)
    }
}
