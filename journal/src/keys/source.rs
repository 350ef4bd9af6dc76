//! Where a key is: in a file, in the environment, or with somebody who signs for us.
//!
//! An external signer is a program, started for each request, or one that listens on a socket of
//! this machine. A request is one line, `vkey NAME` or `sign NAME`, and behind the second the text
//! to be signed; it ends with the input. The answer is one line: the public key, or the signature
//! line of a C2SP signed note (`— NAME …`). What it answers is checked against the public key. It
//! has a limited time, and after a failure it is left alone for a while, so that a dead signer does
//! not hold up the one who records. Secrets are never printed, nor passed on to the signer.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use custody_schemas::seal::key::{KeyError, Signer};
use parking_lot::Mutex;

use super::KeysError;

/// How long a signer may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long one that has failed is left alone.
const PAUSE: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const MAX_ANSWER_BYTES: u64 = 16 << 10;

/// Where a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file with its private text form, which only its owner may read.
    File(PathBuf),
    /// A variable of the environment with its private text form.
    Environment(String),
    /// A program with its arguments, which signs.
    Command(Vec<String>),
    /// A socket behind which somebody signs.
    Socket(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => write!(f, "the variable {name}"),
            Self::Command(words) => f.write_str(words.first().map_or("", String::as_str)),
            Self::Socket(path) => write!(f, "the socket {}", path.display()),
        }
    }
}

impl Source {
    /// The key called `name` that is there.
    pub(super) fn signer(&self, name: &str) -> Result<Signer, KeysError> {
        let signer = match self {
            Self::File(path) => super::read(path)?,
            Self::Environment(variable) => {
                let text = std::env::var(variable).unwrap_or_default();
                Signer::parse(&text).map_err(|source| self.wrong(source))?
            }
            Self::Command(_) | Self::Socket(_) => self.elsewhere(name)?,
        };
        if signer.name() == name {
            return Ok(signer);
        }
        let problem = format!("the key there is called {:?}, not {name:?}", signer.name());
        Err(self.wrong(KeyError::Malformed(problem)))
    }

    fn wrong(&self, source: KeyError) -> KeysError {
        KeysError::Source { place: self.to_string(), source }
    }

    fn elsewhere(&self, name: &str) -> Result<Signer, KeysError> {
        let problem = |problem| self.wrong(KeyError::Elsewhere { name: name.to_owned(), problem });
        let vkey = self.ask(&format!("vkey {name}\n")).map_err(problem)?;
        let (source, name) = (self.clone(), name.to_owned());
        let failed: Mutex<Option<Instant>> = Mutex::new(None);
        let ask = move |text: &str| {
            if failed.lock().is_some_and(|at| at.elapsed() < PAUSE) {
                return Err(format!("it failed less than {} s ago", PAUSE.as_secs()));
            }
            let answer = source.ask(&format!("sign {name}\n{text}"));
            *failed.lock() = answer.is_err().then(Instant::now);
            answer
        };
        Signer::elsewhere(&vkey, Box::new(ask)).map_err(|source| self.wrong(source))
    }

    /// One request, and the line that is the answer.
    fn ask(&self, request: &str) -> Result<String, String> {
        let answer = match self {
            Self::Command(words) => ask_program(words, request),
            Self::Socket(path) => ask_socket(path, request),
            Self::File(_) | Self::Environment(_) => Err(io::Error::other("it does not sign")),
        };
        let answer = answer.map_err(|error| error.to_string())?;
        match answer.lines().next().map(str::trim_end) {
            None | Some("") => Err("it answered nothing".to_owned()),
            Some(line) => Ok(line.to_owned()),
        }
    }
}

fn ask_socket(path: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    stream.write_all(request.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_program(words: &[String], request: &str) -> io::Result<String> {
    let (program, arguments) =
        words.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let talked = talk(&mut child, request.to_owned());
    let answer = talked.recv_timeout(ANSWER).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", ANSWER.as_secs())))
    });
    if answer.is_err() {
        child.kill()?;
    }
    let ended = child.wait()?;
    match answer {
        Ok(_) if !ended.success() => Err(io::Error::other(format!("it ended with {ended}"))),
        answer => answer,
    }
}

/// Hands the request over and reads the answer, on a thread of its own: a program may do neither.
fn talk(child: &mut Child, request: String) -> mpsc::Receiver<io::Result<String>> {
    let (tell, told) = mpsc::sync_channel(1);
    let (input, output) = (child.stdin.take(), child.stdout.take());
    std::thread::spawn(move || {
        let talked = (|| {
            // A program that knows what it needs may stop reading before the end.
            let handed = input.map_or(Ok(()), |mut input| input.write_all(request.as_bytes()));
            let mut answer = String::new();
            if let Some(output) = output {
                output.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
            }
            if answer.is_empty() { handed.map(|()| answer) } else { Ok(answer) }
        })();
        // Nobody waits any more after the time is over.
        drop(tell.send(talked));
    });
    told
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use custody_schemas::seal::key::open;

    use super::*;

    const NAME: &str = "audit.example/log";

    fn key() -> (Signer, String) {
        Signer::from_seed(NAME, &[7; 32]).unwrap()
    }

    /// What a signer answers to a request.
    fn answer(request: &str) -> String {
        let (signer, _) = key();
        let (line, text) = request.split_once('\n').unwrap();
        match line.split(' ').next().unwrap() {
            "vkey" => format!("{}\n", signer.vkey()),
            _ => format!("{}\n", signer.sign(text).unwrap().lines().last().unwrap()),
        }
    }

    #[test]
    fn a_key_in_a_file_or_a_variable_signs_and_one_of_another_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.key");
        super::super::store(dir.path(), &path, &key().1).unwrap();
        let source = Source::File(path);
        assert_eq!(source.signer(NAME).unwrap().vkey(), key().0.vkey());
        let error = source.signer("audit.example/root").unwrap_err().to_string();
        assert!(error.contains("is called"), "{error}");
        let missing = Source::Environment("CUSTODY_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(missing.signer(NAME).is_err());
    }

    #[test]
    fn somebody_behind_a_socket_signs_and_a_dead_one_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("signer.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                stream.read_to_string(&mut request).unwrap();
                stream.write_all(answer(&request).as_bytes()).unwrap();
            }
        });
        let signer = Source::Socket(path.clone()).signer(NAME).unwrap();
        let note = signer.sign("text\n").unwrap();
        assert_eq!(open(&note, &[key().0.vkey()]).unwrap(), "text\n");
        serving.join().unwrap();
        assert!(signer.sign("text\n").is_err());
        let error = signer.sign("text\n").unwrap_err().to_string();
        assert!(error.contains("ago"), "{error}");
        assert!(Source::Socket(path).signer(NAME).is_err());
    }

    fn script(dir: &Path, text: &str) -> Source {
        let path = dir.join("signer.sh");
        std::fs::write(&path, text).unwrap();
        Source::Command(vec!["/bin/sh".to_owned(), path.display().to_string()])
    }

    #[test]
    fn a_program_signs_and_one_that_fails_or_answers_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (vkey, line) = (answer("vkey x\n"), answer("sign x\ntext\n"));
        let (vkey, line) = (vkey.trim(), line.trim());
        let fixed = format!(
            "read -r what name\nif [ $what = vkey ]; then echo '{vkey}'; else echo '{line}'; fi\n"
        );
        let signer = script(dir.path(), &fixed).signer(NAME).unwrap();
        assert_eq!(open(&signer.sign("text\n").unwrap(), &[vkey]).unwrap(), "text\n");
        assert!(signer.sign("another text\n").is_err(), "the answer is for another text");
        for wrong in [format!("echo '{vkey}'\nexit 3\n"), "cat >/dev/null\n".to_owned()] {
            assert!(script(dir.path(), &wrong).signer(NAME).is_err(), "{wrong}");
        }
        let nobody = Source::Command(vec!["/nowhere/at/all".to_owned()]);
        assert!(nobody.signer(NAME).is_err());
    }

    #[test]
    fn a_program_that_never_answers_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let error = script(dir.path(), "exec sleep 600\n").signer(NAME).unwrap_err();
        assert!(error.to_string().contains("no answer"), "{error}");
    }
}
