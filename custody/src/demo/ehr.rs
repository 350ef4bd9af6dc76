//! A synthetic electronic health record behind MCP, written with the official Rust SDK.
//!
//! Every patient in it is invented and marked as such (`meta.tag` HTEST, names that begin with
//! “Synthetic”). It has what a real one has: lookups, a search that returns several patients,
//! notes in plain text, a tool that fails, a slow one, and one that has nothing to do with
//! patients.

use std::net::SocketAddr;
use std::time::Duration;

use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{tool, tool_router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// How many synthetic patients there are.
pub const PATIENTS: usize = 12;

const FAMILIES: [&str; PATIENTS] = [
    "Alder", "Birch", "Cedar", "Dogwood", "Elm", "Fir", "Ginkgo", "Hazel", "Ironwood", "Juniper",
    "Kapok", "Larch",
];
const CITIES: [&str; 3] = ["Northford", "Eastbrook", "Westhaven"];

/// The server; it keeps no state.
#[derive(Clone, Debug)]
pub struct Ehr;

/// The id of the n-th patient.
pub fn patient_id(n: usize) -> String {
    format!("synthetic-{:03}", n + 1)
}

/// The medical record number of the n-th patient.
pub fn mrn(n: usize) -> String {
    format!("SYN-{:06}", 100_000 + 37 * n)
}

fn patient(n: usize) -> Value {
    json!({
        "resourceType": "Patient",
        "id": patient_id(n),
        "meta": {"tag": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
                          "code": "HTEST", "display": "synthetic, no real person"}]},
        "identifier": [{"system": "urn:example:mrn", "value": mrn(n)}],
        "name": [{"family": FAMILIES[n % PATIENTS], "given": ["Synthetic"]}],
        "gender": if n.is_multiple_of(2) { "female" } else { "male" },
        "birthDate": format!("19{}-0{}-1{}", 40 + 4 * n, 1 + n % 9, n % 10),
        "address": [{"city": CITIES[n % CITIES.len()]}]
    })
}

fn observation(n: usize, k: usize) -> Value {
    json!({
        "resourceType": "Observation",
        "id": format!("obs-{:03}-{k}", n + 1),
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4",
                             "display": "Hemoglobin A1c"}]},
        "subject": {"reference": format!("Patient/{}", patient_id(n))},
        "valueQuantity": {"value": 5.1 + 0.3 * ((n + k) % 9) as f64, "unit": "%"}
    })
}

fn bundle(resources: Vec<Value>) -> Value {
    let entries: Vec<_> = resources.into_iter().map(|r| json!({"resource": r})).collect();
    json!({"resourceType": "Bundle", "type": "searchset", "total": entries.len(), "entry": entries})
}

fn find(id: &str) -> Option<usize> {
    (0..PATIENTS).find(|n| patient_id(*n) == id || mrn(*n) == id)
}

fn fhir(resource: &Value) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(resource.to_string())])
}

fn no_such_patient(id: &str) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(format!("no patient {id}"))])
}

/// Names one patient.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub struct OnePatient {
    /// The patient's id or medical record number.
    pub patient_id: String,
}

/// Names a city.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub struct InCity {
    /// The city where the patients live.
    pub city: String,
}

/// Orders a test for a patient.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub struct Order {
    /// The patient's id.
    pub patient_id: String,
    /// The test.
    pub test: String,
}

/// Asks for a drug.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
pub struct Drug {
    /// The drug's name.
    pub name: String,
}

#[tool_router(server_handler)]
impl Ehr {
    /// Reads one patient.
    #[tool]
    fn get_patient(
        &self,
        Parameters(OnePatient { patient_id }): Parameters<OnePatient>,
    ) -> CallToolResult {
        find(&patient_id).map_or_else(|| no_such_patient(&patient_id), |n| fhir(&patient(n)))
    }

    /// Finds the patients of a city.
    #[tool]
    fn search_patients(&self, Parameters(InCity { city }): Parameters<InCity>) -> CallToolResult {
        let here = |n: &usize| CITIES[n % CITIES.len()] == city;
        fhir(&bundle((0..PATIENTS).filter(here).map(patient).collect()))
    }

    /// Lists a patient's observations.
    #[tool]
    fn list_observations(
        &self,
        Parameters(OnePatient { patient_id }): Parameters<OnePatient>,
    ) -> CallToolResult {
        let Some(n) = find(&patient_id) else { return no_such_patient(&patient_id) };
        let resource = bundle((0..3).map(|k| observation(n, k)).collect());
        let mut result = fhir(&resource);
        result.structured_content = Some(resource);
        result
    }

    /// Reads a patient's note, in plain text.
    #[tool]
    fn get_note(
        &self,
        Parameters(OnePatient { patient_id }): Parameters<OnePatient>,
    ) -> CallToolResult {
        let Some(n) = find(&patient_id) else { return no_such_patient(&patient_id) };
        let text = format!(
            "Synthetic note for MRN {}: follow-up in three months, no real person concerned.",
            mrn(n)
        );
        CallToolResult::success(vec![ContentBlock::text(text)])
    }

    /// Orders a laboratory test. It always fails: the laboratory is closed.
    #[tool]
    fn order_lab(
        &self,
        Parameters(Order { patient_id, test }): Parameters<Order>,
    ) -> CallToolResult {
        let text = format!("the laboratory is closed, {test} was not ordered for {patient_id}");
        CallToolResult::error(vec![ContentBlock::text(text)])
    }

    /// Computes a patient's risk. Slow.
    #[tool]
    async fn risk_score(
        &self,
        Parameters(OnePatient { patient_id }): Parameters<OnePatient>,
    ) -> CallToolResult {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let Some(n) = find(&patient_id) else { return no_such_patient(&patient_id) };
        fhir(&json!({
            "resourceType": "RiskAssessment",
            "status": "final",
            "subject": {"reference": format!("Patient/{}", super::ehr::patient_id(n))},
            "prediction": [{"probabilityDecimal": 0.07}]
        }))
    }

    /// Looks a drug up in the formulary. Touches no patient.
    #[tool]
    fn formulary(&self, Parameters(Drug { name }): Parameters<Drug>) -> CallToolResult {
        CallToolResult::success(vec![ContentBlock::text(format!("{name}: on formulary, tier 2"))])
    }
}

/// Serves the record at `address` until `stop`; where it listens. On an address that is not
/// loopback any `Host` is taken: everything in the record is invented.
pub async fn serve(address: SocketAddr, stop: CancellationToken) -> std::io::Result<SocketAddr> {
    let mut settings = StreamableHttpServerConfig::default();
    settings.cancellation_token = stop.clone();
    settings.json_response = true;
    settings.legacy_session_mode = false;
    if !address.ip().is_loopback() {
        settings = settings.disable_allowed_hosts();
    }
    let service: StreamableHttpService<Ehr, LocalSessionManager> =
        StreamableHttpService::new(|| Ok(Ehr), std::sync::Arc::default(), settings);
    let router = axum::Router::new().nest_service("/mcp", service);
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let serving = axum::serve(listener, router);
    let serving = serving.with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::warn!(%error, "the synthetic record stopped");
        }
    });
    Ok(address)
}
