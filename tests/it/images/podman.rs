//! podman with containers, images and configuration of its own, apart from those of this machine's users.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Folder of everything that outlives a run.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/images");
/// Upper bound of one step, such as the build of an image.
const WITHIN: Duration = Duration::from_secs(900);
const DEBIAN: &str = "localhost/debian:13-slim";
const PACKAGES: [&str; 10] = [
    "aardvark-dns",
    "binutils",
    "buildah",
    "catatonit",
    "iptables",
    "mmdebstrap",
    "netavark",
    "podman",
    "runc",
    "uidmap",
];

/// The root of the workspace.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a folder of the workspace")
}

pub(super) struct Podman {
    options: [String; 4],
    configuration: PathBuf,
}

impl Podman {
    /// Returns podman with the base of all images, after installing what is missing.
    pub(super) async fn ready() -> Self {
        let user = fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(
            user, 0,
            "this test needs root: it makes a root of Debian's packages, and runs containers in networks"
        );
        install().await;
        // A socket's path must be short.
        let running = PathBuf::from("/run/stampede-images");
        let folder = Path::new(FOLDER);
        fs::create_dir_all(folder).unwrap();
        let configuration = folder.join("containers.conf");
        // runc takes cgroups of both versions side by side; the limits of files and processes stay below this machine's.
        let text = format!(
            "[containers]\ndefault_ulimits = [\"nofile=16384:16384\", \"nproc=4000:4000\"]\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             lock_type = \"file\"\ntmp_dir = \"{}\"\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
            running.join("libpod").display(),
            folder.join("networks").display(),
        );
        fs::write(&configuration, text).unwrap();
        let storage = folder.join("storage");
        let options = ["--root", storage.to_str().unwrap(), "--runroot", running.to_str().unwrap()].map(str::to_owned);
        let podman = Self { options, configuration };
        podman.import_debian().await;
        podman
    }

    pub(super) fn options(&self) -> &[String] {
        &self.options
    }

    pub(super) fn configure(&self, command: &mut Command) {
        command.env("CONTAINERS_CONF", &self.configuration).stdin(Stdio::null()).kill_on_drop(true);
    }

    /// Returns a folder of these tests, after creating it.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        let folder = Path::new(FOLDER).join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.args(&self.options).args(args);
        self.configure(&mut command);
        command
    }

    /// Runs a command of podman, which must succeed, and returns its output.
    pub(super) async fn run(&self, args: &[&str]) -> String {
        output(&mut self.command(args)).await
    }

    /// Returns the size of an image in bytes.
    pub(super) async fn size(&self, image: &str) -> u64 {
        self.run(&["image", "inspect", "--format", "{{.Size}}", image]).await.parse().unwrap()
    }

    /// Builds a target of a file as `localhost/TAG:test`.
    pub(super) async fn build(&self, context: &Path, file: &Path, target: &str, tag: &str, args: &[&str]) {
        let tag = format!("localhost/{tag}:test");
        let mut build = Command::new("buildah");
        build.args(&self.options).args(["build", "--layers", "--format", "docker", "--network", "host"]);
        build.args(["--target", target, "--tag", &tag, "--build-arg", &format!("DEBIAN_IMAGE={DEBIAN}")]);
        for arg in args {
            build.args(["--build-arg", arg]);
        }
        build.arg("--file").arg(file).arg(context);
        self.configure(&mut build);
        output(&mut build).await;
    }

    /// Makes the image that stands in for Debian's own: the same release's packages.
    async fn import_debian(&self) {
        if self.command(&["image", "exists", DEBIAN]).status().await.unwrap().success() {
            return;
        }
        let archive = Path::new(FOLDER).join("debian.tar");
        let archive = archive.to_str().unwrap();
        let mut make = Command::new("mmdebstrap");
        let sources = ["", "-security"].map(|part| match part {
            "" => "deb http://deb.debian.org/debian trixie main".to_owned(),
            _ => format!("deb http://deb.debian.org/debian-security trixie{part} main"),
        });
        make.args(["--variant=minbase", "--include=ca-certificates", "trixie", archive]).args(sources);
        output(&mut make).await;
        self.run(&["import", archive, DEBIAN]).await;
    }
}

async fn install() {
    let is_there = |program: &&str| {
        ["/usr/bin", "/usr/sbin", "/usr/lib/podman"].iter().any(|folder| Path::new(folder).join(program).exists())
    };
    let programs = ["podman", "buildah", "runc", "mmdebstrap", "netavark", "aardvark-dns", "iptables", "strip"];
    if programs.iter().all(is_there) {
        return;
    }
    output(Command::new("apt-get").arg("update")).await;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(PACKAGES)
        .env("DEBIAN_FRONTEND", "noninteractive");
    output(&mut install).await;
}

/// Runs a program, which must succeed, and returns what it printed, without the white space around it.
pub(super) async fn output(command: &mut Command) -> String {
    let run = tokio::time::timeout(WITHIN, command.stdin(Stdio::null()).kill_on_drop(true).output());
    let output = run.await.expect("the program ends in time").unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [told, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{command:?}: {told}{failed}");
    told.trim().to_owned()
}
