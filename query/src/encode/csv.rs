//! CSV as RFC 4180 has it, safe to open in a spreadsheet.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The header line.
pub(super) fn header(schema: &Schema) -> Vec<u8> {
    let mut line = Vec::new();
    for (i, field) in schema.fields().iter().enumerate() {
        separate(&mut line, i);
        quote(&mut line, field.name(), true);
    }
    line.extend_from_slice(b"\r\n");
    line
}

/// The rows of a batch.
pub(super) fn rows(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| Cells::new(column, &options));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let mut out = Vec::new();
    for row in 0..batch.num_rows() {
        for (i, cells) in columns.iter().enumerate() {
            separate(&mut out, i);
            if let Some(text) = cells.text(row)? {
                quote(&mut out, &text, cells.foreign());
            }
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(out)
}

fn separate(out: &mut Vec<u8>, column: usize) {
    if column > 0 {
        out.push(b',');
    }
}

/// Writes a cell; a text that strangers chose never begins a formula.
fn quote(out: &mut Vec<u8>, text: &str, foreign: bool) {
    let formula = foreign && text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let quoted = text.is_empty()
        || text.contains([',', '"', '\n', '\r'])
        || text.starts_with(' ')
        || text.ends_with(' ');
    if quoted {
        out.push(b'"');
    }
    if formula {
        out.push(b'\'');
    }
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    if quoted {
        out.push(b'"');
    }
}

/// The cells of one column.
enum Cells<'a> {
    Plain(ArrayFormatter<'a>, &'a ArrayRef),
    Text(ArrayFormatter<'a>, &'a ArrayRef),
    /// Lists of texts, joined by `; `.
    Texts(&'a ArrayRef),
    /// Whatever is nested deeper, as JSON.
    Nested(&'a ArrayRef),
}

impl<'a> Cells<'a> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "all other types print themselves")]
    fn new(column: &'a ArrayRef, options: &FormatOptions<'a>) -> Result<Self, ArrowError> {
        let formatter = || ArrayFormatter::try_new(column.as_ref(), options);
        Ok(match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::Text(formatter()?, column)
            }
            DataType::List(of) if *of.data_type() == DataType::Utf8 => Self::Texts(column),
            kind if kind.is_nested() => Self::Nested(column),
            _ => Self::Plain(formatter()?, column),
        })
    }

    const fn foreign(&self) -> bool {
        !matches!(self, Self::Plain(..))
    }

    fn text(&self, row: usize) -> Result<Option<String>, ArrowError> {
        let (Self::Plain(_, column)
        | Self::Text(_, column)
        | Self::Texts(column)
        | Self::Nested(column)) = self;
        if column.is_null(row) {
            return Ok(None);
        }
        match self {
            Self::Plain(formatter, _) | Self::Text(formatter, _) => {
                Ok(Some(formatter.value(row).try_to_string()?))
            }
            Self::Texts(column) => {
                let list = column.as_list::<i32>().value(row);
                let items: Vec<&str> = list.as_string::<i32>().iter().flatten().collect();
                Ok(Some(items.join("; ")))
            }
            Self::Nested(column) => nested(&column.slice(row, 1)).map(Some),
        }
    }
}

fn nested(one: &ArrayRef) -> Result<String, ArrowError> {
    let batch = RecordBatch::try_from_iter([("v", ArrayRef::clone(one))])?;
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(&batch)?;
    writer.finish()?;
    let line = String::from_utf8_lossy(&writer.into_inner()).into_owned();
    // {"v":…}\n
    Ok(line
        .trim_end()
        .strip_prefix("{\"v\":")
        .and_then(|l| l.strip_suffix('}'))
        .unwrap_or_default()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, ListBuilder, StringArray, StringBuilder};

    use super::*;

    #[test]
    fn cells_are_quoted_and_formulas_are_not_run() {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a"), Some("b")]);
        lists.append_null();
        lists.append_value([Some("=x")]);
        let batch = RecordBatch::try_from_iter([
            (
                "text",
                Arc::new(StringArray::from(vec![Some("=1+1"), None, Some("a \"b\", c")]))
                    as ArrayRef,
            ),
            ("n", Arc::new(Int64Array::from(vec![Some(-1), Some(2), None]))),
            ("list", Arc::new(lists.finish())),
        ])
        .unwrap();
        let mut csv = header(&batch.schema());
        csv.extend(rows(&batch).unwrap());
        let expected = "text,n,list\r\n'=1+1,-1,a; b\r\n,2,\r\n\"a \"\"b\"\", c\",,'=x\r\n";
        assert_eq!(String::from_utf8(csv).unwrap(), expected);
    }
}
