//! What a process says of itself beside what its parts count.

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// Shows the build, and when it was started.
pub fn process(page: &mut Registry) {
    let to = page.sub_registry_with_prefix("custody");
    let version: [(Cow<'static, str>, Cow<'static, str>); 1] =
        [("version".into(), env!("CARGO_PKG_VERSION").into())];
    to.register("build", "The build that runs", Info::new(version));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let started = ConstGauge::new(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    let help = "When the process started, since 1970";
    to.register_with_unit("started_at", help, Unit::Seconds, started);
}
