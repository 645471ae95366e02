//! cnova-agent-core
