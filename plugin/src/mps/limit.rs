//! How many clients one MPS server takes.

/// The client CUDA contexts that one GPU's MPS server takes, for a driver of this CUDA version as NVML gives it
/// (1000 × major + 10 × minor): 60 from CUDA 13.1, 48 before.
///
/// Source: [MPS, client-server connection limits](https://docs.nvidia.com/deploy/mps/when-to-use-mps.html), of
/// releases 580 and 590. It holds for Volta and later, and for the default `CUDA_DEVICE_MAX_CONNECTIONS`.
pub(crate) fn mps_client_limit(cuda_driver_version: i32) -> u32 {
    if cuda_driver_version >= CUDA_13_1 { 60 } else { 48 }
}

const CUDA_13_1: i32 = 13_010;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_48_and_60_from_cuda_13_1() {
        assert_eq!(
            [12_080, 13_000, 13_010, 14_000].map(mps_client_limit),
            [48, 48, 60, 60]
        );
    }
}
