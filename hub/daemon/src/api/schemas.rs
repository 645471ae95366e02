//! The JSON that goes in and out, as JSON Schemas for the OpenAPI document.

use cnova_hub_core::cndl::{SCHEMA_ID, SYSTEM_SCHEMA_ID};
use serde_json::{Value, json};

fn object(properties: Value, optional: &[&str]) -> Value {
    let names = properties
        .as_object()
        .map(|p| p.keys().cloned().collect::<Vec<_>>())
        .unwrap_or_default();
    let required: Vec<String> = names.into_iter().filter(|n| !optional.contains(&n.as_str())).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

fn list(of: &str) -> Value {
    json!({"type": "array", "items": {"$ref": format!("#/components/schemas/{of}")}})
}

fn map_of(value: Value) -> Value {
    json!({"type": "object", "additionalProperties": value})
}

fn string() -> Value {
    json!({"type": "string"})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn number() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn millis(whose: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": format!("Milliseconds since 1970 by the {whose}'s clock.")})
}

/// All schemas by name.
#[must_use]
pub(super) fn schemas() -> Value {
    let mut all = json!({});
    for part in [
        errors_and_artifacts(),
        applications(),
        explanation(),
        nodes(),
        attestation(),
        records(),
        enrolment(),
        secrets(),
        systems(),
        trust(),
    ] {
        if let (Some(all), Value::Object(part)) = (all.as_object_mut(), part) {
            all.extend(part);
        }
    }
    all
}

fn systems() -> Value {
    let state = json!({"enum": [
        "idle", "waiting", "writing", "verifying", "staged", "rebooting", "trial", "confirmed", "rolled-back", "failed", "unknown",
    ]});
    json!({
        "Systems": object(json!({"systems": list("System")}), &[]),
        "System": object(json!({
            "name": string(), "generation": number(), "user": string(), "version": string(), "compatible": string(),
            "bundle": string(), "attempt": number(), "manifest": {"$ref": SYSTEM_SCHEMA_ID},
            "nodes": map_of(json!({"$ref": "#/components/schemas/NodeSystem"})),
        }), &[]),
        "NodeSystem": object(json!({
            "asked": {"type": "boolean", "description": "Whether its twin asks for it."},
            "reason": text("Why not, or why it does not go on."),
            "state": state, "percent": number(), "version": text("What runs now."), "slot": text("The slot that runs."),
        }), &[]),
    })
}

fn errors_and_artifacts() -> Value {
    let detail = json!({"oneOf": [string(), {"$ref": "#/components/schemas/ManifestError"}]});
    json!({
        "Error": object(json!({
            "error": object(json!({
                "code": text("A stable word for programs."),
                "message": text("A sentence for people."),
                "details": {"type": "array", "items": detail},
            }), &[]),
        }), &[]),
        "ManifestError": object(json!({
            "line": number(),
            "column": number(),
            "pointer": text("JSON pointer to the value."),
            "message": string(),
            "hint": {"type": ["string", "null"]},
        }), &[]),
        "Artifact": object(json!({"digest": string(), "size": number()}), &[]),
        "Provenance": object(json!({
            "digest": string(), "size": number(), "subject": string(),
            "builder": string(), "level": number(), "build_type": string(), "problem": string(),
        }), &["builder", "level", "build_type", "problem"]),
        "Artifacts": object(json!({"artifacts": list("StoredArtifact")}), &[]),
        "StoredArtifact": object(json!({
            "digest": string(),
            "size": number(),
            "used_by": {"type": "array", "items": string(), "description": "Nothing in it: it is collected at some time."},
        }), &[]),
        "Collected": object(json!({"removed": {"type": "array", "items": string()}, "bytes": number()}), &[]),
        "Health": object(json!({"status": {"const": "ok"}, "node": string(), "version": string()}), &[]),
        "OpenApi": {"type": "object"},
    })
}

fn applications() -> Value {
    let manifest = json!({
        "type": "string",
        "description": "YAML or JSON, at most 1 MiB.",
        "contentSchema": {"$ref": SCHEMA_ID},
    });
    let unplaced = json!({
        "type": "object", "additionalProperties": string(),
        "description": "Workloads without all their nodes, and why.",
    });
    json!({
        "ApplyRequest": object(json!({
            "manifest": manifest,
            "source": text("What stands before each mistake; usually the path of the file."),
            "artifacts": {
                "type": "object", "additionalProperties": string(),
                "description": "The digest of each file that the manifest names.",
            },
            "dry_run": {"type": "boolean", "default": false},
        }), &["source", "artifacts", "dry_run"]),
        "Applied": object(json!({
            "result": {"enum": ["applied", "dry-run"]},
            "name": string(),
            "generation": number(),
            "changed": {"type": "boolean"},
            "placed": map_of(json!({"type": "array", "items": string()})),
            "unplaced": unplaced,
            "uploads": {
                "type": "array", "items": string(),
                "description": "Of a dry run: what would have to be uploaded first.",
            },
            "unproven": {
                "type": "object", "additionalProperties": string(),
                "description": "Of a dry run: workloads whose provenance the hub does not have, and what is missing. It \
                                may lie beside a file that would be uploaded.",
            },
        }), &["uploads", "unproven"]),
        "Deleted": object(json!({"result": {"const": "deleted"}, "name": string()}), &[]),
        "Applications": object(json!({"applications": list("ApplicationSummary")}), &[]),
        "ApplicationSummary": object(json!({
            "name": string(),
            "generation": number(),
            "user": string(),
            "workloads": map_of(json!({"$ref": "#/components/schemas/PlacementSummary"})),
            "problems": map_of(string()),
        }), &[]),
        "PlacementSummary": object(json!({
            "nodes": {"type": "array", "items": string()},
            "summary": {"type": ["string", "null"]},
        }), &[]),
        "Application": object(json!({
            "name": string(),
            "generation": number(),
            "user": string(),
            "manifest": {"$ref": SCHEMA_ID},
            "workloads": map_of(json!({"$ref": "#/components/schemas/Placement"})),
            "problems": map_of(string()),
            "timeline": list("Stage"),
        }), &[]),
        "Placement": object(json!({
            "nodes": {"type": "array", "items": string()},
            "not": {"type": "object", "additionalProperties": string(), "description": "Why not, for every other node."},
            "summary": {"type": ["string", "null"], "description": "Why it has fewer nodes than it asks for."},
        }), &[]),
        "Timeline": object(json!({"name": string(), "generation": number(), "stages": list("Stage")}), &[]),
        "Stage": object(json!({
            "stage": {"enum": [
                "admitted", "placed", "compiled", "signed", "relayed", "verified", "committed", "running", "reported",
            ]},
            "at_ms": number(),
            "by": text("Who says so; the time is by its clock."),
            "node": {"type": ["string", "null"]},
            "detail": string(),
        }), &[]),
    })
}

fn explanation() -> Value {
    let texts = || json!({"type": "array", "items": string()});
    let reported = object(
        json!({
            "state": string(), "reason": string(), "generation": number(), "attempt": number(),
            "returned": {"type": "boolean"}, "since_ms": millis("node"), "received_ms": millis("hub"),
        }),
        &[],
    );
    json!({
        "Explanation": object(json!({
            "application": string(),
            "workload": string(),
            "generation": number(),
            "runtime": string(),
            "verdict": text("The answer in one sentence."),
            "artifacts": {"type": "array", "items": object(json!({
                "what": string(), "digest": {"type": ["string", "null"]}, "size": {"type": ["integer", "null"]},
                "state": text("`there`, `missing`, `in work`, or `failed: WHY`."),
            }), &[])},
            "nodes": list("NodeExplanation"),
            "not": {"type": "object", "additionalProperties": string(), "description": "Why not, for every other node."},
            "next": texts(),
            "timeline": list("Stage"),
            "history": map_of(list("HistoryEntry")),
            "as_of_ms": millis("hub"),
        }), &[]),
        "NodeExplanation": object(json!({
            "node": string(),
            "placed": {"type": "boolean"},
            "because": text("Why it stands as it does."),
            "link": {"enum": ["connected", "disconnected", "unknown"]},
            "heard_ms": millis("hub"),
            "twin_asked": string(),
            "twin_held": string(),
            "reported": {"anyOf": [{"type": "null"}, reported]},
            "needs": texts(),
            "next": texts(),
            "timeline": list("Stage"),
        }), &[]),
    })
}

fn attestation() -> Value {
    json!({
        "Attestation": object(json!({
            "node": string(),
            "tier": {"enum": ["soft", "tpm"]},
            "standing": text("As `trust` of a node."),
            "why": text("Why it is not more; empty when it is affirming."),
            "policy": text("The reference values that it was judged by."),
            "judged_s": number(),
            "expires_s": number(),
            "boot_measured": {"type": "boolean"},
            "findings": {"type": "array", "items": string()},
            "pcrs": map_of(string()),
            "agents": {"type": "array", "items": string()},
            "launched": {"type": "array", "items": object(json!({
                "seq": number(), "workload": string(), "artifact": string(), "spec": string(), "runtime": string(),
                "proven": {"type": "boolean"},
            }), &[])},
            "by_gateway": object(json!({
                "gateway": string(), "status": string(), "judged_s": number(), "expires_s": number(),
                "told_ms": number(), "policy": string(), "findings": {"type": "array", "items": string()},
            }), &[]),
        }), &["by_gateway"]),
        "References": object(json!({
            "version": number(), "references": list("Reference"),
            "awaited": {"type": "array", "items": string()},
        }), &[]),
        "Reference": object(json!({
            "name": string(),
            "all": {"type": "boolean"},
            "nodes": {"type": "array", "items": string()},
            "site": {"type": ["string", "null"]},
            "labels": map_of(string()),
            "pcrs": {"type": "object", "description": "Allowed values (`sha256:...`) by register."},
            "events": {"type": "object", "description": "Digests of the firmware's events by register."},
            "agents": {"type": "array", "items": string()},
            "runtimes": {"type": "array", "items": string()},
            "artifacts": {"type": "array", "items": string()},
        }), &["name", "pcrs"]),
        "NewReference": object(json!({
            "from_node": text("Take over what this node last showed."),
            "set": {"$ref": "#/components/schemas/Reference"},
            "image": object(json!({
                "measured": map_of(json!({"type": "array", "items": string()})),
                "loads": {"type": "array", "items": string()},
            }), &["loads"]),
        }), &["image"]),
        "AttestDone": object(json!({"done": string()}), &[]),
    })
}

fn nodes() -> Value {
    let states = json!({"enum": [
        "waiting", "fetching", "starting", "running", "stopping", "finished", "failed", "crash-loop", "unknown",
    ]});
    json!({
        "Nodes": object(json!({"nodes": list("Node")}), &[]),
        "Node": object(json!({
            "node": string(),
            "role": {"enum": ["agent", "gateway"]},
            "site": string(),
            "link": {"enum": ["connected", "disconnected", "unknown"]},
            "trust": text("`affirming`, `stale`, `warning`, `CONTRAINDICATED`, `pending`, `UNATTESTED` for a software key, or `REVOKED` for a node that is not trusted any more."),
            "standing": {"type": "object", "description": "What placement makes of it: meets (for what is new), keeps (for what runs there), why."},
            "trust_version": text_number("The trust bundle that it said it holds."),
            "revoked": {"type": ["string", "null"], "description": "Why it is not trusted any more."},
            "via": text("The direct child of the hub behind which it hangs."),
            "desired": text("The twin that it should have, `epoch.generation`, or `-`."),
            "reported": text("The twin that it said it has."),
            "in_sync": {"type": "boolean"},
            "heard_ms": millis("hub"),
            "software": string(),
            "labels": map_of(string()),
            "capabilities": {"type": "object", "description": "r: runtimes, m: memory in bytes, c: CPU in thousandths of a core, acc: accelerators, dev: devices."},
            "alarms": {"type": "array", "items": {"type": "object", "description": "c: a stable word, d: what to do."}},
            "refusals": {"type": "array", "items": object(json!({
                "at_ms": millis("node"), "code": string(), "detail": string(),
            }), &[])},
        }), &[]),
        "TwinDocument": object(json!({
            "node": string(),
            "epoch": number(),
            "generation": number(),
            "digest": text("SHA-256 of the signed bytes."),
            "size": number(),
            "twin": {"type": "object", "description": "The payload as it is on the wire, with its short names."},
        }), &[]),
        "Workloads": object(json!({"workloads": list("Workload")}), &[]),
        "Workload": object(json!({
            "application": string(),
            "workload": string(),
            "node": string(),
            "desired": number(),
            "generation": number(),
            "state": states,
            "reason": string(),
            "attempt": number(),
            "pid": number(),
            "adopted": {"type": "boolean"},
            "returned": {"type": "boolean", "description": "A new version did not become healthy; the one before runs again."},
            "since_ms": millis("node"),
        }), &[]),
        "Replied": object(json!({
            "result": {"const": "replied"},
            "ok": {"const": true},
            "text": text("Log text, or metrics as JSON."),
        }), &[]),
    })
}

fn enrolment() -> Value {
    let seconds = || json!({"type": "integer", "minimum": 0, "description": "Seconds since 1970."});
    json!({
        "Done": object(json!({"result": {"const": "done"}}), &[]),
        "Enrolment": object(json!({
            "tokens": {"type": "array", "items": object(json!({
                "id": text("The beginning of its hash."),
                "site": string(),
                "name": text("Which names it admits; empty for any."),
                "expires_s": seconds(),
                "uses_left": number(),
                "by": string(),
                "made_s": seconds(),
            }), &[])},
            "known": {"type": "array", "items": object(json!({
                "fingerprint": text("SHA-256 of the endorsement key or of its certificate, hexadecimal."),
                "node": string(),
                "site": string(),
                "by": string(),
                "made_s": seconds(),
            }), &[])},
            "nodes": {"type": "array", "items": object(json!({
                "node": string(),
                "site": string(),
                "tier": text("`tpm`, or `UNATTESTED` for a key in a file."),
                "ek": text("SHA-256 of its endorsement key, hexadecimal; empty without a TPM."),
                "key": text("Its device key's id."),
                "first_s": seconds(),
                "last_s": seconds(),
                "not_after_s": seconds(),
            }), &[])},
        }), &[]),
        "EnrolmentTokenRequest": object(json!({
            "site": text("A site path; with `/*` the places below one, each named as its node is."),
            "name": {"type": ["string", "null"], "description": "A node's name, or the beginning of one and a star."},
            "uses": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1},
            "expires_in_s": {"type": "integer", "minimum": 1, "maximum": 31_622_400},
        }), &["name", "uses"]),
        "EnrolmentToken": object(json!({
            "id": string(),
            "token": text("Its text, which the hub does not keep."),
            "expires_s": seconds(),
        }), &[]),
        "EndorsementKeyRequest": object(json!({
            "fingerprint": text("`sha256:` and 64 digits: of the endorsement key (TPMT_PUBLIC) or its certificate (DER)."),
            "node": string(),
            "site": string(),
        }), &[]),
    })
}

fn text_number(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

fn trust() -> Value {
    let seconds = || text_number("Seconds since 1970.");
    json!({
        "Trust": object(json!({
            "version": text_number("Of the bundle in force."),
            "issued_at": seconds(),
            "ends_at": text_number("When the last key for twins runs out, seconds since 1970."),
            "since_ms": millis("hub"),
            "signing_key": {"type": ["string", "null"]},
            "keys": {"type": "array", "items": object(json!({
                "id": string(), "roles": {"type": "array", "items": string()}, "not_after": seconds(),
            }), &[])},
            "revocations_version": number(),
            "revoked": {"type": "array", "items": object(json!({
                "node": string(), "whole_name": {"type": "boolean"}, "keys": {"type": "array", "items": string()},
                "reason": string(), "at": seconds(),
            }), &[])},
            "delegations": {"type": "array", "items": object(json!({
                "gateway": string(), "site": string(), "rights": {"type": "array", "items": string()},
                "not_after": seconds(),
            }), &[])},
            "boot_policy_version": text_number("Of the document of approved boots, 0 when there is none."),
            "boots": {"type": "array", "items": object(json!({
                "name": string(), "pcrs": map_of(string()), "keys": {"type": "array", "items": string()},
            }), &[])},
            "boots_behind": map_of(text_number("The version of that document that a node with a TPM said it holds.")),
            "behind": map_of(text_number("The bundle that the node said it holds.")),
        }), &[]),
        "Trusted": object(json!({
            "result": {"const": "trusted"},
            "version": text_number("Of the bundle, or of the list of revocations."),
            "changed": {"type": "boolean"},
            "text": string(),
        }), &[]),
        "Revoke": object(json!({
            "reason": text("1 to 256 bytes."),
            "keys_only": {"type": "boolean", "description": "Refuse only the keys that the hub knows of the node; another device may take the name."},
        }), &["keys_only"]),
        "Readmit": object(json!({
            "new_key": {"type": "boolean", "description": "The keys that it had stay refused; another device takes the name."},
        }), &["new_key"]),
    })
}

fn records() -> Value {
    json!({
        "History": object(json!({"node": string(), "entries": list("HistoryEntry")}), &[]),
        "HistoryEntry": object(json!({
            "incarnation": number(),
            "seq": number(),
            "key": text("The subject."),
            "at_ms": millis("node"),
            "received_ms": millis("hub"),
            "body": {"type": "object", "description": "What happened; `t` names its kind."},
        }), &[]),
        "Audit": object(json!({
            "entries": list("AuditEntry"),
            "chain": object(json!({
                "holds": {"type": "boolean"},
                "broken_at": {"type": ["integer", "null"], "description": "The first entry that does not fit."},
            }), &[]),
        }), &[]),
        "AuditEntry": object(json!({
            "seq": number(),
            "at_ms": millis("hub"),
            "user": string(),
            "action": {"enum": [
                "apply", "collect", "delete", "upload", "enrol", "renew", "enrol-token", "enrol-token-revoke", "enrol-ek",
                "enrol-ek-remove", "enrol-forget", "readmit", "revoke", "trust", "attest", "release", "reference",
            ]},
            "object": string(),
            "outcome": {"enum": ["done", "unchanged", "refused", "denied"]},
            "detail": string(),
            "hash": text("SHA-256 over the hash before it and the other fields."),
        }), &[]),
    })
}

fn secrets() -> Value {
    let who = "Applications, or application/workload.";
    json!({
        "Secrets": object(json!({"secrets": {"type": "array", "items": object(json!({
            "name": string(),
            "version": number(),
            "allow": {"type": "array", "items": text(who)},
            "used_by": {"type": "array", "items": text("application/workload.")},
            "nodes": map_of(number()),
            "by": string(),
            "set_ms": millis("hub"),
        }), &[])}}), &[]),
        "SecretSet": object(json!({
            "result": {"const": "secret"},
            "name": string(),
            "version": number(),
            "changed": {"type": "boolean"},
        }), &[]),
        "SecretGrants": object(json!({"allow": {"type": "array", "items": text(who)}}), &[]),
    })
}
