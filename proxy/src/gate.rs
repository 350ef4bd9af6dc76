//! Which `Host` and `Origin` a request may carry, against DNS rebinding.
//!
//! A page in a browser can make a name of its own point at this proxy; then `Host` holds that name.
//! So a name must be a loopback name or configured. An address cannot be rebound and is let in.

use std::net::{IpAddr, SocketAddr};

use http::uri::Authority;
use http::{HeaderMap, Uri, header};

/// The names under which the proxy is reached.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    loopback: bool,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Gate {
    /// A gate for a proxy that listens on `listen`.
    pub(crate) fn new(listen: SocketAddr, hosts: &[String], origins: &[String]) -> Self {
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self { loopback: listen.ip().is_loopback(), hosts: lower(hosts), origins: lower(origins) }
    }

    /// Whether a request with this target and these headers may come in.
    pub(crate) fn admits(&self, target: &Uri, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let host = host.to_str().is_ok_and(|host| self.admits_host(host));
        let target = target.authority().is_none_or(|name| self.admits_host(name.as_str()));
        host && target && self.admits_origins(headers)
    }

    fn admits_host(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let whole = host.to_ascii_lowercase();
        let name = authority.host().to_ascii_lowercase();
        self.is_own(&name) || self.hosts.iter().any(|known| *known == whole || *known == name)
    }

    /// A loopback name, or an address.
    fn is_own(&self, name: &str) -> bool {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => !self.loopback || address.is_loopback(),
            Err(_) => name == "localhost",
        }
    }

    fn admits_origins(&self, headers: &HeaderMap) -> bool {
        headers.get_all(header::ORIGIN).iter().all(|origin| {
            let Ok(origin) = origin.to_str() else { return false };
            let origin = origin.to_ascii_lowercase();
            self.origins.contains(&origin) || self.is_loopback_origin(&origin)
        })
    }

    fn is_loopback_origin(&self, origin: &str) -> bool {
        let Ok(origin) = origin.parse::<Uri>() else { return false };
        let web = matches!(origin.scheme_str(), Some("http" | "https"));
        web && self.loopback && origin.host().is_some_and(|host| self.is_own(host))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn admits(listen: [u8; 4], host: &'static str, origin: Option<&'static str>) -> bool {
        let hosts = ["proxy.example".to_owned(), "other:8443".to_owned()];
        let gate = Gate::new((listen, 7400).into(), &hosts, &["https://app.example".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        }
        gate.admits(&Uri::from_static("/servers/a/mcp"), &headers)
    }

    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];

    #[test]
    fn loopback_and_configured_names_come_in() {
        for host in
            ["localhost:7400", "127.0.0.1:7400", "[::1]:7400", "Proxy.Example:1", "other:8443"]
        {
            assert!(admits(LOOPBACK, host, None), "{host}");
        }
        assert!(admits([0, 0, 0, 0], "10.1.2.3:7400", None));
        assert!(admits(LOOPBACK, "localhost", Some("http://localhost:3000")));
        assert!(admits(LOOPBACK, "localhost", Some("https://app.example")));
    }

    #[test]
    fn names_that_somebody_else_could_own_stay_out() {
        for host in ["evil.example", "localhost.evil.example", "other:1", "10.1.2.3", "", "a b"] {
            assert!(!admits(LOOPBACK, host, None), "{host}");
        }
        for origin in ["null", "https://evil.example", "http://localhost.evil.example", "file://"] {
            assert!(!admits(LOOPBACK, "localhost", Some(origin)), "{origin}");
        }
    }
}
