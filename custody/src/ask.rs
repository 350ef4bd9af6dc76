//! `custody sql` and `custody report`: clients of the query service, so that every question they
//! ask is recorded like any other. What is saved has its completeness beside it, whatever the format.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use http::Method;
use serde_json::{Value, json};

use crate::http::{Answer, Http};

/// The answer is incomplete.
const EXIT_INCOMPLETE: u8 = 3;
/// The longest a question may take here; the service has its own, shorter deadline.
const WAIT: Duration = Duration::from_secs(3_600);
/// Cells of a table are cut to this many characters; other formats never cut.
const CELL: usize = 60;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines and columns for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    const fn media_type(self) -> &'static str {
        match self {
            Self::Table | Self::Csv => "text/csv",
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Whom to ask.
#[derive(clap::Args, Clone, Debug)]
pub struct Service {
    /// The query service.
    #[arg(long, global = true, env = "CUSTODY_URL", default_value = "http://127.0.0.1:7480")]
    url: String,
    /// The bearer token.
    #[arg(long, global = true, env = "CUSTODY_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

/// Whom to ask, and how to print.
#[derive(clap::Args, Clone, Debug)]
struct Asking {
    #[command(flatten)]
    service: Service,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Ask as of an earlier answer: the cut that it was saved with.
    #[arg(long, value_name = "CUT")]
    cut: Option<String>,
    /// Write the answer into this file instead of standard output, and what it holds and what it
    /// cannot show into FILE.completeness.json.
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `custody sql`
#[derive(clap::Args, Debug)]
pub struct Sql {
    /// One SELECT statement. `SELECT * FROM columns` lists tables, columns and their meaning.
    statement: String,
    /// A value for $1, $2 … in the statement, in order.
    #[arg(long = "param", value_name = "VALUE")]
    params: Vec<String>,
    #[command(flatten)]
    asking: Asking,
}

/// Which report.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ReportName {
    /// Every access to protected health information: who, which agent, tool, patient, when, why,
    /// with what outcome.
    PhiAccess,
}

/// `custody report`
#[derive(clap::Args, Debug)]
pub struct Report {
    /// The report.
    #[arg(value_enum)]
    name: ReportName,
    /// First day or moment (a date means a day in the service's time zone).
    #[arg(long)]
    from: String,
    /// Last day, included, or moment, excluded.
    #[arg(long)]
    to: String,
    /// Only this user.
    #[arg(long)]
    user: Option<String>,
    /// Only this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Only this patient.
    #[arg(long)]
    patient: Option<String>,
    /// Only this tool.
    #[arg(long)]
    tool: Option<String>,
    /// Exit with 3 when the answer is not complete.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Asks and prints.
pub async fn sql(question: Sql) -> anyhow::Result<ExitCode> {
    let (sql, params, cut) = (&question.statement, &question.params, &question.asking.cut);
    let body = json!({"sql": sql, "params": params, "cut": cut}).to_string();
    let answer = question.asking.send(Method::POST, "/v1/sql", body).await?;
    question.asking.print(&answer, &[])?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the report and prints it.
pub async fn report(question: Report) -> anyhow::Result<ExitCode> {
    let ReportName::PhiAccess = question.name;
    let filters = [
        ("from", Some(&question.from)),
        ("to", Some(&question.to)),
        ("user", question.user.as_ref()),
        ("agent", question.agent.as_ref()),
        ("patient", question.patient.as_ref()),
        ("tool", question.tool.as_ref()),
        ("cut", question.asking.cut.as_ref()),
    ];
    let answer = question.asking.send(Method::GET, &report_path(&filters), String::new()).await?;
    question.asking.print(&answer, &CHIEF_COLUMNS)?;
    let incomplete = completeness(&answer).is_some_and(|c| c["complete"] == json!(false));
    let strict = question.strict && incomplete;
    Ok(if strict { ExitCode::from(EXIT_INCOMPLETE) } else { ExitCode::SUCCESS })
}

/// The PHI-access report of some days as a table with its completeness line.
#[cfg(feature = "demo")]
pub async fn report_text(url: &str, from: &str, to: &str) -> anyhow::Result<String> {
    let service = Service { url: url.to_owned(), token: None };
    let asking = Asking { service, format: Format::Table, cut: None, output: None };
    let days = [("from", Some(&from.to_owned())), ("to", Some(&to.to_owned()))];
    let answer = asking.send(Method::GET, &report_path(&days), String::new()).await?;
    table(&answer, &CHIEF_COLUMNS)
}

fn report_path(filters: &[(&str, Option<&String>)]) -> String {
    with_parameters("/v1/reports/phi-access", filters)
}

fn with_parameters(path: &str, filters: &[(&str, Option<&String>)]) -> String {
    let given = filters.iter().filter_map(|(name, value)| value.map(|value| (name, value)));
    let pairs: Vec<_> = given.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// Percent-encoding of everything but unreserved characters (RFC 3986 § 2.3).
pub fn encoded(text: &str) -> String {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes()
        .map(|b| if unreserved(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

impl Service {
    /// Writes what it answers to a request with these parameters into a file.
    pub async fn fetch(
        &self,
        path: &str,
        parameters: &[(&str, Option<&String>)],
        file: &mut File,
    ) -> anyhow::Result<()> {
        let url = self.address(&with_parameters(path, parameters));
        let answer = Http::new(WAIT).fetch(&url, &self.headers("*/*"), file).await;
        self.good(answer).map(drop)
    }

    /// Sends a request, and gives the answer if it is one; what went wrong otherwise.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: String,
    ) -> anyhow::Result<Answer> {
        let (url, headers) = (self.address(path), self.headers(accept));
        self.good(Http::new(WAIT).send(method, &url, &headers, body).await)
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url.trim_end_matches('/'))
    }

    fn headers(&self, accept: &str) -> Vec<(&'static str, String)> {
        let mut headers =
            vec![("accept", accept.to_owned()), ("content-type", "application/json".to_owned())];
        headers.extend(self.token.as_ref().map(|t| ("authorization", format!("Bearer {t}"))));
        headers
    }

    /// The answer, if it is one.
    fn good(&self, answer: anyhow::Result<Answer>) -> anyhow::Result<Answer> {
        let answer = answer.with_context(|| {
            format!(
                "no answer from {}; is `custody up` running there? (--url names another)",
                self.url
            )
        })?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let error: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let said = |key: &str| error["error"][key].as_str().map(str::to_owned);
        let message = said("message").unwrap_or_else(|| answer.status.to_string());
        let hint = said("hint").map(|hint| format!("\n  {hint}")).unwrap_or_default();
        bail!("{message}{hint}")
    }
}

impl Asking {
    async fn send(&self, method: Method, path: &str, body: String) -> anyhow::Result<Answer> {
        self.service.send(method, path, self.format.media_type(), body).await
    }

    fn print(&self, answer: &Answer, chief: &[&str]) -> anyhow::Result<()> {
        let bytes = match self.format {
            Format::Table => table(answer, chief)?.into_bytes(),
            Format::Csv | Format::Json | Format::Ndjson | Format::Arrow | Format::Parquet => {
                answer.body.to_vec()
            }
        };
        match &self.output {
            Some(file) => {
                let write = |file: &Path, bytes: &[u8]| {
                    std::fs::write(file, bytes)
                        .with_context(|| format!("cannot write {}", file.display()))
                };
                // First, so that no answer lies there without it.
                write(&beside(file), format!("{:#}\n", about(answer)).as_bytes())?;
                write(file, &bytes)?;
            }
            None => std::io::stdout().lock().write_all(&bytes)?,
        }
        if self.format != Format::Table
            && let Some(line) = completeness_line(answer)
        {
            writeln!(std::io::stderr().lock(), "{line}")?;
        }
        Ok(())
    }
}

/// The file that says what a saved answer holds.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".completeness.json");
    name.into()
}

/// What the answer says of itself outside of its rows.
fn about(answer: &Answer) -> Value {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    json!({
        "completeness": completeness(answer),
        "cut": header("custody-cut"),
        "period": header("custody-period"),
        "query": header("custody-query"),
    })
}

fn completeness(answer: &Answer) -> Option<Value> {
    let header = answer.headers.get("custody-completeness")?;
    serde_json::from_slice(header.as_bytes()).ok()
}

fn completeness_line(answer: &Answer) -> Option<String> {
    completeness(answer)?["line"].as_str().map(str::to_owned)
}

/// What the PHI-access report shows on a terminal; other formats have every column.
const CHIEF_COLUMNS: [&str; 10] = [
    "time",
    "user",
    "agent",
    "purpose",
    "server",
    "tool",
    "patient_id",
    "direction",
    "categories",
    "outcome",
];

/// The rows in columns, how many there are, and the completeness line.
fn table(answer: &Answer, chief: &[&str]) -> anyhow::Result<String> {
    use comfy_table::{ContentArrangement, Table, presets};
    let mut reader = csv::Reader::from_reader(answer.body.as_ref());
    let names = reader.headers().context("the answer is no CSV")?.clone();
    let chosen: Vec<usize> =
        (0..names.len()).filter(|i| chief.is_empty() || chief.contains(&&names[*i])).collect();
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(chosen.iter().map(|i| &names[*i]));
    let mut rows = 0_usize;
    for record in reader.records() {
        let record = record.context("the answer is no CSV")?;
        table.add_row(chosen.iter().map(|i| shown(&names[*i], &record[*i])));
        rows += 1;
    }
    let plural = if rows == 1 { "row" } else { "rows" };
    let line = completeness_line(answer).map(|line| format!("\n{line}")).unwrap_or_default();
    Ok(format!("{table}\n{rows} {plural}{line}\n"))
}

/// A cell as people read it.
fn shown(column: &str, cell: &str) -> String {
    match (column, cell) {
        ("patient_id", "") => "(not recognised)".to_owned(),
        ("time", time) => time.get(..19).map_or_else(|| short(time), |time| format!("{time}Z")),
        (_, cell) => short(cell),
    }
}

/// At most [`CELL`] characters, none of which moves the cursor.
pub fn short(cell: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut text: String = cell.chars().map(clean).take(CELL).collect();
    if cell.chars().count() > CELL {
        text.pop();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_encoded_and_absent_ones_left_out() {
        let patient = "a&b=ü".to_owned();
        let path = report_path(&[("patient", Some(&patient)), ("tool", None)]);
        assert_eq!(path, "/v1/reports/phi-access?patient=a%26b%3D%C3%BC");
    }

    #[test]
    fn what_is_saved_has_its_completeness_beside_it() {
        let mut answer = Answer {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: "user\r\nann\r\n".into(),
        };
        for (name, value) in [
            ("custody-completeness", "{\"complete\":true,\"line\":\"Complete\"}"),
            ("custody-cut", "file@1,7,events/edge-1:3"),
        ] {
            answer.headers.insert(name, value.parse().unwrap());
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("report.csv");
        let output = Some(file.clone());
        let service = Service { url: String::new(), token: None };
        let asking = Asking { service, format: Format::Csv, cut: None, output };
        asking.print(&answer, &[]).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), answer.body);
        let about = std::fs::read(folder.path().join("report.csv.completeness.json")).unwrap();
        let about: Value = serde_json::from_slice(&about).unwrap();
        assert_eq!(about["completeness"]["complete"], true);
        assert_eq!(about["cut"], "file@1,7,events/edge-1:3");
    }

    #[test]
    fn a_cell_cannot_move_the_cursor() {
        assert_eq!(short("a\u{1b}[2Jb"), "a\u{fffd}[2Jb");
        assert_eq!(short(&"x".repeat(100)).chars().count(), CELL);
    }
}
