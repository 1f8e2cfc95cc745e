//! What an XID means: the numbers under which NVIDIA's driver reports errors.
//!
//! Sources: NVIDIA, "Xid Errors" (<https://docs.nvidia.com/deploy/xid-errors/>) with its catalogue and the
//! actions that it recommends; "GPU Memory Error Management" for 48, 63, 64, 92, 94 and 95; `nverror.h` of
//! NVIDIA's open kernel modules for which engine a number belongs to.

/// What is concerned by an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Impact {
    /// The application that caused it; or an engine that nothing here offers. The GPU is well.
    Application,
    /// The video encoder (NVENC).
    Encoder,
    /// The whole GPU, or the MIG instance that the event names.
    Device(Cure),
    /// Nothing by itself: it says that NVML's recovery action has changed, and a probe reads that.
    Notice,
}

/// What makes a GPU well again after an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cure {
    /// That nothing bad is seen for a while.
    Quiet,
    /// A reset of the GPU, or its removal and return.
    Reset,
}

/// What `xid` concerns. A number that is not in the table is taken for a device error that may pass.
pub(crate) fn impact(xid: u64) -> Impact {
    entry(xid).map_or(Impact::Device(Cure::Quiet), |entry| entry.1)
}

/// What `xid` is, in a few words.
pub(crate) fn describe(xid: u64) -> &'static str {
    entry(xid).map_or("an error that this version does not know", |entry| entry.2)
}

fn entry(xid: u64) -> Option<&'static (u64, Impact, &'static str)> {
    let place = TABLE.binary_search_by_key(&xid, |entry| entry.0).ok()?;
    TABLE.get(place)
}

const APPLICATION: Impact = Impact::Application;
const QUIET: Impact = Impact::Device(Cure::Quiet);
const RESET: Impact = Impact::Device(Cure::Reset);

/// By number.
const TABLE: &[(u64, Impact, &str)] = &[
    (8, APPLICATION, "a channel timed out"),
    (11, APPLICATION, "invalid or corrupted push buffer"),
    (13, APPLICATION, "graphics engine exception"),
    (31, APPLICATION, "memory access out of bounds (MMU fault)"),
    (32, APPLICATION, "invalid or corrupted push buffer"),
    (39, APPLICATION, "copy engine exception"),
    (40, APPLICATION, "copy engine exception"),
    (41, APPLICATION, "copy engine exception"),
    (43, APPLICATION, "a channel was reset"),
    (
        45,
        APPLICATION,
        "channels were removed after an earlier error or a killed process",
    ),
    (46, RESET, "the GPU stopped processing"),
    (47, Impact::Encoder, "video encoder (NVENC) exception"),
    (48, RESET, "double-bit ECC error"),
    (62, RESET, "the GPU's power management unit halted"),
    (63, QUIET, "a memory row or page was retired"),
    (64, RESET, "a memory row or page could not be retired"),
    (65, Impact::Encoder, "video encoder (second NVENC) exception"),
    (68, APPLICATION, "video decoder (NVDEC) exception"),
    (69, APPLICATION, "graphics engine class error"),
    (70, APPLICATION, "copy engine exception"),
    (71, APPLICATION, "copy engine exception"),
    (72, APPLICATION, "copy engine exception"),
    (73, Impact::Encoder, "video encoder (third NVENC) exception"),
    (74, QUIET, "NVLink error"),
    (75, APPLICATION, "copy engine exception"),
    (76, APPLICATION, "copy engine exception"),
    (77, APPLICATION, "copy engine exception"),
    (79, RESET, "the GPU has fallen off the bus"),
    (82, APPLICATION, "JPEG engine exception"),
    (83, APPLICATION, "video decoder (second NVDEC) exception"),
    (84, APPLICATION, "video decoder (third NVDEC) exception"),
    (85, APPLICATION, "copy engine exception"),
    (86, APPLICATION, "optical flow engine exception"),
    (88, APPLICATION, "video decoder (fourth NVDEC) exception"),
    (89, APPLICATION, "video decoder (fifth NVDEC) exception"),
    (92, QUIET, "many single-bit ECC errors"),
    (94, QUIET, "contained memory error"),
    (95, RESET, "uncontained memory error"),
    (109, APPLICATION, "context switch timeout"),
    (119, RESET, "the GPU system processor (GSP) does not answer"),
    (120, RESET, "GPU system processor (GSP) error"),
    (121, QUIET, "chip-to-chip link error"),
    (140, RESET, "uncorrected memory error"),
    (143, RESET, "the GPU could not be initialised"),
    (154, Impact::Notice, "the GPU's recovery action has changed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_can_be_searched() {
        assert!(TABLE.is_sorted_by(|a, b| a.0 < b.0));
        assert!(TABLE.iter().all(|entry| !entry.2.is_empty()));
    }

    #[test]
    fn what_applications_do_is_no_fault_of_the_gpu() {
        for xid in [8, 13, 31, 43, 45, 68, 69, 109] {
            assert_eq!(impact(xid), Impact::Application, "{xid}");
        }
    }

    #[test]
    fn the_encoder_is_told_apart_from_the_gpu() {
        for xid in [47, 65, 73] {
            assert_eq!(impact(xid), Impact::Encoder, "{xid}");
        }
    }

    #[test]
    fn device_errors_pass_or_need_a_reset() {
        for xid in [63, 74, 92, 94] {
            assert_eq!(impact(xid), Impact::Device(Cure::Quiet), "{xid}");
        }
        for xid in [46, 48, 62, 64, 79, 95, 119, 120, 140] {
            assert_eq!(impact(xid), Impact::Device(Cure::Reset), "{xid}");
        }
    }

    #[test]
    fn an_unknown_error_is_taken_seriously() {
        assert_eq!(impact(4711), Impact::Device(Cure::Quiet));
        assert!(describe(4711).contains("does not know"));
    }
}
