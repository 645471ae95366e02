//! Policy at admission: Rego decides which manifests may go on. What cannot be evaluated denies.

mod rego;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::cndl::{Application, ArtifactRef, Manifest, SystemDef, SystemManifest, WorkloadDef};
use crate::hub::{ProvenanceFact, ProvenanceFacts};

/// Largest policy text.
pub const MAX_POLICY_BYTES: usize = 256 << 10;
/// Most policy texts in one set.
pub const MAX_POLICIES: usize = 256;
/// Most instructions that one policy may take for one manifest. Counted, not timed: the same manifest gets the same
/// answer on a busy machine.
pub const MAX_POLICY_INSTRUCTIONS: usize = 1_000_000;
/// Longest time that one policy may take for one manifest. Only a last resort behind the instructions; regorus reads
/// its own clock for it.
pub const MAX_POLICY_TIME: Duration = Duration::from_secs(5);
/// Most reasons that are kept of one denial.
pub const MAX_DENY_REASONS: usize = 1_000;
/// The text of [`PolicySet::builtin`].
pub const BUILTIN_POLICY: &str = include_str!("policy/default.rego");

/// One Rego text with a name for messages, usually its file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySource {
    /// Unique in the set.
    pub name: String,
    /// Rego, v1 or v0.
    pub text: String,
}

/// The policies of a hub, compiled.
///
/// A text in `package cnova.admission` is asked for `deny`, a set of messages. Texts in other packages are
/// libraries that all of these can use.
#[derive(Clone, Debug)]
pub struct PolicySet {
    policies: Vec<rego::Compiled>,
}

/// Why a set of policies cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Two texts have the same name.
    #[error("policy {name}: given twice")]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Larger than [`MAX_POLICY_BYTES`].
    #[error("policy {name}: {bytes} bytes; at most {MAX_POLICY_BYTES} are accepted")]
    TooLarge {
        /// The policy.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// More than [`MAX_POLICIES`].
    #[error("{count} policies; at most {MAX_POLICIES} are accepted")]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// Neither Rego v1 nor v0.
    #[error("policy {name}: {message}")]
    Syntax {
        /// The policy.
        name: String,
        /// What the parser said of it as v1.
        message: String,
    },
    /// A v0 text that uses words of v1 without importing them: it would parse, and then deny everything or nothing.
    #[error("policy {name}: line {line}: \"{word}\" means nothing in Rego v0 without an import")]
    KeywordWithoutImport {
        /// The policy.
        name: String,
        /// The line.
        line: usize,
        /// The word.
        word: &'static str,
    },
    /// In the right package, but without the rule.
    #[error("policy {name}: has no rule \"deny\"; it would never deny anything")]
    NoDenyRule {
        /// The policy.
        name: String,
    },
    /// Parsed, but not compiled.
    #[error("policy {name}: does not compile: {message}")]
    Compile {
        /// The policy.
        name: String,
        /// What the compiler said.
        message: String,
    },
    /// A set that admits everything is never what was meant.
    #[error("no policy in package cnova.admission")]
    NoAdmissionPolicy,
}

/// Who asks, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionContext {
    /// The user, as authenticated.
    pub user: String,
    /// Now, in seconds since 1970; policies see it as `input.now`.
    pub now_unix_s: u64,
}

/// A manifest that policy let through. Only [`PolicySet::admit`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmittedManifest {
    manifest: Manifest,
    context: AdmissionContext,
}

impl AdmittedManifest {
    /// A manifest that was admitted before and comes back from the hub's own store. It is not asked about again: a
    /// policy that was tightened since must not take down what runs.
    #[must_use]
    pub const fn restored(manifest: Manifest, context: AdmissionContext) -> Self {
        Self { manifest, context }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What it says.
    #[must_use]
    pub const fn application(&self) -> &Application {
        self.manifest.application()
    }

    /// For whom it was admitted, and when.
    #[must_use]
    pub const fn context(&self) -> &AdmissionContext {
        &self.context
    }
}

/// A manifest of a system that policy let through. Only [`PolicySet::admit_system`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct AdmittedSystem {
    manifest: SystemManifest,
    context: AdmissionContext,
}

impl AdmittedSystem {
    /// One that was admitted before and comes back from the hub's own store.
    #[must_use]
    pub const fn restored(manifest: SystemManifest, context: AdmissionContext) -> Self {
        Self { manifest, context }
    }

    /// The manifest.
    #[must_use]
    pub const fn manifest(&self) -> &SystemManifest {
        &self.manifest
    }

    /// What it says.
    #[must_use]
    pub const fn system(&self) -> &SystemDef {
        self.manifest.system()
    }

    /// For whom it was admitted, and when.
    #[must_use]
    pub const fn context(&self) -> &AdmissionContext {
        &self.context
    }
}

/// What policy said no to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyDenied {
    /// Name of the policy and its message; sorted, never empty.
    pub reasons: Vec<(String, String)>,
}

impl fmt::Display for PolicyDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (policy, message)) in self.reasons.iter().enumerate() {
            let line_break = if i > 0 { "\n" } else { "" };
            write!(f, "{line_break}denied by {policy}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyDenied {}

/// Verified facts of each workload's program and input files.
fn by_workload(manifest: &Manifest, facts: &ProvenanceFacts) -> serde_json::Value {
    let of = |artifact: &ArtifactRef| -> &[ProvenanceFact] {
        let digest = artifact.digest().and_then(|d| d.parse().ok());
        digest.and_then(|d| facts.get(&d)).map_or(&[], Vec::as_slice)
    };
    let workload = |def: &WorkloadDef| {
        let files: serde_json::Map<_, _> = def
            .files
            .iter()
            .map(|f| (f.path.clone(), serde_json::json!(of(&f.artifact))))
            .collect();
        let known = serde_json::json!({"artifact": of(&def.artifact), "files": files});
        (def.name.clone(), known)
    };
    manifest
        .application()
        .workloads
        .iter()
        .map(workload)
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn builtin_source() -> PolicySource {
    PolicySource {
        name: "default.rego".to_owned(),
        text: BUILTIN_POLICY.to_owned(),
    }
}

impl PolicySet {
    /// Compiles named Rego texts.
    ///
    /// # Errors
    /// The first text that cannot be used; a set without any admission policy.
    pub fn new(sources: &[PolicySource]) -> Result<Self, PolicyError> {
        if sources.len() > MAX_POLICIES {
            return Err(PolicyError::TooMany { count: sources.len() });
        }
        let mut names = BTreeSet::new();
        for source in sources {
            let name = source.name.clone();
            if source.text.len() > MAX_POLICY_BYTES {
                return Err(PolicyError::TooLarge {
                    name,
                    bytes: source.text.len(),
                });
            }
            if !names.insert(&source.name) {
                return Err(PolicyError::DuplicateName { name });
            }
        }
        let policies = rego::compile(sources)?;
        if policies.is_empty() {
            Err(PolicyError::NoAdmissionPolicy)
        } else {
            Ok(Self { policies })
        }
    }

    /// The policy of a hub that was given no other.
    ///
    /// # Errors
    /// Never, which a test pins; the caller still starts nothing without it.
    pub fn builtin() -> Result<Self, PolicyError> {
        Self::new(&[builtin_source()])
    }

    /// The texts of a site. Where none of them decides on admission, the built-in policy does, and the site's texts are
    /// what it looks its grants up in.
    ///
    /// # Errors
    /// As [`PolicySet::new`].
    pub fn of_site(sources: &[PolicySource]) -> Result<Self, PolicyError> {
        match Self::new(sources) {
            Err(PolicyError::NoAdmissionPolicy) => {
                let mut all = sources.to_vec();
                all.push(builtin_source());
                Self::new(&all)
            }
            done => done,
        }
    }

    /// Names of the admission policies, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.policies.iter().map(rego::Compiled::name).collect()
    }

    /// Asks every policy. One that fails to answer denies.
    ///
    /// # Errors
    /// Every reason of every policy.
    pub fn admit(&self, manifest: Manifest, context: &AdmissionContext) -> Result<AdmittedManifest, PolicyDenied> {
        self.admit_proved(manifest, context, &ProvenanceFacts::new())
    }

    /// The same, where it is known where artifacts are from; policies see it as `input.provenance`, by workload.
    ///
    /// # Errors
    /// Every reason of every policy.
    pub fn admit_proved(
        &self,
        manifest: Manifest,
        context: &AdmissionContext,
        facts: &ProvenanceFacts,
    ) -> Result<AdmittedManifest, PolicyDenied> {
        let input = serde_json::json!({
            "manifest": manifest.to_value(),
            "provenance": by_workload(&manifest, facts),
            "user": context.user,
            "now": context.now_unix_s,
        });
        match self.reasons(&input.to_string()) {
            Some(denied) => Err(denied),
            None => Ok(AdmittedManifest {
                manifest,
                context: context.clone(),
            }),
        }
    }

    /// Asks every policy about a system. Policies tell it by `input.manifest.kind`; what is known of where its bundle is from
    /// is `input.provenance.bundle`.
    ///
    /// # Errors
    /// Every reason of every policy.
    pub fn admit_system(
        &self,
        manifest: SystemManifest,
        context: &AdmissionContext,
        facts: &ProvenanceFacts,
    ) -> Result<AdmittedSystem, PolicyDenied> {
        let digest = manifest.system().bundle.digest().and_then(|d| d.parse().ok());
        let bundle = digest.and_then(|d| facts.get(&d)).map_or(&[][..], Vec::as_slice);
        let input = serde_json::json!({
            "manifest": manifest.to_value(),
            "provenance": {"bundle": bundle},
            "user": context.user,
            "now": context.now_unix_s,
        });
        match self.reasons(&input.to_string()) {
            Some(denied) => Err(denied),
            None => Ok(AdmittedSystem {
                manifest,
                context: context.clone(),
            }),
        }
    }

    /// Why not, if so.
    fn reasons(&self, input: &str) -> Option<PolicyDenied> {
        let mut reasons = BTreeSet::new();
        for policy in &self.policies {
            match policy.deny(input) {
                Ok(messages) => reasons.extend(messages.into_iter().map(|m| (policy.name().to_owned(), m))),
                Err(why) => {
                    reasons.insert((
                        policy.name().to_owned(),
                        format!("could not be evaluated, and so denies: {why}"),
                    ));
                }
            }
        }
        let reasons: Vec<_> = reasons.into_iter().take(MAX_DENY_REASONS).collect();
        (!reasons.is_empty()).then_some(PolicyDenied { reasons })
    }
}
