//! What a configuration may say, and what is said of one that cannot be used.

use super::*;
use crate::config::reach::Reach;

fn read(text: &str) -> Result<Config, Vec<String>> {
    with_environment(text, &[])
}

fn with_environment(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let owned = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    config(text, owned).map_err(|all| all.iter().map(ToString::to_string).collect())
}

#[test]
fn an_empty_file_is_a_configuration() {
    let config = read("").unwrap();
    assert_eq!(config.proxy.listen.to_string(), "127.0.0.1:7400");
    assert_eq!(config.lake.url, "file:./custody-data/lake");
}

#[test]
fn three_mistakes_are_reported_together_with_their_lines() {
    let text = "[proxy]\nlisten = \"nowhere\"\naudit_wait = 5\n\n[[server]]\nname = \"ehr\"\n";
    let mistakes = read(text).unwrap_err();
    assert_eq!(mistakes.len(), 3, "{mistakes:#?}");
    assert!(mistakes[0].starts_with("line 2: listen must be an address"));
    assert!(mistakes[1].starts_with("line 3: unknown key proxy.audit_wait;"), "{mistakes:?}");
    assert_eq!(
        mistakes[2],
        "line 5: [[server]] needs the key `url`, or `command` for a program on this machine"
    );
}

#[test]
fn a_misspelt_key_gets_the_right_name() {
    let mistakes = read("[proxy]\nlisen = \"127.0.0.1:1\"\n[qery]\n").unwrap_err();
    assert!(mistakes[0].ends_with("did you mean `listen`?"), "{mistakes:?}");
    assert!(mistakes[1].ends_with("did you mean `query`?"), "{mistakes:?}");
}

#[test]
fn syntax_errors_and_wrong_values_are_told_in_one_go() {
    let mistakes = read("[proxy]\naudit_wait_ms = \"soon\"\nx = = 3\n").unwrap_err();
    assert!(mistakes.iter().any(|m| m.starts_with("line 2: proxy.audit_wait_ms must be")));
    assert!(mistakes.iter().any(|m| m.starts_with("line 3: ")), "{mistakes:?}");
}

#[test]
fn the_environment_goes_before_the_file_and_its_mistakes_name_the_variable() {
    let text = "[proxy]\naudit_wait_ms = 5\n";
    let config = with_environment(text, &[("CUSTODY__PROXY__AUDIT_WAIT_MS", "7")]).unwrap();
    assert_eq!(config.proxy.audit_wait_ms, 7);
    assert_ne!(config.hash, read(text).unwrap().hash, "the hash is of what is in force");
    let wrong = with_environment(text, &[("CUSTODY__PROXY__AUDIT_WAIT_MS", "x")]).unwrap_err();
    assert!(wrong[0].starts_with("CUSTODY__PROXY__AUDIT_WAIT_MS must be"), "{wrong:?}");
    let unknown = with_environment("", &[("CUSTODY__PROXY__LISTN", "x")]).unwrap_err();
    assert!(unknown[0].contains("did you mean `listen`?"), "{unknown:?}");
}

#[test]
fn phi_servers_never_run_unaudited_and_unset_means_phi() {
    let server = "[[server]]\nname = \"ehr\"\nurl = \"http://127.0.0.1:1/mcp\"\n";
    assert!(read(server).unwrap().servers[0].phi);
    let text = format!("{server}on_audit_failure = \"allow_and_alert\"\n");
    assert!(read(&text).unwrap_err()[0].contains("refused for a server with phi = true"));
}

#[test]
fn listening_for_other_machines_needs_authentication() {
    let wrong = read("[proxy]\nlisten = \"0.0.0.0:7400\"\n[query]\nlisten = \"0.0.0.0:7480\"\n");
    assert_eq!(wrong.unwrap_err().len(), 2);
    let hash = "ab".repeat(32);
    let text = format!(
        "[query]\nlisten = \"0.0.0.0:7480\"\ntokens = [\"audit=sha256:{hash}\"]\n[proxy]\nlisten = \"0.0.0.0:7400\"\n[[key]]\nhash = \"sha256:{hash}\"\nagent = \"a\"\n"
    );
    let config = read(&text).unwrap();
    assert_eq!((config.query.tokens.len(), config.keys.len()), (1, 1));
}

#[test]
fn sizes_have_units_and_paths_are_checked() {
    let text = "[proxy]\nmax_message_bytes = \"4 MiB\"\n[[server]]\nname = \"e\"\nurl = \"http://h/\"\n[[server.rule]]\nresult = [\"$..mrn\", \"mrn[\"]\n";
    let wrong = read(text).unwrap_err();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(wrong[0].starts_with("line 7: rule.result: \"mrn[\" is no JSONPath"), "{wrong:?}");
    let config = read(&text.replace(", \"mrn[\"", "")).unwrap();
    assert_eq!(config.proxy.max_message_bytes, 4 << 20);
}

const KAFKA: &str = "[journal]\nkind = \"kafka\"\nbrokers = \"k1:9092,k2:9092\"\n";

#[test]
fn a_journal_on_kafka_needs_brokers_and_has_everything_else() {
    let config = read(KAFKA).unwrap();
    let kafka = config.journal.kafka.unwrap();
    assert_eq!(kafka.settings.brokers, "k1:9092,k2:9092");
    assert_eq!((kafka.settings.topics.replication, kafka.settings.topics.min_in_sync), (3, 2));
    assert_eq!((&*kafka.group, kafka.epoch, kafka.instance), ("custody-ingest", 1, None));
    assert_eq!(config.proxy.audit_wait_ms, 1_000);
    let replicated = format!("{KAFKA}[proxy]\ndurability = \"replicated\"\n");
    assert_eq!(read(&replicated).unwrap().proxy.audit_wait_ms, 10_000);
    let one = format!("{KAFKA}replication_factor = 1\ntopic_prefix = \"staging\"\n");
    let kafka = read(&one).unwrap().journal.kafka.unwrap();
    assert_eq!((kafka.settings.topics.min_in_sync, &*kafka.group), (1, "staging.custody-ingest"));
}

#[test]
fn what_makes_no_sense_without_kafka_or_with_it_is_a_mistake_with_its_line() {
    let one = |text: &str| {
        let mistakes = read(text).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        mistakes[0].clone()
    };
    let local = "[proxy]\ndurability = \"replicated\"\n";
    assert!(one(local).starts_with("line 2: proxy.durability = \"replicated\" waits for Kafka"));
    let forgotten = "[journal]\nbrokers = \"k1:9092\"\n";
    assert!(one(forgotten).contains("only with journal.kind = \"kafka\""));
    assert!(one("[journal]\nkind = \"kafka\"\n").contains("needs journal.brokers"));
    assert!(one("[journal]\nkind = \"pulsar\"\n").starts_with("line 2: journal.kind must be"));
    assert!(one(&KAFKA.replace("k1:9092", "http://k1")).contains("must be host:port"));
    assert!(
        one(&format!("{KAFKA}replication_factor = 2\nmin_insync_replicas = 3\n"))
            .contains("more than")
    );
    assert!(one(&format!("{KAFKA}retention_hours = 24\n")).contains("from 168"));
    assert!(
        one(&format!("{KAFKA}[journal.tls]\nca = \"/nowhere.pem\"\n")).starts_with("line 5: ca")
    );
}

#[test]
fn a_login_is_read_from_the_file_a_secret_file_or_the_environment_and_told_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let login = "[journal.sasl]\nmechanism = \"SCRAM-SHA-512\"\nusername = \"edge\"\n";
    let base = format!("{KAFKA}{login}");
    let variable = ("CUSTODY__JOURNAL__SASL__PASSWORD", "hunter2");
    let configs = [
        read(&format!("{base}password = \"hunter2\"\n")).unwrap(),
        read(&format!("{base}password_file = {file:?}\n")).unwrap(),
        with_environment(&base, &[variable]).unwrap(),
    ];
    for config in configs {
        assert!(!format!("{config:?}").contains("hunter2"));
        let Some(custody_journal::kafka::Sasl::ScramSha512(login)) =
            config.journal.kafka.unwrap().settings.sasl
        else {
            panic!("no SCRAM-SHA-512")
        };
        assert_eq!((&*login.username, login.password.expose()), ("edge", "hunter2"));
    }
    let hash = |password: &str| with_environment(&base, &[(variable.0, password)]).unwrap().hash;
    assert_eq!(hash("hunter2"), hash("correct horse"), "a hash must not tell a password");
    assert!(read(&base).unwrap_err()[0].contains("needs the key `password` or `password_file`"));
    let number = read(&format!("{base}password = 31337\n")).unwrap_err();
    assert!(number.len() == 1 && !number[0].contains("31337"), "{number:?}");
}

#[test]
fn a_whole_login_may_come_from_the_environment() {
    let variables = [
        ("CUSTODY__JOURNAL__KIND", "kafka"),
        ("CUSTODY__JOURNAL__BROKERS", "k:1"),
        ("CUSTODY__JOURNAL__SASL__MECHANISM", "OAUTHBEARER"),
        ("CUSTODY__JOURNAL__SASL__TOKEN_ENDPOINT", "https://id.example/token"),
        ("CUSTODY__JOURNAL__SASL__CLIENT_ID", "edge"),
        ("CUSTODY__JOURNAL__SASL__CLIENT_SECRET", "s"),
        ("CUSTODY__LAKE__STORAGE__REGION", "eu-west-1"),
    ];
    let config = with_environment("", &variables).unwrap();
    assert!(config.journal.kafka.unwrap().settings.sasl.is_some());
    assert_eq!(config.lake.storage.0["region"], "eu-west-1");
    let wrong = with_environment("", &[("CUSTODY__JOURNAL__TLS__CE", "x")]).unwrap_err();
    assert!(wrong[0].contains("CUSTODY__JOURNAL__TLS__CE; did you mean `ca`"), "{wrong:?}");
}

#[test]
fn a_stores_options_pass_as_they_are_and_are_not_printed() {
    let text = "[lake]\nurl = \"s3://bucket/lake\"\n[lake.storage]\nendpoint = \"http://127.0.0.1:9000\"\nallow_http = true\nsecret_access_key = \"hunter2\"\n";
    let config = read(text).unwrap();
    assert_eq!(config.lake.storage.0["allow_http"], "true");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.hash, read(&text.replace("hunter2", "other")).unwrap().hash);
    let wrong = read(&text.replace("s3:", "ftp:")).unwrap_err();
    assert!(wrong[0].starts_with("line 2: lake.url must begin with one of file:"), "{wrong:?}");
}

#[test]
fn a_server_is_a_url_or_a_command_with_what_belongs_to_it() {
    let text = "[[server]]\nname = \"files\"\ncommand = [\"npx\", \"-y\"]\nargs = [\"server\"]\nenv = { PATH = \"/bin\", LEVEL = 3 }\nmax_processes = 4\ntimeout_ms = 5000\n[[server]]\nname = \"old\"\nurl = \"https://h/sse\"\ntransport = \"sse\"\nheaders = { X-Api-Key = \"k-synthetic\" }\noauth = { token_url = \"https://a/t\", client_id = \"c\", client_secret = \"s-synthetic\", scopes = [\"a\", \"b\"] }\n";
    let text = text.replace(
        "headers = { X-Api-Key = \"k-synthetic\" }\n",
        "headers = { X-Api-Key = \"k-synthetic\" }\nbreaker_failures = 0\n",
    );
    let config = read(&text).unwrap();
    let Reach::Stdio(command) = &config.servers[0].reach else { panic!("{:?}", config.servers) };
    assert_eq!(
        (command.program.as_str(), &command.args[..]),
        ("npx", &["-y".into(), "server".into()][..])
    );
    assert_eq!((&*command.env.0["LEVEL"], command.max_processes), ("3", 4));
    assert_eq!(config.servers[0].timeout_ms, Some(5000));
    let Reach::LegacySse(address) = &config.servers[1].reach else {
        panic!("{:?}", config.servers)
    };
    assert_eq!(
        (&*address.headers.0["X-Api-Key"], address.breaker_failures),
        ("k-synthetic", Some(0))
    );
    assert_eq!(address.oauth.as_ref().unwrap().scopes, ["a", "b"]);
    assert!(!format!("{config:?}").contains("synthetic"), "no secret is printed");
    let other = text.replace("k-synthetic", "k-other").replace("s-synthetic", "s-other");
    assert_eq!(config.hash, read(&other).unwrap().hash, "no secret is hashed");
}

#[test]
fn what_cannot_reach_a_server_is_told_with_its_line() {
    let text = "[[server]]\nname = \"a\"\nurl = \"http://h/\"\ncommand = \"npx\"\n[[server]]\nname = \"b\"\nurl = \"http://h/\"\ntransport = \"smoke\"\ncertificate = \"/none.pem\"\nheaders = { Host = \"x\", Authorization = \"Bearer k\" }\noauth = { token_url = \"ftp://a\", client_id = \"c\" }\n[[server]]\nname = \"c\"\ncommand = []\ncwd = \"/none\"\nurll = \"\"\nca = \"/none.pem\"\n[[server]]\nname = \"d\"\nurl = \"http://h/\"\nargs = []\n";
    let wrong = read(text).unwrap_err();
    let expected = [
        "line 4: server.command and server.url are two ways",
        "line 17: server.ca is for a server with a url",
        "line 5: server.certificate and server.key belong together",
        "line 8: server.transport must be",
        "line 9: certificate \"/none.pem\" cannot be read",
        "line 10: server.headers.Host is written by the proxy",
        "line 11: oauth needs the key `client_secret`",
        "line 11: oauth.token_url must be",
        "line 14: server.command must name a program",
        "line 16: unknown key server.urll",
        "line 21: server.args is for a program",
    ];
    for text in expected {
        assert!(wrong.iter().any(|mistake| mistake.starts_with(text)), "{text}\n{wrong:#?}");
    }
}

#[test]
fn a_policy_that_cannot_be_used_and_a_key_without_a_place_are_told_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("witnesses.policy");
    std::fs::write(&path, "# nobody\nquorum w1\n").unwrap();
    let text = format!(
        "[deployment.signers]\nroot = \"vault:1\"\n\"Edge 1\" = \"file:/x\"\n[witness]\npolicy = {path:?}\n"
    );
    let mistakes = read(&text).unwrap_err();
    assert!(mistakes.iter().any(|m| m.starts_with("line 2: deployment.signers.root must be")));
    assert!(mistakes.iter().any(|m| m.starts_with("line 3: deployment.signers.Edge 1: a key")));
    let of_policy = mistakes.iter().find(|m| m.starts_with("line 5: witness.policy")).unwrap();
    assert!(of_policy.contains("line 2: no line before it defines w1"), "{of_policy}");
    assert!(read("[witness]\npolicy = \"/nowhere\"\n").is_err());
    std::fs::write(&path, "quorum none\n").unwrap();
    let text = format!(
        "[deployment.signers]\nedge-1 = \"env:KEY\"\nlog = \"command:/bin/sign --slot 2\"\n[witness]\npolicy = {path:?}\n"
    );
    let config = read(&text).unwrap();
    assert!(config.witness.policy.is_some());
    let signers: Vec<_> = config.deployment.signers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(signers, ["edge-1", "log"]);
}
