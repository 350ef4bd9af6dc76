//! How fast messages are looked through for patients: megabytes a second on one core.
//!
//! Nothing else of the proxy runs: a figure here is the cost of reading the envelope (every key,
//! for twins) and of inspection, together, for one message after the other.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use custody_proxy::inspect::{Rules, survey};
use custody_schemas::words::Direction;
use serde_json::{Value, json};

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// A folder of FHIR Bundles as JSON files; without it a Bundle is made up.
    #[arg(long)]
    fhir: Option<PathBuf>,
    /// How long each shape of message is looked through, in seconds.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Only shapes whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
}

/// Prints one line for each shape of message.
#[expect(clippy::print_stdout, reason = "the lines are the benchmark's result")]
pub fn run(options: &Options) -> anyhow::Result<()> {
    let bundles = match &options.fhir {
        Some(folder) => read(folder)?,
        None => vec![made_up(2_000)],
    };
    println!("{:<28} {:>9} {:>9} {:>9} {:>10}", "shape", "MB", "MB/s", "people", "status");
    for (name, shape) in SHAPES {
        if !name.contains(&options.only) {
            continue;
        }
        let messages: Vec<Vec<u8>> =
            bundles.iter().flat_map(shape).map(|m| m.to_string().into()).collect();
        let line = measure(&messages, Duration::from_secs(options.seconds))?;
        println!("{name:<28} {line}");
    }
    Ok(())
}

type Shape = fn(&Value) -> Vec<Value>;

/// The shapes in which servers give FHIR to agents.
const SHAPES: [(&str, Shape); 6] = [
    ("structured", |bundle| vec![answer(json!({"structuredContent": bundle}))]),
    ("text", |bundle| vec![answer(text(&bundle.to_string()))]),
    ("text, indented", |bundle| vec![answer(text(&format!("{bundle:#}")))]),
    ("text and structured", |bundle| {
        let mut result = text(&bundle.to_string());
        result["structuredContent"] = bundle.clone();
        vec![answer(result)]
    }),
    ("one resource each, text", |bundle| {
        resources(bundle).map(|resource| answer(text(&resource.to_string()))).collect()
    }),
    ("no FHIR: prose", |bundle| {
        let prose = bundle.to_string().replace("esourceType", "ype").replace("atient", "erson");
        vec![answer(text(&prose))]
    }),
];

fn answer(result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "result": result})
}

fn text(text: &str) -> Value {
    json!({"content": [{"type": "text", "text": text}], "isError": false})
}

fn resources(bundle: &Value) -> impl Iterator<Item = &Value> {
    bundle["entry"].as_array().into_iter().flatten().map(|entry| &entry["resource"])
}

/// Looks through all messages again and again for this long.
fn measure(messages: &[Vec<u8>], time: Duration) -> anyhow::Result<String> {
    let rules = Rules::default();
    let look = |message: &Vec<u8>| survey(&rules, &Direction::Received, message);
    let bytes: usize = messages.iter().map(Vec::len).sum();
    let mut people = 0;
    let mut status = String::new();
    for message in messages {
        let survey = look(message).context("a shape is no message")?;
        people = people.max(survey.data.subject_count.map_or(0, custody_schemas::id::Uint::get));
        status = survey.data.subject_status.map(|s| s.as_str().to_owned()).unwrap_or_default();
    }
    let (started, on_core) = (Instant::now(), core_seconds()?);
    let mut rounds = 0_u32;
    while started.elapsed() < time {
        for message in messages {
            std::hint::black_box(look(message));
        }
        rounds += 1;
    }
    let megabytes = bytes as f64 / 1e6;
    let rate = megabytes * f64::from(rounds) / (core_seconds()? - on_core);
    Ok(format!("{megabytes:>9.2} {rate:>9.0} {people:>9} {status:>12}"))
}

/// Seconds that this thread has been on a core: other work on the machine does not count.
fn core_seconds() -> anyhow::Result<f64> {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = line.split(' ').next().unwrap_or_default().parse()?;
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}

fn read(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let mut bundles = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            let bytes = std::fs::read(&path)?;
            bundles.push(
                serde_json::from_slice(&bytes).with_context(|| format!("{}", path.display()))?,
            );
        }
    }
    Ok(bundles)
}

/// A Bundle of this many people, three resources each.
fn made_up(people: u32) -> Value {
    let mut entry = Vec::new();
    for n in 0..people {
        let id = format!("00000000-0000-4000-8000-{n:012}");
        let subject = json!({"reference": format!("Patient/{id}"), "display": "Synthetic Person"});
        let code = |code: &str, display: &str| {
            json!({"coding": [{"system": "http://loinc.org", "code": code, "display": display}],
                "text": display})
        };
        entry.push(json!({"resourceType": "Patient", "id": id, "gender": "female",
            "identifier": [{"system": "urn:oid:1.2.3", "value": format!("M{n}"),
                "type": code("MR", "Medical Record Number")}],
            "name": [{"family": "Synthetic", "given": ["Person", format!("No{n}")]}],
            "birthDate": "1970-01-01"}));
        entry.push(json!({"resourceType": "Observation", "id": format!("o{n}"), "status": "final",
            "code": code("8867-4", "Heart rate"), "subject": subject,
            "effectiveDateTime": "2026-01-01T00:00:00Z",
            "valueQuantity": {"value": 72.5, "unit": "beats/minute",
                "system": "http://unitsofmeasure.org", "code": "/min"}}));
        entry.push(json!({"resourceType": "Condition", "id": format!("c{n}"), "subject": subject,
            "code": code("38341003", "Hypertensive disorder"), "recordedDate": "2026-01-01"}));
    }
    let entry: Vec<Value> =
        entry.into_iter().map(|resource| json!({"resource": resource})).collect();
    json!({"resourceType": "Bundle", "type": "searchset", "entry": entry})
}
