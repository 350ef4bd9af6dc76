//! How the messages of one server look to a client of the common address, and how the client's look
//! to that server.
//!
//! Only names, URIs, ids of tasks, ids of the server's own requests and tokens of their progress
//! are changed, each in its place, and a result of an older server gets what a newer client must find
//! in it (`complete`); every other byte stays as it is.

use std::ops::Range;
use std::sync::Arc;

use custody_schemas::edits::EditsError;

use super::names::Names;
use super::{complete, marks};
use crate::scan::ScanError;
use crate::splice::Step::{Each, Key};
use crate::splice::{Step, find, text_of, token};

/// What takes the place of stretches of a message.
pub(crate) type Changes = Vec<(Range<usize>, String)>;

/// What stands somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Name,
    Uri,
    Task,
    /// An id of the server's, or a token of its progress: any scalar.
    Token,
}

type Paths = [(&'static [Step], What)];

/// A message cannot be changed as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclear;

impl From<ScanError> for Unclear {
    fn from(_: ScanError) -> Self {
        Self
    }
}

impl From<EditsError> for Unclear {
    fn from(_: EditsError) -> Self {
        Self
    }
}

/// One server as clients of the common address see it.
#[derive(Clone)]
pub(crate) struct View {
    /// The server's name.
    pub(crate) server: String,
    /// The names of all servers.
    pub(crate) names: Arc<Names>,
    /// Whether the client speaks a revision without sessions.
    pub(crate) modern: bool,
}

/// A message of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Down<'m> {
    /// The answer to a client's request with this method.
    Answer(&'m str),
    /// Its own request or notification.
    Own,
}

const TOOLS: &Paths = &[
    (&[Key("result"), Key("tools"), Each, Key("name")], What::Name),
    (&[Key("result"), Key("tools"), Each, Key("_meta"), Key("ui"), Key("resourceUri")], What::Uri),
    (&[Key("result"), Key("tools"), Each, Key("_meta"), Key("ui/resourceUri")], What::Uri),
];
const PROMPTS: &Paths = &[(&[Key("result"), Key("prompts"), Each, Key("name")], What::Name)];
const RESOURCES: &Paths = &[(&[Key("result"), Key("resources"), Each, Key("uri")], What::Uri)];
const TEMPLATES: &Paths =
    &[(&[Key("result"), Key("resourceTemplates"), Each, Key("uriTemplate")], What::Uri)];
const CONTENTS: &Paths = &[(&[Key("result"), Key("contents"), Each, Key("uri")], What::Uri)];
const MESSAGES: &Paths = &[
    (&[Key("result"), Key("messages"), Each, Key("content"), Key("uri")], What::Uri),
    (
        &[Key("result"), Key("messages"), Each, Key("content"), Key("resource"), Key("uri")],
        What::Uri,
    ),
];
/// The key under which a message names the task that it belongs to.
const RELATED: Step = Key("io.modelcontextprotocol/related-task");
/// Results of tools, at once or from a task.
const RESULT: &Paths = &[
    (&[Key("result"), Key("content"), Each, Key("uri")], What::Uri),
    (&[Key("result"), Key("content"), Each, Key("resource"), Key("uri")], What::Uri),
    (&[Key("result"), Key("result"), Key("content"), Each, Key("uri")], What::Uri),
    (&[Key("result"), Key("result"), Key("content"), Each, Key("resource"), Key("uri")], What::Uri),
    (&[Key("result"), Key("task"), Key("taskId")], What::Task),
    (&[Key("result"), Key("taskId")], What::Task),
    (&[Key("result"), Key("tasks"), Each, Key("taskId")], What::Task),
    (&[Key("result"), Key("_meta"), RELATED, Key("taskId")], What::Task),
];
/// Requests and notifications of a server. The token of a client's progress is the client's own.
const OWN: &Paths = &[
    (&[Key("params"), Key("uri")], What::Uri),
    (&[Key("params"), Key("notifications"), Key("resourceSubscriptions"), Each], What::Uri),
    (&[Key("params"), Key("taskId")], What::Task),
    (&[Key("params"), Key("task"), Key("taskId")], What::Task),
    (&[Key("params"), Key("_meta"), RELATED, Key("taskId")], What::Task),
    (&[Key("params"), Key("_meta"), Key("progressToken")], What::Token),
    (&[Key("params"), Key("requestId")], What::Token),
    (&[Key("id")], What::Token),
];
/// What a client sends.
const UP: &Paths = &[
    (&[Key("params"), Key("name")], What::Name),
    (&[Key("params"), Key("uri")], What::Uri),
    (&[Key("params"), Key("taskId")], What::Task),
    (&[Key("params"), Key("ref"), Key("name")], What::Name),
    (&[Key("params"), Key("ref"), Key("uri")], What::Uri),
    (&[Key("params"), Key("_meta"), RELATED, Key("taskId")], What::Task),
];
/// What a client says of a server's request.
const ANSWER: &Paths = &[
    (&[Key("id")], What::Token),
    (&[Key("result"), Key("_meta"), RELATED, Key("taskId")], What::Task),
];
/// How far a client has come with a server's request.
const PROGRESS: &Paths = &[(&[Key("params"), Key("progressToken")], What::Token)];

fn paths_of_answer(method: &str) -> &'static Paths {
    match method {
        "tools/list" => TOOLS,
        "prompts/list" => PROMPTS,
        "resources/list" => RESOURCES,
        "resources/templates/list" => TEMPLATES,
        "resources/read" => CONTENTS,
        "prompts/get" => MESSAGES,
        "tools/call" | "tasks/get" | "tasks/result" | "tasks/list" | "tasks/cancel"
        | "tasks/update" => RESULT,
        _ => &[],
    }
}

/// What stands at `paths`.
fn places(text: &str, paths: &Paths) -> Result<Vec<(Range<usize>, What)>, ScanError> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let steps: Vec<&[Step]> = paths.iter().map(|(steps, _)| *steps).collect();
    let found = find(text, &steps)?.into_iter();
    Ok(found.map(|place| (place.range, paths[place.path].1)).collect())
}

impl View {
    /// Under which id the client knows a request of the server.
    pub(crate) fn token(&self, raw: &str) -> String {
        marks::token(&self.server, raw)
    }

    /// Under which id the client knows an event of the server's.
    pub(crate) fn event(&self, id: &[u8]) -> Vec<u8> {
        marks::event(&self.server, id)
    }

    /// What must be changed in a message of the server on its way to the client.
    pub(crate) fn down(&self, text: &str, kind: Down<'_>) -> Result<Changes, Unclear> {
        let paths = match kind {
            Down::Answer(method) => paths_of_answer(method),
            Down::Own => OWN,
        };
        let changes = places(text, paths)?.into_iter().filter_map(|(range, what)| {
            let raw = text.get(range.clone())?;
            let new = match what {
                What::Token if raw.starts_with(['{', '[']) => return None,
                What::Token => marks::token(&self.server, raw),
                What::Name => token(&self.names.expose(&self.server, &text_of(raw)?)),
                What::Uri => token(&marks::uri(&self.server, &text_of(raw)?)),
                What::Task => token(&marks::task(&self.server, &text_of(raw)?)),
            };
            Some((range, new))
        });
        let mut changes: Changes = changes.collect();
        if let (Down::Answer(method), true) = (kind, self.modern) {
            changes.extend(complete::of(text, method)?);
        }
        Ok(changes)
    }
}

/// What a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Up {
    /// A request or notification that names something of one server.
    Named,
    /// An answer to a server's request.
    Answer,
    /// The progress of a server's request.
    Progress,
}

/// Which server a message is for, and what must be changed in it on its way there: nothing when it
/// names none, or when it names several.
pub(crate) fn up(
    names: &Names,
    text: &str,
    kind: Up,
) -> Result<Option<(String, Changes)>, Unclear> {
    let paths = match kind {
        Up::Named => UP,
        Up::Answer => ANSWER,
        Up::Progress => PROGRESS,
    };
    let mut to: Option<String> = None;
    let mut changes = Changes::new();
    for (range, what) in places(text, paths)? {
        let raw = text.get(range.clone()).unwrap_or_default();
        let own = match what {
            What::Name => text_of(raw).and_then(|name| names.resolve(&name)),
            What::Uri => text_of(raw).and_then(|uri| marks::unmark_uri(&uri)),
            What::Task => text_of(raw).and_then(|id| marks::unmark_task(&id)),
            What::Token => marks::unmark_token(raw),
        };
        let Some((server, own)) = own else { return Ok(None) };
        if to.as_ref().is_some_and(|to| *to != server) {
            return Ok(None);
        }
        let new = if what == What::Token { own } else { token(&own) };
        changes.push((range, new));
        to = Some(server);
    }
    Ok(to.map(|to| (to, changes)))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::splice::Message;

    fn view() -> View {
        let names = Names::new(vec!["ehr".into(), "lab".into()], None);
        View { server: "ehr".into(), names: Arc::new(names), modern: false }
    }

    fn down(text: &'static str, kind: Down<'_>) -> String {
        let changes = view().down(text, kind).unwrap();
        let message = Message::spliced(Bytes::from_static(text.as_bytes()), changes).unwrap();
        assert_eq!(message.edits.undo(&message.bytes).unwrap(), text);
        String::from_utf8(message.bytes.to_vec()).unwrap()
    }

    fn up_to(text: &'static str, kind: Up) -> Option<(String, String)> {
        let (server, changes) = up(&view().names, text, kind).unwrap()?;
        let message = Message::spliced(Bytes::from_static(text.as_bytes()), changes).unwrap();
        Some((server, String::from_utf8(message.bytes.to_vec()).unwrap()))
    }

    #[test]
    fn what_a_server_names_is_marked_and_nothing_else_is_touched() {
        assert_eq!(
            down(
                r#"{"id": 1.0,"result":{"tools":[{"name":"re\u0061d","x":1e2,"inputSchema":{"name":"no"}}]}}"#,
                Down::Answer("tools/list")
            ),
            r#"{"id": 1.0,"result":{"tools":[{"name":"ehr__read","x":1e2,"inputSchema":{"name":"no"}}]}}"#
        );
        assert_eq!(
            down(
                r#"{"id":1,"result":{"content":[{"type":"resource_link","uri":"a://b","name":"no"}],"structuredContent":{"uri":"no"}}}"#,
                Down::Answer("tools/call")
            ),
            r#"{"id":1,"result":{"content":[{"type":"resource_link","uri":"custody://ehr/a://b","name":"no"}],"structuredContent":{"uri":"no"}}}"#
        );
        assert_eq!(
            down(
                r#"{"id":5,"method":"sampling/createMessage","params":{"_meta":{"progressToken":"x"}}}"#,
                Down::Own
            ),
            r#"{"id":"ehr/5","method":"sampling/createMessage","params":{"_meta":{"progressToken":"ehr/\"x\""}}}"#
        );
        let progress = r#"{"method":"notifications/progress","params":{"progressToken":7}}"#;
        assert_eq!(down(progress, Down::Own), progress);
    }

    #[test]
    fn what_a_client_names_goes_to_its_server_as_that_wrote_it() {
        let ehr = |text: &str| Some(("ehr".to_owned(), text.to_owned()));
        assert_eq!(
            up_to(r#"{"params":{"arguments":{"name":"no"},"name":"ehr__read"}}"#, Up::Named),
            ehr(r#"{"params":{"arguments":{"name":"no"},"name":"read"}}"#)
        );
        assert_eq!(
            up_to(
                r#"{"params":{"ref":{"type":"ref/resource","uri":"custody://ehr/a://{b}"}}}"#,
                Up::Named
            ),
            ehr(r#"{"params":{"ref":{"type":"ref/resource","uri":"a://{b}"}}}"#)
        );
        assert_eq!(
            up_to(r#"{"id":"ehr/\"x\"","result":{}}"#, Up::Answer),
            ehr(r#"{"id":"x","result":{}}"#)
        );
        for nobodys in [
            r#"{"params":{"name":"read"}}"#,
            r#"{"params":{"name":"ehr__read","uri":"custody://lab/x"}}"#,
            r#"{"params":{}}"#,
        ] {
            assert_eq!(up_to(nobodys, Up::Named), None, "{nobodys}");
        }
    }
}
