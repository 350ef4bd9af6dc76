//! What can go wrong with a question: one small enum, and one table from it to HTTP.
//!
//! Every error says what to do next. None quotes data of the lake.

use std::time::Duration;

use datafusion::common::DataFusionError;
use http::StatusCode;

/// A question that has no answer, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The request cannot be read.
    #[error("{0}")]
    BadRequest(String),
    /// The statement is not SQL that can be answered.
    #[error("{0}")]
    Statement(String),
    /// The statement would change something.
    #[error("{0} is refused: this service only reads")]
    ReadOnly(String),
    /// The statement is larger than can be answered within a bounded stack.
    #[error("the statement has more than {limit} {what}")]
    TooComplex {
        /// What there is too much of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// No token, or one that is unknown.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The token is known and does not allow this.
    #[error("the token {name:?} has no role that allows {right}")]
    Forbidden {
        /// Name of the token.
        name: String,
        /// What was asked for.
        right: &'static str,
    },
    /// As many questions as allowed are being answered.
    #[error("{limit} questions are being answered already")]
    Busy {
        /// How many at a time.
        limit: usize,
    },
    /// The answer has more rows than allowed.
    #[error("the answer has more than {limit} rows")]
    TooManyRows {
        /// How many are allowed.
        limit: u64,
    },
    /// The question needs more memory or temporary disk than one question may use.
    #[error("the question needs more memory or temporary disk than allowed: {0}")]
    TooMuchMemory(String),
    /// The answer was not finished in time.
    #[error("the answer was not finished within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// Whoever asked has left, or the service is stopping.
    #[error("the question was cancelled")]
    Cancelled,
    /// The question could not be recorded, so it was not answered.
    #[error("the question could not be recorded, so it was not answered: {0}")]
    Audit(String),
    /// The lake or the journal cannot be read at the moment.
    #[error("the lake or the journal cannot be read: {0}")]
    Unavailable(String),
    /// The service has begun, but cannot answer yet.
    #[error("the service is starting: {0}")]
    Starting(String),
    /// The question names a cut that this node has not come to.
    #[error("this node has not come as far as the cut yet: {0}")]
    NotYet(String),
    /// A fault of this service.
    #[error("{0}")]
    Internal(String),
}

impl QueryError {
    /// The kind in one word, as programs compare it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Statement(_) | Self::TooComplex { .. } => "invalid",
            Self::ReadOnly(_) | Self::Unauthenticated(_) | Self::Forbidden { .. } => "denied",
            Self::Busy { .. } | Self::TooManyRows { .. } | Self::TooMuchMemory(_) => "too_much",
            Self::TimedOut(_) => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Audit(_) | Self::Unavailable(_) | Self::Starting(_) | Self::NotYet(_) => {
                "unavailable"
            }
            Self::Internal(_) => "internal",
        }
    }

    /// The HTTP status, for as long as no row has been sent.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Statement(_)
            | Self::TooComplex { .. }
            | Self::TooManyRows { .. }
            | Self::TooMuchMemory(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::ReadOnly(_) | Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Cancelled
            | Self::Audit(_)
            | Self::Unavailable(_)
            | Self::Starting(_)
            | Self::NotYet(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What to do next.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "See `GET /` for the form of a request.",
            Self::Statement(_) => {
                "SELECT * FROM columns lists every table, view and column with its meaning."
            }
            Self::TooComplex { .. } => {
                "Ask in several statements; IN (…) takes long lists, and so do parameters."
            }
            Self::ReadOnly(_) => "Send one SELECT, or EXPLAIN of one.",
            Self::Unauthenticated(_) => {
                "Send `Authorization: Bearer TOKEN`; `custody token create` makes one."
            }
            Self::Forbidden { .. } => "Ask whoever configures the tokens for that role.",
            Self::Busy { .. } => "Try again in a moment.",
            Self::TooManyRows { .. } => "Narrow the question, aggregate, or add LIMIT.",
            Self::TooMuchMemory(_) => {
                "Narrow the time range, name fewer columns, or aggregate before joining."
            }
            Self::TimedOut(_) => "Narrow the time range, or raise the deadline of the service.",
            Self::Cancelled => "Ask again.",
            Self::Audit(_) => "Nothing was answered; see the journal's disk, then ask again.",
            Self::Unavailable(_) => "See the lake's storage, then ask again.",
            Self::Starting(_) => "Ask again in a moment; /readyz tells when it is ready.",
            Self::NotYet(_) => "Ask again in a moment, or another node.",
            Self::Internal(_) => "This is a fault of Custody; please report it with the statement.",
        }
    }
}

impl From<DataFusionError> for QueryError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other errors are the statement's")]
    fn from(error: DataFusionError) -> Self {
        let text = first_line(&error);
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => Self::TooMuchMemory(text),
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) => {
                Self::Unavailable(text)
            }
            DataFusionError::ParquetError(_) => Self::Unavailable(text),
            DataFusionError::Internal(_) => Self::Internal(text),
            DataFusionError::ExecutionJoin(_) => Self::Internal(text),
            _ => Self::Statement(text),
        }
    }
}

/// The message without backtraces, and not longer than a screen.
fn first_line(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    let text = text.split("\n\nbacktrace:").next().unwrap_or_default();
    let mut short: String = text.chars().take(2000).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_runs_out_is_told_apart_from_wrong_sql() {
        let memory = DataFusionError::ResourcesExhausted("sort needs 9 GB".into());
        assert_eq!(QueryError::from(memory.context("while sorting")).kind(), "too_much");
        let plan = DataFusionError::Plan("no table x".into());
        assert_eq!(QueryError::from(plan).status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
}
