//! A statement and its parameters, before anything is planned.
//!
//! Exactly one statement, and only such as read: SELECT (with its WITH, UNION, VALUES …), EXPLAIN
//! of one, SHOW and DESCRIBE. Parameters are bound as values, never pasted into the text.

use datafusion::common::{ParamValues, ScalarValue};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SQLOptions;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::Statement as Sql;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use serde::{Deserialize, Serialize};

use crate::error::QueryError;

/// Values for `$1`, `$2` … or for `$name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Params {
    /// None.
    #[default]
    None,
    /// By position, from `$1`.
    List(Vec<serde_json::Value>),
    /// By name.
    Map(serde_json::Map<String, serde_json::Value>),
}

impl Params {
    /// Parameters by name.
    #[cfg(test)]
    pub(crate) fn named<const N: usize>(pairs: [(&str, serde_json::Value); N]) -> Self {
        Self::Map(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn values(&self) -> Result<Option<ParamValues>, QueryError> {
        match self {
            Self::None => Ok(None),
            Self::List(list) => {
                let values = list.iter().map(scalar).collect::<Result<Vec<_>, _>>()?;
                Ok(Some(values.into()))
            }
            Self::Map(map) => {
                let pair = |(name, value): (&String, _)| Ok((name.clone(), scalar(value)?));
                let values = map.iter().map(pair).collect::<Result<Vec<_>, QueryError>>()?;
                Ok(Some(values.into()))
            }
        }
    }
}

fn scalar(value: &serde_json::Value) -> Result<ScalarValue, QueryError> {
    use serde_json::Value;
    match value {
        Value::Null => Ok(ScalarValue::Null),
        Value::Bool(value) => Ok(ScalarValue::Boolean(Some(*value))),
        Value::String(text) => Ok(ScalarValue::Utf8(Some(text.clone()))),
        Value::Number(number) => number
            .as_i64()
            .map(|n| ScalarValue::Int64(Some(n)))
            .or_else(|| number.as_f64().map(|n| ScalarValue::Float64(Some(n))))
            .ok_or_else(|| QueryError::BadRequest(format!("{number} is too large a number"))),
        Value::Array(_) | Value::Object(_) => Err(QueryError::BadRequest(
            "a parameter is a string, a number, true, false or null".to_owned(),
        )),
    }
}

/// Parses `sql` and refuses whatever would do more than read.
///
/// # Errors
/// [`QueryError::Statement`] or [`QueryError::ReadOnly`].
pub(crate) fn parse(sql: &str) -> Result<Statement, QueryError> {
    let wrong = |error: datafusion::common::DataFusionError| QueryError::from(error);
    let mut parser =
        DFParserBuilder::new(sql).with_dialect(&GenericDialect {}).build().map_err(wrong)?;
    let mut statements = parser.parse_statements().map_err(wrong)?;
    let first = statements.pop_front();
    match (first, statements.is_empty()) {
        (None, _) => Err(QueryError::Statement("the statement is empty".to_owned())),
        (Some(_), false) => Err(QueryError::Statement("send one statement at a time".to_owned())),
        (Some(statement), true) => {
            refuse_writes(&statement)?;
            Ok(statement)
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not known to read is refused")]
fn refuse_writes(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Explain(explain) => refuse_writes(&explain.statement),
        Statement::Statement(sql) => match sql.as_ref() {
            Sql::Query(_)
            | Sql::ShowTables { .. }
            | Sql::ShowColumns { .. }
            | Sql::ShowFunctions { .. }
            | Sql::ExplainTable { .. } => Ok(()),
            Sql::Explain { statement, .. } => {
                refuse_writes(&Statement::Statement(statement.clone()))
            }
            other => Err(QueryError::ReadOnly(verb(&other.to_string()))),
        },
        Statement::CreateExternalTable(_) => Err(read_only("CREATE EXTERNAL TABLE")),
        Statement::CopyTo(_) => Err(read_only("COPY")),
        Statement::Reset(_) => Err(read_only("RESET")),
    }
}

fn read_only(what: &str) -> QueryError {
    QueryError::ReadOnly(what.to_owned())
}

/// The statement's first word, never its data.
fn verb(text: &str) -> String {
    text.split_whitespace().next().unwrap_or("this").to_uppercase()
}

/// The statement's plan with its parameters bound, checked once more for anything that writes.
///
/// # Errors
/// [`QueryError::Statement`] when it cannot be planned.
pub(crate) async fn plan(
    state: &SessionState,
    statement: Statement,
    params: &Params,
) -> Result<LogicalPlan, QueryError> {
    let mut plan = state.statement_to_plan(statement).await?;
    if let Some(values) = params.values()? {
        plan = plan.with_param_values(values)?;
    }
    let only_reading =
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    only_reading.verify_plan(&plan).map_err(|_| read_only("a statement that writes"))?;
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_write_are_refused_by_name() {
        for (sql, what) in [
            ("INSERT INTO events VALUES (1)", "INSERT"),
            ("DELETE FROM events", "DELETE"),
            ("UPDATE events SET seq = 1", "UPDATE"),
            ("DROP TABLE events", "DROP"),
            ("CREATE VIEW v AS SELECT 1", "CREATE"),
            ("CREATE TABLE t AS SELECT 1", "CREATE"),
            (
                "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
                "CREATE EXTERNAL TABLE",
            ),
            ("COPY (SELECT 1) TO '/tmp/x.csv'", "COPY"),
            ("COPY events TO '/tmp/x.parquet'", "COPY"),
            ("SET datafusion.execution.batch_size = 1", "SET"),
            ("RESET datafusion.execution.batch_size", "RESET"),
            ("EXPLAIN INSERT INTO events VALUES (1)", "INSERT"),
            ("EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/x.csv'", "COPY"),
            ("PREPARE p AS SELECT 1", "PREPARE"),
            ("BEGIN", "BEGIN"),
            ("TRUNCATE TABLE events", "TRUNCATE"),
        ] {
            match parse(sql) {
                Err(QueryError::ReadOnly(word)) => assert_eq!(word, what, "{sql}"),
                other => unreachable!("{sql}: {other:?}"),
            }
        }
    }

    #[test]
    fn statements_that_read_are_accepted() {
        for sql in [
            "SELECT 1",
            "WITH a AS (SELECT 1 AS x) SELECT * FROM a UNION ALL SELECT 2",
            "VALUES (1), (2)",
            "EXPLAIN SELECT * FROM events",
            "EXPLAIN ANALYZE SELECT 1",
            "SHOW TABLES",
            "DESCRIBE events",
            "SELECT 1;",
        ] {
            assert!(parse(sql).is_ok(), "{sql}: {:?}", parse(sql));
        }
    }

    #[test]
    fn two_statements_and_none_are_errors() {
        assert!(matches!(parse("SELECT 1; SELECT 2"), Err(QueryError::Statement(_))));
        assert!(matches!(parse("  -- nothing"), Err(QueryError::Statement(_))));
        assert!(matches!(
            parse("SELEC 1"),
            Err(QueryError::Statement(_) | QueryError::ReadOnly(_))
        ));
    }
}
