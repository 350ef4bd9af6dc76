//! What makes a stream tamper-evident: leaves, the tree over them, signed checkpoints, the keys.
//!
//! Formats are RFC 6962 (tree hashes, proofs), C2SP signed-note, tlog-checkpoint, tlog-tiles,
//! tlog-cosignature, tlog-policy and tlog-witness.

pub mod checkpoint;
pub mod consistency;
pub mod cosignature;
pub mod key;
pub mod keyring;
mod leaf;
pub mod log;
pub mod policy;
pub mod proof;
pub mod tile;
mod tree;
pub mod witness;

pub use leaf::{
    FLAG_DENIED, FLAG_OUTCOME_UNKNOWN, FLAG_PHI, FLAG_SUBJECTS_PARTIAL, FLAG_UNRECOGNISED, Leaf,
    flags,
};
pub use tree::{Tree, join, leaf_hash};
