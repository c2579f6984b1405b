//! A control plane on this machine: etcd from Debian, Kubernetes and kwok from their Go modules.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use crate::fixture::{eventually, free_addr};

/// Module of the control plane's programs.
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");
const KWOK: &str = "sigs.k8s.io/kwok@v0.8.0";
/// Stages of a simulated node and of its pods, in kwok's module: a pod becomes ready, or complete, at once, but for
/// `READY_LATER`.
const STAGES: &str = "kustomize/stage";
const STAGE_FOLDERS: [&str; 3] = ["node/fast", "node/heartbeat", "pod/fast"];
/// Beginning of the stage that makes a pod ready, with a delay: one that is missing for less would not be seen.
const READY_LATER: &str = "name: pod-ready\nspec:\n  delay:\n    durationMilliseconds: 2000\n";
/// Folder in which `deploy/kubernetes/check.py` keeps a kubectl.
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.stack/checkers");
/// Version that the API server reports.
const VERSION: &str = "-X k8s.io/component-base/version.gitVersion=v1.34.4 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34";
/// Folder of the built programs.
const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/kubernetes");
/// Upper bound of the first build, which compiles Kubernetes.
const BUILD: Duration = Duration::from_secs(3600);
/// Upper bound of a command, longer than the time limits that commands have themselves.
const COMMAND: Duration = Duration::from_secs(300);
/// Upper bound of some commands of the handbook, which have no time limits.
const SCRIPT: Duration = Duration::from_secs(600);
/// Folders that commands of the handbook use.
const OF_HANDBOOK: [&str; 2] = ["kubernetes", "redis"];
const TOKEN: &str = "token-of-the-test";

/// A running control plane. Its processes are killed when it is dropped.
pub(super) struct ControlPlane {
    folder: PathBuf,
    processes: Vec<Child>,
}

impl ControlPlane {
    /// Builds the programs if they are missing, starts them with empty data, and waits until the API server is ready.
    pub(super) async fn start() -> Self {
        let programs = Programs::built().await;
        let folder = Path::new(CACHE).join("run");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let mut plane = Self { folder, processes: Vec::new() };
        let (etcd, peers, api) = (free_addr(), free_addr(), free_addr());
        plane.write_access(api);
        plane.copy_checkout().await;
        plane.start_etcd(&programs.etcd, etcd, peers);
        plane.start_apiserver(&programs.kubernetes, etcd, api).await;
        eventually("the API server is ready", async || {
            let asked = plane.command(&["get", "--raw", "/readyz"]).output().await.unwrap();
            asked.status.success().then_some(())
        })
        .await;
        plane.start_controllers(&programs).await;
        plane
    }

    /// Writes the files by which an administrator is known to the API server, and the key of service accounts.
    fn write_access(&self, api: SocketAddr) {
        self.write("tokens", &format!("{TOKEN},admin,admin,system:masters\n"));
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": format!("https://{api}"), "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "admin", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "admin" } }],
        });
        self.write("kubeconfig", &config.to_string());
    }

    /// Copies what the handbook's commands use, since an operator changes the overlays.
    async fn copy_checkout(&self) {
        let deploy = self.checkout().join("deploy");
        fs::create_dir_all(&deploy).unwrap();
        for folder in OF_HANDBOOK {
            let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder);
            finished(Command::new("cp").arg("-r").args([&ours, &deploy])).await;
        }
    }

    /// Returns the folder from which commands of the handbook run.
    pub(super) fn checkout(&self) -> PathBuf {
        self.file("checkout")
    }

    fn start_etcd(&mut self, program: &Path, clients: SocketAddr, peers: SocketAddr) {
        let mut etcd = Command::new(program);
        etcd.arg("--data-dir").arg(self.file("etcd"));
        for (option, address) in [("client", clients), ("peer", peers)] {
            etcd.arg(format!("--listen-{option}-urls=http://{address}"));
        }
        etcd.args([format!("--advertise-client-urls=http://{clients}"), "--unsafe-no-fsync".to_owned()]);
        self.spawn("etcd.log", etcd);
    }

    async fn start_apiserver(&mut self, program: &Path, etcd: SocketAddr, api: SocketAddr) {
        let key = self.file("accounts.key");
        let mut generate = Command::new("openssl");
        finished(generate.args(["genpkey", "-algorithm", "RSA", "-out"]).arg(&key)).await;
        let mut server = Command::new(program);
        server.args(["kube-apiserver", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.0.0.0/24"]);
        // What is privileged is refused by the namespace's policy, as on other clusters.
        server.args(["--allow-privileged=true", "--endpoint-reconciler-type=none"]);
        // Lists as streams need a newer etcd than Debian's: clients that ask for one would pause for up to half a minute.
        server.arg("--feature-gates=WatchList=false");
        server.arg("--service-account-issuer=https://kubernetes.default.svc");
        server.args([format!("--etcd-servers=http://{etcd}"), format!("--bind-address={}", api.ip())]);
        server.arg(format!("--secure-port={}", api.port()));
        for (option, file) in [
            ("--cert-dir", "certificates"),
            ("--token-auth-file", "tokens"),
            ("--service-account-key-file", "accounts.key"),
            ("--service-account-signing-key-file", "accounts.key"),
        ] {
            server.arg(option).arg(self.file(file));
        }
        self.spawn("kube-apiserver.log", server);
    }

    async fn start_controllers(&mut self, programs: &Programs) {
        let config = self.file("kubeconfig");
        for part in ["kube-controller-manager", "kube-scheduler"] {
            let mut command = Command::new(&programs.kubernetes);
            command.args([part, "--leader-elect=false", "--secure-port=0", "--kubeconfig"]).arg(&config);
            if part == "kube-controller-manager" {
                command.arg("--service-account-private-key-file").arg(self.file("accounts.key"));
            }
            self.spawn(&format!("{part}.log"), command);
        }
        let stages = self.write("stages.yaml", &programs.stages);
        let mut kwok = Command::new(&programs.kwok);
        kwok.arg("--kubeconfig").arg(&config).arg("--config").arg(&stages);
        kwok.args(["--manage-all-nodes=true", "--server-address", &free_addr().to_string()]);
        self.spawn("kwok.log", kwok);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn spawn(&mut self, log: &str, mut command: Command) {
        let log = fs::File::create(self.file(log)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).kill_on_drop(true);
        self.processes.push(command.spawn().unwrap());
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .env("PATH", path())
            .arg("--kubeconfig")
            .arg(self.file("kubeconfig"))
            .args(["--namespace", "stampede"])
            .args(args);
        command
    }

    /// Runs commands of the handbook, of which each has to succeed, and returns what they print.
    pub(super) async fn script(&self, commands: &str) -> String {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{commands}")]);
        shell.current_dir(self.checkout()).env("PATH", path()).env("KUBECONFIG", self.file("kubeconfig"));
        finished(&mut shell).await
    }

    /// Runs kubectl and returns what it prints.
    pub(super) async fn kubectl(&self, args: &[&str]) -> String {
        finished(&mut self.command(args)).await
    }

    /// Runs kubectl, which has to fail, and returns its error.
    pub(super) async fn fails(&self, args: &[&str]) -> String {
        let output = output(&mut self.command(args)).await;
        assert!(!output.status.success(), "{args:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(super) async fn create(&self, thing: &Value) {
        self.kubectl(&["create", "--validate=strict", "--filename", &self.written(thing)]).await;
    }

    /// Asserts that the API server refuses to create it, and returns the reason.
    pub(super) async fn refused(&self, thing: &Value) -> String {
        self.fails(&["create", "--validate=strict", "--filename", &self.written(thing)]).await
    }

    fn written(&self, thing: &Value) -> String {
        self.write("thing.json", &thing.to_string())
    }

    /// Writes a file and returns its path.
    pub(super) fn write(&self, name: &str, text: &str) -> String {
        let file = self.file(name);
        fs::write(&file, text).unwrap();
        file.to_string_lossy().into_owned()
    }
}

/// Paths of the programs, and the stages of simulated nodes and pods.
struct Programs {
    etcd: PathBuf,
    kubernetes: PathBuf,
    kwok: PathBuf,
    stages: String,
}

impl Programs {
    async fn built() -> Self {
        let cache = Path::new(CACHE);
        let programs = cache.join("bin");
        fs::create_dir_all(&programs).unwrap();
        let mut build = go(&["build", "-ldflags", VERSION, "-o"]);
        finished(build.arg(programs.join("kubernetes")).arg(".").current_dir(MODULE)).await;
        let mut install = go(&["install", &KWOK.replace("kwok@", "kwok/cmd/kwok@")]);
        finished(install.env("GOBIN", &programs).current_dir(cache)).await;
        let told = finished(go(&["mod", "download", "-json", KWOK]).current_dir(cache)).await;
        let told: Value = serde_json::from_str(&told).unwrap();
        let stages = stages(&Path::new(told["Dir"].as_str().unwrap()).join(STAGES));
        Self { etcd: etcd(cache).await, kubernetes: programs.join("kubernetes"), kwok: programs.join("kwok"), stages }
    }
}

/// Returns the search path of commands: where kubectl is missing, the one that the check of the manifests fetched.
fn path() -> String {
    format!("{}:{}", env::var("PATH").unwrap_or_default(), FETCHED)
}

/// Returns a command of Go that leaves the cores to the services of other tests.
fn go(args: &[&str]) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "go"]).args(args).env("CGO_ENABLED", "0");
    command
}

fn stages(folder: &Path) -> String {
    let mut stages = String::new();
    for inner in STAGE_FOLDERS {
        for file in fs::read_dir(folder.join(inner)).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|kind| kind == "yaml") && !file.ends_with("kustomization.yaml") {
                let stage = fs::read_to_string(&file).unwrap();
                stages.push_str("---\n");
                stages.push_str(&stage.replace("name: pod-ready\nspec:\n", READY_LATER));
            }
        }
    }
    assert!(stages.contains(READY_LATER), "kwok's stage begins as expected");
    stages
}

/// Returns the path of etcd, which is unpacked from Debian's package without installing it: the package would start a
/// server.
async fn etcd(cache: &Path) -> PathBuf {
    let folder = cache.join("etcd");
    let program = folder.join("usr/bin/etcd");
    if !program.exists() {
        fs::create_dir_all(&folder).unwrap();
        finished(Command::new("apt-get").args(["download", "etcd-server"]).current_dir(&folder)).await;
        let mut files = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        let package = files.find(|path| path.extension().is_some_and(|kind| kind == "deb")).unwrap();
        finished(Command::new("dpkg").arg("-x").arg(package).arg(&folder)).await;
    }
    program
}

/// Runs a command, asserts that it succeeds, and returns what it prints.
async fn finished(command: &mut Command) -> String {
    let output = output(command).await;
    let [told, failed] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{command:?}: {told}{failed}");
    told
}

async fn output(command: &mut Command) -> Output {
    let told = format!("{command:?}");
    let within = if told.contains("\"go\"") {
        BUILD
    } else if told.contains("\"bash\"") {
        SCRIPT
    } else {
        COMMAND
    };
    tokio::time::timeout(within, command.kill_on_drop(true).output()).await.expect("the program ends in time").unwrap()
}
