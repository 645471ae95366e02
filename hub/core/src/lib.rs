//! cnova-hub-core
