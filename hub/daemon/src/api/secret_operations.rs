//! The operations about secrets.

use super::operations::{ADMIN, BASE, Content, Id, Operation, Parameter, json, path};

const NAME: Parameter = path("name", "The secret's name.");

const ERRORS: &[(u16, &str)] = &[
    (400, "Not a name, or not what is expected."),
    (404, "There is no such secret."),
    (413, "Larger than 64 KiB."),
    (
        422,
        "`refused`: nothing was changed, and who uses it. `empty`: there is no value.",
    ),
    (507, "The hub cannot write its store."),
];

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        id: Id::ListSecrets,
        name: "listSecrets",
        path: "/v1/secrets",
        summary: "All secrets: names, versions, who may use them and who does. Never a value.",
        access: ADMIN,
        answers: &[(200, "They.", &[json("Secrets")])],
        ..BASE
    },
    Operation {
        id: Id::SetSecret,
        name: "setSecret",
        method: "put",
        path: "/v1/secrets/{name}",
        summary: "Give a secret a value: another one than before is a new version, with which its workloads start anew.",
        access: ADMIN,
        parameters: &[
            NAME,
            Parameter {
                name: "allow",
                place: "query",
                description: "Who may use it, separated by commas: `application` or `application/workload`. As before \
                              when nothing is said; nobody at first.",
                schema: r#"{"type":"string"}"#,
            },
        ],
        request: Some(Content {
            media: "application/octet-stream",
            schema: "",
        }),
        answers: &[(200, "It is stored, and on its way.", &[json("SecretSet")])],
        errors: ERRORS,
        ..BASE
    },
    Operation {
        id: Id::AllowSecret,
        name: "allowSecret",
        method: "post",
        path: "/v1/secrets/{name}/grants",
        summary: "Say who may use a secret, and nobody else.",
        access: ADMIN,
        parameters: &[NAME],
        request: Some(json("SecretGrants")),
        answers: &[(200, "It is so.", &[json("SecretSet")])],
        errors: ERRORS,
        ..BASE
    },
    Operation {
        id: Id::RemoveSecret,
        name: "removeSecret",
        method: "delete",
        path: "/v1/secrets/{name}",
        summary: "Remove a secret that nobody uses.",
        access: ADMIN,
        parameters: &[NAME],
        answers: &[(200, "It is gone.", &[json("Done")])],
        errors: ERRORS,
        ..BASE
    },
];
