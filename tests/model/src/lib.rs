//! The commit protocol as a model, apart from the code that follows it (`lake/src/commit.rs`), so
//! that every interleaving of its steps can be tried in seconds. Nothing uses this crate; its tests
//! are what it is for.

#[cfg(test)]
mod commit;
