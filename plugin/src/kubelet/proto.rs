//! The kubelet's interfaces as Rust, made by `build.rs` of `proto/`.

/// Device plugins: `proto/deviceplugin.proto`.
pub(crate) mod device_plugin {
    #![allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)] // Generated: more than we use.
    include!(concat!(env!("OUT_DIR"), "/v1beta1.rs"));
}

/// Pod resources: `proto/podresources.proto`.
pub(crate) mod pod_resources {
    #![allow(dead_code, missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)] // Generated: more than we use.
    include!(concat!(env!("OUT_DIR"), "/v1.rs"));
}

/// The version of the device plugin interface that a plugin names when it registers.
pub(crate) const DEVICE_PLUGIN_VERSION: &str = "v1beta1";
/// A device that may be handed out.
pub(crate) const HEALTHY: &str = "Healthy";
/// A device that may not.
pub(crate) const UNHEALTHY: &str = "Unhealthy";
