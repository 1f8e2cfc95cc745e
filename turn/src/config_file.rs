//! Where options come from, and which goes before which:
//!
//! ```text
//!  flag  ►  PENSTOCK_TURN_… variable  ►  variable of another container  ►  --config file  ►  default
//! ```
//!
//! What stands behind the second is turned into flags, for options that nothing before it gave, and parsed as flags: so
//! there is one list of options and one way to read each.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _};
use serde_yaml_ng::{Mapping, Value};

use crate::options::{ContainerEnv, Options};

/// Why there are no options.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The flags, or what was turned into some.
    #[error(transparent)]
    Flags(#[from] clap::Error),
    /// The file can't be read.
    #[error("reading the configuration from {}: check --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not YAML, or no list of options.
    #[error(
        "{} is not a list of options such as 'realm: example.org': {why}",
        path.display()
    )]
    NoOptions {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A user without password, or the other way round.
    #[error("TURN_USER and TURN_PASS go together: set both, or neither")]
    HalfAUser,
}

/// From `args`, the program's name first; from the environment; and from the file that either names.
///
/// # Errors
/// [`LoadError`] says what to do.
pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Options, LoadError> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let given = Options::command().try_get_matches_from(&args)?;
    let options = Options::from_arg_matches(&given)?;
    let mut more = of_container(&options.container)?;
    if let Some(path) = &options.config {
        let of_file = of_file(path)?;
        let new = of_file
            .into_iter()
            .filter(|(option, _)| more.iter().all(|(known, _)| known != option));
        more.extend(new.collect::<Vec<_>>());
    }
    for (option, values) in more {
        if !is_given(&given, &option) {
            args.extend(flags(&option, values));
        }
    }
    Ok(Options::from_arg_matches(
        &Options::command().try_get_matches_from(args)?,
    )?)
}

/// An option by its long name, and its values as they would stand on the command line; none for a switch that is on.
type Given = (String, Vec<String>);

fn of_container(env: &ContainerEnv) -> Result<Vec<Given>, LoadError> {
    let set = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let one = |option: &str, value: Option<String>| value.map(|value| (option.to_owned(), vec![value]));
    let ports = match (set(&env.min_port), set(&env.max_port)) {
        (None, None) => None,
        (first, last) => Some(format!(
            "{}-{}",
            first.as_deref().unwrap_or("49152"),
            last.as_deref().unwrap_or("65535")
        )),
    };
    let user = match (set(&env.turn_user), set(&env.turn_pass)) {
        (Some(name), Some(password)) => Some(format!("{name}:{password}")),
        (None, None) => None,
        _ => return Err(LoadError::HalfAUser),
    };
    let listen = set(&env.turn_port).map(|port| format!("0.0.0.0:{port}"));
    let all = [
        one("listen", listen),
        one("relay-ip", set(&env.internal_ip)),
        one("external-ip", set(&env.external_ip)),
        one("relay-ports", ports),
        one("realm", set(&env.realm_of_container)),
        one("user", user),
    ];
    Ok(all.into_iter().flatten().collect())
}

fn of_file(path: &Path) -> Result<Vec<Given>, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    let bad = |why: String| LoadError::NoOptions {
        path: path.to_owned(),
        why,
    };
    let options: Option<Mapping> = serde_yaml_ng::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let command = Options::command();
    let mut given = Vec::new();
    for (name, value) in options.unwrap_or_default() {
        let name = name.as_str().ok_or_else(|| bad(format!("{name:?} is no name")))?;
        let known = command.get_arguments().find(|arg| is_in_file(arg, name));
        let arg = known.ok_or_else(|| bad(format!("there is no option {name}; see --help")))?;
        given.extend(values_of(arg, &value).map_err(|why| bad(format!("{name}: {why}")))?);
    }
    Ok(given)
}

fn is_in_file(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name) && !arg.is_hide_set() && !["config", "help", "version"].contains(&name)
}

/// `None` for a switch that is off.
fn values_of(arg: &Arg, value: &Value) -> Result<Option<Given>, String> {
    let name = arg.get_long().unwrap_or_default().to_owned();
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let on = value.as_bool().ok_or("write true or false")?;
        return Ok(on.then(|| (name, Vec::new())));
    }
    let values = match value {
        Value::Sequence(values) => values.iter().map(scalar).collect(),
        one => scalar(one).map(|value| vec![value]),
    };
    let values = values.ok_or("write one value, or a list of such")?;
    Ok((!values.is_empty()).then_some((name, values)))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn is_given(given: &ArgMatches, option: &str) -> bool {
    let command = Options::command();
    let id = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(option))
        .map(|arg| arg.get_id().clone());
    let source = id.and_then(|id| given.value_source(id.as_str()));
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

fn flags(option: &str, values: Vec<String>) -> Vec<OsString> {
    if values.is_empty() {
        return vec![format!("--{option}").into()];
    }
    values
        .iter()
        .map(|value| format!("--{option}={value}").into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_what_no_flag_gave() {
        let options = with_file(
            "realm: example.org\nuser-quota: 3\nonly-allowed-peers: true\nno-tcp: false\nuser: ['a:b', 'c:d']\n\
             allow-peer: 10.42.0.0/16\n",
            &["--user-quota", "5"],
        )
        .unwrap();
        assert_eq!(options.realm, "example.org");
        assert_eq!(options.user_quota, Some(5), "the flag goes before the file");
        assert!(options.only_allowed_peers && !options.no_tcp);
        assert_eq!(options.users.len(), 2);
        assert_eq!(options.allow_peers.len(), 1);
        assert_eq!(options.grace, 30, "the default");
    }

    #[test]
    fn an_empty_file_gives_nothing() {
        assert_eq!(with_file("# nothing\n", &[]).unwrap().realm, "penstock");
    }

    #[test]
    fn a_file_that_makes_no_sense_says_so() {
        for (text, part) in [
            ("realmm: x", "no option realmm"),
            ("config: other", "no option config"),
            ("turn-user: x", "no option turn-user"),
            ("- a", "list of options"),
            ("realm: {a: b}", "one value"),
            ("no-tcp: maybe", "true or false"),
            ("relay-ports: 7", "49152-65535"),
            ("realm: [", "list of options"),
        ] {
            let error = with_file(text, &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let missing = load(["t", "--config", "/nonexistent"].map(OsString::from)).unwrap_err();
        assert!(missing.to_string().contains("--config"));
    }

    #[test]
    fn the_variables_of_another_container_become_options() {
        let some = |text: &str| Some(text.to_owned());
        let env = ContainerEnv {
            internal_ip: some("10.0.0.5"),
            external_ip: some("198.51.100.7"),
            turn_port: some("3479"),
            min_port: some("50000"),
            max_port: None,
            realm_of_container: some(""),
            turn_user: some("u"),
            turn_pass: some("p"),
        };
        let given: Vec<_> = of_container(&env)
            .unwrap()
            .into_iter()
            .flat_map(|(option, values)| flags(&option, values))
            .collect();
        assert_eq!(
            given,
            [
                "--listen=0.0.0.0:3479",
                "--relay-ip=10.0.0.5",
                "--external-ip=198.51.100.7",
                "--relay-ports=50000-65535",
                "--user=u:p",
            ]
        );
        let half = ContainerEnv {
            turn_pass: None,
            ..env
        };
        assert!(of_container(&half).is_err());
    }

    fn with_file(text: &str, args: &[&str]) -> Result<Options, LoadError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let fixed = ["t", "--config", file.path().to_str().unwrap()];
        load(fixed.iter().chain(args).map(OsString::from))
    }
}
