//! Apache Kafka in KRaft mode: Maven fetches the jars, and each node is a combined broker and controller.

mod acls;
mod security;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::accounts::Secured;
use crate::layout::{Layout, Ports, root, shared_cache, write_private};
use crate::part::{Launch, OnDeath, Part, Role, Stop, Tier};
use crate::probe::Probe;
use crate::provision::Tools;
use crate::size::{Purpose, Size};

/// Name of the task that fetches the jars.
const JARS: &str = "kafka-jars";
/// Name of the task that creates the class data archive.
const CLASSES: &str = "kafka-classes";
/// Name of the task that creates the rules of a secured stack's accounts.
pub(crate) const RULES: &str = "kafka-rules";
/// Restricts the JVM to its quick compiler: a node starts in half the time, and takes twice the time for each record.
const FAST_START: &str = "-XX:TieredStopAtLevel=1";
const STOP: Stop = Stop { signal: Signal::TERM, grace: Duration::from_secs(15) };
/// Shell script that fetches the jars into a temporary folder, compares them with the list of their hashes, and moves the
/// folder into place, so that neither an interrupted run nor another jar leaves anything that passes for complete.
const FETCH: &str = r#"
mvn=$1 pom=$2 libs=$3 list=$4
export LC_ALL=C
rm -rf "$libs".new.*
"$mvn" -B -q --strict-checksums -f "$pom" dependency:copy-dependencies -DoutputDirectory="$libs.new.$$" || exit
if ! (cd "$libs.new.$$" && sha256sum -- *.jar) | diff "$list" -; then
    rm -rf "$libs.new.$$"
    echo "Kafka's jars are not those of $list (< listed, > fetched), so it is not started."
    exit 1
fi
mv -T "$libs.new.$$" "$libs" || test -d "$libs"
"#;

/// Shell script that runs a broker on temporary data and lets the JVM archive the loaded classes at exit. A node that
/// maps the archive needs little more than half the processor time to start. Nodes also start without it, so no step
/// here is fatal. With a missing archive Java would map no classes at all, not even its own, and it would accept a
/// truncated archive as complete: hence the options file and the moves.
const ARCHIVE: &str = r#"
java=$1 libs=$2 dir=$3 properties=$4 cluster=$5
shift 5
archive=$libs/classes.jsa new=$libs/classes.jsa.new.$$ options=$libs/jvm.options
rm -rf "$dir" && mkdir -p "$dir"
"$java" -Xmx128m -XX:TieredStopAtLevel=1 "$@" kafka.tools.StorageTool format -t "$cluster" -c "$properties"
"$java" -Xmx384m -XX:ArchiveClassesAtExit="$new" "$@" kafka.Kafka "$properties" > "$dir/log" 2>&1 &
broker=$! tries=0
until grep -q 'Kafka Server started' "$dir/log" || [ $((tries += 1)) -gt 600 ] || ! kill -0 $broker; do
    sleep 0.2
done
kill $broker
wait $broker
tail -n 5 "$dir/log"
rm -rf "$dir"
: > "$options.new.$$"
if test -s "$new"; then
    sync "$new" && mv "$new" "$archive" && echo "\"-XX:SharedArchiveFile=$archive\"" > "$options.new.$$"
else
    echo "No archive of Kafka's classes was created: nodes will start without it."
fi
mv "$options.new.$$" "$options"
"#;

pub fn name(broker: u16) -> String {
    format!("kafka-{broker}")
}

/// Returns the brokers' addresses for clients, e.g. `127.0.0.1:18001,…`.
pub fn bootstrap(ports: Ports, brokers: u16) -> String {
    let addresses: Vec<_> = (1..=brokers).map(|broker| format!("127.0.0.1:{}", ports.kafka(broker))).collect();
    addresses.join(",")
}

pub(crate) use acls::grant;

/// Returns the parts of the cluster.
pub(crate) fn parts(
    layout: &Layout,
    tools: &Tools,
    brokers: u16,
    purpose: Purpose,
    secured: Option<Secured<'_>>,
) -> Result<Vec<Part>> {
    let content = content()?;
    let libs = libs(&content);
    let mut parts = vec![jars(tools, &libs, &content)?, classes(layout, tools, &libs)?];
    for broker in 1..=brokers {
        let mut text = properties_of(layout, broker, brokers);
        if let Some(Secured { certificates, .. }) = secured {
            // The last value of a property counts.
            text += &security::properties(layout, certificates)?;
        }
        let properties = write_properties(layout, &name(broker), &text)?;
        parts.push(format(layout, tools, &libs, &properties, broker, secured.is_some())?);
        parts.push(server(layout, tools, &libs, &properties, broker, purpose));
    }
    if let Some(Secured { logs, .. }) = secured {
        parts.push(rules(layout, brokers, logs)?);
    }
    Ok(parts)
}

/// Returns the launch that changes the password of an account at a secured cluster.
pub(crate) fn change_password(
    layout: &Layout,
    tools: &Tools,
    brokers: u16,
    account: &str,
    password: &str,
) -> Result<Launch> {
    let file = security::change_of_password(layout, &bootstrap(layout.ports, brokers), account, password)?;
    let flags = ["-Xmx128m", "-Xshare:auto", FAST_START];
    Ok(java(tools, &libs(&content()?), &flags, &format!("@{}", text(&file)), &[]))
}

/// Returns the launch that lists the topics of the services with their settings.
pub(crate) fn topics(layout: &Layout, tools: &Tools, size: &Size) -> Result<Launch> {
    let brokers = bootstrap(layout.ports, size.brokers);
    let mut args = vec!["--bootstrap-server", &brokers, "--describe", "--exclude-internal"];
    let own = size.secure.then(|| security::of_tools(layout)).transpose()?;
    args.extend(own.iter().flat_map(|own| ["--command-config", text(own)]));
    let flags = ["-Xmx128m", "-Xshare:auto", FAST_START];
    Ok(java(tools, &libs(&content()?), &flags, "org.apache.kafka.tools.TopicCommand", &args))
}

/// Returns what determines the jars.
fn content() -> Result<String> {
    let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    Ok(read(pom())? + &read(hashes())?)
}

fn pom() -> PathBuf {
    root().join("deploy/kafka/pom.xml")
}

/// Returns the list of the jars' names and SHA-256 hashes.
fn hashes() -> PathBuf {
    root().join("deploy/kafka/jars.sha256")
}

/// Returns the folder of the jars, one per content of the pom and the list, so that a running stack keeps its jars when
/// another one fetches newer ones.
fn libs(content: &str) -> PathBuf {
    let mut hash = DefaultHasher::new();
    content.hash(&mut hash);
    shared_cache().join(format!("{:016x}", hash.finish()))
}

fn jars(tools: &Tools, libs: &Path, content: &str) -> Result<Part> {
    fs::create_dir_all(shared_cache()).context("cannot create the folder of Kafka's jars")?;
    let args = ["-c", FETCH, "sh", text(&tools.mvn), text(&pom()), text(libs), text(&hashes())].map(str::to_owned);
    let mut launch = Launch::new("/bin/sh", args);
    launch.env_of_caller = true;
    Ok(Part::task(JARS, launch).described("fetching Kafka from Maven Central").stamped(libs.join("complete"), content))
}

/// Returns the task that creates the class data archive, once per Java version and location of the jars. Its temporary
/// broker uses the ports of the first node.
fn classes(layout: &Layout, tools: &Tools, libs: &Path) -> Result<Part> {
    let dir = layout.data().join(CLASSES);
    let data = format!("\nlog.dirs={}", text(&dir.join("data")));
    let properties = write_properties(layout, CLASSES, &(properties_of(layout, 1, 1) + &data))?;
    let args =
        [text(&tools.java), text(libs), text(&dir), text(&properties), &cluster_id(&layout.secret("cluster-id")?)];
    let args = ["-c", ARCHIVE, "sh"].into_iter().chain(args).map(str::to_owned).chain(common(libs));
    let java = fs::canonicalize(&tools.java).with_context(|| format!("cannot find {}", tools.java.display()))?;
    let release = java.ancestors().nth(2).map(|home| fs::read_to_string(home.join("release")).unwrap_or_default());
    let stamp = format!("{} {} {}", libs.display(), java.display(), release.unwrap_or_default());
    let archive = Part::task(CLASSES, Launch::new("/bin/sh", args)).described("archiving Kafka's classes, once");
    Ok(archive.stamped(libs.join("classes"), stamp).needing([JARS]))
}

fn write_properties(layout: &Layout, name: &str, text: &str) -> Result<PathBuf> {
    let path = layout.config().join(format!("{name}.properties"));
    // Those of a secured stack contain a password.
    write_private(&path, text)?;
    Ok(path)
}

/// Returns the task that formats a node's empty data folder.
fn format(
    layout: &Layout,
    tools: &Tools,
    libs: &Path,
    properties: &Path,
    broker: u16,
    is_secure: bool,
) -> Result<Part> {
    const TOOL: &str = "kafka.tools.StorageTool";
    let cluster = cluster_id(&layout.secret("cluster-id")?);
    let args = ["format", "--ignore-formatted", "-t", &cluster, "-c", text(properties)];
    let flags = ["-Xmx128m", "-Xshare:auto", FAST_START];
    let launch = if is_secure {
        // Java reads the name of the class and its arguments from the file.
        let file = security::accounts(layout, &name(broker), &[&[TOOL], &args[..]].concat())?;
        java(tools, libs, &flags, &format!("@{}", text(&file)), &[])
    } else {
        java(tools, libs, &flags, TOOL, &args)
    };
    let stamp = layout.data().join(format!("{}.formatted", name(broker)));
    Ok(Part::task(format!("kafka-format-{broker}"), launch).stamped(stamp, cluster).needing([CLASSES]))
}

/// Returns the task that creates the rules of the accounts.
fn rules(layout: &Layout, brokers: u16, logs: &[&Size]) -> Result<Part> {
    let own = std::env::current_exe().context("cannot locate this program's executable")?;
    // A bench's stack is started by the program `load`, which is beside this crate's own.
    let own = own.with_file_name("stack");
    let (base, brokers_told) = (layout.ports.base().to_string(), brokers.to_string());
    let state = layout.state.to_string_lossy();
    let args = ["--base-port", &base, "--state-dir", &state, "kafka-rules", &brokers_told].map(str::to_owned);
    let args = args.into_iter().chain(logs.iter().map(|size| size.topic()));
    Ok(Part::task(RULES, Launch::new(own, args)).needing((1..=brokers).map(name)))
}

fn server(layout: &Layout, tools: &Tools, libs: &Path, properties: &Path, broker: u16, purpose: Purpose) -> Part {
    let port = layout.ports.kafka(broker);
    // The JIT compilers are busiest during the first sale. Producing records for seconds beforehand does not reduce
    // that work, and higher thresholds for the optimizing compiler make the sale slower.
    let mut flags = vec!["-Xms128m", "-Xmx384m", "-XX:MaxDirectMemorySize=128m", "-XX:+ExitOnOutOfMemoryError"];
    if purpose == Purpose::Tests {
        flags.push(FAST_START);
    }
    Part {
        name: name(broker),
        launch: java(tools, libs, &flags, "kafka.Kafka", &[text(properties)]),
        role: Role::Server {
            ready: Probe::Log { line: "Kafka Server started", port },
            stop: STOP,
            on_death: OnDeath::Leave,
            tier: Tier::Kafka,
        },
        needs: vec![format!("kafka-format-{broker}")],
        ports: BTreeMap::from([("kafka", port), ("controller", layout.ports.kafka_controller(broker))]),
    }
}

fn java(tools: &Tools, libs: &Path, flags: &[&str], class: &str, args: &[&str]) -> Launch {
    let options = format!("@{}", text(&libs.join("jvm.options")));
    let (flags, args) = (flags.iter().copied().map(str::to_owned), args.iter().copied().map(str::to_owned));
    Launch::new(&tools.java, flags.chain([options]).chain(common(libs)).chain([class.to_owned()]).chain(args))
}

/// Returns the JVM arguments that all runs share. A class data archive is valid only for the class path it was made
/// with.
fn common(libs: &Path) -> [String; 4] {
    let log4j = format!("-Dlog4j2.configurationFile={}", text(&root().join("deploy/kafka/log4j2.xml")));
    [String::from("-Djava.awt.headless=true"), log4j, String::from("-cp"), format!("{}/*", text(libs))]
}

/// Derives a cluster id from a secret of hexadecimal digits. The id is 16 bytes in URL-safe base64, which is 22
/// characters: hexadecimal digits are valid ones, and a final `A` provides the four zero bits of padding.
fn cluster_id(secret: &str) -> String {
    format!("{}A", &secret[..21])
}

fn properties_of(layout: &Layout, broker: u16, brokers: u16) -> String {
    let ports = layout.ports;
    let voters: Vec<_> = (1..=brokers).map(|id| format!("{id}@127.0.0.1:{}", ports.kafka_controller(id))).collect();
    let copies = brokers.min(3);
    let in_sync = copies.div_ceil(2);
    let mut text = String::new();
    let mut set = |key: &str, value: &str| writeln!(text, "{key}={value}").expect("writing to a String cannot fail");
    set("node.id", &broker.to_string());
    set("process.roles", "broker,controller");
    set("controller.quorum.voters", &voters.join(","));
    set("controller.listener.names", "CONTROLLER");
    let client = format!("CLIENT://127.0.0.1:{}", ports.kafka(broker));
    set("listeners", &format!("{client},CONTROLLER://127.0.0.1:{}", ports.kafka_controller(broker)));
    set("advertised.listeners", &client);
    set("listener.security.protocol.map", "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT");
    set("inter.broker.listener.name", "CLIENT");
    set("log.dirs", &layout.data().join(name(broker)).to_string_lossy());
    // Topics are created explicitly, with the settings that the services verify.
    set("auto.create.topics.enable", "false");
    set("default.replication.factor", &copies.to_string());
    set("min.insync.replicas", &in_sync.to_string());
    set("unclean.leader.election.enable", "false");
    set("offsets.topic.replication.factor", &copies.to_string());
    set("offsets.topic.num.partitions", "8");
    set("transaction.state.log.replication.factor", &copies.to_string());
    set("transaction.state.log.min.isr", &in_sync.to_string());
    set("share.coordinator.state.topic.replication.factor", &copies.to_string());
    set("share.coordinator.state.topic.min.isr", &in_sync.to_string());
    // A dead broker blocks acks=all for this long; the default is 9 s.
    set("broker.session.timeout.ms", "3000");
    set("broker.heartbeat.interval.ms", "500");
    // Groups start at once instead of waiting 3 s for more members.
    set("group.initial.rebalance.delay.ms", "0");
    // Small, because only the offsets topic is ever compacted; the default takes a third of the heap.
    set("log.cleaner.dedupe.buffer.size", "8388608");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path of the checkout is UTF-8")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_cluster_id_has_the_form_that_kafka_requires() {
        assert_eq!(cluster_id("0123456789abcdef0123456789abcdef"), "0123456789abcdef01234A");
    }

    #[test]
    fn a_jar_that_is_not_listed_is_named_and_left_unused() {
        let folder = std::env::temp_dir().join(format!("stack-jars-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        // Stands for Maven: the last argument names the folder to copy to.
        let maven = "#!/bin/sh\nfor last; do :; done\nto=${last#*=}\nmkdir -p \"$to\" && cp \"$(dirname \"$0\")\"/from/* \"$to\"\n";
        fs::write(path("mvn"), maven).unwrap();
        fs::set_permissions(path("mvn"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir_all(path("from")).unwrap();
        fs::write(path("from/a.jar"), "a").unwrap();
        let listed = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.jar\n";
        fs::write(path("list"), listed).unwrap();
        let fetch = |to: &str| {
            let paths = ["mvn", "pom", to, "list"].map(path);
            Command::new("sh").args(["-c", FETCH, "sh"]).args(paths).output().unwrap()
        };
        let right = fetch("right");
        assert!(right.status.success() && path("right/a.jar").exists(), "{right:?}");
        for (jar, content) in [("a.jar", "another"), ("b.jar", "b")] {
            fs::write(path("from/a.jar"), "a").unwrap();
            fs::write(path("from").join(jar), content).unwrap();
            let wrong = fetch("wrong");
            assert!(!wrong.status.success() && !path("wrong").exists(), "{wrong:?}");
            let told = String::from_utf8(wrong.stdout).unwrap();
            assert!(told.contains(jar) && told.contains("not started"), "{told}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn nodes_start_without_an_archive_of_classes_where_none_can_be_made() {
        let libs = std::env::temp_dir().join(format!("stack-classes-{}", std::process::id()));
        fs::create_dir_all(&libs).unwrap();
        fs::write(libs.join("jvm.options"), "-XX:SharedArchiveFile=of-earlier-jars").unwrap();
        let paths = [&libs, &libs.join("data"), &libs.join("properties")];
        let made = Command::new("sh").args(["-c", ARCHIVE, "sh", "false"]).args(paths).arg("cluster").output().unwrap();
        let options = fs::read_to_string(libs.join("jvm.options")).unwrap();
        fs::remove_dir_all(&libs).unwrap();
        assert!(made.status.success(), "{made:?}");
        assert_eq!(options, "");
    }

    #[test]
    fn three_brokers_keep_three_copies_and_need_two() {
        let layout = Layout::new(Some(Path::new("state")), Some(20000)).unwrap();
        let three = properties_of(&layout, 2, 3);
        for line in [
            "node.id=2",
            "controller.quorum.voters=1@127.0.0.1:20011,2@127.0.0.1:20012,3@127.0.0.1:20013",
            "default.replication.factor=3",
            "min.insync.replicas=2",
            "broker.session.timeout.ms=3000",
        ] {
            assert!(three.lines().any(|is| is == line), "{line}");
        }
        let one = properties_of(&layout, 1, 1);
        assert!(one.lines().any(|line| line == "min.insync.replicas=1"));
    }
}
