//! The copy of one partition to those of the new log that its aggregates hash to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use schemas::aggregate::AggregateId;
use schemas::chain::{Reader, Verdict, Writer};
use schemas::exceptions::Exceptions;
use schemas::record::{Claim, Commit, Epoch, Record, copied};
use schemas::token::{LogId, Token};

use super::ANSWERS_WITHIN;
use crate::kafka::producer::{DeliveryReport, DeliveryReports, Producers};
use crate::kafka::reader::{LogReader, ReadEvent, Records};
use crate::partition::{ReadTo, Ticket};

/// Maximum number of records in flight to one new partition.
const MAX_IN_FLIGHT: u64 = 5_000;
/// Pause while the producer's queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// The copy of one old partition.
pub(super) struct PartitionCopy {
    pub(super) partition: u32,
    /// Numbers of partitions of the old and of the new log.
    pub(super) partitions: (u32, u32),
    /// ID of the old log.
    pub(super) log: LogId,
    /// Topic of the new log.
    pub(super) continues_in: String,
    pub(super) log_reader: LogReader,
    pub(super) exceptions: Arc<Exceptions>,
    pub(super) source: Reader,
    /// Producer to the old log, for the closing claim.
    pub(super) closer: Arc<Producers>,
    pub(super) closed: DeliveryReports,
    /// New partitions with this partition's aggregates, in their order.
    pub(super) targets: Vec<Target>,
}

impl PartitionCopy {
    /// Copies up to the present end, and returns the number of offsets that it read.
    pub(super) async fn pass(&mut self) -> anyhow::Result<i64> {
        let from = self.source.next_offset;
        self.read(ReadTo::End).await?;
        Ok(self.source.next_offset - from)
    }

    /// Closes the old partition, copies its rest, and opens the new ones to owners.
    pub(super) async fn close(&mut self) -> anyhow::Result<()> {
        // An earlier run may have closed it.
        self.read(ReadTo::End).await?;
        if !self.source.is_closed() {
            let closing = Claim::closing(&self.continues_in, self.partitions.0);
            let offset = append_claim(&self.closer, &mut self.closed, self.partition, closing).await?;
            self.read(ReadTo::Offset(offset + 1)).await?;
        }
        ensure!(self.source.is_closed(), "partition {} is not closed behind its closing claim", self.partition);
        for target in &mut self.targets {
            target.finish().await?;
        }
        Ok(())
    }

    async fn read(&mut self, to: ReadTo) -> anyhow::Result<()> {
        let mut events = self.log_reader.read(self.partition, self.source.next_offset, to);
        loop {
            match events.recv().await {
                Some(ReadEvent::Records(records)) => self.take(&records).await?,
                Some(ReadEvent::Ended) => break,
                Some(ReadEvent::Failed(error)) => return Err(error).context("read the old log"),
                None => bail!("the reader of the old log ended"),
            }
        }
        for target in &mut self.targets {
            target.settle(0).await?;
        }
        Ok(())
    }

    async fn take(&mut self, records: &Records) -> anyhow::Result<()> {
        for (offset, value) in records.iter() {
            let record = self.exceptions.decode((self.partition, offset), value)?;
            if let Some(Record::Claim(claim)) = &record {
                claim.check_partitions(self.partitions.0)?;
            }
            if let (Verdict::Counts, Some(Record::Commit(commit))) =
                (self.source.read(offset, record.as_ref())?, &record)
            {
                let (partition, of) =
                    (AggregateId::parse(&commit.aggregate)?.partition(self.partitions.1), self.partitions.0);
                ensure!(
                    partition % of == self.partition,
                    "{} lies in another partition than its own",
                    commit.aggregate
                );
                let target = &mut self.targets[(partition / of) as usize];
                target.copy(value, commit, &Token::new(self.log, self.partition, offset).to_string()).await?;
            }
        }
        Ok(())
    }
}

/// A partition of the new log, claimed by the tool.
pub(super) struct Target {
    partition: u32,
    partitions: u32,
    /// Topic of the old log.
    of: String,
    producers: Arc<Producers>,
    reports: DeliveryReports,
    writer: Writer,
    /// Content of the partition when it was claimed.
    had: Found,
    /// Number of those commits that have not been met in the old log yet.
    to_skip: u64,
}

/// Content of a new partition.
#[derive(Debug, Default)]
struct Found {
    commits: u64,
    /// Aggregate and version of the last commit.
    last: Option<(String, u64)>,
    /// Set if the copy was completed: owners may have claimed the partition since.
    is_complete: bool,
    /// Offset behind the last record that was read.
    end: i64,
}

impl Target {
    /// Claims a partition, unless its copy is complete, and reads what it has.
    pub(super) async fn begin(
        partition: u32,
        partitions: u32,
        of: String,
        log_reader: LogReader,
        producers: Arc<Producers>,
        mut reports: DeliveryReports,
    ) -> anyhow::Result<Self> {
        let (mut reader, mut had) = (Reader::START, Found::default());
        had.read(&log_reader, partition, &mut reader, ReadTo::End).await?;
        let mut epoch = Epoch { claim: 0, nonce: 0 };
        if !had.is_complete {
            epoch.nonce = rand::random();
            let claim = Claim::copying(epoch.nonce, &of, partitions);
            epoch.claim = append_claim(&producers, &mut reports, partition, claim).await?;
            had.read(&log_reader, partition, &mut reader, ReadTo::Offset(epoch.claim + 1)).await?;
            ensure!(!had.is_complete && reader.epoch == Some(epoch), "another run of this tool is copying");
        }
        let to_skip = had.commits;
        Ok(Self { partition, partitions, of, producers, reports, writer: Writer::new(epoch), had, to_skip })
    }

    pub(super) fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the offset behind the last record of the copy.
    pub(super) fn end(&self) -> i64 {
        if self.had.is_complete { self.had.end } else { self.writer.offset_of(self.writer.acknowledged()) + 1 }
    }

    /// Appends a commit of the old log unless the partition has it.
    async fn copy(&mut self, value: &[u8], commit: &Commit<'_>, origin: &str) -> anyhow::Result<()> {
        if self.to_skip > 0 {
            self.to_skip -= 1;
            let is_last = self.to_skip > 0
                || self.had.last.as_ref().is_some_and(|(aggregate, version)| {
                    (aggregate.as_str(), *version) == (&commit.aggregate, commit.version)
                });
            ensure!(is_last, "partition {} is not a copy of {:?}", self.partition, self.of);
            return Ok(());
        }
        ensure!(!self.had.is_complete, "partition {} was completed, but lacks records", self.partition);
        self.settle(MAX_IN_FLIGHT).await?;
        let (epoch, seq) = (self.writer.epoch(), self.writer.next_seq());
        let copy = copied(value, epoch, seq, origin)?;
        let append = async {
            let ticket = Ticket { generation: 0, seq };
            while self.producers.append(self.partition, &commit.aggregate, &copy, ticket).is_err() {
                tokio::time::sleep(FULL_PAUSE).await;
            }
        };
        tokio::time::timeout(ANSWERS_WITHIN, append).await.context("Kafka accepts no records")?;
        self.writer.sent();
        Ok(())
    }

    /// Waits until at most `most` records are in flight. Fails if any other record is among them: the next run tells
    /// which of them count.
    async fn settle(&mut self, most: u64) -> anyhow::Result<()> {
        while self.writer.last_sent() - self.writer.acknowledged() > most {
            let DeliveryReport { ticket, offset } = next(&mut self.reports).await?;
            let acknowledged = offset.ok().and_then(|offset| self.writer.delivered(ticket.seq, offset).ok());
            acknowledged
                .with_context(|| format!("a record to partition {} is in doubt; run it again", self.partition))?;
        }
        Ok(())
    }

    /// Opens the partition to owners.
    async fn finish(&mut self) -> anyhow::Result<()> {
        ensure!(self.to_skip == 0, "partition {} has records that {:?} lacks", self.partition, self.of);
        if self.had.is_complete {
            return Ok(());
        }
        let claim = Claim::copied(rand::random(), &self.of, self.partitions);
        let offset = append_claim(&self.producers, &mut self.reports, self.partition, claim).await?;
        ensure!(offset == self.end(), "another writer wrote to partition {}; run it again", self.partition);
        (self.had.is_complete, self.had.end) = (true, offset + 1);
        Ok(())
    }
}

impl Found {
    async fn read(&mut self, log: &LogReader, partition: u32, reader: &mut Reader, to: ReadTo) -> anyhow::Result<()> {
        let mut events = log.read(partition, reader.next_offset, to);
        loop {
            match events.recv().await {
                Some(ReadEvent::Records(records)) => self.take(&records, reader)?,
                Some(ReadEvent::Ended) => return Ok(()),
                Some(ReadEvent::Failed(error)) => return Err(error).context("read the new log"),
                None => bail!("the reader of the new log ended"),
            }
        }
    }

    fn take(&mut self, records: &Records, reader: &mut Reader) -> anyhow::Result<()> {
        for (offset, value) in records.iter() {
            let record = Record::decode(value)?;
            let verdict = reader.read(offset, record.as_ref())?;
            match (verdict, record) {
                (Verdict::Claimed(_), Some(Record::Claim(claim))) if claim.copies().is_none() && !self.is_complete => {
                    (self.is_complete, self.end) = (true, offset + 1);
                }
                (Verdict::Counts, Some(Record::Commit(commit))) if !self.is_complete => {
                    self.commits += 1;
                    self.last = Some((commit.aggregate.to_string(), commit.version));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Appends a claim and returns its offset.
async fn append_claim(
    producers: &Producers,
    reports: &mut DeliveryReports,
    partition: u32,
    claim: Claim<'_>,
) -> anyhow::Result<i64> {
    let mut value = Vec::new();
    Record::Claim(claim).encode(&mut value);
    let sent = producers.append(partition, "", &value, Ticket { generation: 0, seq: 0 });
    ensure!(sent.is_ok(), "Kafka accepts no records");
    let report = next(reports).await?;
    report.offset.ok().with_context(|| format!("a claim of partition {partition} got no offset; run it again"))
}

async fn next(reports: &mut DeliveryReports) -> anyhow::Result<DeliveryReport> {
    let report = tokio::time::timeout(ANSWERS_WITHIN, reports.recv()).await;
    report.context("Kafka acknowledges no records")?.context("the producer ended")
}
