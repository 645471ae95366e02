//! cnova-broker
