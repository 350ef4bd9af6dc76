//! `custody witness` as a process, as an auditor would run it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::product::{executable, lines};

/// A running witness. Dropping it kills it.
pub struct Witness {
    child: Child,
    data: PathBuf,
    /// Where it listens.
    pub url: String,
    /// Its public key.
    pub vkey: String,
}

impl Drop for Witness {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Witness {
    /// Starts a witness of this log with its memory in `folder`, which may hold an earlier run's;
    /// on this port, or on any.
    ///
    /// # Errors
    /// When it does not say where it listens.
    pub fn start(folder: &Path, log: &str, port: u16) -> anyhow::Result<Self> {
        let data = folder.join("witness");
        let mut command = Command::new(executable()?);
        command.args(["witness", "--name", "auditor.test/w1", "--log", log, "--data"]).arg(&data);
        command.args(["--listen", &format!("127.0.0.1:{port}")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let told = lines(&mut child)?;
        let mut witness = Self { child, data, url: String::new(), vkey: String::new() };
        while witness.url.is_empty() {
            let line = told.recv_timeout(Duration::from_secs(60));
            let line = line.context("the witness did not say where it listens")?;
            if let Some(vkey) = line.strip_prefix("key ") {
                witness.vkey = vkey.to_owned();
            } else if let Some(url) = line.strip_prefix("witness ") {
                witness.url = url.to_owned();
            }
        }
        Ok(witness)
    }

    /// The only head that it remembers, with its cosignature.
    ///
    /// # Errors
    /// When it remembers none, or several.
    pub fn head(&self) -> anyhow::Result<String> {
        let found: Vec<_> = std::fs::read_dir(self.data.join("logs"))?.collect::<Result<_, _>>()?;
        let [only] = found.as_slice() else { bail!("{} heads", found.len()) };
        Ok(std::fs::read_to_string(only.path())?)
    }

    /// A policy that asks for this witness's cosignature, as a file in `folder`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn policy(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join("witnesses.policy");
        let text = format!("witness w1 {} {}\nquorum w1\n", self.vkey, self.url);
        std::fs::write(&path, text)?;
        Ok(path)
    }
}
