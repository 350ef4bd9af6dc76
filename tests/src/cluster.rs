//! The roles of a cluster as processes over a real Kafka and a real object store.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use http::Method;

use crate::http::{Answer, send};
use crate::product::{executable, lines};
use crate::services::{Kafka, Store, unique};

/// What all roles are told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The deployment's name.
    pub deployment: String,
    /// What the topics' names begin with.
    pub prefix: String,
    /// Partitions of the topics of events and bodies.
    pub partitions: u32,
    /// Replicas of the topics, and how many must be in sync.
    pub replicas: (u32, u32),
    /// Lines of `[proxy]`, `[journal]`, `[lake]`, `[query]`.
    pub proxy: String,
    /// See `proxy`.
    pub journal: String,
    /// See `proxy`.
    pub lake: String,
    /// See `proxy`.
    pub query: String,
    /// Whole sections.
    pub more: String,
    /// Lines of `[journal.options]`.
    pub options: String,
    /// Where the lake is, in the bucket.
    pub lake_path: String,
    servers: String,
    security: String,
    brokers: String,
    store: Store,
}

impl Plan {
    /// A cluster over these services, apart from every other.
    #[must_use]
    pub fn new(kafka: &Kafka, store: &Store) -> Self {
        let name = unique("t");
        let security = match (kafka.facts.get("ca"), kafka.facts.get("password")) {
            (Some(ca), Some(password)) => format!(
                "[journal.tls]\nca = {ca:?}\n[journal.sasl]\nmechanism = \"SCRAM-SHA-512\"\nusername = \"custody\"\npassword = {password:?}\n"
            ),
            _ => String::new(),
        };
        Self {
            deployment: format!("{name}.custody.test"),
            lake_path: format!("{name}/lake"),
            prefix: name,
            partitions: 3,
            replicas: (1, 1),
            proxy: String::new(),
            journal: String::new(),
            options: String::new(),
            lake: "flush_seconds = 1\n".to_owned(),
            query: String::new(),
            more: String::new(),
            servers: String::new(),
            security,
            brokers: kafka.bootstrap.clone(),
            store: store.clone(),
        }
    }

    /// Adds a server.
    #[must_use]
    pub fn server(mut self, name: &str, url: &str, phi: bool) -> Self {
        let text = format!("[[server]]\nname = \"{name}\"\nurl = \"{url}\"\nphi = {phi}\n");
        self.servers.push_str(&text);
        self
    }

    /// Writes the configuration into `folder`, which is to hold the roles' data; nothing runs yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn build(&self, folder: &Path) -> anyhow::Result<Cluster> {
        let config = folder.join("custody.toml");
        std::fs::write(&config, self.text(folder)?)?;
        let lake = format!("s3://{}/{}", self.store.bucket, self.lake_path);
        Ok(Cluster { folder: folder.to_owned(), config, lake, store: self.store.clone() })
    }

    fn text(&self, folder: &Path) -> anyhow::Result<String> {
        let mut text = String::new();
        let keys = folder.join("keys");
        writeln!(text, "[deployment]\nname = {:?}\nkeys = {keys:?}", self.deployment)?;
        writeln!(text, "[proxy]\nlisten = \"127.0.0.1:0\"\n{}", self.proxy)?;
        writeln!(text, "[journal]\nkind = \"kafka\"\nbrokers = {:?}", self.brokers)?;
        writeln!(text, "topic_prefix = {:?}\npartitions = {}", self.prefix, self.partitions)?;
        let (all, least) = self.replicas;
        writeln!(text, "replication_factor = {all}\nmin_insync_replicas = {least}")?;
        writeln!(text, "max_bytes = \"8 GiB\"\n{}\n{}", self.journal, self.security)?;
        writeln!(text, "[journal.options]\n{}", self.options)?;
        writeln!(text, "[ingest]\nlisten = \"127.0.0.1:0\"")?;
        writeln!(text, "[query]\nlisten = \"127.0.0.1:0\"\n{}", self.query)?;
        let (bucket, path, endpoint) = (&self.store.bucket, &self.lake_path, &self.store.endpoint);
        writeln!(text, "[lake]\nurl = \"s3://{bucket}/{path}\"\n{}", self.lake)?;
        writeln!(text, "[lake.storage]\nendpoint = {endpoint:?}\nregion = \"us-east-1\"")?;
        writeln!(text, "allow_http = \"true\"\n{}\n{}", self.servers, self.more)?;
        Ok(text)
    }
}

/// A cluster's configuration, from which its roles are started.
pub struct Cluster {
    folder: PathBuf,
    /// The configuration of all roles.
    pub config: PathBuf,
    lake: String,
    store: Store,
}

impl Cluster {
    /// Makes the topics and lists these writers.
    ///
    /// # Errors
    /// With what `custody topics create` or `custody keys add` says.
    pub fn prepare(&self, writers: &[&str]) -> anyhow::Result<()> {
        self.done(&["topics", "create"])?;
        writers.iter().try_for_each(|writer| self.done(&["keys", "add", writer]))
    }

    /// Runs a command that must succeed.
    fn done(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { bail!("{}: {said}", arguments.join(" ")) }
    }

    /// Runs `custody ARGUMENTS -c CONFIG` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(executable()?);
        command.args(arguments).arg("-c").arg(&self.config).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// `custody verify` of the lake, as one object of JSON.
    ///
    /// # Errors
    /// When the executable has not been built.
    pub fn verify(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(executable()?);
        command
            .args(["verify", "--json", "--bodies", "--lake", &self.lake, "-c"])
            .arg(&self.config)
            .env("AWS_ACCESS_KEY_ID", &self.store.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.store.secret_key);
        Ok(command)
    }

    /// The command of a role called `name`, such as `ingest-1`: its writer, its folder.
    ///
    /// # Errors
    /// When the executable has not been built.
    pub fn command(&self, name: &str) -> anyhow::Result<Command> {
        let role = name.split('-').next().context("a role's name")?;
        // A worker records nothing: its name is its place in the group.
        let own_name = match role {
            "ingest" => "CUSTODY__JOURNAL__INSTANCE",
            _ => "CUSTODY__DEPLOYMENT__WRITER",
        };
        let data = self.folder.join(name);
        std::fs::create_dir_all(&data)?;
        let log = std::fs::File::options().create(true).append(true).open(self.log(name))?;
        let mut command = Command::new(executable()?);
        command
            .args([role, "-c"])
            .arg(&self.config)
            .env(own_name, name)
            .env("CUSTODY__DEPLOYMENT__DATA", &data)
            .env("AWS_ACCESS_KEY_ID", &self.store.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.store.secret_key)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        Ok(command)
    }

    /// Where a role's diagnostics go.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// What a role says when it cannot start; an error when it does start.
    ///
    /// # Errors
    /// When it starts.
    pub fn refused(&self, name: &str) -> anyhow::Result<String> {
        match self.start(name) {
            Ok(_) => bail!("{name} started"),
            Err(_) => Ok(std::fs::read_to_string(self.log(name))?),
        }
    }

    /// Starts a role and waits until it says where it listens.
    ///
    /// # Errors
    /// When it ends instead, or says nothing for a minute; with its diagnostics.
    pub fn start(&self, name: &str) -> anyhow::Result<Role> {
        self.start_with(name, self.command(name)?)
    }

    /// As [`Cluster::start`], with the command that the caller has changed.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn start_with(&self, name: &str, mut command: Command) -> anyhow::Result<Role> {
        let prefix = format!("{} ", name.split('-').next().unwrap_or(name));
        let mut role = Role { child: command.spawn()?, url: String::new() };
        let told = lines(&mut role.child)?;
        while role.url.is_empty() {
            let Ok(line) = told.recv_timeout(Duration::from_secs(60)) else {
                let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
                bail!("{name} did not say where it listens; it said:\n{log}");
            };
            if let Some(url) = line.strip_prefix(&prefix) {
                role.url = url.trim().to_owned();
            }
        }
        Ok(role)
    }
}

/// A running role. Dropping it kills it, as a power cut would.
pub struct Role {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Role {
    /// The URL of a server's route, for a proxy.
    #[must_use]
    pub fn server(&self, name: &str) -> String {
        format!("{}/servers/{name}/mcp", self.url)
    }

    /// Sends it a signal, such as `STOP`.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status()?;
        if sent.success() { Ok(()) } else { bail!("signal {name} was not sent to {id}") }
    }

    /// Kills it at once and waits for its end.
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
        self.signal("TERM")?;
        Ok(self.child.wait()?.success())
    }

    /// What `/readyz` says.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ready(&self) -> anyhow::Result<Answer> {
        send(Method::GET, &format!("{}/readyz", self.url), &[], "").await
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

/// Processor time that a process has used, user and system, in seconds.
///
/// # Errors
/// Where there is no /proc, or no such process.
pub fn processor_seconds(process: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after = stat.rsplit_once(')').context("no command in /proc/…/stat")?.1;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok());
    // utime and stime are fields 14 and 15, in hundredths of a second on Linux
    Ok((ticks(11).context("utime")? + ticks(12).context("stime")?) / 100.0)
}
