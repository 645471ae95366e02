//! Every bound on what comes from outside, by name. Sizes are bytes, times milliseconds, unless the name says else.

/// Longest node id (also the MQTT client id and the certificate's CN).
pub const NODE_ID_LEN: usize = 63;
/// Longest site path, all segments and slashes.
pub const SITE_PATH_LEN: usize = 255;
/// Deepest site path.
pub const SITE_PATH_SEGMENTS: usize = 16;
/// Longest workload or application name.
pub const NAME_LEN: usize = 63;
/// Largest signed twin.
pub const TWIN_BYTES: usize = 1024 * 1024;
/// Largest signed message of any other kind.
pub const MESSAGE_BYTES: usize = 1024 * 1024 + 16 * 1024;
/// Largest signed trust bundle.
pub const BUNDLE_BYTES: usize = 64 * 1024;
/// Most workloads in one twin.
pub const WORKLOADS_PER_TWIN: usize = 1024;
/// Most entries in one report message.
pub const REPORT_ENTRIES: usize = 256;
/// Most bytes of entries that a sender puts into one report or relay message.
pub const BATCH_BYTES: usize = 256 * 1024;
/// Most items in one relay message.
pub const RELAY_ITEMS: usize = 256;
/// Most batches sent and not yet acknowledged on one hop.
pub const HOP_WINDOW: usize = 8;
/// Data bytes in one artifact chunk.
pub const CHUNK_BYTES: u64 = 256 * 1024;
/// Largest artifact that a node will fetch.
pub const ARTIFACT_BYTES: u64 = 512 * 1024 * 1024;
/// Most refusals that a node keeps for reporting; the oldest is overwritten.
pub const REFUSALS_KEPT: u64 = 32;
/// Longest free text (a reason, a detail, a backtrace) in a report.
pub const DETAIL_BYTES: usize = 4 * 1024;
/// Most log bytes that one reply carries.
pub const LOG_REPLY_BYTES: usize = 128 * 1024;
/// Most spooled messages that a gateway keeps for one descendant before the oldest is dropped and counted.
pub const SPOOL_PER_NODE: usize = 512;
/// Most descendants of one gateway.
pub const DESCENDANTS: usize = 10_000;
/// First pause before something is sent again; doubles up to [`RESEND_MAX_MS`].
pub const RESEND_MIN_MS: u64 = 500;
/// Longest pause before something is sent again.
pub const RESEND_MAX_MS: u64 = 60_000;
/// Shortest time between two hellos on one connection that were not asked for.
pub const GREET_AGAIN_MS: u64 = 10_000;
/// Longest pause between two requests to a child to tell everything again.
pub const GATHER_MAX_MS: u64 = 3_600_000;
/// Most certificates in an x5chain header.
pub const X5CHAIN_CERTS: usize = 4;
/// Most root keys, signing keys or authorities in one trust bundle.
pub const BUNDLE_KEYS: usize = 64;
/// Most chunk requests that a gateway keeps waiting for one artifact.
pub const CHUNK_WAITERS: usize = 1024;
/// Most artifacts that a node fetches at once; more wait.
pub const FETCHES_AT_ONCE: usize = 4;

/// Largest provenance envelope (DSSE) of one artifact.
pub const PROVENANCE_BYTES: usize = 128 * 1024;
/// Most provenance envelopes that are kept for one artifact; the oldest goes first.
pub const PROVENANCE_PER_ARTIFACT: usize = 8;
/// Most provenance envelopes that one workload of a twin names.
pub const PROVENANCE_PER_WORKLOAD: usize = 80;
/// Most builders in one trust bundle.
pub const BUNDLE_BUILDERS: usize = 64;
/// Longest URI that names a builder.
pub const BUILDER_URI_LEN: usize = 256;
/// Most patterns of builders in one attestation policy.
pub const POLICY_BUILDERS: usize = 16;
/// Highest build level of SLSA version 1.
pub const LEVEL_MAX: u8 = 3;

/// Largest value of a secret.
pub const SECRET_BYTES: usize = 64 * 1024;
/// Most secrets that a hub keeps.
pub const SECRETS: usize = 1024;
/// Most uses of secrets (variables and files) by one workload.
pub const SECRETS_PER_WORKLOAD: usize = 32;
/// Most secrets in one twin.
pub const SECRETS_PER_TWIN: usize = 256;
/// Most bytes of encrypted secrets in one twin; a quarter of it, so that workloads still fit.
pub const SECRETS_BYTES_PER_TWIN: usize = TWIN_BYTES / 4;
/// What encryption adds to a secret, at most.
pub const SEALED_SECRET_EXTRA: usize = 512;
/// Most applications and workloads that one secret is granted to.
pub const SECRET_GRANTS: usize = 64;

/// Cuts free text to [`DETAIL_BYTES`] at a character boundary.
#[must_use]
pub fn clip(text: &str) -> String {
    clip_to(text, DETAIL_BYTES)
}

/// Cuts free text to `max` bytes at a character boundary.
#[must_use]
pub fn clip_to(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Largest step of an enrolment, and largest answer to one.
pub const ENROL_BYTES: usize = 64 * 1024;
/// Most bytes of trust bundles in an answer to a newcomer; the rest is for its certificates and the envelope.
pub const ENROL_BUNDLES_BYTES: usize = 40 * 1024;
/// Longest enrolment token.
pub const ENROL_TOKEN_LEN: usize = 128;
/// First pause before a certificate is asked for again; doubles up to [`RENEW_AGAIN_MAX_MS`].
pub const RENEW_AGAIN_MIN_MS: u64 = 5_000;
/// Longest pause before a certificate is asked for again, and between two looks at the clock.
pub const RENEW_AGAIN_MAX_MS: u64 = 3_600_000;
/// Bytes of a nonce in a challenge.
pub const NONCE_BYTES: usize = 32;
/// Most nodes in one list of revocations.
pub const REVOKED_NODES: usize = 4096;
/// Most keys that are refused under one revoked name.
pub const REVOKED_KEYS: usize = 16;
/// Longest reason of a revocation.
pub const REASON_BYTES: usize = 256;
/// Most rights in one delegation.
pub const RIGHTS: usize = 16;
/// Most trust bundles that a node keeps, from the one that it was flashed with on.
pub const BUNDLES_KEPT: usize = 256;
/// Most delegations that one node keeps.
pub const DELEGATIONS_KEPT: usize = 1024;
/// Largest signed document of reference values.
pub const REFERENCES_BYTES: usize = 512 * 1024;
/// Longest time for which a gateway's attestation result may be relied on, seconds. It is never longer than its delegation.
pub const DELEGATED_RESULT_S: u64 = 4 * 3600;
/// A gateway whose own affirming result has ended for so long appraises nobody, seconds.
pub const VERIFIER_GRACE_S: u64 = 4 * 86_400;
/// Most kinds and names of documents that a hello says it holds.
pub const DOCUMENTS_SAID: usize = 2048;
/// First pause before documents about trust are sent again to a child that has not said that it holds them; above
/// [`GREET_AGAIN_MS`], so that the child can say it. Doubles up to [`TRUST_RESEND_MAX_MS`].
pub const TRUST_RESEND_MIN_MS: u64 = 15_000;
/// Longest pause before documents about trust are sent again.
pub const TRUST_RESEND_MAX_MS: u64 = 600_000;
/// How long a node may hold an older trust bundle than the hub before that is an alarm.
pub const TRUST_BEHIND_MS: u64 = 24 * 3_600_000;
/// Most boots in one document that approves them.
pub const BOOTS_APPROVED: usize = 512;
/// Most keys that approve one boot.
pub const BOOT_SIGNATURES: usize = 8;
/// Longest name of an approved boot.
pub const BOOT_NAME_BYTES: usize = 63;
/// Largest header of a system bundle.
pub const SYSTEM_HEADER_BYTES: usize = 32 * 1024;
/// Longest name of a board, and longest version of a system.
pub const SYSTEM_WORD_LEN: usize = 63;
/// Most values of registers in one system bundle.
pub const SYSTEM_MEASURED: usize = 64;
/// Most workloads that one system's health asks for by name.
pub const SYSTEM_WORKLOADS: usize = 64;
/// Most tries of a new slot.
pub const SYSTEM_TRIES: u8 = 10;
/// Longest time that a new system may take to become healthy, seconds.
pub const SYSTEM_HEALTHY_WITHIN_S: u64 = 3600;
