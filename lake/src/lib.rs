//! The second medium: events and bodies as Parquet files in two Delta tables. The only crate that
//! speaks object storage, Parquet and Delta.
//!
//! # Life of a row
//! 1. A journal entry becomes a row of [`batch::Rows`]; [`rows`] knows what stands in which of the
//!    [`columns`]. Queries do the same for what is only in the journal yet.
//! 2. Batches are encoded into a [`files::FileSet`], one file per day, and stored durably, in a
//!    folder ([`store`]) or in a bucket. They are part of nothing yet.
//! 3. [`Table::commit`] adds the files and moves the partition's position in one step, or finds
//!    that this has happened already, or that somebody else owns the partition ([`commit`]).
//! 4. A reader pins a [`Snapshot`]: its files, and how far each partition is stored at exactly
//!    that version; what lies beyond is in the journal.

pub mod ask;
pub mod batch;
pub mod columns;
pub mod commit;
pub mod evidence;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
pub mod files;
pub mod identities;
pub mod last;
pub mod lawful;
pub mod maintain;
mod place;
mod probe;
mod profile;
mod remote;
pub mod rows;
pub mod rows_back;
pub mod snapshot;
mod storage;
pub mod store;
pub mod tables;
pub mod tags;
pub mod tiles;
mod trouble;
pub mod verify;
pub mod witnessed;

pub use commit::{CommitError, Outcome, TxnStep, app_id, file_app_id};
pub use snapshot::{Bound, DataFile, Snapshot};
pub use storage::Storage;
pub use tables::{FORMAT, Lake, LakeError, LakeOptions, Table};

#[cfg(test)]
mod tests;
