//! A raw consumer that fetches the whole log of the product and discards it, with one thread per processor.
//!
//! `KAFKA_BROKERS`, `TOPIC` (default `events`).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peers::seen::Seen;
use peers::{setting, topic};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};

const ANSWER_WITHIN: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let name = setting::or("TOPIC", String::from("events"))?;
    let consumer: BaseConsumer = topic::kafka()?.reader("consume").create()?;
    let metadata = consumer.fetch_metadata(Some(&name), ANSWER_WITHIN)?;
    let partitions = i32::try_from(metadata.topics().first().context("the topic does not exist")?.partitions().len())?;
    let ends: Vec<i64> = (0..partitions)
        .map(|partition| Ok(consumer.fetch_watermarks(&name, partition, ANSWER_WITHIN)?.1))
        .collect::<Result<_>>()?;
    let threads = thread::available_parallelism()?.get();
    let began = Instant::now();
    thread::scope(|scope| {
        let shares = (0..threads).map(|thread| {
            let share: Vec<_> = (0..partitions).zip(ends.iter().copied()).skip(thread).step_by(threads).collect();
            scope.spawn(|| consume(&name, share))
        });
        let shares: Vec<_> = shares.collect();
        shares.into_iter().try_for_each(|share| share.join().expect("a thread does not panic"))
    })?;
    let mut seen = Seen::new()?;
    seen.requests = u64::try_from(ends.iter().sum::<i64>())?;
    seen.print(began.elapsed());
    Ok(())
}

fn consume(name: &str, share: Vec<(i32, i64)>) -> Result<()> {
    let consumer: BaseConsumer = topic::kafka()?.reader("consume").create()?;
    let mut assignment = TopicPartitionList::new();
    for (partition, _) in &share {
        assignment.add_partition_offset(name, *partition, Offset::Offset(0))?;
    }
    consumer.assign(&assignment)?;
    let mut left: i64 = share.iter().map(|(_, end)| end).sum();
    let mut bytes = 0;
    while left > 0 {
        let message = consumer.poll(ANSWER_WITHIN).context("Kafka returned no more records")??;
        bytes += message.payload_len();
        left -= 1;
    }
    ensure!(bytes > 0, "the log is empty");
    Ok(())
}
