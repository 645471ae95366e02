//! cnova-shared
