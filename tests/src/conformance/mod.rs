//! The server that the official conformance suite wants to find: tools, prompts and resources of
//! known names and contents, in both revisions of the protocol, written with rmcp.
#![expect(deprecated, reason = "the older revision has what the newer one leaves out")]
//!
//! What it answers stands in `fixtures/conformance.json`; here is what it does: it sends logs and
//! progress and asks the client in 2025-11-25 (`acts`), lets it call in rounds in 2026-07-28
//! (`rounds`), and makes tasks (`work`). It scores full marks when the suite asks it directly, so that what the
//! suite finds behind a proxy is the proxy's doing.

mod acts;
mod rounds;
mod work;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams, CompleteResult,
    CompletionInfo, ErrorData, GetPromptRequestParams, GetPromptResponse, Implementation,
    JsonObject, ListPromptsResult, ListResourceTemplatesResult, ListResourcesResult,
    ListToolsResult, PaginatedRequestParams, ReadResourceRequestParams, ReadResourceResponse,
    ServerCapabilities, ServerConfig, SubscriptionFilter, Tool,
};
use rmcp::service::{RequestContext, RoleServer, SubscriptionContext, SubscriptionSink};
use rmcp::task_manager::TaskManager;
use rmcp::transport::StreamableHttpService;
use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::{ServerHandler, model};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

/// A PNG of one red pixel.
const IMAGE: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAAAABJRU5ErkJggg==";

/// How long a list may be kept, in milliseconds.
const TTL_MS: u64 = 60_000;

/// A running server; it ends with the value.
pub struct Fixture {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fixture {
    /// Starts one on this loopback port, 0 for one of the system's choice.
    ///
    /// # Errors
    /// When the port is taken, or `fixtures/conformance.json` is no JSON.
    pub async fn start(port: u16) -> anyhow::Result<Self> {
        let data = include_str!("../../fixtures/conformance.json");
        let data = serde_json::from_str(data).context("fixtures/conformance.json")?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let data = Arc::new(data);
        let server = Server { data, subscribers: Arc::default(), tasks: TaskManager::new() };
        let service = StreamableHttpService::new(
            move || Ok(server.clone()),
            LocalSessionManager::default().into(),
            StreamableHttpServerConfig::default(),
        );
        Ok(Self { address, task: tokio::spawn(accept(listener, service)) })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }
}

async fn accept(
    listener: TcpListener,
    service: StreamableHttpService<Server, LocalSessionManager>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let serving = auto::Builder::new(TokioExecutor::new());
            drop(serving.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// What all sessions share.
#[derive(Clone)]
struct Server {
    data: Arc<Value>,
    subscribers: Arc<Mutex<Vec<SubscriptionSink>>>,
    tasks: TaskManager,
}

type Context = RequestContext<RoleServer>;

/// Values of JSON as one of rmcp's types.
fn typed<T: DeserializeOwned>(value: Value) -> Result<T, ErrorData> {
    serde_json::from_value(value)
        .map_err(|error| ErrorData::internal_error(error.to_string(), None))
}

/// A result that says that it is one, and how long it holds.
fn result(name: &str, content: Value) -> Value {
    json!({"resultType": "complete", "ttlMs": TTL_MS, "cacheScope": "public", name: content})
}

/// The same value with `${name}` in its strings replaced.
fn fill(value: &Value, with: &Map<String, Value>) -> Value {
    match value {
        Value::String(text) => {
            let mut text = text.replace("${image}", IMAGE);
            for (name, value) in with {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text = text.replace(&format!("${{{name}}}"), &value);
            }
            Value::String(text)
        }
        Value::Array(list) => list.iter().map(|item| fill(item, with)).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(name, item)| (name.clone(), fill(item, with))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

impl Server {
    fn tools(&self) -> Result<Vec<Tool>, ErrorData> {
        let mut tools = self.data["tools"].clone();
        for tool in tools.as_array_mut().into_iter().flatten() {
            if tool["inputSchema"].is_null() {
                tool["inputSchema"] = json!({"type": "object", "properties": {}});
            }
        }
        typed(tools)
    }

    /// What is known of a resource.
    fn content(&self, uri: &str) -> Option<Value> {
        let id = uri.strip_prefix("test://template/").and_then(|rest| rest.strip_suffix("/data"));
        let (key, with) = match id {
            Some(id) => ("test://template/", json!({"id": id})),
            None => (uri, json!({})),
        };
        let content = self.data["contents"].get(key)?;
        Some(fill(content, with.as_object()?))
    }

    /// A tool that only answers.
    fn answered(&self, name: &str, with: &JsonObject) -> Option<Result<CallToolResult, ErrorData>> {
        let mut answer = fill(self.data["results"].get(name)?, with);
        answer["resultType"] = json!("complete");
        Some(typed(answer))
    }
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_resources_list_changed()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_logging()
            .enable_completions()
            .enable_tasks()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("custody-conformance", "1"))
            .with_instructions("What the conformance suite wants to find.")
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools().ok()?.into_iter().find(|tool| tool.name == name)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = self.tools()?;
        let list: ListToolsResult = typed(result("tools", json!([])))?;
        Ok(ListToolsResult { tools, ..list })
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: Context,
    ) -> Result<CallToolResponse, ErrorData> {
        let mut arguments = request.arguments.clone().unwrap_or_default();
        if let Some(answer) = self.answered(&request.name, &arguments) {
            return answer.map(Into::into);
        }
        if let Some(ask) = self.data["asks"].get(&*request.name) {
            return acts::ask(&context, fill(ask, &arguments)).await.map(Into::into);
        }
        let work = self.data["work"].get(&*request.name);
        work.map_or(Ok(()), |work| work::check(work, &context))?;
        if let Some(wanted) = self.data["wants"].get(&*request.name) {
            let (responses, state) = (request.input_responses, request.request_state);
            match rounds::next(wanted, &request.name, responses, state, &context.meta)? {
                rounds::Next::Ask(ask) => return Ok(ask.into()),
                rounds::Next::Done(text) if work.is_none() => return Ok(acts::say(text).into()),
                rounds::Next::Done(text) => drop(arguments.insert("text".to_owned(), text.into())),
            }
        }
        if let Some(work) = work {
            return work::start(&self.tasks, work, &arguments, &context).await;
        }
        acts::act(self, &request.name, &context).await.map(Into::into)
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourcesResult, ErrorData> {
        typed(result("resources", self.data["resources"].clone()))
    }

    async fn list_resource_templates(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        typed(result("resourceTemplates", self.data["templates"].clone()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: Context,
    ) -> Result<ReadResourceResponse, ErrorData> {
        let Some(content) = self.content(&request.uri) else {
            let uri = json!({"uri": request.uri});
            return Err(ErrorData::resource_not_found("Resource not found", Some(uri)));
        };
        let read: model::ReadResourceResult = typed(result("contents", json!([content])))?;
        Ok(read.into())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: Context,
    ) -> Result<ListPromptsResult, ErrorData> {
        typed(result("prompts", self.data["prompts"].clone()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: Context,
    ) -> Result<GetPromptResponse, ErrorData> {
        let name = request.name.as_str();
        let messages = if let Some(wanted) = self.data["wants"].get(name) {
            let (responses, state) = (request.input_responses, request.request_state);
            match rounds::next(wanted, name, responses, state, &context.meta)? {
                rounds::Next::Ask(ask) => return Ok(ask.into()),
                rounds::Next::Done(text) => {
                    json!([{"role": "user", "content": {"type": "text", "text": text}}])
                }
            }
        } else {
            let unknown = || ErrorData::invalid_params(format!("no prompt {name}"), None);
            let messages = self.data["messages"].get(name).ok_or_else(unknown)?;
            fill(messages, &request.arguments.unwrap_or_default())
        };
        let prompt: model::GetPromptResult = typed(result("messages", messages))?;
        Ok(prompt.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: Context,
    ) -> Result<CompleteResult, ErrorData> {
        let values = vec![format!("{}-1", request.argument.name), request.argument.value];
        let info = CompletionInfo::new(values);
        info.map(CompleteResult::new).map_err(|error| ErrorData::internal_error(error, None))
    }

    async fn set_level(
        &self,
        _: model::SetLevelRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn subscribe(
        &self,
        _: model::SubscribeRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn unsubscribe(
        &self,
        _: model::UnsubscribeRequestParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    async fn get_task(
        &self,
        request: model::GetTaskParams,
        _: Context,
    ) -> Result<model::GetTaskResult, ErrorData> {
        self.tasks.get_task(&request.task_id).map(model::GetTaskResult::new)
    }

    async fn update_task(
        &self,
        request: model::UpdateTaskParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        self.tasks.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: model::CancelTaskParams,
        _: Context,
    ) -> Result<(), ErrorData> {
        self.tasks.cancel_task(&request.task_id)
    }

    fn accepted_subscription_filter(
        &self,
        requested: &SubscriptionFilter,
    ) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.subscribers.lock().await.push(context.sink().clone());
        context.cancelled().await;
        Ok(())
    }
}
