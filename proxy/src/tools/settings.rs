//! What the configuration says of a server's tools: which may be used, and whether their definitions
//! are held to those that somebody has approved.

/// Whether a tool's definition may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// Changes are recorded, nothing is pinned.
    Off,
    /// Changes are recorded and shown as such until they are approved.
    #[default]
    Observe,
    /// A tool that has changed is hidden and refused until it is approved.
    Enforce,
}

/// A name, or several: `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether it stands for `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

/// The settings for the tools of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolSettings {
    /// Only these, if any are given.
    pub allow: Vec<Pattern>,
    /// Never these.
    pub deny: Vec<Pattern>,
    /// Whether definitions may change.
    pub pin: Pin,
}

impl ToolSettings {
    /// Whether a tool of this name may be used.
    #[must_use]
    pub fn allow(&self, tool: &str) -> bool {
        let is_in = |list: &[Pattern]| list.iter().any(|pattern| pattern.matches(tool));
        (self.allow.is_empty() || is_in(&self.allow)) && !is_in(&self.deny)
    }

    /// Whether a list may have to be shown without some of its tools.
    #[must_use]
    pub(crate) fn may_hide(&self) -> bool {
        self.pin == Pin::Enforce || !self.allow.is_empty() || !self.deny.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, matches) in [
            ("read", "read", true),
            ("read", "reader", false),
            ("read*", "read_all", true),
            ("*", "", true),
            ("*_all", "read_all", true),
            ("r*d*l", "read_all", true),
            ("r*d*x", "read_all", false),
            ("a*a", "a", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn denied_wins_over_allowed() {
        let list = |names: &[&str]| names.iter().copied().map(Pattern::new).collect();
        let settings =
            ToolSettings { allow: list(&["get_*"]), deny: list(&["*_all"]), pin: Pin::Off };
        let allowed = ["get_x", "get_all", "set_x"].map(|tool| settings.allow(tool));
        assert_eq!(allowed, [true, false, false]);
        assert!(settings.may_hide() && ToolSettings::default().allow("x"));
    }
}
