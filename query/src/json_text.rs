//! `json_text(object, key)`: what stands under a key of a JSON object, a string as its text and
//! anything else as JSON; NULL where there is no such key or no object.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray};
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::common::utils::take_function_args;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use serde_json::{Map, Value};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct JsonText {
    signature: Signature,
}

impl JsonText {
    pub(crate) fn new() -> Self {
        let texts = vec![DataType::Utf8, DataType::Utf8];
        Self { signature: Signature::exact(texts, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for JsonText {
    fn name(&self) -> &'static str {
        "json_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _args: &[DataType]) -> Result<DataType, DataFusionError> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let [objects, keys] = take_function_args(self.name(), args.args)?;
        let objects = objects.into_array(args.number_rows)?;
        let keys = keys.into_array(args.number_rows)?;
        let texts = |array: &ArrayRef| -> Result<StringArray, DataFusionError> {
            array.as_string_opt::<i32>().cloned().ok_or_else(|| {
                DataFusionError::Internal("json_text was planned over no text".to_owned())
            })
        };
        let (objects, keys) = (texts(&objects)?, texts(&keys)?);
        let rows = objects.iter().zip(keys.iter());
        let found: StringArray = rows.map(|(object, key)| under(object?, key?)).collect();
        debug_assert_eq!(found.len(), args.number_rows);
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

fn under(object: &str, key: &str) -> Option<String> {
    let mut object: Map<String, Value> = serde_json::from_str(object).ok()?;
    match object.remove(key)? {
        Value::Null => None,
        Value::String(text) => Some(text),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Some(other.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_is_its_text_and_what_is_not_there_is_null() {
        let object = r#"{"sql": "SELECT 'a'", "params": {"p": 1}, "none": null}"#;
        assert_eq!(under(object, "sql").as_deref(), Some("SELECT 'a'"));
        assert_eq!(under(object, "params").as_deref(), Some(r#"{"p":1}"#));
        let nothing = (under(object, "none"), under(object, "x"), under("[]", "x"));
        assert_eq!(nothing, (None, None, None));
    }
}
