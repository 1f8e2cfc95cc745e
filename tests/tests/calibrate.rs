//! What a machine encodes is measured by the streamer, and read by the plugin.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use penstock_tests::eventually;
use penstock_tests::programs::{Program, binary};
use serde_json::Value;

#[tokio::test]
async fn what_is_measured_is_what_the_plugin_offers() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("plugin.yaml");
    std::fs::write(&file, "headroomPercent: 10\n")?;
    let told = file.to_string_lossy();
    let measured = calibrate(&[
        "--preset=ultrafast",
        "--preset=superfast",
        "--headroom=0",
        "--write",
        &told,
    ])?;
    let table = String::from_utf8(measured.stdout)?;
    let row = |preset| table.lines().find(|line| line.contains(preset)).map(columns);
    let (fast, better) = (row("ultrafast").unwrap(), row("superfast").unwrap());
    assert_eq!(fast[..3], ["CPU", "x264enc", "H.264"]);
    assert_eq!(better[6], "1.00", "superfast is the reference");
    assert!(
        fast[6].parse::<f64>()? < 1.0,
        "the faster preset costs less: {table}"
    );
    let written = std::fs::read_to_string(&file)?;
    let expected = format!("headroomPercent: 10\nsoftware:\n  nvenc: {}\n", better[5]);
    assert_eq!(written, expected, "{table}");
    assert_eq!(offered(folder.path(), &told).await?, better[5].parse::<u64>()?);
    Ok(())
}

#[test]
fn measurements_are_told_to_programs_too() -> anyhow::Result<()> {
    let measured = calibrate(&["--preset=superfast", "--json"])?;
    let measured: Value = serde_json::from_slice(&measured.stdout)?;
    assert_eq!(measured["encoder"], "x264enc");
    let pixels = measured["megapixelsPerSecond"].as_f64().unwrap();
    let frames = measured["fps1080p"].as_f64().unwrap();
    assert!(
        frames > 1.0 && (pixels / frames - 2.0736).abs() < 0.1,
        "{measured}"
    );
    Ok(())
}

#[test]
fn an_encoder_that_is_not_here_is_an_error() -> anyhow::Result<()> {
    let output = Command::new(binary("penstock-streamer")?)
        .args(["calibrate", "--encoder=nosuchenc"])
        .output()?;
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr)?.contains("--encoder"));
    Ok(())
}

fn calibrate(args: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(binary("penstock-streamer")?)
        .args(["calibrate", "--seconds=1", "--encoder=x264enc"])
        .args(args)
        .output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn columns(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The encoder units that an agent with the configuration `file` offers. Its streamer can measure nothing.
async fn offered(folder: &Path, file: &str) -> anyhow::Result<u64> {
    let socket = folder.join("agent.sock");
    let socket_told = socket.to_string_lossy();
    let args = [
        "standalone",
        "--config",
        file,
        "--streamer",
        "/bin/false",
        "--socket",
        &socket_told,
    ];
    let _agent = Program::start("penstock-plugin", &args)?;
    let client = reqwest::Client::builder().unix_socket(socket.as_path()).build()?;
    eventually("the agent's GPUs", Duration::from_secs(10), async || {
        let Ok(answer) = client.get("http://agent/v1/gpus").send().await else {
            return Ok(None);
        };
        let gpus: Value = answer.error_for_status()?.json().await?;
        Ok(gpus[0]["capacity"]["nvenc"].as_u64())
    })
    .await
}
