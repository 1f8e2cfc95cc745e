//! Makes Rust of the kubelet's two interfaces, without a `protoc` program.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let services = protox::compile(["deviceplugin.proto", "podresources.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .compile_fds(services)?;
    Ok(())
}
