//! cnova-ral
