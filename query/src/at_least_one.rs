//! `at_least_one(list)`: the list, or a list of one NULL where it is NULL or empty.
//!
//! Unnesting drops rows without elements; the view of accesses must not, because a call without a
//! recognised data subject is an access all the same.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, UInt64Builder};
use arrow::buffer::OffsetBuffer;
use arrow::compute::take;
use arrow::datatypes::DataType;
use datafusion::common::DataFusionError;
use datafusion::common::utils::take_function_args;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct AtLeastOne {
    signature: Signature,
}

impl AtLeastOne {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for AtLeastOne {
    fn name(&self) -> &'static str {
        "at_least_one"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType, DataFusionError> {
        match args {
            [list @ DataType::List(_)] => Ok(list.clone()),
            _ => Err(DataFusionError::Plan("at_least_one takes a list".to_owned())),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let [list] = take_function_args(self.name(), args.args)?;
        let lists = list.into_array(args.number_rows)?;
        let lists = lists.as_list_opt::<i32>().ok_or_else(|| {
            DataFusionError::Internal("at_least_one was planned over no list".to_owned())
        })?;
        Ok(ColumnarValue::Array(fill(lists)?))
    }
}

fn fill(lists: &ListArray) -> Result<ArrayRef, DataFusionError> {
    let mut indices = UInt64Builder::with_capacity(lists.values().len() + lists.len());
    let mut lengths = Vec::with_capacity(lists.len());
    for (row, window) in lists.value_offsets().windows(2).enumerate() {
        let (from, to) = (window[0], window[1]);
        if lists.is_null(row) || from == to {
            indices.append_null();
            lengths.push(1);
        } else {
            (from..to).for_each(|i| indices.append_option(u64::try_from(i).ok()));
            lengths.push(usize::try_from(to - from).unwrap_or(0));
        }
    }
    let values = take(lists.values(), &indices.finish(), None)?;
    let DataType::List(field) = lists.data_type() else {
        return Err(DataFusionError::Internal("a list is of no list type".to_owned()));
    };
    let field = Arc::clone(field);
    Ok(Arc::new(ListArray::try_new(field, OffsetBuffer::from_lengths(lengths), values, None)?))
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn null_and_empty_lists_become_one_null_and_others_stay() {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>([
            Some(vec![Some(1), Some(2)]),
            None,
            Some(vec![]),
            Some(vec![Some(3)]),
        ]);
        let filled = fill(&lists.slice(1, 3)).unwrap();
        let filled = filled.as_list::<i32>();
        assert_eq!(filled.value_offsets(), [0, 1, 2, 3]);
        let values: &Int64Array = filled.values().as_primitive();
        assert_eq!(values.iter().collect::<Vec<_>>(), [None, None, Some(3)]);
    }
}
