//! MQTT topics: `cnova/v1/<node>/up/<kind>` and `cnova/v1/<node>/down/<kind>`.

use crate::ids::NodeId;

/// What a message is about; its name is the topic's last level and part of the signature's `external_aad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Up: here I am, and this is what I hold.
    Hello,
    /// Up: what happened, in sequence.
    Report,
    /// Up: a gateway's carrier for what its descendants said.
    Relay,
    /// Up: send me a piece of an artifact.
    ChunkRequest,
    /// Up: part of a workload's log, asked for by a command.
    Log,
    /// Up: the answer to a command.
    Reply,
    /// Up: what the node's TPM says (RFC 9334 evidence).
    Evidence,
    /// Up: a request to be certified, of the author itself or of a newcomer behind it.
    Enrol,
    /// Down: the desired state.
    Twin,
    /// Down: everything up to here has been stored.
    Ack,
    /// Down: a piece of an artifact.
    Chunk,
    /// Down: do or tell something once.
    Command,
    /// Down: a newer trust bundle, signed by the roots.
    Trust,
    /// Down: a nonce to attest to.
    Challenge,
    /// Down: an attestation result (EAR).
    Ear,
    /// Down: the answer to an [`Kind::Enrol`].
    Enrolled,
}

impl Kind {
    /// All kinds, up ones first.
    pub const ALL: [Kind; 16] = [
        Kind::Hello,
        Kind::Report,
        Kind::Relay,
        Kind::ChunkRequest,
        Kind::Log,
        Kind::Reply,
        Kind::Evidence,
        Kind::Enrol,
        Kind::Twin,
        Kind::Ack,
        Kind::Chunk,
        Kind::Command,
        Kind::Trust,
        Kind::Challenge,
        Kind::Ear,
        Kind::Enrolled,
    ];

    /// The name in topics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Hello => "hello",
            Kind::Report => "report",
            Kind::Relay => "relay",
            Kind::ChunkRequest => "chunk-request",
            Kind::Log => "log",
            Kind::Reply => "reply",
            Kind::Evidence => "evidence",
            Kind::Twin => "twin",
            Kind::Ack => "ack",
            Kind::Chunk => "chunk",
            Kind::Command => "command",
            Kind::Trust => "trust",
            Kind::Challenge => "challenge",
            Kind::Ear => "ear",
            Kind::Enrol => "enrol",
            Kind::Enrolled => "enrolled",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| k.as_str() == name)
    }

    /// Whether children say it to parents.
    #[must_use]
    pub fn is_up(self) -> bool {
        (self as u8) < (Kind::Twin as u8)
    }
}

/// The topic on which `node` says `kind`, or hears it.
#[must_use]
pub fn topic(node: &NodeId, kind: Kind) -> String {
    let direction = if kind.is_up() { "up" } else { "down" };
    format!("cnova/v1/{node}/{direction}/{}", kind.as_str())
}

/// The node and kind of a topic; nothing for any other topic.
#[must_use]
pub fn parse_topic(topic: &str) -> Option<(NodeId, Kind)> {
    let mut parts = topic.strip_prefix("cnova/v1/")?.split('/');
    let node = NodeId::new(parts.next()?).ok()?;
    let up = match parts.next()? {
        "up" => true,
        "down" => false,
        _ => return None,
    };
    let kind = Kind::parse(parts.next()?)?;
    (parts.next().is_none() && kind.is_up() == up).then_some((node, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip_and_refuse_the_rest() {
        let node = NodeId::new("plc-1").unwrap();
        for kind in Kind::ALL {
            assert_eq!(parse_topic(&topic(&node, kind)), Some((node.clone(), kind)));
        }
        for bad in [
            "cnova/v1/plc-1/up/twin",
            "cnova/v1/+/up/hello",
            "cnova/v2/plc-1/up/hello",
            "cnova/v1/a/up/hello/x",
        ] {
            assert_eq!(parse_topic(bad), None, "{bad}");
        }
    }
}
