//! cnova-link
