//! The images' recipes, as far as they can be checked where no image can be built.

use std::collections::BTreeSet;

use anyhow::Context as _;

use crate::overlay::{Overlay, read, root};

#[test]
fn every_image_that_the_manifests_name_has_a_recipe() -> anyhow::Result<()> {
    let version = format!(":{}", env!("CARGO_PKG_VERSION"));
    let built = built_in_order()?;
    for overlay in Overlay::all()? {
        for container in overlay.workloads().flat_map(|workload| workload.ours()) {
            let image = container.image();
            let name = image
                .strip_prefix("penstock-")
                .and_then(|name| name.strip_suffix(&version));
            let name = name.with_context(|| format!("{image} has another version than the programs"))?;
            assert!(
                root().join(format!("images/{name}/Containerfile")).is_file(),
                "{name}"
            );
            assert!(
                built.iter().any(|built| built == name),
                "scripts/images does not build {name}"
            );
        }
    }
    Ok(())
}

/// A recipe begins with images of ours that were built before it, of this version.
#[test]
fn images_are_built_after_those_that_they_are_made_from() -> anyhow::Result<()> {
    let built = built_in_order()?;
    let mut seen = 0;
    for (name, recipe) in recipes()? {
        let place = built.iter().position(|built| *built == name);
        let place = place.with_context(|| format!("scripts/images does not build {name}"))?;
        for from in words_after(&recipe, "FROM").filter_map(|from| from.strip_prefix("penstock-")) {
            let (from, version) = from.split_once(':').context("a version")?;
            assert_eq!(version, env!("CARGO_PKG_VERSION"), "{name}");
            assert!(
                built[..place].iter().any(|built| built == from),
                "{name} before {from}"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
    Ok(())
}

/// `penstock-turn:0.1.0` is `docker.io/library/penstock-turn:0.1.0` to a kubelet, and to podman it is not.
#[test]
fn images_have_the_name_that_a_kubelet_looks_for() -> anyhow::Result<()> {
    let script = read("scripts/images")?;
    assert!(script.contains("--tag \"docker.io/library/$name\""), "{script}");
    Ok(())
}

#[test]
fn recipes_copy_what_there_is_and_start_what_they_built() -> anyhow::Result<()> {
    let build = read("images/build/Containerfile")?;
    let packages: Vec<_> = words_after(&build, "-p").collect();
    assert_eq!(packages.len(), 5);
    for package in &packages {
        let crates = package.strip_prefix("penstock-").unwrap_or_default();
        let manifest = read(&format!("{crates}/Cargo.toml"))?;
        assert!(manifest.contains(&format!("name = \"{package}\"")), "{package}");
    }
    for (name, recipe) in recipes()? {
        let lines = instructions(&recipe);
        for copy in lines.iter().filter_map(|line| line.strip_prefix("COPY ")) {
            let words: Vec<_> = copy.split_whitespace().collect();
            let (_, sources) = words.split_last().context("COPY has a target")?;
            match sources {
                ["--from=build", files @ ..] => files.iter().for_each(|file| {
                    let program = file.strip_prefix("/src/target/release/").unwrap_or_default();
                    assert!(packages.contains(&program), "{name}: {file} was not built");
                }),
                // `npm run build` writes it, as the Makefile has it.
                ["--from=page", file] => assert_eq!(*file, "/src/player/dist"),
                files => files.iter().for_each(|file| {
                    assert!(root().join(file).exists(), "{name}: {file}");
                }),
            }
        }
        // Optimised, and of the versions that were tested.
        let builds = lines.iter().filter(|line| line.contains("cargo build"));
        builds.for_each(|line| assert!(line.contains("--release --locked"), "{name}: {line}"));
        // Nothing runs in it.
        if name == "build" {
            continue;
        }
        // The demo's has the streamer's.
        if name != "demo" {
            let entry = format!("ENTRYPOINT [\"penstock-{name}\"]");
            assert!(lines.contains(&entry), "{name} starts something else");
            assert!(packages.contains(&&*format!("penstock-{name}")), "{name}");
        }
        let user = lines.iter().rfind(|line| line.starts_with("USER "));
        assert_eq!(user.map(String::as_str), Some("USER 65532:65532"), "{name}");
    }
    Ok(())
}

/// Those that `scripts/setup` installs are known to exist in Debian 12, which the images are of, and to be enough for what
/// the tests do.
#[test]
fn packages_are_those_that_the_tests_run_with() -> anyhow::Result<()> {
    let setup = read("scripts/setup")?;
    let (_, rest) = setup.split_once("packages=(\n").context("a list of packages")?;
    let (list, _) = rest.split_once("\n)\n").context("its end")?;
    let lines = list.lines().filter(|line| !line.trim_start().starts_with('#'));
    let known: BTreeSet<_> = lines.flat_map(str::split_whitespace).collect();
    let mut seen = 0;
    for (name, recipe) in recipes()? {
        assert!(
            !recipe.contains("FROM docker.io/library/debian:") || recipe.contains("debian:bookworm-slim")
        );
        for line in instructions(&recipe)
            .iter()
            .filter(|line| line.contains("apt-get install"))
        {
            let (_, packages) = line
                .split_once("--no-install-recommends")
                .context("only what is needed")?;
            let (packages, _) = packages.split_once("&&").context("and its lists go")?;
            for package in packages.split_whitespace() {
                assert!(known.contains(package), "{name}: {package}");
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "only {seen} packages");
    Ok(())
}

#[test]
fn the_streamers_image_has_what_streaming_takes() -> anyhow::Result<()> {
    let setup = read("scripts/setup")?;
    let (_, rest) = setup.split_once("# To stream:").context("what streaming takes")?;
    let (section, _) = rest.split_once("# To test:").context("its end")?;
    let lines = section
        .lines()
        .skip(1)
        .filter(|line| !line.trim_start().starts_with('#'));
    let needed: Vec<_> = lines.flat_map(str::split_whitespace).collect();
    assert!(needed.contains(&"xvfb"), "{needed:?}");
    let recipe = read("images/streamer/Containerfile")?;
    let (_, image) = recipe.rsplit_once("FROM ").context("its last stage")?;
    for package in needed {
        // They measure a bare encoder, for comparison.
        let is_there = image.split_whitespace().any(|word| word == package);
        assert!(is_there || package == "gstreamer1.0-tools", "{package}");
    }
    Ok(())
}

/// What is built from this working tree is in no image but by being built there.
#[test]
fn nothing_that_was_built_here_goes_into_an_image() -> anyhow::Result<()> {
    let left_out = read(".dockerignore")?;
    for path in ["target", "**/node_modules", "player/dist", ".git"] {
        assert!(left_out.lines().any(|line| line == path), "{path}");
    }
    Ok(())
}

/// The images that scripts/images builds, in its order.
fn built_in_order() -> anyhow::Result<Vec<String>> {
    let script = read("scripts/images")?;
    let list = script.lines().find_map(|line| line.strip_prefix("for image in "));
    let list = list.and_then(|line| line.strip_suffix("; do"));
    let list = list.context("scripts/images has a list")?;
    Ok(list.split(' ').map(str::to_owned).collect())
}

fn recipes() -> anyhow::Result<Vec<(String, String)>> {
    let mut recipes = Vec::new();
    for entry in std::fs::read_dir(root().join("images"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let recipe = read(&format!("images/{name}/Containerfile"))?;
        recipes.push((name, recipe));
    }
    assert_eq!(recipes.len(), 7);
    Ok(recipes)
}

/// Lines that are no comments, with those that go on in the next one put together.
fn instructions(recipe: &str) -> Vec<String> {
    let joined = recipe.replace("\\\n", " ");
    let lines = joined
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(str::to_owned).collect()
}

fn words_after<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let words: Vec<_> = text.split_whitespace().collect();
    let pairs: Vec<_> = words.windows(2).map(|pair| (pair[0], pair[1])).collect();
    pairs
        .into_iter()
        .filter(move |(first, _)| *first == word)
        .map(|(_, second)| second)
}
