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

fn survey_of(result: serde_json::Value) -> Survey {
    let text = json!({"jsonrpc": "2.0", "id": 1, "result": result}).to_string();
    survey(&Rules::default(), &Direction::Received, text.as_bytes()).unwrap()
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

#[test]
fn messages_and_documents_of_other_standards_are_recognised_wherever_they_stand() {
    let message = "MSH|^~\\&|A|B|C|D|1||ADT^A01|1|P|2.5\rPID|1||M1^^^HOSP^MR\rPV1|1|I\r";
    let document = "<ClinicalDocument xmlns=\"urn:hl7-org:v3\"><recordTarget><patientRole>\
        <id root=\"1.2\" extension=\"M1\"/></patientRole></recordTarget></ClinicalDocument>";
    for (text, system) in [(message, "hl7v2:HOSP"), (document, "urn:oid:1.2")] {
        for result in [
            json!({"content": [{"type": "text", "text": text}]}),
            json!({"content": [{"type": "text", "text": json!({"m": [text]}).to_string()}]}),
            json!({"structuredContent": {"message": text}}),
            json!({"contents": [{"uri": "x", "mimeType": "text/plain", "blob": base64(text)}]}),
            json!({"contents": [{"uri": "x", "blob": base64(text)}]}),
            json!({"structuredContent": {"resourceType": "Binary", "id": "b",
                "contentType": "text/plain", "data": base64(text)}}),
        ] {
            let data = survey_of(result.clone()).data;
            assert_eq!(ids(&data.subjects), ["M1"], "{result}");
            assert_eq!(data.subjects[0].system, system);
            assert_eq!(data.subject_status, Some(SubjectStatus::Recognised));
        }
    }
    let nobody = message.replace("M1^^^HOSP^MR", "");
    let text = json!({"id": 1, "result": {"text": nobody}}).to_string();
    let found = answer_with(&Rules::default(), None, &text);
    assert!(data(false, &found).is_phi(), "it is protected data whatever the server is");
    assert_eq!(data(false, &found).subject_status, Some(SubjectStatus::Unrecognised));
}

#[test]
fn a_patient_who_is_only_named_is_recognised_in_any_string() {
    for result in [
        json!({"structuredContent": {"link": [{"url": "https://ehr/Observation?patient=p1&_page=2"}]}}),
        json!({"structuredContent": {"link": [{"url": "https://ehr/Observation?subject=Patient%2Fp1"}]}}),
        json!({"structuredContent": {"resourceType": "List", "id": "l", "note": "see Patient/p1."}}),
        json!({"content": [{"type": "text", "text": "Patient/p1 was seen; so was nobody."}]}),
        json!({"content": [{"type": "text", "text": "{\"rows\":[{\"who\":\"Patient/p1\"}]}"}]}),
        json!({"structuredContent": {"subject": {"reference": "Pati\u{65}nt/p1"}}}),
    ] {
        let escaped = result.to_string().replace("Patient/", "P\\u0061tient\\/");
        for text in [result.to_string(), escaped] {
            let text = format!("{{\"id\":1,\"result\":{text}}}");
            let found = answer_with(&Rules::default(), None, &text).into_subjects();
            assert_eq!(ids(&found), ["p1"], "{text}");
        }
    }
    assert!(answer(json!({"content": [{"type": "text", "text": "Patient/family: 1"}]})).is_empty());
}

#[test]
fn examples_in_descriptions_are_no_patients() {
    let text = r#"{"id":1,"result":{"tools":[{"description":"for example Patient/54321"}]}}"#;
    let envelope = Envelope::read(text.as_bytes(), Look::Everywhere).unwrap();
    let found = |definitions| {
        received(&Rules::default(), None, definitions, &envelope, text.as_bytes()).count()
    };
    assert_eq!((found(true), found(false)), (0, 1));
}

#[test]
fn a_search_names_whom_it_is_for() {
    let call = |arguments| request("tools/call", json!({"name": "t", "arguments": arguments}));
    for (arguments, id) in [
        (json!({"type": "Observation", "searchParam": {"patient": "p1"}}), "p1"),
        (json!({"type": "Observation", "searchParam": {"patient": ["p1"]}}), "p1"),
        (json!({"type": "Observation", "searchParam": {"subject": "Patient/p1"}}), "p1"),
        (json!({"type": "Patient", "searchParam": {"_id": "p1"}}), "p1"),
        (json!({"type": "Patient", "searchParam": {"_id": ["p1"]}}), "p1"),
        (json!({"type": "Patient", "searchParam": {"identifier": "urn:mrn|m1"}}), "m1"),
        (json!({"patientId": "p1"}), "p1"),
        (json!({"patient_id": 17}), "17"),
    ] {
        assert_eq!(ids(&call(arguments.clone())), [id], "{arguments}");
    }
    for arguments in [
        json!({"type": "Observation", "searchParam": {"_id": "o1"}}),
        json!({"patient": "ann"}),
        json!({"type": "Device", "searchParam": {"identifier": "urn:udi|1"}}),
    ] {
        assert!(call(arguments.clone()).is_empty(), "{arguments}");
    }
}

#[test]
fn record_numbers_are_aliases_and_numbers_of_the_state_are_not() {
    let typed = |code: &str| json!({"coding": [{"system": "v2-0203", "code": code}]});
    let found = answer(json!({"structuredContent": {"resourceType": "Patient", "id": "p1",
        "identifier": [
            {"system": "http://hl7.org/fhir/sid/us-ssn", "value": "999-11-2222"},
            {"system": "urn:any", "value": "7"},
            {"system": "urn:licence", "type": typed("DL"), "value": "S9"},
            {"type": typed("MR"), "system": "urn:mrn", "value": "m1"}]}}));
    assert_eq!(found[0].aliases, ["urn:mrn|m1", "urn:any|7"]);
    let found = answer(json!({"structuredContent": {"resourceType": "Observation", "id": "o",
        "subject": {"reference": "Patient/p1", "identifier": {"system": "urn:mrn", "value": "m1"}}}}));
    assert_eq!((ids(&found), &*found[0].aliases[0]), (vec!["p1"], "urn:mrn|m1"));
}

#[test]
fn what_was_not_examined_is_said_with_its_reason() {
    let image = json!({"type": "image", "data": "AAAA", "mimeType": "image/png"});
    let blob = |media: &str, bytes: &str| json!({"contents": [{"uri": "a", "mimeType": media, "blob": bytes}]});
    for (result, why) in [
        (json!({"content": [image.clone()]}), "image"),
        (json!({"content": [{"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}]}), "audio"),
        (blob("application/pdf", "JVBERi0="), "pdf"),
        (blob("application/octet-stream", "JVBERgD/"), "pdf"),
        (blob("application/octet-stream", "/wD/"), "binary"),
        (blob("text/plain", "no base64!"), "base64"),
        (json!({"structuredContent": {"resourceType": "Patient"}}), "nameless"),
    ] {
        assert_eq!(survey_of(result.clone()).unexamined, [why], "{result}");
    }
    let mut nested = patient("p1").to_string();
    for _ in 0..12 {
        nested = json!({ "t": nested }).to_string();
    }
    assert_eq!(survey_of(json!({ "text": nested })).unexamined, ["depth"]);
    let both = survey_of(json!({"structuredContent": patient("p1"), "content": [image]}));
    assert_eq!(both.unexamined, ["image"]);
    assert_eq!(both.data.subject_status, Some(SubjectStatus::Recognised));
}

#[test]
fn five_thousand_lines_are_read_to_the_last() {
    let lines: Vec<_> = (0..5_000).map(|i| patient(&i.to_string()).to_string()).collect();
    let text = lines.join("\n");
    let blob = json!({"contents": [{"uri": "x", "mimeType": "application/fhir+ndjson",
        "blob": base64(&text)}]});
    for result in [json!({"content": [{"type": "text", "text": text}]}), blob] {
        let survey = survey_of(result);
        assert_eq!(survey.data.subjects.len(), 5_000);
        assert_eq!(survey.data.subject_status, Some(SubjectStatus::Recognised));
    }
}

#[test]
fn hostile_texts_take_no_more_than_their_share_of_work() {
    let words = "resourceType Patient/1 MSH|^~\\&| <ClinicalDocument ";
    for piece in ["[", "{\"a\":", "[[]", "{\"resourceType\":", "{\"a\":\"", "MSH|^~\\&|", words] {
        let text = format!("{words}{} {words}", piece.repeat(1 << 15));
        let text = json!({"id": 1, "result": {"text": text}}).to_string();
        let read = answer_with(&Rules::default(), None, &text).read_bytes();
        // what is left to do is known after each attempt; prose and messages in it are read besides
        let most = work::MAX_WORK_BYTES + 4 * text.len();
        assert!((text.len()..most).contains(&read), "{piece:?}: {read} of {}", text.len());
    }
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

#[test]
fn of_an_argument_that_a_rule_is_about_the_rule_says_whose_number_it_is() {
    let tool = ToolRule {
        arguments: vec![Rule::new("$.patient_id", "mrn").unwrap()],
        ..ToolRule::default()
    };
    let rules = Rules { tools: HashMap::from([("note".to_owned(), tool)]), ..Rules::default() };
    let people = |tool: &str, arguments: serde_json::Value| {
        let text = json!({"id": 1, "method": "tools/call",
            "params": {"name": tool, "arguments": arguments}});
        let text = text.to_string();
        let envelope = Envelope::read(text.as_bytes(), Look::Everywhere).unwrap();
        let mut found = sent(&rules, &envelope, text.as_bytes()).into_subjects();
        found.sort();
        found.into_iter().map(|subject| (subject.system, subject.id)).collect::<Vec<_>>()
    };
    let of = |system: &str, id: &str| (system.to_owned(), id.to_owned());
    assert_eq!(people("note", json!({"patient_id": "m-1"})), [of("mrn", "m-1")]);
    assert_eq!(people("note", json!({"patient_id": 17})), [of("mrn", "17")]);
    assert_eq!(people("note", json!({"patient_id": ["1", "2"]})), [of("mrn", "1"), of("mrn", "2")]);
    assert_eq!(people("other", json!({"patient_id": "m-1"})), [of("fhir:Patient", "m-1")]);
    // another place is another number, even if it looks alike
    assert_eq!(
        people("note", json!({"patient_id": "m-1", "patient": "m-1"})),
        [of("fhir:Patient", "m-1"), of("mrn", "m-1")]
    );
    assert_eq!(
        people("note", json!({"patient_id": "m-1", "about": "Patient/m-1"})),
        [of("fhir:Patient", "m-1"), of("mrn", "m-1")]
    );
}
