//! Reading a process's metrics page.

use anyhow::{Context, bail};
use http::Method;

use crate::http::send;

/// The sum of a metric's samples over all labels, at the listener `base`.
///
/// # Errors
/// When the page has no such metric, or there is no page.
pub async fn sum(base: &str, name: &str) -> anyhow::Result<f64> {
    let page = send(Method::GET, &format!("{base}/metrics"), &[], "").await?;
    if !page.status.is_success() {
        bail!("{base}/metrics: {}", page.status);
    }
    sum_of(&page.text(), name).with_context(|| format!("no {name} at {base}"))
}

/// The sum of a metric's samples on a page of OpenMetrics text.
fn sum_of(page: &str, name: &str) -> Option<f64> {
    let samples = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        // Labels of ours hold no spaces.
        rest.split(' ').nth(1)?.parse::<f64>().ok()
    });
    samples.reduce(|sum, sample| sum + sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_added_and_those_of_a_longer_name_are_not() {
        let page = "# TYPE a gauge\na{p=\"0\"} 1.5\na{p=\"1\"} 2\na_total 7\na 1 1700000000\n";
        assert_eq!(sum_of(page, "a"), Some(4.5));
        assert_eq!(sum_of(page, "a_total"), Some(7.0));
        assert_eq!(sum_of(page, "b"), None);
    }
}
