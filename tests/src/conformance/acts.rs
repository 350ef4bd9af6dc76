//! Tools that do something before they answer: they log, report progress, tell subscribers, ask
//! the client.

use std::time::Duration;

use rmcp::model::{
    CallToolResult, ClientCapabilities, ContentBlock, ErrorData, LoggingLevel,
    LoggingMessageNotificationParam, ProgressNotificationParam, ServerRequest,
};
use rmcp::service::ServiceError;
use serde_json::{Value, json};

use super::{Context, Server, typed};

/// Between two notifications, so that a client can see that they come one by one.
const PAUSE: Duration = Duration::from_millis(50);

/// A text as an answer.
pub(super) fn say(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text.into())])
}

fn gone(error: &ServiceError) -> ErrorData {
    ErrorData::internal_error(format!("the client could not be reached: {error}"), None)
}

/// Sends the client a request and answers with what it says.
pub(super) async fn ask(context: &Context, request: Value) -> Result<CallToolResult, ErrorData> {
    let request: ServerRequest = typed(request)?;
    match context.peer.send_request(request).await {
        Ok(answer) => {
            let answer = serde_json::to_value(&answer).unwrap_or_default();
            let text = answer["content"]["text"].as_str().map(str::to_owned);
            Ok(say(text.map_or_else(|| answer.to_string(), |text| format!("LLM response: {text}"))))
        }
        Err(error) => {
            let text = format!("the client did not answer: {error}");
            Ok(CallToolResult::error(vec![ContentBlock::text(text)]))
        }
    }
}

/// Everything that is no mere answer.
pub(super) async fn act(
    server: &Server,
    tool: &str,
    context: &Context,
) -> Result<CallToolResult, ErrorData> {
    match tool {
        "test_tool_with_logging" => {
            for text in ["Tool execution started", "Tool processing data"] {
                log(context, LoggingLevel::Info, text).await?;
                tokio::time::sleep(PAUSE).await;
            }
            log(context, LoggingLevel::Info, "Tool execution completed").await?;
        }
        "test_logging_tool" => {
            if let Some(level) = context.meta.log_level() {
                log(context, level, "as it was asked for").await?;
            }
        }
        "test_tool_with_progress" => progress(context).await?,
        "test_reconnection" => tokio::time::sleep(2 * PAUSE).await,
        "test_trigger_tool_change" | "test_trigger_prompt_change" => changed(server, tool).await,
        "test_missing_capability" => {
            let able = context.meta.client_capabilities().unwrap_or_default();
            if able.sampling.is_none() {
                let wanted = ClientCapabilities::builder().enable_sampling().build();
                return Err(ErrorData::missing_required_client_capability(wanted));
            }
        }
        "json_schema_2020_12_tool" => {}
        _ => return Err(ErrorData::invalid_params(format!("no tool {tool}"), None)),
    }
    Ok(say("Done."))
}

async fn log(context: &Context, level: LoggingLevel, text: &str) -> Result<(), ErrorData> {
    let message = LoggingMessageNotificationParam::new(level, json!(text));
    context.peer.notify_logging_message(message).await.map_err(|error| gone(&error))
}

async fn progress(context: &Context) -> Result<(), ErrorData> {
    for done in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let progress = ProgressNotificationParam::new(token, done).with_total(100.0);
            context.peer.notify_progress(progress).await.map_err(|error| gone(&error))?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Tells subscribers; those who have left are forgotten.
async fn changed(server: &Server, tool: &str) {
    let mut subscribers = server.subscribers.lock().await;
    let mut there = Vec::with_capacity(subscribers.len());
    for subscriber in subscribers.drain(..) {
        let told = if tool == "test_trigger_tool_change" {
            subscriber.notify_tool_list_changed().await
        } else {
            subscriber.notify_prompt_list_changed().await
        };
        if told.is_ok() {
            there.push(subscriber);
        }
    }
    *subscribers = there;
}
