//! Checks of what workloads must prove.

use serde_json::Value;

use super::checks::Checker;

const FIELD: &str = "attestationPolicy";
/// Fields that mean something only where provenance is required.
const CONDITIONS: [&str; 3] = ["minLevel", "builders", "files"];

impl<'a> Checker<'a> {
    /// A condition on provenance that nobody has to have would look as if it protected something.
    pub(super) fn attestation(&mut self, workloads: usize) {
        let of = |i: usize| format!("/workloads/{i}/{FIELD}");
        let application = format!("/{FIELD}");
        self.whole_number(&format!("{application}/minLevel"));
        let asked = self.requirement(&application);
        let mut any = false;
        for at in (0..workloads).map(of) {
            self.whole_number(&format!("{at}/minLevel"));
            let required = self.requirement(&at).or(asked) == Some("required");
            any |= required;
            if !required {
                self.conditions_without_effect(&at);
            }
        }
        if !any && asked != Some("required") {
            self.conditions_without_effect(&application);
        }
    }

    fn requirement(&self, at: &str) -> Option<&'a str> {
        self.text(&format!("{at}/provenance"))
    }

    fn conditions_without_effect(&mut self, at: &str) {
        for field in CONDITIONS {
            let pointer = format!("{at}/{field}");
            let is_set = match self.get(&pointer) {
                None | Some(Value::Bool(false)) => false,
                Some(Value::Array(list)) => !list.is_empty(),
                Some(value) => value.as_u64() != Some(0),
            };
            if is_set {
                let message = format!("{field} has no effect where provenance is not required");
                let hint = "write \"provenance: required\" beside it".to_owned();
                self.push(&pointer, message, Some(hint));
            }
        }
    }
}
