//! `custody up` as a process, with its data in a folder that goes with the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;

use crate::http::Answer;
use crate::question::{self, Row};

/// The built executable: `CUSTODY_BIN`, else the one beside this test's own.
///
/// # Errors
/// When it has not been built.
pub fn executable() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("CUSTODY_BIN") {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    // A benchmark stands beside it, a test one folder below.
    let candidates: Vec<_> = this.ancestors().skip(1).take(2).map(|f| f.join("custody")).collect();
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            bail!("none of {candidates:?} is there: run `cargo build --workspace --bins` first")
        }
    }
}

/// A configuration in the making.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    servers: String,
    keys: String,
    proxy: String,
    lake: String,
    query: String,
    more: String,
    talkative: bool,
}

impl Setup {
    /// Adds a server.
    #[must_use]
    pub fn server(mut self, name: &str, url: &str, phi: bool) -> Self {
        let text = format!("[[server]]\nname = \"{name}\"\nurl = \"{url}\"\nphi = {phi}\n");
        self.servers.push_str(&text);
        self
    }

    /// Adds a server that is a program, with lines of its environment; one without patients' data.
    #[must_use]
    pub fn program(mut self, name: &str, command: &[&str], env: &str) -> Self {
        let text = format!(
            "[[server]]\nname = \"{name}\"\ncommand = {command:?}\nphi = false\nenv = {{ {env} }}\n"
        );
        self.servers.push_str(&text);
        self
    }

    /// Adds lines to the last server.
    #[must_use]
    pub fn server_lines(mut self, lines: &str) -> Self {
        self.servers.push_str(lines);
        self.servers.push('\n');
        self
    }

    /// Adds an agent's key by its hash.
    #[must_use]
    pub fn key(mut self, hash: &str, agent: &str, user: &str) -> Self {
        let text = format!("[[key]]\nhash = \"{hash}\"\nagent = \"{agent}\"\nuser = \"{user}\"\n");
        self.keys.push_str(&text);
        self
    }

    /// Adds lines to `[proxy]`.
    #[must_use]
    pub fn proxy_lines(mut self, lines: &str) -> Self {
        self.proxy.push_str(lines);
        self.proxy.push('\n');
        self
    }

    /// Adds lines to `[lake]`.
    #[must_use]
    pub fn lake_lines(mut self, lines: &str) -> Self {
        self.lake.push_str(lines);
        self.lake.push('\n');
        self
    }

    /// Adds lines to `[query]`.
    #[must_use]
    pub fn query_lines(mut self, lines: &str) -> Self {
        self.query.push_str(lines);
        self.query.push('\n');
        self
    }

    /// Adds whole sections.
    #[must_use]
    pub fn sections(mut self, sections: &str) -> Self {
        self.more.push_str(sections);
        self.more.push('\n');
        self
    }

    /// Lets it say all it can, into `stderr.log` beside its data.
    #[must_use]
    pub fn talkative(mut self) -> Self {
        self.talkative = true;
        self
    }

    /// Writes the configuration into `folder`; its path, and where the data will be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
        let config = folder.join("custody.toml");
        let data = folder.join("data");
        let text = format!(
            "[deployment]\nname = \"audit.test\"\ndata = {data:?}\n[proxy]\nlisten = \"127.0.0.1:0\"\n{}[lake]\n{}[query]\nlisten = \"127.0.0.1:0\"\n{}{}{}{}",
            self.proxy, self.lake, self.query, self.servers, self.keys, self.more
        );
        std::fs::write(&config, text)?;
        Ok((config, data))
    }

    /// Starts the product with its data in `folder`, which may hold an earlier run's.
    ///
    /// # Errors
    /// When it does not say that it is ready within a minute; with what it said instead.
    pub fn start(&self, folder: &Path) -> anyhow::Result<Custody> {
        let (config, data) = self.write(folder)?;
        let log = folder.join("stderr.log");
        Custody::start(&config, data, self.talkative.then_some(log.as_path()))
    }
}

/// The lines that a process prints, as they come.
///
/// # Errors
/// When its standard output is not piped.
pub fn lines(child: &mut Child) -> anyhow::Result<mpsc::Receiver<String>> {
    let out = child.stdout.take().context("no standard output")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    Ok(told)
}

/// A running `custody up`. Dropping it kills it, as a power cut would.
pub struct Custody {
    child: Child,
    /// Base URL of the proxy.
    pub proxy: String,
    /// Base URL of the query service.
    pub query: String,
    /// Its data folder.
    pub data: PathBuf,
}

impl Drop for Custody {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Custody {
    fn start(config: &Path, data: PathBuf, log: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Command::new(executable()?);
        command.args(["up", "-c"]).arg(config).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(log) = log {
            command.env("RUST_LOG", "trace").stderr(std::fs::File::create(log)?);
        }
        let mut child = command.spawn()?;
        let told = lines(&mut child)?;
        let mut custody = Self { child, proxy: String::new(), query: String::new(), data };
        while custody.proxy.is_empty() || custody.query.is_empty() {
            let line = told
                .recv_timeout(Duration::from_secs(60))
                .context("custody up did not say where it listens; see its output above")?;
            if let Some(url) = line.trim().strip_prefix("proxy ") {
                custody.proxy = url.trim().to_owned();
            } else if let Some(url) = line.trim().strip_prefix("query ") {
                custody.query = url.trim().to_owned();
            }
        }
        Ok(custody)
    }

    /// The URL of a server's route.
    #[must_use]
    pub fn server(&self, name: &str) -> String {
        format!("{}/servers/{name}/mcp", self.proxy)
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it at once (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits; whether it ended with success.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn stop(&mut self) -> anyhow::Result<bool> {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        Ok(self.child.wait()?.success())
    }

    /// Posts a statement; the raw answer.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, statement: &str, accept: &str) -> anyhow::Result<Answer> {
        question::ask(&self.query, json!({"sql": statement}), accept).await
    }

    /// The rows of a statement's answer, one map each.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn sql(&self, statement: &str) -> anyhow::Result<Vec<Row>> {
        question::sql(&self.query, statement).await
    }

    /// The only number of the only row.
    ///
    /// # Errors
    /// When the answer is anything else.
    pub async fn number(&self, statement: &str) -> anyhow::Result<i64> {
        question::number(&self.query, statement).await
    }
}
