//! Questions that somebody has put into SQL already.
//!
//! A date means the day of the configured time zone, and `to` includes its day; the answer says
//! which interval in UTC that was. Filters are bound as parameters. What has no recognised patient
//! comes first.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::engine::Question;
use crate::error::QueryError;
use crate::statement::Params;

/// What `GET /v1/reports/phi-access` takes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhiAccess {
    /// The first day, or an instant.
    pub from: Option<String>,
    /// The last day, which is included, or an instant, which is not.
    pub to: Option<String>,
    /// Subject or name of a user.
    pub user: Option<String>,
    /// Id or name of an agent.
    pub agent: Option<String>,
    /// Id of a patient, or `system|id`, or an alias.
    pub patient: Option<String>,
    /// Name of a tool, or `server/tool`.
    pub tool: Option<String>,
    /// The cut at which it is asked for; now when absent.
    pub cut: Option<String>,
    /// The format of the answer.
    pub format: Option<String>,
}

/// A half-open interval in UTC, and the zone in which it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Period {
    /// Its first instant.
    pub from_utc: String,
    /// The first instant after it.
    pub to_utc: String,
    /// The zone whose days were meant.
    pub time_zone: String,
}

const COLUMNS: &str = "at AS time, user_subject AS \"user\", user_name, agent_id AS agent, agent_name, \
    purpose, server, coalesce(tool, resource, prompt, method) AS tool, \
    subject_system AS patient_system, subject_id AS patient_id, direction, categories, records, \
    status AS outcome, subject_status, recipient, recipient_relation, source_ip, assurance, labels, \
    duration_us, ended_at, call";

impl PhiAccess {
    /// The period that is asked for.
    ///
    /// # Errors
    /// [`QueryError::BadRequest`] when it is missing or no period.
    pub fn period(&self, zone: &TimeZone) -> Result<Period, QueryError> {
        let wanted = |name: &str, text: &Option<String>| {
            text.clone().filter(|text| !text.is_empty()).ok_or_else(|| {
                QueryError::BadRequest(format!(
                    "{name} is missing; write a date, {name}=2026-01-31"
                ))
            })
        };
        let (from, to) = (wanted("from", &self.from)?, wanted("to", &self.to)?);
        let (from, to) = (instant(&from, zone, false)?, instant(&to, zone, true)?);
        if from >= to {
            return Err(QueryError::BadRequest("the period ends before it begins".to_owned()));
        }
        let time_zone = zone.iana_name().unwrap_or("UTC").to_owned();
        Ok(Period { from_utc: from.to_string(), to_utc: to.to_string(), time_zone })
    }

    /// The report as a question.
    #[must_use]
    pub fn question(&self, period: &Period) -> Question {
        let moment =
            |name: &str| format!("arrow_cast(${name}, 'Timestamp(Microsecond, Some(\"UTC\"))')");
        let mut sql = format!(
            "SELECT {COLUMNS} FROM phi_access WHERE at >= {} AND at < {}",
            moment("from"),
            moment("to")
        );
        let mut params = Map::new();
        params.insert("from".to_owned(), json!(period.from_utc));
        params.insert("to".to_owned(), json!(period.to_utc));
        for (name, value, condition) in self.filters() {
            if let Some(value) = value {
                sql.push_str(" AND ");
                sql.push_str(condition);
                params.insert(name.to_owned(), json!(value));
            }
        }
        sql.push_str(" ORDER BY (subject_id IS NULL) DESC, at, call, subject_system, subject_id");
        Question {
            cut: self.cut.clone(),
            method: "report/phi-access".to_owned(),
            ..Question::sql(sql, Params::Map(params))
        }
    }

    /// The filters that were given.
    #[must_use]
    pub fn given(&self) -> Map<String, Value> {
        let given =
            self.filters().into_iter().filter_map(|(n, v, _)| Some((n.to_owned(), json!(v?))));
        given.collect()
    }

    fn filters(&self) -> [(&'static str, Option<&str>, &'static str); 4] {
        fn text(text: &Option<String>) -> Option<&str> {
            text.as_deref().filter(|text| !text.is_empty())
        }
        [
            ("user", text(&self.user), "(user_subject = $user OR user_name = $user)"),
            ("agent", text(&self.agent), "(agent_id = $agent OR agent_name = $agent)"),
            (
                "patient",
                text(&self.patient),
                "(subject_id = $patient OR concat(subject_system, '|', subject_id) = $patient \
                 OR array_has(aliases, $patient))",
            ),
            ("tool", text(&self.tool), "(tool = $tool OR concat(server, '/', tool) = $tool)"),
        ]
    }
}

/// The instant at which a day of `zone` begins (or, as an `end`, at which it is over), or the
/// instant itself.
fn instant(text: &str, zone: &TimeZone, end: bool) -> Result<Timestamp, QueryError> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let wrong = |_| {
        QueryError::BadRequest(format!(
            "{text:?} is no date (2026-01-31) and no instant (2026-01-31T08:00:00Z)"
        ))
    };
    let mut day: Date = text.parse().map_err(wrong)?;
    if end {
        day = day.checked_add(1.day()).map_err(wrong)?;
    }
    Ok(day.to_zoned(zone.clone()).map_err(wrong)?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(from: &str, to: &str) -> PhiAccess {
        PhiAccess { from: Some(from.into()), to: Some(to.into()), ..PhiAccess::default() }
    }

    #[test]
    fn a_date_is_a_day_of_the_zone_and_to_includes_it() {
        let zone = TimeZone::get("America/Chicago").unwrap();
        // Summer time begins on 8 March 2026: that day has 23 hours.
        let period = report("2026-03-08", "2026-03-08").period(&zone).unwrap();
        assert_eq!(period.from_utc, "2026-03-08T06:00:00Z");
        assert_eq!(period.to_utc, "2026-03-09T05:00:00Z");
        assert_eq!(period.time_zone, "America/Chicago");
        let instants = report("2026-03-08T10:00:00Z", "2026-03-08T11:00:00+00:00");
        assert_eq!(instants.period(&zone).unwrap().to_utc, "2026-03-08T11:00:00Z");
    }

    #[test]
    fn what_is_no_period_is_an_error() {
        for (from, to) in [
            ("", "2026-01-01"),
            ("2026-01-02", "2026-01-01"),
            ("yesterday", "2026-01-01"),
            ("2026-02-30", "2026-03-01"),
        ] {
            assert!(report(from, to).period(&TimeZone::UTC).is_err(), "{from} {to}");
        }
    }

    #[test]
    fn filters_are_parameters_and_never_text_of_the_statement() {
        let mut report = report("2026-01-01", "2026-01-02");
        report.patient = Some("x' OR '1'='1".into());
        let period = report.period(&TimeZone::UTC).unwrap();
        let question = report.question(&period);
        assert!(!question.sql.contains("'1'='1"));
        assert!(question.sql.contains("$patient"));
    }
}
