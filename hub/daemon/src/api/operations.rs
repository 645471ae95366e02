//! Every operation of the API, once. The router, the guard and the OpenAPI document are all made from this table.

use std::time::Duration;

use crate::tokens::Role;

/// Longest time for an answer that needs nothing but this machine.
pub const REQUEST: Duration = Duration::from_secs(30);
/// Longest time for an apply: it may have to wait for a compilation, which has its own limit.
pub const APPLY: Duration = Duration::from_secs(330);
/// Longest time for an upload: 512 MiB at 150 KiB a second.
pub const UPLOAD: Duration = Duration::from_secs(3600);
/// Most entries of a history or of the audit log in one answer.
pub const LIMIT_MAX: u32 = 1000;
/// Entries when nobody says how many.
pub const LIMIT: u32 = 100;
/// Most lines of a log in one answer.
pub const LINES_MAX: u32 = 10_000;
/// Lines when nobody says how many.
pub const LINES: u32 = 100;

/// Names an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Id {
    UploadArtifact,
    ListArtifacts,
    CollectArtifacts,
    HeadArtifact,
    AttachProvenance,
    Apply,
    ListApplications,
    GetApplication,
    DeleteApplication,
    Explain,
    GetTimeline,
    ListNodes,
    GetNode,
    GetTwin,
    GetHistory,
    ListWorkloads,
    GetLogs,
    GetMetrics,
    GetAttestation,
    Attest,
    Release,
    ListReferences,
    PutReference,
    DeleteReference,
    GetAudit,
    Enrolment,
    AddEnrolmentToken,
    RevokeEnrolmentToken,
    AddEk,
    RemoveEk,
    ForgetNode,
    ListSecrets,
    SetSecret,
    AllowSecret,
    RemoveSecret,
    ListSystems,
    ApplySystem,
    DeleteSystem,
    GetTrust,
    PushBundle,
    RevokeNode,
    ReadmitNode,
    Health,
    Metrics,
    OpenApi,
    Docs,
    Page,
}

/// Who may use an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Public,
    /// Whoever has a token of this role or a higher one.
    Role(Role),
}

/// Something in the path, the query or a header.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// `path`, `query` or `header`.
    pub place: &'static str,
    /// What it means.
    pub description: &'static str,
    /// Its JSON Schema.
    pub schema: &'static str,
}

/// What is sent or answered.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    /// Media type.
    pub media: &'static str,
    /// Name of the schema of JSON, empty for anything else.
    pub schema: &'static str,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Which.
    pub id: Id,
    /// `operationId` in the document.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path with parameters in braces.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Who may.
    pub access: Access,
    /// How long it may take.
    pub timeout: Duration,
    /// Parameters.
    pub parameters: &'static [Parameter],
    /// What is sent.
    pub request: Option<Content>,
    /// Answers when it went well.
    pub answers: &'static [(u16, &'static str, &'static [Content])],
    /// Answers when not, beside 401, 403 and 503.
    pub errors: &'static [(u16, &'static str)],
}

pub(super) const ADMIN: Access = Access::Role(Role::Admin);
pub(super) const VIEWER: Access = Access::Role(Role::Viewer);
pub(super) const OPERATOR: Access = Access::Role(Role::Operator);

pub(super) const fn json(schema: &'static str) -> Content {
    Content {
        media: "application/json",
        schema,
    }
}

pub(super) const fn path(name: &'static str, description: &'static str) -> Parameter {
    Parameter {
        name,
        place: "path",
        description,
        schema: r#"{"type":"string"}"#,
    }
}

const NAME: Parameter = path("name", "The application's name.");
pub(super) const NODE: Parameter = path("node", "The node's id: the CN of its certificate.");
const WORKLOAD: &[Parameter] = &[
    NODE,
    path("application", "The application's name."),
    path("workload", "The workload's name."),
];
const DIGEST: Parameter = path("digest", "`sha256:` and 64 lower-case hexadecimal digits.");
const ENTRIES: Parameter = Parameter {
    name: "limit",
    place: "query",
    description: "Most entries in the answer.",
    schema: r#"{"type":"integer","minimum":1,"maximum":1000,"default":100}"#,
};

pub(super) const BASE: Operation = Operation {
    id: Id::Page,
    name: "",
    method: "get",
    path: "",
    summary: "",
    access: VIEWER,
    timeout: REQUEST,
    parameters: &[],
    request: None,
    answers: &[],
    errors: &[],
};

/// All operations.
pub fn operations() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS
        .iter()
        .chain(super::attestation_operations::OPERATIONS)
        .chain(super::enrolment_operations::OPERATIONS)
        .chain(super::secret_operations::OPERATIONS)
        .chain(super::system_operations::OPERATIONS)
        .chain(super::trust_operations::OPERATIONS)
}

/// All but those about trust and secrets.
const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::UploadArtifact,
        name: "uploadArtifact",
        method: "post",
        path: "/v1/artifacts",
        summary: "Upload an artifact: a Wasm module, an eBPF object, an OCI layout or an input file.",
        access: OPERATOR,
        timeout: UPLOAD,
        parameters: &[Parameter {
            name: "x-cnova-digest",
            place: "header",
            description: "What the bytes should have as SHA-256; others are thrown away.",
            schema: r#"{"type":"string","pattern":"^sha256:[0-9a-f]{64}$"}"#,
        }],
        request: Some(Content {
            media: "application/octet-stream",
            schema: "",
        }),
        answers: &[
            (201, "It is new.", &[json("Artifact")]),
            (200, "It was there already.", &[json("Artifact")]),
        ],
        errors: &[
            (400, "The upload ended early, or the header is not a digest."),
            (413, "Larger than 512 MiB."),
            (422, "`digest-mismatch`, or `empty`."),
            (507, "No room."),
        ],
    },
    Operation {
        id: Id::ListArtifacts,
        name: "listArtifacts",
        path: "/v1/artifacts",
        summary: "All artifacts, uploaded and compiled, and what uses each.",
        answers: &[(200, "They.", &[json("Artifacts")])],
        ..BASE
    },
    Operation {
        id: Id::CollectArtifacts,
        name: "collectArtifacts",
        method: "post",
        path: "/v1/artifacts/collect",
        summary: "Remove all artifacts that nothing uses. The hub does so by itself with those unused for long enough.",
        access: OPERATOR,
        answers: &[(200, "What was removed.", &[json("Collected")])],
        errors: &[(507, "The hub cannot write its store.")],
        ..BASE
    },
    Operation {
        id: Id::HeadArtifact,
        name: "headArtifact",
        method: "head",
        path: "/v1/artifacts/{digest}",
        summary: "Whether an artifact is there.",
        parameters: &[DIGEST],
        answers: &[(200, "It is.", &[])],
        errors: &[(400, "Not a digest."), (404, "It is not.")],
        ..BASE
    },
    Operation {
        id: Id::AttachProvenance,
        name: "attachProvenance",
        method: "post",
        path: "/v1/artifacts/{digest}/provenance",
        summary: "Say where an artifact is from: a DSSE envelope with an in-toto statement of SLSA provenance about it.",
        access: OPERATOR,
        parameters: &[DIGEST],
        request: Some(Content {
            media: "application/vnd.dsse.envelope.v1+json",
            schema: "",
        }),
        answers: &[
            (201, "It is kept, and this is what it proves.", &[json("Provenance")]),
            (200, "It was there already.", &[json("Provenance")]),
        ],
        errors: &[
            (400, "Not a digest."),
            (404, "The artifact was never uploaded."),
            (413, "Larger than 128 KiB."),
            (
                422,
                "`provenance`: no envelope, about something else, or changed after it was signed.",
            ),
            (507, "No room."),
        ],
        ..BASE
    },
    Operation {
        id: Id::Apply,
        name: "applyApplication",
        method: "post",
        path: "/v1/applications",
        summary: "Apply a manifest: check it, ask policy, compile, place, and sign the twins.",
        access: OPERATOR,
        timeout: APPLY,
        request: Some(json("ApplyRequest")),
        answers: &[(
            200,
            "Applied; or, with `dry_run`, what would come of it.",
            &[json("Applied")],
        )],
        errors: &[
            (400, "`json`: the body is not an ApplyRequest."),
            (413, "The manifest is larger than 1 MiB."),
            (
                422,
                "`manifest`: details are all its mistakes. `refused`: details are reasons.",
            ),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::ListApplications,
        name: "listApplications",
        path: "/v1/applications",
        summary: "All applications, in short.",
        answers: &[(200, "They.", &[json("Applications")])],
        ..BASE
    },
    Operation {
        id: Id::GetApplication,
        name: "getApplication",
        path: "/v1/applications/{name}",
        summary: "One application: its manifest, where it is and why not elsewhere.",
        parameters: &[NAME],
        answers: &[(200, "It.", &[json("Application")])],
        errors: &[(400, "Not a name."), (404, "There is none.")],
        ..BASE
    },
    Operation {
        id: Id::DeleteApplication,
        name: "deleteApplication",
        method: "delete",
        path: "/v1/applications/{name}",
        summary: "Delete an application: its workloads stop.",
        access: OPERATOR,
        parameters: &[NAME],
        answers: &[(200, "Deleted.", &[json("Deleted")])],
        errors: &[
            (400, "Not a name."),
            (404, "There is none."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::Explain,
        name: "explainWorkload",
        path: "/v1/applications/{name}/workloads/{workload}/explanation",
        summary: "Why a workload runs where it does, why not elsewhere, and what can be done.",
        parameters: &[
            NAME,
            WORKLOAD[2],
            Parameter {
                name: "node",
                place: "query",
                description: "Only this node.",
                schema: r#"{"type":"string"}"#,
            },
        ],
        answers: &[(200, "The explanation.", &[json("Explanation")])],
        errors: &[(400, "Not a name."), (404, "There is none.")],
        ..BASE
    },
    Operation {
        id: Id::GetTimeline,
        name: "getTimeline",
        path: "/v1/applications/{name}/timeline",
        summary: "When each stage of a generation was reached, as each author said.",
        parameters: &[
            NAME,
            Parameter {
                name: "generation",
                place: "query",
                description: "Which; the newest when nothing is said.",
                schema: r#"{"type":"integer","minimum":1}"#,
            },
        ],
        answers: &[(200, "The stages.", &[json("Timeline")])],
        errors: &[(400, "Not a name or not a number."), (404, "There is none.")],
        ..BASE
    },
    Operation {
        id: Id::ListNodes,
        name: "listNodes",
        path: "/v1/nodes",
        summary: "All nodes.",
        answers: &[(200, "They.", &[json("Nodes")])],
        ..BASE
    },
    Operation {
        id: Id::GetNode,
        name: "getNode",
        path: "/v1/nodes/{node}",
        summary: "One node.",
        parameters: &[NODE],
        answers: &[(200, "It.", &[json("Node")])],
        errors: &[(400, "Not a node id."), (404, "There is none.")],
        ..BASE
    },
    Operation {
        id: Id::GetTwin,
        name: "getTwin",
        path: "/v1/nodes/{node}/twin",
        summary: "The twin that a node should have. With `Accept: application/cose` its signed bytes.",
        parameters: &[NODE],
        answers: &[(
            200,
            "It.",
            &[
                json("TwinDocument"),
                Content {
                    media: "application/cose",
                    schema: "",
                },
            ],
        )],
        errors: &[(400, "Not a node id."), (404, "There is none.")],
        ..BASE
    },
    Operation {
        id: Id::GetHistory,
        name: "getHistory",
        path: "/v1/nodes/{node}/history",
        summary: "What a node reported, newest first.",
        parameters: &[NODE, ENTRIES],
        answers: &[(200, "The entries.", &[json("History")])],
        errors: &[(400, "Not a node id or not a number.")],
        ..BASE
    },
    Operation {
        id: Id::ListWorkloads,
        name: "listWorkloads",
        path: "/v1/workloads",
        summary: "All workloads on all nodes: those reported, and those desired and not reported yet.",
        answers: &[(200, "They.", &[json("Workloads")])],
        ..BASE
    },
    Operation {
        id: Id::GetLogs,
        name: "getLogs",
        path: "/v1/nodes/{node}/workloads/{application}/{workload}/logs",
        summary: "The end of a workload's log, asked of the node now.",
        parameters: &[
            WORKLOAD[0],
            WORKLOAD[1],
            WORKLOAD[2],
            Parameter {
                name: "lines",
                place: "query",
                description: "How many lines at most.",
                schema: r#"{"type":"integer","minimum":1,"maximum":10000,"default":100}"#,
            },
        ],
        answers: &[(200, "The node's answer.", &[json("Replied")])],
        errors: ASK_ERRORS,
        ..BASE
    },
    Operation {
        id: Id::GetMetrics,
        name: "getWorkloadMetrics",
        path: "/v1/nodes/{node}/workloads/{application}/{workload}/metrics",
        summary: "A workload's metrics, asked of the node now.",
        parameters: WORKLOAD,
        answers: &[(200, "The node's answer.", &[json("Replied")])],
        errors: ASK_ERRORS,
        ..BASE
    },
    Operation {
        id: Id::GetAudit,
        name: "getAudit",
        path: "/v1/audit",
        summary: "Who changed what, newest first, and whether the chain of hashes holds.",
        parameters: &[ENTRIES],
        answers: &[(200, "The entries.", &[json("Audit")])],
        errors: &[(400, "Not a number.")],
        ..BASE
    },
    Operation {
        id: Id::Health,
        name: "health",
        path: "/healthz",
        summary: "Whether the hub decides and can write.",
        access: Access::Public,
        answers: &[(200, "It does.", &[json("Health")])],
        ..BASE
    },
    Operation {
        id: Id::Metrics,
        name: "metrics",
        path: "/metrics",
        summary: "Metrics for Prometheus.",
        answers: &[(
            200,
            "They.",
            &[Content {
                media: "text/plain",
                schema: "",
            }],
        )],
        ..BASE
    },
    Operation {
        id: Id::OpenApi,
        name: "openapi",
        path: "/openapi.json",
        summary: "This document.",
        access: Access::Public,
        answers: &[(200, "OpenAPI 3.1.", &[json("OpenApi")])],
        ..BASE
    },
    Operation {
        id: Id::Docs,
        name: "docs",
        path: "/docs",
        summary: "This document, for people.",
        access: Access::Public,
        answers: &[(
            200,
            "A page.",
            &[Content {
                media: "text/html",
                schema: "",
            }],
        )],
        ..BASE
    },
    Operation {
        id: Id::Page,
        name: "page",
        path: "/",
        summary: "The fleet, for people.",
        access: Access::Public,
        answers: &[(
            200,
            "A page.",
            &[Content {
                media: "text/html",
                schema: "",
            }],
        )],
        ..BASE
    },
];

const ASK_ERRORS: &[(u16, &str)] = &[
    (400, "Not a name or not a number."),
    (404, "There is no such node."),
    (422, "`node-refused`: the node could not do it, and says why."),
    (
        504,
        "The node cannot be reached, or did not answer in time; the text names the link that is down.",
    ),
];
