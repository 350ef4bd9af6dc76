//! The lake that the configuration names.

use custody_lake::{Lake, LakeOptions};

use crate::config::Config;

/// Opens it, and makes its tables where they are not there.
pub async fn open(config: &Config) -> anyhow::Result<Lake> {
    let options = LakeOptions {
        storage: config.lake.storage.0.clone().into_iter().collect(),
        ..LakeOptions::new(&config.deployment.name)
    };
    Ok(Lake::open(&config.lake.url, &options).await?)
}
