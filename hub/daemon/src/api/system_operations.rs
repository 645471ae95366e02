//! The operations about operating systems.

use super::operations::{APPLY, BASE, Id, OPERATOR, Operation, VIEWER, json, path};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::ListSystems,
        name: "listSystems",
        path: "/v1/systems",
        summary: "All operating systems for nodes, and how far each node is.",
        access: VIEWER,
        answers: &[(200, "They.", &[json("Systems")])],
        ..BASE
    },
    Operation {
        id: Id::ApplySystem,
        name: "applySystem",
        method: "post",
        path: "/v1/systems",
        summary: "Apply a manifest of kind System: nodes are asked for it when their turn has come.",
        access: OPERATOR,
        timeout: APPLY,
        request: Some(json("ApplyRequest")),
        answers: &[(200, "It is stored, and on its way.", &[json("Applied")])],
        errors: &[
            (400, "Not what is expected."),
            (413, "Larger than a manifest may be."),
            (
                422,
                "`manifest`: what is wrong, by line. `refused`: nothing was changed.",
            ),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
    Operation {
        id: Id::DeleteSystem,
        name: "deleteSystem",
        method: "delete",
        path: "/v1/systems/{name}",
        summary: "Take a system away: nodes keep what they run, and begin nothing new.",
        access: OPERATOR,
        parameters: &[path("name", "The system's name.")],
        answers: &[(200, "Deleted.", &[json("Deleted")])],
        errors: &[
            (400, "Not a name."),
            (404, "There is none."),
            (507, "The hub cannot write its store."),
        ],
        ..BASE
    },
];
