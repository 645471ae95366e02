//! cnova-store
