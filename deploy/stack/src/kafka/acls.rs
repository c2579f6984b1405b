//! Rules of the accounts at a secured Kafka. The jars of a broker have no tool for them, so this sends the one request
//! that creates them, through the `openssl` program, to the controller.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::security::NODE;
use crate::accounts::Account;
use crate::certificates::Certificates;
use crate::layout::Layout;
use crate::provision::find;

/// Time limit for finding a controller that creates the rules.
const WITHIN: Duration = Duration::from_secs(30);
/// Time limit of one connection, for the program `timeout`, in seconds.
const CONNECTION_SECS: &str = "10";
/// Kafka's code for CreateAcls, and the last version of the request without tagged fields.
const CREATE_ACLS: i16 = 30;
const VERSION: i16 = 1;
/// Kafka's error of a node that is not the active controller.
const NOT_CONTROLLER: i16 = 41;

const TOPIC: i8 = 2;
const GROUP: i8 = 3;
const LITERAL: i8 = 3;
const PREFIXED: i8 = 4;
const READ: i8 = 3;
const WRITE: i8 = 4;
const DESCRIBE: i8 = 8;
const DESCRIBE_CONFIGS: i8 = 10;
const ALLOW: i8 = 3;

struct Rule {
    account: Account,
    resource: i8,
    pattern: i8,
    name: String,
    operation: i8,
}

/// Returns all rules of the log with this topic. Nobody else may do anything, and no service creates, changes or deletes a topic or a record.
fn rules(topic: &str) -> Vec<Rule> {
    use Account::{CommandApi, Projector};
    let rule = |account, resource, pattern, name: &str, operation| {
        let name = name.to_owned();
        Rule { account, resource, pattern, name, operation }
    };
    let mut rules = vec![
        rule(CommandApi, TOPIC, LITERAL, topic, WRITE),
        rule(CommandApi, TOPIC, LITERAL, &format!("{topic}.clock"), WRITE),
        rule(CommandApi, GROUP, LITERAL, &format!("{topic}.owners"), READ),
        rule(Projector, GROUP, PREFIXED, &format!("{topic}.projectors."), READ),
        rule(Projector, GROUP, LITERAL, &format!("{topic}.reactors"), READ),
    ];
    for account in [CommandApi, Projector] {
        rules.push(rule(account, TOPIC, PREFIXED, "events", READ));
        // The services check the topic's settings.
        rules.push(rule(account, TOPIC, PREFIXED, "events", DESCRIBE_CONFIGS));
        // librdkafka looks for a group's coordinator even in a consumer that joins no group.
        rules.push(rule(account, GROUP, LITERAL, "*", DESCRIBE));
    }
    rules
}

/// Creates the rules of the logs with these topics. Existing ones stay as they are.
pub(crate) fn grant(layout: &Layout, brokers: u16, topics: &[String]) -> Result<()> {
    let openssl = find::program("openssl").context("cannot find openssl")?;
    let certificates = Certificates::at(layout.certificates(), openssl)?;
    let request = request(topics);
    let (begun, mut nodes) = (Instant::now(), (1..=brokers).cycle());
    loop {
        let node = nodes.next().context("there is no broker")?;
        let answered =
            exchange(&certificates, layout.ports.kafka_controller(node), &request).and_then(|answer| judge(&answer));
        match answered {
            Ok(true) => return Ok(()),
            Ok(false) if begun.elapsed() > WITHIN => bail!("no node is the active controller"),
            Err(error) if begun.elapsed() > WITHIN => return Err(error),
            Ok(false) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Returns the request, preceded by its length.
fn request(topics: &[String]) -> Vec<u8> {
    let string = |text: &str| {
        let length = i16::try_from(text.len()).expect("names are short");
        [&length.to_be_bytes(), text.as_bytes()].concat()
    };
    let rules: Vec<_> = topics.iter().flat_map(|topic| rules(topic)).collect();
    let mut body = [CREATE_ACLS.to_be_bytes(), VERSION.to_be_bytes()].concat();
    // Correlation.
    body.extend(1_i32.to_be_bytes());
    body.extend(string("stack"));
    body.extend(i32::try_from(rules.len()).expect("the rules are few").to_be_bytes());
    for Rule { account, resource, pattern, name, operation } in rules {
        body.extend(resource.to_be_bytes());
        body.extend(string(&name));
        body.extend(pattern.to_be_bytes());
        body.extend(string(&format!("User:{}", account.name())));
        body.extend(string("*"));
        body.extend(operation.to_be_bytes());
        body.extend(ALLOW.to_be_bytes());
    }
    let length = i32::try_from(body.len()).expect("the rules are few");
    [&length.to_be_bytes()[..], &body].concat()
}

/// Sends a request to a controller and returns the answer, without its length.
fn exchange(certificates: &Certificates, port: u16, request: &[u8]) -> Result<Vec<u8>> {
    let pair = certificates.of(NODE)?;
    let mut child = Command::new("timeout")
        .arg(CONNECTION_SECS)
        .arg(certificates.program())
        .args(["s_client", "-quiet", "-no_ign_eof", "-verify_return_error", "-verify_ip", "127.0.0.1", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("-CAfile")
        .arg(certificates.authority())
        .arg("-cert")
        .arg(pair.certificate)
        .arg("-key")
        .arg(pair.key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run openssl")?;
    let (mut input, mut output) = (child.stdin.take().context("no input")?, child.stdout.take().context("no output")?);
    let mut answered = || {
        input.write_all(request)?;
        let mut length = [0; 4];
        output.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
        output.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = answered();
    // The end of its input ends the program.
    drop(input);
    child.wait().context("cannot wait for openssl")?;
    answer.with_context(|| format!("the controller at port {port} did not answer"))
}

/// Returns whether the rules exist; `false` if another node is the controller.
fn judge(answer: &[u8]) -> Result<bool> {
    // Correlation, throttle time, number of results; each result is a code and a text that may be missing (−1).
    let mut rest = answer.get(12..).context("the answer is too short")?;
    while !rest.is_empty() {
        let number = |at: usize| rest.get(at..at + 2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]));
        let (code, length) = number(0).zip(number(2)).context("the answer is too short")?;
        let length = usize::try_from(length).unwrap_or(0);
        let text = rest.get(4..4 + length).context("the answer is too short")?;
        if code == NOT_CONTROLLER {
            return Ok(false);
        }
        ensure!(code == 0, "Kafka refused a rule with code {code}: {}", String::from_utf8_lossy(text));
        rest = &rest[4 + length..];
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;
    use crate::layout::root;

    /// Returns a rule in the words of the cluster's manifest.
    fn rule_of(account: &str, operation: &str, [kind, pattern, name]: [&str; 3]) -> String {
        format!("{account}: {operation} on the {kind} {name}, {pattern}")
    }

    fn ours() -> BTreeSet<String> {
        let in_words = |rule: Rule| {
            let operation = match rule.operation {
                READ => "Read",
                WRITE => "Write",
                DESCRIBE => "Describe",
                DESCRIBE_CONFIGS => "DescribeConfigs",
                other => panic!("the operation {other} has no word"),
            };
            let kind = if rule.resource == TOPIC { "topic" } else { "group" };
            let pattern = if rule.pattern == LITERAL { "literal" } else { "prefix" };
            rule_of(rule.account.name(), operation, [kind, pattern, &rule.name])
        };
        rules("events").into_iter().map(in_words).collect()
    }

    #[test]
    fn a_cluster_has_the_same_rules() {
        let manifest = fs::read_to_string(root().join("deploy/kubernetes/components/kafka/users.yaml")).unwrap();
        let mut theirs = BTreeSet::new();
        for user in manifest.split("\n---\n") {
            let account = user.lines().find_map(|line| line.strip_prefix("  name: ")).unwrap();
            for rule in user.split("- resource: { ").skip(1) {
                let field = |name: &str, end: char| {
                    rule.split_once(&format!("{name}: ")).unwrap().1.split_once(end).unwrap().0.trim_matches(['"', ' '])
                };
                let resource = [field("type", ','), field("patternType", '}'), field("name", ',')];
                let operations = field("operations", ']').trim_start_matches('[').split(", ");
                theirs.extend(operations.map(|operation| rule_of(account, operation, resource)));
            }
        }
        assert_eq!(theirs, ours());
    }

    #[test]
    fn the_handbook_states_the_rules() {
        let handbook = fs::read_to_string(root().join("deploy/README.md")).unwrap();
        let table = handbook.split_once("**Rights at Kafka**").unwrap().1.split_once("**Rights at Redis**").unwrap().0;
        let mut stated = BTreeSet::new();
        for row in table.lines().filter_map(|line| line.strip_prefix("| ")).skip(1) {
            let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
            let [account, topics, groups] = cells[..] else { panic!("{row}") };
            for (kind, cell) in [("topic", topics), ("group", groups)] {
                for part in cell.split("; ") {
                    let (operations, names) = part.split_once(" on ").unwrap();
                    for name in names.split(" and ") {
                        let prefix = name.strip_prefix("the prefix ");
                        let pattern = if prefix.is_some() { "prefix" } else { "literal" };
                        let name = prefix.unwrap_or(name).trim_matches('`');
                        stated.extend(operations.split(", ").map(|one| rule_of(account, one, [kind, pattern, name])));
                    }
                }
            }
        }
        assert_eq!(stated, ours());
    }

    #[test]
    fn only_command_api_writes_and_nobody_creates_or_deletes() {
        let rules = rules("events-48");
        let writes = rules.iter().filter(|rule| rule.operation == WRITE);
        let mut topics: Vec<_> = writes.map(|rule| (rule.account.name(), &*rule.name, rule.pattern)).collect();
        topics.sort_unstable();
        assert_eq!(topics, [("command-api", "events-48", LITERAL), ("command-api", "events-48.clock", LITERAL)]);
        let allowed = [READ, WRITE, DESCRIBE, DESCRIBE_CONFIGS];
        assert!(rules.iter().all(|rule| allowed.contains(&rule.operation) && rule.account != Account::Owner));
    }

    #[test]
    fn an_answer_is_judged_by_all_of_its_results() {
        let answer = |results: &[&[u8]]| [&[0; 12], &results.concat()[..]].concat();
        let (fine, other) = ([0, 0, 0xff, 0xff], [0, 41, 0, 2, b'n', b'o']);
        assert!(judge(&answer(&[&fine, &fine])).unwrap());
        assert!(!judge(&answer(&[&fine, &other])).unwrap());
        assert!(judge(&answer(&[&[0, 31, 0, 1, b'x']])).unwrap_err().to_string().contains("code 31: x"));
        assert!(judge(&answer(&[&fine, &[0, 0, 0, 9]])).is_err());
    }
}
