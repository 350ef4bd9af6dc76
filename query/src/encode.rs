//! Answers as bytes: JSON, NDJSON, CSV, Arrow IPC stream, Parquet.
//!
//! Promises: an answer that breaks off is never taken for a whole one: JSON and NDJSON say so in
//! their last line, and in every format the connection is broken off as well. CSV is safe to open
//! in a spreadsheet: a text that would be run as a formula gets a `'` before it; the other formats
//! carry every text as it is.

mod csv;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use bytes::Bytes;
use futures::Stream;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use std::sync::Arc;

use crate::answer::Answer;
use crate::error::QueryError;

/// Under this name files carry their completeness.
const COMPLETENESS: &str = "custody.completeness";
/// Rows of a row group.
const ROW_GROUP_ROWS: usize = 64 * 1024;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object: columns, completeness, rows.
    Json,
    /// One object per row.
    Ndjson,
    /// Comma-separated values with a header line.
    Csv,
    /// Arrow IPC stream.
    Arrow,
    /// One Parquet file.
    Parquet,
}

/// Every format with its name in `?format=` and its media type.
const FORMATS: [(Format, &str, &str); 5] = [
    (Format::Json, "json", "application/json"),
    (Format::Ndjson, "ndjson", "application/x-ndjson"),
    (Format::Csv, "csv", "text/csv; charset=utf-8"),
    (Format::Arrow, "arrow", "application/vnd.apache.arrow.stream"),
    (Format::Parquet, "parquet", "application/vnd.apache.parquet"),
];

impl Format {
    /// The format that `?format=` names, or else the first in `Accept` that there is; JSON when
    /// neither says anything.
    ///
    /// # Errors
    /// [`QueryError::BadRequest`] for a format that there is not.
    pub fn choose(name: Option<&str>, accept: Option<&str>) -> Result<Self, QueryError> {
        if let Some(name) = name {
            let known = FORMATS.iter().find(|format| format.1 == name);
            return known.map(|format| format.0).ok_or_else(|| {
                let names = FORMATS.map(|format| format.1).join(", ");
                QueryError::BadRequest(format!("format {name:?} is none of {names}"))
            });
        }
        let wanted = accept.unwrap_or("*/*").split(',');
        let wanted = wanted.map(|w| w.split(';').next().unwrap_or_default().trim());
        for wanted in wanted {
            if matches!(wanted, "*/*" | "application/*" | "text/html") {
                return Ok(Self::Json);
            }
            let known = FORMATS.iter().find(|f| f.2.split(';').next() == Some(wanted));
            if let Some(format) = known {
                return Ok(format.0);
            }
        }
        Err(QueryError::BadRequest(format!(
            "none of the media types in Accept is one of {}",
            FORMATS.map(|format| format.2).join(", ")
        )))
    }

    /// The media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        FORMATS.iter().find(|format| format.0 == self).map_or("", |format| format.2)
    }

    /// The name in `?format=`, which is also the ending of a file's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        FORMATS.iter().find(|format| format.0 == self).map_or("", |format| format.1)
    }
}

/// The answer as a stream of bytes; `about` is put into a JSON answer beside its rows.
pub fn encode(
    answer: Answer,
    format: Format,
    about: serde_json::Map<String, serde_json::Value>,
) -> impl Stream<Item = Result<Bytes, QueryError>> + Send {
    let state = Stage::Begin { answer: Box::new(answer), format, about };
    futures::stream::unfold(state, |state| async { state.step().await })
}

enum Stage {
    Begin { answer: Box<Answer>, format: Format, about: serde_json::Map<String, serde_json::Value> },
    Rows { answer: Box<Answer>, encoder: Box<Encoder> },
    Failed(QueryError),
    Over,
}

type Step = Option<(Result<Bytes, QueryError>, Stage)>;

impl Stage {
    async fn step(self) -> Step {
        match self {
            Self::Begin { answer, format, about } => match Encoder::begin(&answer, format, about) {
                Ok((encoder, bytes)) => {
                    Some((Ok(bytes), Self::Rows { answer, encoder: Box::new(encoder) }))
                }
                Err(error) => Some((Err(error), Self::Over)),
            },
            Self::Rows { answer, encoder } => Some(rows(answer, *encoder).await),
            Self::Failed(error) => {
                // Lets the last line go out before the connection is broken off.
                for _ in 0..3 {
                    tokio::task::yield_now().await;
                }
                Some((Err(error), Self::Over))
            }
            Self::Over => None,
        }
    }
}

async fn rows(mut answer: Box<Answer>, mut encoder: Encoder) -> (Result<Bytes, QueryError>, Stage) {
    let failed = |encoder: Encoder, error: QueryError| match encoder.fail(&error) {
        Some(bytes) => (Ok(bytes), Stage::Failed(error)),
        None => (Err(error), Stage::Over),
    };
    loop {
        match answer.next().await {
            Some(Ok(batch)) => match encoder.batch(&batch) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    return (Ok(bytes), Stage::Rows { answer, encoder: Box::new(encoder) });
                }
                Err(error) => return failed(encoder, error),
            },
            Some(Err(error)) => return failed(encoder, error),
            None => return (encoder.end(), Stage::Over),
        }
    }
}

struct Encoder {
    writer: Writer,
    rows: u64,
}

enum Writer {
    Json,
    Ndjson,
    Csv,
    Arrow(Box<StreamWriter<Vec<u8>>>),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> Self {
        Self::Internal(format!("the answer cannot be encoded: {error}"))
    }
}

impl From<ParquetError> for QueryError {
    fn from(error: ParquetError) -> Self {
        Self::Internal(format!("the answer cannot be encoded: {error}"))
    }
}

impl Encoder {
    fn begin(
        answer: &Answer,
        format: Format,
        about: serde_json::Map<String, serde_json::Value>,
    ) -> Result<(Self, Bytes), QueryError> {
        let completeness = serde_json::to_value(&answer.completeness).unwrap_or_default();
        let (writer, bytes) = match format {
            Format::Json => (Writer::Json, head(answer, completeness, about)),
            Format::Ndjson => (Writer::Ndjson, Vec::new()),
            Format::Csv => (Writer::Csv, csv::header(&answer.schema)),
            Format::Arrow => {
                let schema = with_completeness(&answer.schema, &completeness);
                let mut writer = StreamWriter::try_new(Vec::new(), &schema)?;
                let bytes = std::mem::take(writer.get_mut());
                (Writer::Arrow(Box::new(writer)), bytes)
            }
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_key_value_metadata(Some(vec![KeyValue::new(
                        COMPLETENESS.to_owned(),
                        completeness.to_string(),
                    )]));
                let schema = Arc::clone(&answer.schema);
                let writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties.build()))?;
                (Writer::Parquet(Box::new(writer)), Vec::new())
            }
        };
        Ok((Self { writer, rows: 0 }, bytes.into()))
    }

    fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        let first = self.rows == 0;
        self.rows += batch.num_rows() as u64;
        let bytes = match &mut self.writer {
            Writer::Json => {
                let lines = lines(batch)?;
                let separated = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
                let mut bytes = if first { Vec::new() } else { b",\n".to_vec() };
                bytes.extend(separated.collect::<Vec<_>>().join(&b",\n"[..]));
                bytes
            }
            Writer::Ndjson => lines(batch)?,
            Writer::Csv => csv::rows(batch)?,
            Writer::Arrow(writer) => {
                writer.write(batch)?;
                std::mem::take(writer.get_mut())
            }
            Writer::Parquet(writer) => {
                writer.write(batch)?;
                if writer.in_progress_rows() >= ROW_GROUP_ROWS {
                    writer.flush()?;
                }
                std::mem::take(writer.inner_mut())
            }
        };
        Ok(bytes.into())
    }

    fn end(self) -> Result<Bytes, QueryError> {
        let bytes = match self.writer {
            Writer::Json => format!("],\"complete\":true,\"row_count\":{}}}\n", self.rows).into(),
            Writer::Ndjson | Writer::Csv => Vec::new(),
            Writer::Arrow(mut writer) => {
                writer.finish()?;
                std::mem::take(writer.get_mut())
            }
            Writer::Parquet(mut writer) => {
                writer.finish()?;
                std::mem::take(writer.inner_mut())
            }
        };
        Ok(bytes.into())
    }

    /// A last line that says what went wrong, where the format has a place for it.
    fn fail(self, error: &QueryError) -> Option<Bytes> {
        let error = error_object(error);
        match self.writer {
            Writer::Json => Some(format!("],\"complete\":false,\"error\":{error}}}\n").into()),
            Writer::Ndjson => Some(format!("{{\"error\":{error}}}\n").into()),
            Writer::Csv | Writer::Arrow(_) | Writer::Parquet(_) => None,
        }
    }
}

/// An error as programs read it.
#[must_use]
pub fn error_object(error: &QueryError) -> serde_json::Value {
    serde_json::json!({
        "kind": error.kind(),
        "message": error.to_string(),
        "hint": error.hint(),
    })
}

fn head(
    answer: &Answer,
    completeness: serde_json::Value,
    mut about: serde_json::Map<String, serde_json::Value>,
) -> Vec<u8> {
    let columns = answer.schema.fields().iter().map(
        |field| serde_json::json!({ "name": field.name(), "type": field.data_type().to_string() }),
    );
    about.insert("query".to_owned(), answer.call.to_string().into());
    about.insert("columns".to_owned(), columns.collect());
    about.insert("completeness".to_owned(), completeness);
    about.insert("completeness_line".to_owned(), answer.completeness.line().into());
    let mut head = serde_json::Value::Object(about).to_string().into_bytes();
    head.pop();
    head.extend_from_slice(b",\"rows\":[\n");
    head
}

fn lines(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

fn with_completeness(schema: &SchemaRef, completeness: &serde_json::Value) -> Schema {
    let mut metadata = schema.metadata().clone();
    metadata.insert(COMPLETENESS.to_owned(), completeness.to_string());
    schema.as_ref().clone().with_metadata(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_asked_for_and_json_by_default() {
        let choose = |name, accept| Format::choose(name, accept).ok();
        assert_eq!(choose(None, None), Some(Format::Json));
        assert_eq!(choose(None, Some("text/csv, */*;q=0.1")), Some(Format::Csv));
        assert_eq!(choose(None, Some("image/png, application/x-ndjson")), Some(Format::Ndjson));
        assert_eq!(choose(Some("parquet"), Some("text/csv")), Some(Format::Parquet));
        assert_eq!(choose(None, Some("text/html,application/xhtml+xml")), Some(Format::Json));
        assert_eq!(choose(Some("xlsx"), None), None);
        assert_eq!(choose(None, Some("image/png")), None);
    }
}
