//! Makes operators that produce far more than they read yield between batches.
//!
//! DataFusion lets its leaves yield, but a cross join hands out millions of batches for one that it
//! reads; an aggregation above it would loop through all of them without ever coming to the point
//! where a deadline or a departed asker is noticed.

use std::sync::Arc;

use datafusion::common::DataFusionError;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;

/// Operators that multiply their input.
const MULTIPLYING: [&str; 7] = [
    "CrossJoinExec",
    "HashJoinExec",
    "NestedLoopJoinExec",
    "PiecewiseMergeJoinExec",
    "RecursiveQueryExec",
    "SortMergeJoinExec",
    "UnnestExec",
];

/// The rule.
#[derive(Debug)]
pub(crate) struct Cooperate;

impl PhysicalOptimizerRule for Cooperate {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let wrap = |plan: Arc<dyn ExecutionPlan>| {
            Ok(if MULTIPLYING.contains(&plan.name()) {
                Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>)
            } else {
                Transformed::no(plan)
            })
        };
        plan.transform_up(wrap).map(|done| done.data)
    }

    fn name(&self) -> &'static str {
        "cooperate"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
