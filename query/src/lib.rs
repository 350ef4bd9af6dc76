//! From the lake to people and tools: questions in SQL, answered exactly and recorded.
//!
//! # Life of a question
//! It comes in through [`http`] with a token that says who asks ([`access`]). The
//! [`engine`] records it, pins one version of each table together with the rows that are only in
//! the journal yet, and plans it over the tables and [`views`]. Rows leave through
//! [`encode`] as they are computed, with a [`completeness`] that says what they hold and what
//! they cannot show. [`reports`] are questions that somebody has already put into SQL.

pub mod access;
mod answer;
mod at_least_one;
mod audit;
mod bounded;
mod catalog;
pub mod completeness;
mod cooperate;
mod cut;
mod describe;
pub mod encode;
pub mod engine;
mod error;
mod evidence;
mod files;
pub mod http;
mod json_text;
mod ledger;
mod metrics;
mod pin;
mod ranges;
mod refused;
pub mod reports;
mod session;
mod size;
mod slice;
mod sources;
mod start;
mod statement;
mod stored;
mod table;
mod tail;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod views;
mod web;

pub use answer::Answer;
pub use engine::{Engine, EngineOptions, OpenError, Question};
pub use error::QueryError;
pub use metrics::Page;
pub use start::Source;
pub use statement::Params;
