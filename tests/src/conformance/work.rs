//! Tools that take a while: at once for a client that knows no tasks, as a task for one that does.

use std::time::Duration;

use futures::future::try_join_all;
use rmcp::model::{
    CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, CreateTaskResult,
    ErrorData, JsonObject,
};
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use serde_json::Value;

use super::{Context, acts, fill, rounds};

/// A piece of work, as `fixtures/conformance.json` describes it.
#[derive(Clone)]
struct Work {
    lasts: Duration,
    inputs: Value,
    fails: Option<String>,
    text: String,
}

impl Work {
    fn read(described: &Value, arguments: &JsonObject) -> Self {
        let described = fill(described, arguments);
        let seconds = &described["seconds"];
        let seconds = seconds.as_f64().or_else(|| seconds.as_str()?.parse().ok());
        Self {
            lasts: Duration::from_secs_f64(seconds.unwrap_or(0.0)),
            inputs: described["inputs"].clone(),
            fails: described["fails"].as_str().map(str::to_owned),
            text: described["text"].as_str().unwrap_or_default().to_owned(),
        }
    }

    async fn finish(self) -> Result<CallToolResult, ErrorData> {
        tokio::time::sleep(self.lasts).await;
        match self.fails.as_deref() {
            Some("tool") => Ok(CallToolResult::error(vec![ContentBlock::text(self.text)])),
            Some(_) => Err(ErrorData::internal_error(self.text, None)),
            None => Ok(acts::say(self.text)),
        }
    }

    async fn work_at(self, task: TaskContext) -> Result<CallToolResult, TaskExit> {
        let inputs = rounds::requests(&self.inputs)?;
        try_join_all(inputs.into_iter().map(|(key, ask)| task.request_input(key, ask))).await?;
        tokio::select! {
            () = task.cancelled() => Err(TaskExit::Cancelled),
            done = self.finish() => Ok(done?),
        }
    }
}

/// Refuses a client that knows no tasks where the tool is nothing else.
pub(super) fn check(described: &Value, context: &Context) -> Result<(), ErrorData> {
    if described["task"] == "must" && !knows_tasks(context) {
        let wanted = ClientCapabilities::builder().enable_tasks().build();
        return Err(ErrorData::missing_required_client_capability(wanted));
    }
    Ok(())
}

/// Does it.
pub(super) async fn start(
    tasks: &TaskManager,
    described: &Value,
    arguments: &JsonObject,
    context: &Context,
) -> Result<CallToolResponse, ErrorData> {
    let work = Work::read(described, arguments);
    if described["task"].is_null() || !knows_tasks(context) {
        return work.finish().await.map(Into::into);
    }
    let task = tasks.spawn(TaskOptions::default(), |task| Box::pin(work.work_at(task)));
    Ok(CreateTaskResult::new(task).into())
}

fn knows_tasks(context: &Context) -> bool {
    context.client_capabilities().is_some_and(|able| able.supports_tasks())
}
