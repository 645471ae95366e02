//! The OpenAPI 3.1 document, made from the table of operations.

use cnova_hub_core::cndl::SCHEMA_ID;
use serde_json::{Map, Value, json};

use super::operations::{Access, Content, Operation, operations};
use super::schemas::schemas;

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for op in operations() {
        let item = paths.entry(op.path).or_insert_with(|| json!({}));
        item[op.method] = operation(op);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Cloudnova Edge hub",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": format!(
                "Deploys applications to a tree of edge nodes. Every operation but the public ones wants a token: \
                 `Authorization: Bearer <token>`. A viewer may look, an operator may also upload, apply and delete, an \
                 admin may also change what the fleet trusts. \
                 Manifests follow {SCHEMA_ID}."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    })
}

fn operation(op: &Operation) -> Value {
    let mut responses = Map::new();
    for (status, description, contents) in op.answers {
        responses.insert(status.to_string(), response(description, contents));
    }
    let failed = &[Content {
        media: "application/json",
        schema: "Error",
    }];
    let common: &[(u16, &str)] = match op.access {
        Access::Public => &[(503, "The hub is busy, stopping, or cannot write.")],
        Access::Role(_) => &[
            (401, "No token, or one that is not known."),
            (
                403,
                "The token's role does not suffice, or policy says no (`policy`; details are its reasons).",
            ),
            (503, "The hub is busy or stopping, or took too long."),
        ],
    };
    for (status, description) in op.errors.iter().chain(common) {
        responses
            .entry(status.to_string())
            .or_insert_with(|| response(description, failed));
    }
    let parameters: Vec<Value> = op
        .parameters
        .iter()
        .map(|p| {
            let schema: Value = serde_json::from_str(p.schema).unwrap_or_default();
            json!({"name": p.name, "in": p.place, "required": p.place == "path", "description": p.description, "schema": schema})
        })
        .collect();
    let mut value = json!({
        "operationId": op.name,
        "summary": op.summary,
        "parameters": parameters,
        "responses": responses,
    });
    match op.access {
        Access::Public => value["security"] = json!([]),
        Access::Role(role) => value["description"] = json!(format!("Role: {} or higher.", role.as_str())),
    }
    if let Some(content) = op.request {
        value["requestBody"] = json!({"required": true, "content": contents(&[content])});
    }
    value
}

fn response(description: &str, list: &[Content]) -> Value {
    if list.is_empty() {
        return json!({"description": description});
    }
    json!({"description": description, "content": contents(list)})
}

fn contents(list: &[Content]) -> Value {
    let mut map = Map::new();
    for content in list {
        let value = match content.schema {
            "" => json!({}),
            name => json!({"schema": {"$ref": format!("#/components/schemas/{name}")}}),
        };
        map.insert(content.media.to_owned(), value);
    }
    Value::Object(map)
}
