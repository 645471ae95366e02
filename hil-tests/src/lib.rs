//! cnova-hil-tests
