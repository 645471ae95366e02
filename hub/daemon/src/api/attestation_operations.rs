//! The operations about attestation and reference values.

use super::operations::{Access, BASE, Id, NODE, OPERATOR, Operation, Parameter, json, path};
use crate::tokens::Role;

const ADMIN: Access = Access::Role(Role::Admin);

const REFERENCE: Parameter = path("name", "A set's name, such as `plc-image-1.4`.");

const ATTEST_ERRORS: &[(u16, &str)] = &[
    (400, "Not a name, or not what is asked for."),
    (422, "It cannot be done; the text says why."),
];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::GetAttestation,
        name: "getAttestation",
        path: "/v1/nodes/{node}/attestation",
        summary: "What a node has proven: its boot, and what was launched on it since.",
        parameters: &[NODE],
        answers: &[(200, "It.", &[json("Attestation")])],
        errors: &[(400, "Not a name."), (404, "There is no such node.")],
        ..BASE
    },
    Operation {
        id: Id::Attest,
        name: "attestNode",
        method: "post",
        path: "/v1/nodes/{node}/attestation",
        summary: "Challenge a node now.",
        access: OPERATOR,
        parameters: &[NODE],
        answers: &[(200, "It is challenged.", &[json("AttestDone")])],
        errors: ATTEST_ERRORS,
        ..BASE
    },
    Operation {
        id: Id::Release,
        name: "releaseNode",
        method: "post",
        path: "/v1/nodes/{node}/release",
        summary: "Let a node whose disk was rolled back out of its quarantine: it takes nothing older than its newest twin.",
        access: OPERATOR,
        parameters: &[NODE],
        answers: &[(200, "It was told.", &[json("AttestDone")])],
        errors: ATTEST_ERRORS,
        ..BASE
    },
    Operation {
        id: Id::ListReferences,
        name: "listReferences",
        path: "/v1/references",
        summary: "What nodes shall have booted.",
        answers: &[(200, "The reference values.", &[json("References")])],
        ..BASE
    },
    Operation {
        id: Id::PutReference,
        name: "putReference",
        method: "post",
        path: "/v1/references/{name}",
        summary: "Add or replace a set of reference values, from a node that is as it should be or from an image's build.",
        access: ADMIN,
        parameters: &[REFERENCE],
        request: Some(json("NewReference")),
        answers: &[(200, "It is in force.", &[json("AttestDone")])],
        errors: ATTEST_ERRORS,
        ..BASE
    },
    Operation {
        id: Id::DeleteReference,
        name: "deleteReference",
        method: "delete",
        path: "/v1/references/{name}",
        summary: "Take a set of reference values away.",
        access: ADMIN,
        parameters: &[REFERENCE],
        answers: &[(200, "It is gone.", &[json("AttestDone")])],
        errors: ATTEST_ERRORS,
        ..BASE
    },
];
