//! Rows to record batches: builders that copy borrowed values into Arrow columns.
//!
//! A row is written from left to right, each value with its column's name, so that the list in
//! [`columns`] stays the only place that knows the order; a debug build checks
//! every name. Used by ingest for files and by queries for what is only in the journal yet.

use std::fmt::{Display, Write};
use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Int64Builder, ListArray,
    ListBuilder, RecordBatch, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use custody_schemas::event::Subject;

use crate::columns::{self, Column, Type, element, subject_fields, utc};

/// Rows of one table under construction.
#[derive(Debug)]
pub struct Rows {
    columns: &'static [Column],
    schema: SchemaRef,
    values: Vec<Values>,
    rows: usize,
    bytes: usize,
}

impl Rows {
    /// Rows for `events`.
    #[must_use]
    pub fn events() -> Self {
        Self::new(columns::EVENTS, columns::events_schema())
    }

    /// Rows for `bodies`.
    #[must_use]
    pub fn bodies() -> Self {
        Self::new(columns::BODIES, columns::bodies_schema())
    }

    fn new(columns: &'static [Column], schema: SchemaRef) -> Self {
        let values = columns.iter().map(|c| Values::new(c.kind)).collect();
        Self { columns, schema, values, rows: 0, bytes: 0 }
    }

    /// The same, empty, with room for so many rows whose entries have so many bytes together.
    #[must_use]
    pub fn with_room(mut self, rows: usize, bytes: usize) -> Self {
        for (column, values) in self.columns.iter().zip(&mut self.values) {
            match (column.name, &mut *values) {
                ("record", Values::Text(_)) => {
                    *values = Values::Text(StringBuilder::with_capacity(rows, bytes));
                }
                ("bytes", Values::Bytes(_)) => {
                    *values = Values::Bytes(BinaryBuilder::with_capacity(rows, bytes));
                }
                _ => {}
            }
        }
        self
    }

    /// How many rows there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// About how many bytes of memory the texts and bytes in it take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the rows out as a batch with the table's whole schema.
    ///
    /// # Errors
    /// When a row left a column out, which is a defect.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let arrays = self.values.iter_mut().map(Values::finish).collect::<Result<Vec<_>, _>>()?;
        (self.rows, self.bytes) = (0, 0);
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }

    /// Begins a row.
    pub(crate) fn row(&mut self) -> Row<'_> {
        self.rows += 1;
        Row { rows: self, at: 0 }
    }
}

/// One row being written, from left to right.
pub(crate) struct Row<'a> {
    rows: &'a mut Rows,
    at: usize,
}

impl Row<'_> {
    fn next(&mut self, name: &str) -> Option<&mut Values> {
        let at = self.at;
        self.at += 1;
        debug_assert_eq!(self.rows.columns.get(at).map(|c| c.name), Some(name));
        self.rows.values.get_mut(at)
    }

    pub(crate) fn date(&mut self, name: &str, day: i32) {
        if let Some(Values::Date(builder)) = self.next(name) {
            builder.append_value(day);
        }
    }

    pub(crate) fn text(&mut self, name: &str, text: Option<&str>) {
        self.rows.bytes += text.map_or(0, str::len);
        if let Some(Values::Text(builder)) = self.next(name) {
            builder.append_option(text);
        }
    }

    /// The printed form of a value, written straight into the column.
    pub(crate) fn show(&mut self, name: &str, value: Option<impl Display>) {
        let Some(Values::Text(builder)) = self.next(name) else { return };
        match value {
            Some(value) if write!(builder, "{value}").is_ok() => builder.append_value(""),
            Some(_) | None => builder.append_null(),
        }
    }

    /// A number; those beyond `i64`, which no record can hold, as the largest there is.
    pub(crate) fn int(&mut self, name: &str, value: Option<u64>) {
        if let Some(Values::Int(builder)) = self.next(name) {
            builder.append_option(value.map(|v| i64::try_from(v).unwrap_or(i64::MAX)));
        }
    }

    pub(crate) fn moment(&mut self, name: &str, at: Option<custody_schemas::id::Micros>) {
        if let Some(Values::Moment(builder)) = self.next(name) {
            builder.append_option(at.map(|v| i64::try_from(v.get()).unwrap_or(i64::MAX)));
        }
    }

    pub(crate) fn flag(&mut self, name: &str, value: Option<bool>) {
        if let Some(Values::Flag(builder)) = self.next(name) {
            builder.append_option(value);
        }
    }

    pub(crate) fn bytes(&mut self, name: &str, bytes: Option<&[u8]>) {
        self.rows.bytes += bytes.map_or(0, <[u8]>::len);
        if let Some(Values::Bytes(builder)) = self.next(name) {
            builder.append_option(bytes);
        }
    }

    /// A list; NULL when it is empty.
    pub(crate) fn texts(&mut self, name: &str, items: impl IntoIterator<Item = impl AsRef<str>>) {
        let Some(Values::Texts(builder)) = self.next(name) else { return };
        append_texts(builder, items);
    }

    pub(crate) fn subjects(&mut self, name: &str, subjects: &[Subject]) {
        if let Some(Values::Subjects(builder)) = self.next(name) {
            builder.append(subjects);
        }
    }
}

fn append_texts(
    builder: &mut ListBuilder<StringBuilder>,
    items: impl IntoIterator<Item = impl AsRef<str>>,
) {
    let before = builder.values().len();
    for item in items {
        builder.values().append_value(item);
    }
    let any = builder.values().len() > before;
    builder.append(any);
}

/// The values of one column.
#[derive(Debug)]
enum Values {
    Date(Date32Builder),
    Text(StringBuilder),
    Int(Int64Builder),
    Moment(TimestampMicrosecondBuilder),
    Flag(BooleanBuilder),
    Bytes(BinaryBuilder),
    Texts(ListBuilder<StringBuilder>),
    Subjects(Box<SubjectValues>),
}

fn texts() -> ListBuilder<StringBuilder> {
    ListBuilder::new(StringBuilder::new()).with_field(element(DataType::Utf8))
}

impl Values {
    fn new(kind: Type) -> Self {
        match kind {
            Type::Date => Self::Date(Date32Builder::new()),
            Type::Text => Self::Text(StringBuilder::new()),
            Type::Int => Self::Int(Int64Builder::new()),
            Type::Moment => Self::Moment(TimestampMicrosecondBuilder::new().with_timezone(utc())),
            Type::Flag => Self::Flag(BooleanBuilder::new()),
            Type::Bytes => Self::Bytes(BinaryBuilder::new()),
            Type::Texts => Self::Texts(texts()),
            Type::Subjects => Self::Subjects(Box::new(SubjectValues::new())),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Date(builder) => ArrayBuilder::finish(builder),
            Self::Text(builder) => ArrayBuilder::finish(builder),
            Self::Int(builder) => ArrayBuilder::finish(builder),
            Self::Moment(builder) => ArrayBuilder::finish(builder),
            Self::Flag(builder) => ArrayBuilder::finish(builder),
            Self::Bytes(builder) => ArrayBuilder::finish(builder),
            Self::Texts(builder) => ArrayBuilder::finish(builder),
            Self::Subjects(builder) => Arc::new(builder.finish()?),
        })
    }
}

/// The values of a column of data subjects.
#[derive(Debug)]
struct SubjectValues {
    lengths: Vec<usize>,
    valid: Vec<bool>,
    system: StringBuilder,
    id: StringBuilder,
    direction: StringBuilder,
    categories: ListBuilder<StringBuilder>,
    records: Int64Builder,
    aliases: ListBuilder<StringBuilder>,
}

impl SubjectValues {
    fn new() -> Self {
        Self {
            lengths: Vec::new(),
            valid: Vec::new(),
            system: StringBuilder::new(),
            id: StringBuilder::new(),
            direction: StringBuilder::new(),
            categories: texts(),
            records: Int64Builder::new(),
            aliases: texts(),
        }
    }

    fn append(&mut self, subjects: &[Subject]) {
        self.lengths.push(subjects.len());
        self.valid.push(!subjects.is_empty());
        for subject in subjects {
            self.system.append_value(&subject.system);
            self.id.append_value(&subject.id);
            self.direction.append_value(subject.direction.as_str());
            append_texts(&mut self.categories, &subject.categories);
            let records = subject.records.map(|n| i64::try_from(n.get()).unwrap_or(i64::MAX));
            self.records.append_option(records);
            append_texts(&mut self.aliases, &subject.aliases);
        }
    }

    fn finish(&mut self) -> Result<ListArray, ArrowError> {
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(self.system.finish()),
            Arc::new(self.id.finish()),
            Arc::new(self.direction.finish()),
            Arc::new(self.categories.finish()),
            Arc::new(self.records.finish()),
            Arc::new(self.aliases.finish()),
        ];
        let subjects = StructArray::try_new(subject_fields(), arrays, None)?;
        let offsets = OffsetBuffer::from_lengths(self.lengths.drain(..));
        let valid = NullBuffer::from(std::mem::take(&mut self.valid));
        let field = element(DataType::Struct(subject_fields()));
        ListArray::try_new(field, offsets, Arc::new(subjects), Some(valid))
    }
}
