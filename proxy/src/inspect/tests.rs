//! What inspection recognises, and what it says when it cannot.

use std::collections::HashMap;

use custody_schemas::event::Subject;
use serde_json::json;

use super::*;
use crate::envelope::Look;

fn answer_with(rules: &Rules, tool: Option<&str>, text: &str) -> Found {
    let envelope = Envelope::read(text.as_bytes(), Look::Everywhere).unwrap();
    received(rules, tool, false, &envelope, text.as_bytes())
}

fn answer(result: serde_json::Value) -> Vec<Subject> {
    let text = json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
    let mut subjects = answer_with(&Rules::default(), None, &text).into_subjects();
    subjects.sort();
    subjects
}

fn ids(subjects: &[Subject]) -> Vec<&str> {
    subjects.iter().map(|s| s.id.as_str()).collect()
}

fn request(method: &str, params: serde_json::Value) -> Vec<Subject> {
    let text = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let envelope = Envelope::read(text.as_bytes(), Look::Everywhere).unwrap();
    sent(&Rules::default(), &envelope, text.as_bytes()).into_subjects()
}

fn patient(id: &str) -> serde_json::Value {
    json!({"identifier": [{"system": "urn:mrn", "value": format!("m{id}")}], "id": id,
        "name": [{"family": "X"}], "resourceType": "Patient"})
}

#[test]
fn a_patient_is_recognised_wherever_the_result_holds_it() {
    let p = patient("p1");
    let blob = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        p.to_string().as_bytes(),
    );
    for result in [
        json!({"structuredContent": p}),
        json!({"content": [{"type": "text", "text": p.to_string()}]}),
        json!({"content": [{"type": "text", "text": format!("Found:\n```json\n{p:#}\n```\n")}]}),
        json!({"contents": [{"uri": "x", "text": p.to_string()}]}),
        json!({"content": [{"type": "resource", "resource": {"uri": "x", "text": p.to_string()}}]}),
        json!({"contents": [{"uri": "x", "mimeType": "application/fhir+json", "blob": blob}]}),
        json!({"content": [{"text": json!({"data": p.to_string()}).to_string(), "type": "text"}]}),
    ] {
        let found = answer(result.clone());
        assert_eq!(ids(&found), ["p1"], "{result}");
        assert_eq!(found[0].system, "fhir:Patient");
        assert_eq!(found[0].categories, ["Patient"]);
        assert_eq!(found[0].aliases, ["urn:mrn|mp1"]);
        assert_eq!(found[0].direction, Direction::Received);
    }
}

#[test]
fn references_name_patients_in_all_their_forms() {
    for (resource, id, system) in [
        (json!({"subject": {"reference": "Patient/a"}}), "a", "fhir:Patient"),
        (
            json!({"patient": {"reference": "https://ehr/fhir/Patient/b/_history/2"}}),
            "b",
            "fhir:Patient",
        ),
        (
            json!({"subject": {"type": "Patient", "identifier": {"system": "s", "value": "c"}}}),
            "c",
            "s",
        ),
        (json!({"subject": {"reference": "Patient?identifier=s|d"}}), "d", "s"),
        (
            json!({"subject": {"reference": "#p"}, "contained": [{"resourceType": "Patient", "id": "p"}]}),
            "Observation/o#p",
            "fhir:contained",
        ),
        (
            json!({"contained": [{"resourceType": "Patient", "id": "p", "identifier": [{"system": "s", "value": "e"}]}]}),
            "e",
            "s",
        ),
        (json!({"patient": {"reference": "urn:uuid:f"}}), "urn:uuid:f", "fhir:Patient"),
        (json!({"participant": [{"actor": {"reference": "Patient/g"}}]}), "g", "fhir:Patient"),
    ] {
        let mut resource = resource;
        resource["resourceType"] = "Observation".into();
        resource["id"] = "o".into();
        let found = answer(json!({"structuredContent": resource}));
        assert_eq!(ids(&found), [id], "{resource}");
        assert_eq!(found[0].system, system, "{resource}");
        assert!(
            found[0].categories.contains(&"Observation".to_owned())
                || system == "s"
                || system == "fhir:contained"
        );
    }
    let other = json!({"resourceType": "Observation", "subject": {"reference": "Group/1"}, "performer": [{"reference": "Practitioner/2"}]});
    assert!(answer(json!({"structuredContent": other})).is_empty());
}

#[test]
fn a_bundle_with_many_patients_gives_each_of_them_once() {
    let mut entries = Vec::new();
    for i in 0..300 {
        let url = format!("urn:uuid:{i}");
        entries.push(
            json!({"resource": {"resourceType": "Observation", "subject": {"reference": url}}}),
        );
        entries.push(json!({"resource": patient(&format!("p{i}")), "fullUrl": url}));
    }
    let bundle = json!({"resourceType": "Bundle", "entry": entries});
    let found = answer(json!({"content": [{"type": "text", "text": bundle.to_string()}]}));
    assert_eq!(found.len(), 300);
    for subject in &found {
        assert_eq!(subject.categories, ["Observation", "Patient"]);
        assert_eq!(subject.records, Some(Uint::new(2)));
    }
}

#[test]
fn what_an_agent_sends_names_patients_too() {
    let call = |arguments| request("tools/call", json!({"name": "t", "arguments": arguments}));
    for arguments in [
        json!({"type": "Patient", "id": "p1"}),
        json!({"resource_type": "Patient", "resource_id": "p1"}),
        json!({"patient": "Patient/p1"}),
        json!({"url": "Observation?patient=p1&code=x"}),
        json!({"paths": ["Patient/p1/$everything"]}),
        json!({"resource": patient("p1")}),
    ] {
        let found = call(arguments.clone());
        assert_eq!(ids(&found), ["p1"], "{arguments}");
        assert_eq!(found[0].direction, Direction::Sent);
    }
    assert_eq!(ids(&request("resources/read", json!({"uri": "fhir://ehr/Patient/p9"}))), ["p9"]);
    assert!(call(json!({"note": "the patient is well", "type": "Patient"})).is_empty());
}

#[test]
fn rules_point_at_identifiers_in_arguments_and_results() {
    let rule = |path| Rule::new(path, "mrn").unwrap();
    let tool = ToolRule {
        arguments: vec![rule("$.mrns")],
        result: vec![rule("$.patient.mrn"), rule("$.rows[*].mrn")],
        ..ToolRule::default()
    };
    let rules = Rules { tools: HashMap::from([("chart".to_owned(), tool)]), ..Rules::default() };
    let text =
        r#"{"id":1,"method":"tools/call","params":{"name":"chart","arguments":{"mrns":["1",2]}}}"#;
    let envelope = Envelope::read(text.as_bytes(), Look::Everywhere).unwrap();
    assert_eq!(ids(&sent(&rules, &envelope, text.as_bytes()).into_subjects()), ["1", "2"]);
    for result in [
        json!({"structuredContent": {"patient": {"mrn": "7"}}}),
        json!({"content": [{"type": "text", "text": "{\"rows\":[{\"mrn\":7}]}"}]}),
    ] {
        let text = json!({"id": 1, "result": result}).to_string();
        let found = answer_with(&rules, Some("chart"), &text).into_subjects();
        assert_eq!(ids(&found), ["7"]);
        assert_eq!(found[0].system, "mrn");
        assert!(answer_with(&rules, Some("other"), &text).into_subjects().is_empty());
    }
    assert!(Rule::new("patient.mrn", "mrn").is_err());
}

#[test]
fn the_status_says_what_was_seen_and_what_was_not() {
    let status = |text: &str| {
        let found = answer_with(&Rules::default(), None, text);
        data(true, &found).subject_status.unwrap()
    };
    assert_eq!(status(r#"{"id":1,"result":{"x":1}}"#), SubjectStatus::Unrecognised);
    assert_eq!(status(r#"{"id":1,"result":{"x":1,"x":2}}"#), SubjectStatus::Ambiguous);
    let picture =
        r#"{"id":1,"result":{"content":[{"type":"image","data":"AAAA","mimeType":"image/png"}]}}"#;
    assert_eq!(status(picture), SubjectStatus::NotExamined);
    let blob = r#"{"id":1,"result":{"contents":[{"uri":"a","blob":"AAAA"}]}}"#;
    assert_eq!(status(blob), SubjectStatus::NotExamined);
    let deep =
        format!("{{\"id\":1,\"result\":{{\"text\":\"{} resourceType\"}}}}", "[".repeat(100_000));
    assert_eq!(status(&deep), SubjectStatus::NotExamined);
    assert!(data(false, &Found::new(Direction::Received)).is_empty());
    assert!(data(true, &Found::new(Direction::Received)).is_phi());
}

#[test]
fn more_people_than_are_kept_by_name_are_counted() {
    let entries: Vec<_> =
        (0..9_000).map(|i| json!({"resource": patient(&i.to_string())})).collect();
    let text = json!({"id": 1, "result": {"resourceType": "Bundle", "entry": entries}}).to_string();
    let found = answer_with(&Rules::default(), None, &text);
    assert_eq!(data(false, &found).subject_count, Some(Uint::new(9_000)));
    assert_eq!(data(false, &found).subject_status, Some(SubjectStatus::NotExamined));
}
