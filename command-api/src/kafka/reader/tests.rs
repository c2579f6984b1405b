//! Tests with librdkafka's mock cluster, whose partitions lose their leaders on demand.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use schemas::record::{Claim, Record};

use super::*;
use crate::directory::check_log;

const TOPIC: &str = "events";
const PARTITIONS: i32 = 8;
/// Size of a record in bytes.
const SIZE: usize = 1024;
/// Number of records in each partition: more than are fetched ahead and queued for the receiver.
const COUNT: i64 = 3_000;
const DEADLINE: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(10);

struct Log {
    cluster: MockCluster<'static, DefaultProducerContext>,
    producer: FutureProducer,
    reader: LogReader,
}

impl Log {
    async fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        let settings = KafkaSettings::plaintext(cluster.bootstrap_servers());
        let producer: FutureProducer = settings.producer("test").create().unwrap();
        for partition in 0..PARTITIONS {
            let value = vec![0; SIZE];
            let record = || FutureRecord::<(), _>::to(TOPIC).partition(partition).payload(&value);
            let sent: Vec<_> = (0..COUNT).map(|_| producer.send_result(record()).unwrap()).collect();
            for sent in sent {
                sent.await.unwrap().unwrap();
            }
        }
        let reader = LogReader::start(&settings, TOPIC).unwrap();
        Self { cluster, producer, reader }
    }

    fn read(&self, partition: i32, from: i64) -> mpsc::Receiver<ReadEvent> {
        self.reader.read(partition.cast_unsigned(), from, ReadTo::End)
    }

    fn lead(&self, partition: i32, leader: Option<i32>) {
        self.cluster.partition_leader(TOPIC, partition, leader).unwrap();
    }
}

/// Takes `batches` of a read and checks that they are contiguous. Returns the offset behind them.
async fn take(events: &mut mpsc::Receiver<ReadEvent>, mut next: i64, batches: usize) -> i64 {
    for _ in 0..batches {
        let event = tokio::time::timeout(SOON, events.recv()).await.expect("the read continues");
        let Some(ReadEvent::Records(records)) = event else { return next };
        for (offset, value) in records.iter() {
            assert_eq!((offset, value.len()), (next, SIZE));
            next += 1;
        }
    }
    next
}

#[tokio::test]
async fn a_partition_that_cannot_be_read_holds_up_no_other() {
    let log = Log::new().await;
    let away = 0..PARTITIONS - 1;
    away.clone().for_each(|partition| log.lead(partition, None));
    let mut waiting: Vec<_> = away.clone().map(|partition| log.read(partition, 0)).collect();
    let mut read = log.read(PARTITIONS - 1, 0);
    assert_eq!(take(&mut read, 0, usize::MAX).await, COUNT);
    assert!(waiting.iter_mut().all(|read| read.try_recv().is_err()), "no partition is available");
    away.for_each(|partition| log.lead(partition, Some(1)));
    for read in &mut waiting {
        let read = tokio::time::timeout(DEADLINE, take(read, 0, usize::MAX)).await;
        assert_eq!(read, Ok(COUNT), "it is read once its leader is back");
    }
}

#[tokio::test]
async fn a_read_whose_records_are_not_taken_holds_up_no_other() {
    let log = Log::new().await;
    let mut waiting: Vec<_> = (0..PARTITIONS - 1).map(|partition| log.read(partition, 0)).collect();
    for read in &mut waiting {
        assert!(take(read, 0, 1).await > 0);
    }
    let mut read = log.read(PARTITIONS - 1, 0);
    assert_eq!(take(&mut read, 0, usize::MAX).await, COUNT);
}

#[tokio::test]
async fn a_read_of_single_records_of_an_unavailable_partition_times_out() {
    let log = Log::new().await;
    assert_eq!(log.reader.last_offset(1).await, Ok(Some(COUNT - 1)));
    log.lead(0, None);
    let looks = async {
        assert_eq!(log.reader.last_offset(0).await, Err(NoAnswer));
        assert_eq!(log.reader.last_records(0, 3).await, Err(NoAnswer));
        assert_eq!(log.reader.record(0, 1).await, Err(NoAnswer));
    };
    tokio::time::timeout(DEADLINE, looks).await.expect("the reads time out");
    let last = log.reader.last_records(1, 3).await.unwrap();
    let offsets: Vec<_> = last.into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, [COUNT - 3, COUNT - 2, COUNT - 1]);
}

#[tokio::test]
async fn a_read_is_complete_after_an_earlier_one_of_its_partition_was_dropped_midway() {
    let log = Log::new().await;
    for from in (0..COUNT).step_by(150).chain((0..COUNT).step_by(170)) {
        let mut left = log.read(0, COUNT - 1 - from);
        take(&mut left, COUNT - 1 - from, 1).await;
        drop(left);
        assert_eq!(take(&mut log.read(0, from), from, usize::MAX).await, COUNT);
    }
}

#[tokio::test]
async fn the_number_of_partitions_is_compared_though_the_log_cannot_be_read_at_first() {
    let log = Log::new().await;
    let (mut value, claimed) = (Vec::new(), PARTITIONS.cast_unsigned() / 2);
    Record::Claim(Claim { nonce: 7, url: "http://127.0.0.1:1".into(), partitions: Some(claimed) }).encode(&mut value);
    let claim = FutureRecord::<(), _>::to(TOPIC).partition(0).payload(&value);
    log.producer.send_result(claim).unwrap().await.unwrap().unwrap();
    log.lead(0, None);
    let comes_back = async {
        assert_eq!(log.reader.last_offset(0).await, Err(NoAnswer));
        log.lead(0, Some(1));
    };
    let compared = async { tokio::join!(check_log(&log.reader, PARTITIONS.cast_unsigned()), comes_back).0 };
    tokio::time::timeout(DEADLINE, compared).await.expect("the comparison ends").unwrap_err();
}
