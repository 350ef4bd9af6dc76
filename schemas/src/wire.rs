//! Names on the wire: topics and the kinds of entries in them.

/// Canonical records and signed checkpoints.
pub const TOPIC_EVENTS: &str = "custody.events";
/// Chunks of bodies.
pub const TOPIC_BODIES: &str = "custody.bodies";
/// Control state, compacted by key.
pub const TOPIC_CONTROL: &str = "custody.control";
