//! The operations about enrolment.

use super::operations::{ADMIN, BASE, Id, NODE, Operation, json, path};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::Enrolment,
        name: "getEnrolment",
        path: "/v1/enrolment",
        summary: "Enrolment tokens, known TPMs and enrolled nodes.",
        access: ADMIN,
        answers: &[(200, "They.", &[json("Enrolment")])],
        ..BASE
    },
    Operation {
        id: Id::AddEnrolmentToken,
        name: "addEnrolmentToken",
        method: "post",
        path: "/v1/enrolment/tokens",
        summary: "Make an enrolment token. Its text is in this answer and nowhere else.",
        access: ADMIN,
        request: Some(json("EnrolmentTokenRequest")),
        answers: &[(201, "It.", &[json("EnrolmentToken")])],
        errors: &[
            (400, "`json` or `field`: the request is not understood."),
            (413, "The request is too large."),
            (422, "`refused`: too many tokens."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::RevokeEnrolmentToken,
        name: "revokeEnrolmentToken",
        method: "delete",
        path: "/v1/enrolment/tokens/{token}",
        summary: "Take an enrolment token back. Those that it admitted stay.",
        access: ADMIN,
        parameters: &[path("token", "The token's id.")],
        answers: &[(200, "Done.", &[json("Done")])],
        errors: &[(404, "There is none."), (507, "The hub cannot write its store.")],
        ..BASE
    },
    Operation {
        id: Id::AddEk,
        name: "addEndorsementKey",
        method: "post",
        path: "/v1/enrolment/eks",
        summary: "Make a TPM known, so that its node needs no token.",
        access: ADMIN,
        request: Some(json("EndorsementKeyRequest")),
        answers: &[(200, "Done.", &[json("Done")])],
        errors: &[
            (400, "`json` or `field`: the request is not understood."),
            (413, "The request is too large."),
            (422, "`refused`: the name has another TPM, or there are too many."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::RemoveEk,
        name: "removeEndorsementKey",
        method: "delete",
        path: "/v1/enrolment/eks/{fingerprint}",
        summary: "Make a TPM unknown again. The node that it became stays.",
        access: ADMIN,
        parameters: &[path("fingerprint", "`sha256:` and 64 lower-case hexadecimal digits.")],
        answers: &[(200, "Done.", &[json("Done")])],
        errors: &[
            (400, "Not a fingerprint."),
            (404, "There is none."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::ForgetNode,
        name: "forgetEnrolledNode",
        method: "delete",
        path: "/v1/enrolment/nodes/{node}",
        summary: "Free a node's name for another TPM or key. Its certificate holds until it ends.",
        access: ADMIN,
        parameters: &[NODE],
        answers: &[(200, "Done.", &[json("Done")])],
        errors: &[
            (400, "Not a node id."),
            (404, "There is none."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
];
