//! Node ids and topic names: `cnova/v1/<node>/up/<kind>` and `cnova/v1/<node>/down/<kind>`.

/// What a parent subscribes to: everything its children say.
pub const ALL_UP: &str = "cnova/v1/+/up/+";
/// Everything a parent says to its children.
pub const ALL_DOWN: &str = "cnova/v1/+/down/+";

const PREFIX: &str = "cnova/v1/";
const NODE_MAX: usize = 63;
const KIND_MAX: usize = 32;

/// Which way a message goes, seen from the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the child to its parent.
    Up,
    /// From the parent to its child.
    Down,
}

/// A topic name, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic<'a> {
    /// The child.
    pub node: &'a str,
    /// Which way.
    pub direction: Direction,
    /// What kind of message.
    pub kind: &'a str,
}

/// Takes a topic name apart; `None` for anything that is not exactly of the form above.
#[must_use]
pub fn parse(topic: &str) -> Option<Topic<'_>> {
    let mut levels = topic.strip_prefix(PREFIX)?.split('/');
    let (node, direction, kind) = (levels.next()?, levels.next()?, levels.next()?);
    let direction = match direction {
        "up" => Direction::Up,
        "down" => Direction::Down,
        _ => return None,
    };
    (levels.next().is_none() && is_node_id(node) && is_kind(kind)).then_some(Topic { node, direction, kind })
}

/// The topic on which `node` hears messages of `kind`.
#[must_use]
pub fn down(node: &str, kind: &str) -> String {
    format!("{PREFIX}{node}/down/{kind}")
}

/// The topic on which `node` sends messages of `kind`.
#[must_use]
pub fn up(node: &str, kind: &str) -> String {
    format!("{PREFIX}{node}/up/{kind}")
}

/// `[a-z0-9]([a-z0-9.-]{0,62})`
#[must_use]
pub fn is_node_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|first| plain(*first))
        && bytes.len() <= NODE_MAX
        && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'.' | b'-'))
}

/// `[a-z-]{1,32}`
#[must_use]
pub fn is_kind(text: &str) -> bool {
    (1..=KIND_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_taken_apart_and_put_together() {
        let topic = down("plc-14.line-2", "twin");
        let parsed = parse(&topic).unwrap();
        assert_eq!(
            parsed,
            Topic {
                node: "plc-14.line-2",
                direction: Direction::Down,
                kind: "twin"
            }
        );
        assert_eq!(parse(&up("a", "hello")).unwrap().direction, Direction::Up);
    }

    #[test]
    fn what_is_not_a_topic_is_refused() {
        for topic in [
            "",
            "cnova",
            "cnova/v1/",
            "cnova/v1/a/up",
            "cnova/v1/a/up/",
            "cnova/v1/a/up/hello/x",
            "cnova/v2/a/up/hello",
            "cnova/v1/+/up/hello",
            "cnova/v1/a/up/#",
            "cnova/v1/a/up/+",
            "cnova/v1/A/up/hello",
            "cnova/v1/-a/up/hello",
            "cnova/v1/a/sideways/hello",
            "$share/g/cnova/v1/a/up/hello",
            "cnova/v1//up/hello",
            "cnova/v1/a/up/Hello",
        ] {
            assert_eq!(parse(topic), None, "{topic}");
        }
        assert!(is_node_id(&"a".repeat(63)) && !is_node_id(&"a".repeat(64)));
        assert!(is_kind(&"a".repeat(32)) && !is_kind(&"a".repeat(33)));
    }
}
