//! The operations about trust.

use super::operations::{Access, BASE, Content, Id, NODE, Operation, json};
use crate::tokens::Role;

const ADMIN: Access = Access::Role(Role::Admin);

const ERRORS: &[(u16, &str)] = &[
    (400, "Not a name, or not what is expected."),
    (404, "There is no such thing."),
    (422, "`refused`: nothing was changed, and why."),
    (507, "The hub cannot write its store."),
];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::GetTrust,
        name: "getTrust",
        path: "/v1/trust",
        summary: "What the fleet trusts: the bundle in force, who is revoked, what gateways may decide, who is behind.",
        answers: &[(200, "It.", &[json("Trust")])],
        ..BASE
    },
    Operation {
        id: Id::PushBundle,
        name: "pushTrustBundle",
        method: "post",
        path: "/v1/trust/bundle",
        summary: "Bring a newer trust bundle, signed by the roots: it is in force at once and rolled out.",
        access: ADMIN,
        request: Some(Content {
            media: "application/cose",
            schema: "",
        }),
        answers: &[(200, "It is in force.", &[json("Trusted")])],
        errors: ERRORS,
        ..BASE
    },
    Operation {
        id: Id::RevokeNode,
        name: "revokeNode",
        method: "post",
        path: "/v1/nodes/{node}/revoke",
        summary: "Trust a node no longer. Takes effect at every gateway that hears of it, also while it is cut off later.",
        access: ADMIN,
        parameters: &[NODE],
        request: Some(json("Revoke")),
        answers: &[(200, "It is revoked.", &[json("Trusted")])],
        errors: ERRORS,
        ..BASE
    },
    Operation {
        id: Id::ReadmitNode,
        name: "readmitNode",
        method: "post",
        path: "/v1/nodes/{node}/readmit",
        summary: "Let a revoked node in again, or another device under its name.",
        access: ADMIN,
        parameters: &[NODE],
        request: Some(json("Readmit")),
        answers: &[(200, "It is let in.", &[json("Trusted")])],
        errors: ERRORS,
        ..BASE
    },
];
