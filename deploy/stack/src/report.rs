//! `cargo stack report`: packs what the report of a fault needs into one file, without personal data.

mod scrub;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::layout::{Layout, remove_dir, root};
use crate::part::Launch;
use crate::services::Service;
use crate::size::{Size, Wanted};
use crate::status::{Process, Status};
use crate::{control, http, kafka, logs, postgres, provision};
use scrub::Scrubber;

/// Pages of an admin listener, with the names of their files.
const PAGES: [(&str, &str); 5] = [
    ("/buildinfo", "build.json"),
    ("/readyz", "ready.json"),
    ("/status", "status.json"),
    ("/log", "log-filter.json"),
    ("/metrics", "metrics.txt"),
];
/// Facts of the machine: a title, and a command whose output names no person.
const MACHINE: [(&str, &[&str]); 6] = [
    ("system", &["uname", "-srm"]),
    ("processors", &["nproc"]),
    ("load", &["cat", "/proc/loadavg"]),
    ("memory", &["head", "-n", "5", "/proc/meminfo"]),
    ("rust", &["rustc", "--version"]),
    ("clock", &["date", "--utc", "+%FT%TZ"]),
];

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Report {
    /// File to write [default: stampede-report-TIME.tar.gz in this folder]
    file: Option<PathBuf>,
    /// Number of lines of each log
    #[arg(long, short = 'n', default_value_t = 1000)]
    lines: usize,
}

/// The folder in which a report is put together. It is removed when dropped.
struct Bundle {
    folder: PathBuf,
    scrubber: Scrubber,
}

impl Report {
    pub(crate) fn run(&self, layout: &Layout) -> Result<()> {
        let secs = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let name = format!("stampede-report-{secs}");
        let file = self.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
        if file.exists() {
            bail!("{} exists already", file.display());
        }
        let bundle = Bundle { folder: layout.state.join(&name), scrubber: Scrubber::of(layout) };
        fs::create_dir_all(&bundle.folder).with_context(|| format!("cannot create {}", bundle.folder.display()))?;
        let status = control::status(layout)?;
        bundle.add("processes.json", &status.json())?;
        bundle.add("machine.txt", &machine(layout))?;
        bundle.add_logs(layout, self.lines)?;
        for process in status.processes.iter().filter(|process| Service::of_instance(&process.name).is_some()) {
            bundle.add_service(process)?;
        }
        if !status.processes.is_empty() {
            bundle.add_servers(layout, &status)?;
        }
        bundle.pack(&file)?;
        println!("{} has no values of records or rows, and no secrets; read it before you pass it on", file.display());
        Ok(())
    }
}

impl Bundle {
    /// Writes a file, without what must not be in it.
    fn add(&self, name: &str, text: &str) -> Result<()> {
        self.write(name, &self.scrubber.text(text))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        let folder = path.parent().context("a file of a report is in its folder")?;
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    fn add_logs(&self, layout: &Layout, lines: usize) -> Result<()> {
        for name in logs::names(layout) {
            let (text, _) = logs::tail(&layout.log(&name), lines).with_context(|| format!("cannot read {name}"))?;
            self.write(&format!("logs/{name}.log"), &self.scrubber.log(&name, &text))?;
        }
        Ok(())
    }

    /// Adds what a running instance says of itself.
    fn add_service(&self, process: &Process) -> Result<()> {
        let Process { name, pid, ports, program, .. } = process;
        for (path, file) in PAGES {
            let answer = ports.get("admin").map(|port| http::get(*port, path));
            let text = match answer {
                // Only query-api has a status.
                Some(Ok((404, _))) | None => continue,
                Some(Ok((_, body))) => body,
                Some(Err(error)) => format!("{error:#}\n"),
            };
            self.add(&format!("{name}/{file}"), &text)?;
        }
        let Some(pid) = pid else { return Ok(()) };
        let settings = settings(program, *pid).unwrap_or_else(|error| format!("{error:#}\n"));
        self.add(&format!("{name}/settings.txt"), &settings)
    }

    /// Adds the settings of the topics and the sizes of the tables.
    fn add_servers(&self, layout: &Layout, status: &Status) -> Result<()> {
        let size = Size::decide(layout, &Wanted::one_of_each())?;
        let tools = provision::found()?;
        let is_there = |name: &str| status.processes.iter().any(|process| process.name == name);
        if is_there(postgres::NAME) {
            self.add("postgres.txt", &output(&postgres::sizes(layout, &tools, &size)?))?;
        }
        if is_there(&kafka::name(1)) {
            self.add("kafka.txt", &output(&kafka::topics(layout, &tools, &size)?))?;
        }
        Ok(())
    }

    fn pack(&self, file: &Path) -> Result<()> {
        let (within, name) = (self.folder.parent(), self.folder.file_name());
        let (within, name) = within.zip(name).context("the folder of a report has a name")?;
        let packed = Command::new("tar").arg("-czf").arg(file).arg("-C").arg(within).arg(name).output();
        let packed = packed.context("cannot run tar")?;
        if !packed.status.success() {
            bail!("tar failed: {}", String::from_utf8_lossy(&packed.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // A failure would only leave files.
        let _ = remove_dir(&self.folder);
    }
}

/// Returns the settings in effect, which the program itself prints from the environment of the running process.
fn settings(program: &Path, pid: u32) -> Result<String> {
    let environ = fs::read(format!("/proc/{pid}/environ")).context("cannot read the environment of the process")?;
    let variables = environ.split(|byte| *byte == 0).filter_map(|variable| {
        let (name, value) = str::from_utf8(variable).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    let printed = Command::new(program).arg("--print-config").env_clear().envs(variables).output();
    let printed = printed.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&printed.stdout).into_owned())
}

fn machine(layout: &Layout) -> String {
    let mut text = String::new();
    let disk = ["df".to_owned(), "-h".to_owned(), "--output=size,used,avail,pcent".to_owned()];
    let disk = disk.into_iter().chain([layout.state.to_string_lossy().into_owned()]).collect::<Vec<_>>();
    let git = ["git", "-C", &root().to_string_lossy(), "log", "-1", "--format=%H %cI"].map(str::to_owned).to_vec();
    let facts = MACHINE.map(|(title, command)| (title, command.iter().map(|word| (*word).to_owned()).collect()));
    for (title, command) in facts.into_iter().chain([("disk", disk), ("commit", git)]) {
        let Some((program, args)) = command.split_first() else { continue };
        let output = output(&Launch::new(program, args.iter().map(String::as_str)));
        writeln!(text, "{title}: {}", output.trim_end()).expect("writing to a String cannot fail");
    }
    text
}

/// Runs a program to its end, and returns its output, or why there is none.
fn output(launch: &Launch) -> String {
    let run = || -> Result<String> {
        let mut command = Command::new(&launch.program);
        command.args(&launch.args).envs(launch.env.iter().map(|(name, value)| (name, value)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run it")?;
        if let (Some(text), Some(mut stdin)) = (&launch.stdin, child.stdin.take()) {
            // A program that does not read its input has failed already, and its output says so.
            let _ = stdin.write_all(text.as_bytes());
        }
        let done = child.wait_with_output()?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(words(&done.stdout) + &words(&done.stderr))
    };
    run().unwrap_or_else(|error| format!("{}: {error:#}\n", launch.program.display()))
}
