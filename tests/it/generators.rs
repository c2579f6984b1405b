//! Clients that widely used generators make from the served description. Each sells a unit with a program in
//! `tests/generators/`.
//!
//! The generators are installed from PyPI and npm into `target/generators`, again only if a pinned version changed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::process::Command;
use tokio::sync::Mutex;

use crate::stack::Stack;

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/generators");
const NEEDED: &str = "this test needs Python 3.11 with venv, Node 20 with npm, and Java 11, or later ones, on the PATH";

/// Serializes the installations, which the tests share.
static INSTALLING: Mutex<()> = Mutex::const_new(());

/// Returns the folder of everything installed and generated.
fn root() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("generators")
}

/// Runs a program, which must succeed, and returns its output.
async fn run(folder: &Path, program: impl AsRef<Path>, args: &[&str]) -> String {
    let name = program.as_ref().display();
    let mut command = Command::new(program.as_ref());
    command.current_dir(folder).args(args).env("PYTHONPATH", "made").kill_on_drop(true);
    let output = command.output().await.unwrap_or_else(|error| panic!("cannot run {name}: {error}; {NEEDED}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} {args:?} failed, and {NEEDED}: {text}");
    text
}

/// Returns a tool of the Python environment.
fn python(tool: &str) -> PathBuf {
    root().join("python/bin").join(tool)
}

async fn install_from_pypi() {
    let _turn = INSTALLING.lock().await;
    let version = run(Path::new("."), "python3", &["--version"]).await;
    install("python", &version, "requirements.txt", async |root| {
        run(root, "python3", &["-m", "venv", "--clear", "python"]).await;
        run(root, python("pip"), &["install", "--quiet", "--requirement", "requirements.txt"]).await;
    })
    .await;
}

async fn install_from_npm() {
    let _turn = INSTALLING.lock().await;
    let version = run(Path::new("."), "node", &["--version"]).await;
    install("node_modules", &version, "package-lock.json", async |root| {
        std::fs::copy(Path::new(PROGRAMS).join("package.json"), root.join("package.json")).unwrap();
        run(root, "npm", &["ci", "--no-audit", "--no-fund"]).await;
    })
    .await;
}

/// Installs a folder from a file of pinned versions, unless that version of the file is already installed for the same
/// program.
async fn install(folder: &str, version: &str, pins: &str, installation: impl AsyncFnOnce(&Path)) {
    let root = root();
    let wanted = version.to_owned() + &std::fs::read_to_string(Path::new(PROGRAMS).join(pins)).unwrap();
    let stamp = root.join(folder).join("installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return;
    }
    std::fs::create_dir_all(&root).unwrap();
    std::fs::copy(Path::new(PROGRAMS).join(pins), root.join(pins)).unwrap();
    installation(&root).await;
    std::fs::write(stamp, wanted).unwrap();
}

/// A stack, and a folder with its description in which a generator works.
struct Workshop {
    stack: Stack,
    folder: PathBuf,
    operations: BTreeSet<String>,
}

impl Workshop {
    /// Starts a stack and copies these files of `tests/generators/` into the folder.
    async fn new(name: &str, files: &[&str]) -> Self {
        let folder = root().join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::create_dir_all(&folder).unwrap();
        for file in files {
            std::fs::copy(Path::new(PROGRAMS).join(file), folder.join(file)).unwrap();
        }
        let stack = Stack::up_with(&[]).await;
        let description = stack.client().get("/openapi.json").await;
        std::fs::write(folder.join("openapi.json"), &description.text).unwrap();
        let description = description.json();
        let paths = description["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|methods| methods.as_object().unwrap().values());
        let operations = operations.map(|operation| plain(operation["operationId"].as_str().unwrap())).collect();
        Self { stack, folder, operations }
    }

    async fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> String {
        run(&self.folder, program, args).await
    }

    /// Runs an npm tool.
    async fn npx(&self, args: &[&str]) {
        self.run("npx", &[&["--no-install"], args].concat()).await;
    }

    /// Runs the program that sells a unit with the client.
    async fn sell(&self, program: impl AsRef<Path>, file: &str) {
        let output = self.run(program, &[file, &format!("http://{}", self.stack.addr())]).await;
        assert_eq!(output.trim(), "sold");
    }

    /// Asserts that every operation is named in these files or folders, between `before` and `after`.
    fn has_every_operation(&self, made: &str, before: &str, after: &str) {
        let text = text_under(&self.folder.join(made));
        let parts = text.split(before).skip(1).filter_map(|rest| rest.split_once(after));
        let found: BTreeSet<_> = parts.map(|(name, _)| plain(name)).collect();
        let lacking: Vec<_> = self.operations.difference(&found).collect();
        assert!(lacking.is_empty() && self.operations.len() > 30, "{lacking:?} are not in {made}");
    }
}

/// Returns an operation's name in a form common to all generators: `sales.as-of`, `salesAsOf` and `sales_as_of` are the
/// same.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Returns all files below a path, each after its name.
fn text_under(path: &Path) -> String {
    if !path.is_dir() {
        return format!("\n{}\n{}", path.display(), std::fs::read_to_string(path).unwrap_or_default());
    }
    let entries = std::fs::read_dir(path).unwrap();
    entries.map(|entry| text_under(&entry.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs openapi-python-client from PyPI"]
async fn a_client_of_openapi_python_client_has_every_operation_and_sells_a_unit() {
    install_from_pypi().await;
    let files = ["openapi_python_client.py", "openapi-python-client.yaml"];
    let workshop = Workshop::new("openapi-python-client", &files).await;
    let config = ["--config", "openapi-python-client.yaml", "--meta", "none", "--output-path", "made/stampede_client"];
    let generate = [&["generate", "--path", "openapi.json"], &config[..]].concat();
    std::fs::create_dir(workshop.folder.join("made")).unwrap();
    let output = workshop.run(python("openapi-python-client"), &generate).await;
    assert!(!output.to_lowercase().contains("warning"), "{output}");
    workshop.has_every_operation("made/stampede_client/api", "/", ".py\n");
    workshop.sell(python("python"), "openapi_python_client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs openapi-generator from PyPI"]
async fn a_client_of_openapi_generator_has_every_operation_and_sells_a_unit() {
    run(Path::new("."), "java", &["-version"]).await;
    install_from_pypi().await;
    let workshop = Workshop::new("openapi-generator", &["openapi_generator.py"]).await;
    let package = "--additional-properties=packageName=stampede_generated";
    let generate = ["generate", "-i", "openapi.json", "-g", "python", "-o", "made", package];
    workshop.run(python("openapi-generator-cli"), &generate).await;
    workshop.has_every_operation("made/stampede_generated/api", "\n    def ", "(");
    workshop.sell(python("python"), "openapi_generator.py").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs openapi-typescript and openapi-fetch from npm"]
async fn a_client_of_openapi_typescript_has_every_operation_and_sells_a_unit() {
    install_from_npm().await;
    let workshop = Workshop::new("openapi-typescript", &["fetch.ts", "shop.ts", "tsconfig.json"]).await;
    workshop.npx(&["openapi-typescript", "openapi.json", "--output", "schema.d.ts"]).await;
    workshop.has_every_operation("schema.d.ts", "\n    ", ": {");
    workshop.npx(&["tsc", "--project", "."]).await;
    workshop.sell("node", "built/fetch.js").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "second gate: installs @hey-api/openapi-ts from npm"]
async fn a_client_of_hey_api_has_every_operation_and_sells_a_unit() {
    install_from_npm().await;
    let workshop = Workshop::new("hey-api", &["hey.ts", "shop.ts", "openapi-ts.config.js", "tsconfig.json"]).await;
    workshop.npx(&["openapi-ts"]).await;
    workshop.has_every_operation("hey/sdk.gen.ts", "export const ", " = ");
    workshop.npx(&["tsc", "--project", "."]).await;
    workshop.sell("node", "built/hey.js").await;
}
