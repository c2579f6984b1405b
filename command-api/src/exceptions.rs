//! Exceptions, which let readers skip an undecodable value of the log ([`schemas::exceptions`]), and the subcommands
//! that sign them.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use chassis::clock::now_ms;
use chassis::env::{Env, EnvError, Secret};
use chassis::exit::Misuse;
use chassis::kafka::KafkaSettings;
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::exceptions::{Exceptions, SigningKey, Stray, may_be_of_a_newer_build};
use schemas::record::Record;
use schemas::topic;

use crate::config::{self, Config};
use crate::kafka::reader::LogReader;
use crate::kafka::topic::create_exceptions;

const SIGNING_KEY: &str = "LOG_EXCEPTION_SIGNING_KEY";
const KAFKA_ANSWERS_WITHIN: Duration = Duration::from_secs(15);
/// Maximum number of a value's bytes that are shown to the operator.
const SHOWN_BYTES: usize = 400;
const EXCEPT: &str = "except PARTITION OFFSET --because TEXT [--no-build-reads-it]";

/// The known exceptions, and the topic that new ones are read from.
#[derive(Clone)]
pub(crate) struct ExceptionLog {
    kafka: KafkaSettings,
    topic: String,
    pub(crate) known: Arc<Exceptions>,
}

impl ExceptionLog {
    pub(crate) fn of(config: &Config) -> Self {
        let (kafka, known) = (config.kafka.clone(), config.exceptions.clone());
        Self { kafka, topic: topic::exceptions(&config.topic.name), known }
    }

    /// Waits until an exception covers the value; pending forever for `None`, which no exception can cover.
    pub(crate) async fn pass(self, stray: Option<Stray>) {
        let Some(stray) = stray else { return std::future::pending().await };
        let is_passed = |values: &[Vec<u8>]| {
            self.known.learn(values);
            self.known.pass(&stray)
        };
        self.kafka.await_values(&self.topic, is_passed).await;
    }
}

/// Arguments of `except`.
#[derive(Debug, PartialEq, Eq)]
struct ExceptArgs {
    partition: u32,
    offset: i64,
    because: String,
    /// The operator's assurance that no build can read the value.
    no_build_reads_it: bool,
}

impl ExceptArgs {
    fn from_args(args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut places, mut because, mut no_build_reads_it) = (Vec::new(), String::new(), false);
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--because" => because = args.next().unwrap_or_default().trim().to_owned(),
                "--no-build-reads-it" => no_build_reads_it = true,
                place => places.push(place.parse::<i64>().with_context(|| format!("{place:?}: {EXCEPT}"))?),
            }
        }
        let [partition, offset] = places[..] else { bail!("expected a partition and an offset: {EXCEPT}") };
        ensure!(offset >= 0, "{offset} is not an offset");
        ensure!(!because.is_empty(), "--because is missing: say why no event is lost, for later readers of the log");
        Ok(Self { partition: partition.try_into().context("not a partition")?, offset, because, no_build_reads_it })
    }
}

/// Signs an exception for a value of the log that cannot be read, and appends it to the topic of exceptions.
pub async fn except(env: &Env, args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let wish = ExceptArgs::from_args(args).map_err(Misuse::new)?;
    let (kafka, log) = (KafkaSettings::from_env(env)?, config::topic(env)?);
    let key =
        signing_key(env)?.ok_or_else(|| Misuse::new(format!("{SIGNING_KEY} or {SIGNING_KEY}_FILE must be set")))?;
    let key: SigningKey = key.expose().parse().context(SIGNING_KEY).map_err(Misuse::new)?;
    if config::exception_keys(env)?.is_some_and(|keys| !keys.contain(&key)) {
        let public = key.public();
        let reason = format!("LOG_EXCEPTION_KEYS does not list {public}: no reader would honour this key");
        return Err(Misuse::new(reason).into());
    }
    let reader = LogReader::start(&kafka, &log.name)?;
    let value = reader.record(wish.partition, wish.offset).await.context("read the record")?;
    let value = value.context("no such record")?;
    println!("partition {}, offset {}, {} bytes:", wish.partition, wish.offset, value.len());
    let shown = &value[..value.len().min(SHOWN_BYTES)];
    println!("{}{}", shown.escape_ascii(), if shown.len() < value.len() { " …" } else { "" });
    judge(&value, wish.no_build_reads_it)?;
    let exception = Stray::new(wish.partition, wish.offset, &value).exception(&wish.because, now_ms());
    let sha256 = exception.sha256.clone();
    create_exceptions(&kafka, &log).await?;
    let producer: FutureProducer = kafka.producer("command-api except").create().context("create a Kafka producer")?;
    let (topic, signed) = (topic::exceptions(&log.name), key.sign(exception));
    let record = FutureRecord::<(), _>::to(&topic).partition(0).payload(&signed);
    producer.send(record, KAFKA_ANSWERS_WITHIN).await.map_err(|(error, _)| error).context("append the exception")?;
    println!("excepted: sha256 {sha256}, signed by {}, because {:?}", key.public(), wish.because);
    println!("readers that honour this key resume within seconds, without a restart");
    Ok(())
}

/// Returns the private key's text.
pub(crate) fn signing_key(env: &Env) -> Result<Option<Secret>, EnvError> {
    // `LOG_EXCEPTION_SIGNING_KEY`: private key of the signer, for `command-api except` alone, which requires it.
    env.optional_secret(SIGNING_KEY)
}

/// Returns an error unless no build can read the value, because only such a value may be skipped.
fn judge(value: &[u8], no_build_reads_it: bool) -> anyhow::Result<()> {
    match Record::decode(value) {
        Ok(Some(_)) => bail!("this record can be read and may count; it cannot be excepted"),
        Ok(None) => bail!("this is not a record of this system; readers skip it without an exception"),
        Err(error) if may_be_of_a_newer_build(value, &error) && !no_build_reads_it => bail!(
            "{error}; a newer build may read it, and would count what the others skip. Start that build instead, or \
             pass --no-build-reads-it if no build wrote it"
        ),
        Err(error) => {
            println!("{error}");
            Ok(())
        }
    }
}

/// Generates a key pair unless it exists: the private key in `file`, for the signer, and the public key for all readers
/// in the same path with `.pub` appended.
pub fn make_key(file: Option<String>) -> anyhow::Result<()> {
    let file = file.ok_or_else(|| Misuse::new("usage: exception-key FILE (the file for the private key)"))?;
    let (private, public) = (Path::new(&file), format!("{file}.pub"));
    if !private.exists() {
        let seed: String = rand::random::<[u8; 32]>().map(|byte| format!("{byte:02x}")).concat();
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(private);
        let written = made.and_then(|mut made| writeln!(made, "{seed}"));
        written.with_context(|| format!("write {file}"))?;
    }
    let text = fs::read_to_string(private).with_context(|| format!("read {file}"))?;
    let key: SigningKey = text.trim().parse().with_context(|| file.clone())?;
    fs::write(&public, format!("{}\n", key.public())).with_context(|| format!("write {public}"))?;
    println!("{}", key.public());
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::exceptions::Keys;

    use super::*;

    fn wish(line: &str) -> anyhow::Result<ExceptArgs> {
        ExceptArgs::from_args(line.split('|').map(str::to_owned))
    }

    #[test]
    fn an_exception_needs_a_place_and_a_reason() {
        let because = "a test wrote it".to_owned();
        let expected = ExceptArgs { partition: 3, offset: 17, because, no_build_reads_it: false };
        assert_eq!(wish("3|17|--because|a test wrote it").unwrap(), expected);
        for line in
            ["3|17", "3|17|--because", "3|17|--because| ", "3|--because|x", "-1|0|--because|x", "a|1|--because|x"]
        {
            assert!(wish(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_value_that_may_count_for_any_build_is_not_excepted() {
        let fence = br#"st1{"fence":{"epoch":[0,"00000000000000aa"],"seq":1}}"#;
        for (value, plain, certain) in
            [(&b"stop"[..], true, true), (b"st2{}", false, true), (fence, false, false), (b"hello", false, false)]
        {
            let judged = (judge(value, false).is_ok(), judge(value, true).is_ok());
            assert_eq!(judged, (plain, certain), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_key_is_generated_once_and_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let file = std::env::temp_dir().join(format!("stampede-exception-key-{}", std::process::id()));
        let (name, read) = (file.to_str().unwrap().to_owned(), |name: &str| fs::read_to_string(name).unwrap());
        make_key(Some(name.clone())).unwrap();
        let made = (read(&name), read(&format!("{name}.pub")));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        make_key(Some(name.clone())).unwrap();
        assert_eq!((read(&name), read(&format!("{name}.pub"))), made);
        let (key, keys): (SigningKey, Keys) = (made.0.trim().parse().unwrap(), made.1.parse().unwrap());
        fs::remove_file(&file).unwrap();
        fs::remove_file(format!("{name}.pub")).unwrap();
        assert!(keys.contain(&key));
    }
}
