//! The words that every part of Custody speaks. Pure: no I/O, no clock, no randomness.
//!
//! # Life of a fact
//!
//! A part that has something to say makes an [`event::Draft`]. What passed through it, byte for
//! byte, becomes a body ([`mod@body`]) to which the draft holds a commitment. The only writer of a
//! stream gives the draft its place, and [`event::Draft::seal`] makes it a [`record::Record`]:
//! canonical bytes that are stored, hashed and shown, and a 44-byte leaf ([`seal::Leaf`]) for the
//! stream's tree ([`seal::Tree`]), whose head the writer signs ([`seal::checkpoint`]).
//! [`record::decode`] reads a record of any version, a [`decoder`] many of them; what it shows is
//! [`mod@derive`]d from it, the same way every time.

pub mod body;
mod bounds;
pub mod decoder;
pub mod derive;
pub mod edits;
pub mod event;
pub mod id;
pub mod json;
pub mod kind;
pub mod record;
pub mod seal;
pub mod tools;
pub mod wire;
pub mod words;

pub use bounds::{SUBJECTS_IN_ENDING, SUBJECTS_IN_PART, split_subjects};

#[cfg(test)]
mod tests;
