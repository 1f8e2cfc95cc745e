//! Logs: one line per event on standard error, as text or JSON.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The log options of every program.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// What to log: error, warn, info, debug or trace, or per module (`info,penstock_turn=debug`)
    #[arg(
        long,
        env = "PENSTOCK_LOG",
        default_value = "info,rtc=error,webrtc=error,kube_runtime=error",
        global = true
    )]
    pub log: EnvFilter,
    /// How to write a log line
    #[arg(long, env = "PENSTOCK_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

impl LogArgs {
    /// Starts logging to standard error. A second call changes nothing.
    pub fn init(&self) {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(self.log.to_string()))
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            // Reporting a failed write to the very stream that failed would panic.
            .log_internal_errors(false);
        // A test in the same process may have begun logging; its choice then stands.
        let _ = match self.log_format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
    }
}
