//! cnova-gateway-core
