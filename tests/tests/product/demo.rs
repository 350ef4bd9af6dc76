//! The README's first command.

use std::process::Command;

use custody_tests::product::executable;

#[test]
fn the_demo_shows_the_phi_access_report_and_ends() {
    let output = Command::new(executable().unwrap()).args(["demo", "--once"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for word in ["triage-assistant", "clinician-17", "synthetic-001", "risk_score", "tool_error"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
    assert!(!text.contains("formulary"), "a tool without patients is no PHI access:\n{text}");
    assert!(text.contains("Complete through"), "the completeness line is missing:\n{text}");
}
