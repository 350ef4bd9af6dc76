//! Functions whose result can be far larger than their arguments, held to a limit.
//!
//! DataFusion's memory pool counts what operators keep, not what one function call returns:
//! `repeat('x', 2000000000)` or `range(0, 100000000000)` would take the whole machine before the
//! pool hears of it. Such functions are wrapped: their result's size is computed from the
//! arguments first, and a call beyond [`MAX_RESULT_BYTES`] is an error.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, FieldRef, Float64Type};
use datafusion::common::DataFusionError;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature,
};

/// The largest result of one call over one batch of rows, in bytes.
const MAX_RESULT_BYTES: f64 = 64.0 * 1024.0 * 1024.0;

/// What makes a function's result grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Growth {
    /// The first argument, as often as the second says.
    Times,
    /// The first argument, as an element, as often as the second says.
    ElementTimes,
    /// The second argument is the length.
    Length,
    /// From the first (or 0) to the second, by the third (or 1).
    Steps,
    /// Each occurrence of the second in the first becomes the third.
    Replace,
}

/// Functions that grow, by name.
const GROWING: [(&str, Growth); 9] = [
    ("repeat", Growth::Times),
    ("array_repeat", Growth::ElementTimes),
    ("lpad", Growth::Length),
    ("rpad", Growth::Length),
    ("array_resize", Growth::Length),
    ("range", Growth::Steps),
    ("generate_series", Growth::Steps),
    ("gen_series", Growth::Steps),
    ("replace", Growth::Replace),
];

/// The function, wrapped if its result can grow.
pub(crate) fn guard(function: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    match GROWING.iter().find(|(name, _)| *name == function.name()) {
        Some(&(_, growth)) => Arc::new(ScalarUDF::new_from_impl(Bounded { function, growth })),
        None => function,
    }
}

#[derive(Debug)]
struct Bounded {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl PartialEq for Bounded {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function && self.growth == other.growth
    }
}

impl Eq for Bounded {}

impl Hash for Bounded {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
        self.growth.hash(state);
    }
}

impl Bounded {
    /// About how many bytes the result will have.
    fn estimate(&self, args: &ScalarFunctionArgs) -> Result<f64, DataFusionError> {
        let values = args.args.iter().map(|arg| arg.to_array(args.number_rows));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        let number = |i: usize| values.get(i).and_then(|v| largest(v)).unwrap_or(0.0);
        let bytes = |i: usize| values.get(i).map_or(0.0, |v| as_f64(v.get_array_memory_size()));
        let rows = as_f64(args.number_rows.max(1));
        Ok(match self.growth {
            Growth::Times => bytes(0) * number(1),
            Growth::ElementTimes => (bytes(0) + 8.0) * number(1),
            Growth::Length => rows * number(1) * 4.0,
            Growth::Steps => rows * 8.0 * steps(&values),
            Growth::Replace => bytes(0) * (1.0 + bytes(2) / rows),
        })
    }
}

fn as_f64(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}

fn numbers(values: &dyn Array) -> Option<ArrayRef> {
    cast(values, &DataType::Float64).ok()
}

fn largest(values: &dyn Array) -> Option<f64> {
    max(numbers(values)?.as_primitive::<Float64Type>())
}

fn smallest(values: &dyn Array) -> Option<f64> {
    min(numbers(values)?.as_primitive::<Float64Type>())
}

/// The most steps from (0 or the first) to (the first or the second) by (1 or the third).
fn steps(values: &[ArrayRef]) -> f64 {
    let span = |from: Option<&ArrayRef>, to: &ArrayRef| {
        let low = from.map_or(Some(0.0), |v| smallest(v)).unwrap_or(0.0);
        let high = from.map_or(Some(0.0), |v| largest(v)).unwrap_or(0.0);
        let up = largest(to).unwrap_or(0.0) - low;
        let down = high - smallest(to).unwrap_or(0.0);
        up.max(down).max(0.0)
    };
    match values {
        [] => 0.0,
        [to] => span(None, to),
        [from, to] => span(Some(from), to),
        [from, to, step, ..] => span(Some(from), to) / smallest_step(step),
    }
}

/// The smallest step away from nought; 1 where the step is no plain number (an interval).
fn smallest_step(values: &dyn Array) -> f64 {
    let Some(steps) = numbers(values) else { return 1.0 };
    let steps = steps.as_primitive::<Float64Type>();
    let sizes = steps.iter().flatten().map(f64::abs).filter(|step| *step > 0.0);
    sizes.fold(f64::INFINITY, f64::min).min(1e18)
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType, DataFusionError> {
        self.function.return_type(arg_types)
    }

    fn return_field_from_args(
        &self,
        args: ReturnFieldArgs<'_>,
    ) -> Result<FieldRef, DataFusionError> {
        self.function.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>, DataFusionError> {
        self.function.coerce_types(arg_types)
    }

    fn simplify(
        &self,
        args: Vec<Expr>,
        info: &SimplifyContext,
    ) -> Result<ExprSimplifyResult, DataFusionError> {
        self.function.simplify(args, info)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.function.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        if self.estimate(&args)? > MAX_RESULT_BYTES {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "one call of {} would return more than {} MiB",
                self.name(),
                MAX_RESULT_BYTES / (1024.0 * 1024.0)
            )));
        }
        self.function.invoke_with_args(args)
    }
}
