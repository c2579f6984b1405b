//! The views do not depend on how the log is cut into batches, nor on where a projector restarts.

use std::collections::BTreeMap;

use domain::ids::{CustomerId, ProductId};
use domain::order::{Ending, Line, Placement};
use domain::{Event, TimeMs, order, product};
use proptest::collection::vec;
use proptest::prelude::*;
use schemas::events::WireEvent;
use schemas::record::{Claim, Epoch, Fence};

use schemas::chain::{Reader, Tally};

use super::*;

const PARTITIONS: u32 = 2;

fn customer() -> StoredView {
    StoredView::named("customer").unwrap()
}

/// One record of the log.
#[derive(Debug, Clone)]
enum Step {
    Place {
        order: u8,
        customer: u8,
        day: u8,
        units: u32,
    },
    Cancel {
        order: u8,
    },
    Restock {
        product: u8,
        quantity: u32,
    },
    /// A claim by a new owner.
    Claim,
    Fence,
    /// Records that no reader counts: foreign bytes, a fence of an ended epoch, and a duplicate.
    Foreign,
    Stale,
    Again,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12_u8, 0..3_u8, 1..4_u8, 1..5_u32)
            .prop_map(|(order, customer, day, units)| Step::Place { order, customer, day, units }),
        3 => (0..12_u8).prop_map(|order| Step::Cancel { order }),
        3 => (0..3_u8, 1..9_u32).prop_map(|(product, quantity)| Step::Restock { product, quantity }),
        1 => Just(Step::Claim),
        1 => Just(Step::Fence),
        1 => Just(Step::Foreign),
        1 => Just(Step::Stale),
        1 => Just(Step::Again),
    ]
}

/// The writer of a partition's log: a correct owner's records, with noise in between.
#[derive(Default)]
struct Writer {
    partition: u32,
    values: Vec<Vec<u8>>,
    epoch: Option<Epoch>,
    seq: u64,
    versions: BTreeMap<String, u64>,
    placed: BTreeMap<u8, Placement>,
}

impl Writer {
    fn write(&mut self, step: &Step) {
        match step {
            Step::Claim => self.claim(),
            Step::Fence => {
                self.seq += 1;
                self.append(&Record::Fence(Fence { epoch: self.epoch.unwrap(), seq: self.seq }));
            }
            Step::Foreign => self.values.push(b"hello".to_vec()),
            Step::Stale => {
                let gone = Epoch { claim: 0, nonce: 77 };
                self.append(&Record::Fence(Fence { epoch: gone, seq: self.seq + 1 }));
            }
            Step::Again => self.values.extend(self.values.last().filter(|value| !is_claim(value)).cloned()),
            Step::Place { order, customer, day, units } => {
                if self.placed.contains_key(order) {
                    return;
                }
                let line = Line { product: ProductId("cd".into()), quantity: *units, amount_cents: 100 };
                let placement = Placement {
                    customer: CustomerId(format!("c-{customer}").into()),
                    lines: vec![line],
                    sale: None,
                    ordered_at: TimeMs(u64::from(*day) * 86_400_000),
                };
                self.placed.insert(*order, placement.clone());
                self.commit(
                    format!("order/o-{}-{order}", self.partition),
                    &Event::Order(order::Event::Placed(placement)),
                );
            }
            Step::Cancel { order } => {
                let Some(placement) = self.placed.get(order).cloned() else { return };
                let name = format!("order/o-{}-{order}", self.partition);
                if self.versions[&name] > 1 {
                    return;
                }
                let ending = Ending {
                    reason: None,
                    customer: placement.customer,
                    units: placement.lines[0].quantity.into(),
                    amount_cents: 100,
                    ordered_at: placement.ordered_at,
                    held: vec![],
                    sale: None,
                };
                self.commit(name, &Event::Order(order::Event::Cancelled(ending)));
            }
            Step::Restock { product, quantity } => {
                let name = format!("product/p-{}-{product}", self.partition);
                if !self.versions.contains_key(&name) {
                    let registration =
                        product::Registration { name: "A".into(), price_cents: 1, stock: 1, limit_per_order: None };
                    self.commit(name.clone(), &Event::Product(product::Event::Registered(registration)));
                }
                self.commit(name, &Event::Product(product::Event::Restocked { quantity: *quantity }));
            }
        }
    }

    fn claim(&mut self) {
        let nonce = 1000 + self.values.len() as u64;
        self.epoch = Some(Epoch { claim: i64::try_from(self.values.len()).unwrap(), nonce });
        self.seq = 0;
        self.append(&Record::Claim(Claim { nonce, url: "http://owner".into(), partitions: None }));
    }

    fn commit(&mut self, aggregate: String, event: &Event) {
        self.seq += 1;
        let version = self.versions.entry(aggregate.clone()).or_default();
        *version += 1;
        let commit = Commit {
            epoch: self.epoch.unwrap(),
            seq: self.seq,
            command_id: format!("k-{}", self.values.len()).into(),
            at_ms: 5,
            aggregate: aggregate.into(),
            version: *version,
            events: vec![WireEvent::newest(event)],
            fingerprint: 0,
            cause: None,
            trace: None,
            origin: None,
        };
        self.append(&Record::Commit(commit));
    }

    fn append(&mut self, record: &Record<'_>) {
        let mut value = Vec::new();
        record.encode(&mut value);
        self.values.push(value);
    }
}

fn is_claim(value: &[u8]) -> bool {
    matches!(Record::decode(value), Ok(Some(Record::Claim(_))))
}

/// The content of Postgres, which applies changes as the statements do.
#[derive(Debug, Default, PartialEq)]
struct Store {
    rows: PerView<Rows>,
    sums: PerView<HashMap<(String, u32), Delta>>,
    /// Tallies by partition.
    tallies: Vec<PerFeed<Tally>>,
    journal: BTreeMap<(String, i64), Vec<u8>>,
}

impl Store {
    fn take(&mut self, changes: Changes) {
        for (known, rows) in self.rows.iter_mut().zip(changes.rows) {
            known.extend(rows);
        }
        for (known, sums) in self.sums.iter_mut().zip(changes.sums) {
            for (key, delta) in sums {
                known.entry(key).and_modify(|sum| sum.add(&delta)).or_insert(delta);
            }
        }
        let runs = changes.journal.runs.into_values();
        let records = runs.flat_map(|run| run.aggregates.into_iter().zip(run.versions).zip(run.records));
        for ((aggregate, version), record) in records {
            let Some(aggregate) = aggregate else { continue };
            let before = self.journal.insert((aggregate, version), record.0.to_vec());
            assert_eq!(before, None, "the journal has a duplicate key");
        }
    }

    fn rows(&self, missing: &Missing) -> Vec<Vec<(String, (u64, AggregateRow))>> {
        let of = |(rows, keys): (&Rows, &HashMap<String, u64>)| {
            keys.keys().filter_map(|key| Some((key.clone(), rows.get(key)?.clone()))).collect()
        };
        self.rows.iter().zip(missing).map(of).collect()
    }
}

fn fold_all(log: &[(u32, i64, Vec<u8>)], batches: &[(usize, bool)]) -> Store {
    let mut store = Store::default();
    let mut all_progress: Vec<_> =
        (0..PARTITIONS).map(|_| Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None)).collect();
    let mut folder = Folder::default();
    let (mut next, mut cuts) = (0, batches.iter().cycle());
    while next < log.len() {
        let (size, starts_again) = cuts.next().copied().unwrap_or((usize::MAX, false));
        let end = log.len().min(next.saturating_add(size));
        let mut records = &log[next..end];
        if starts_again {
            // Restarts from the checkpoints with empty memory. The last counted record is read again.
            folder = Folder::default();
            all_progress = all_progress.iter().map(again).collect();
            records = &log[..end];
        }
        let from: Vec<i64> = all_progress.iter().map(Progress::from).collect();
        let records = records.iter().filter(|(partition, offset, _)| *offset >= from[*partition as usize]);
        let batch = Batch::of(records.map(|(partition, offset, value)| (*partition, *offset, value.as_slice())));
        let missing = folder.missing(&Records::of(&batch, &Exceptions::default()).unwrap(), Feeds::ALL);
        folder.remember(store.rows(&missing));
        store.take(folder.fold(&Records::of(&batch, &Exceptions::default()).unwrap(), &mut all_progress).unwrap());
        next = end;
    }
    store.tallies = all_progress.iter().map(|progress| progress.tallies).collect();
    store
}

/// Returns the progress as its checkpoints restore it.
fn again(progress: &Progress) -> Progress {
    let mut again = Progress::new(progress.readers, Feeds::ALL, progress.nonce);
    again.tallies = progress.tallies;
    again
}

fn log(partitions: &[Vec<Step>]) -> Vec<(u32, i64, Vec<u8>)> {
    let mut log = Vec::new();
    for (partition, steps) in (0..).zip(partitions) {
        let mut writer = Writer { partition, ..Writer::default() };
        writer.claim();
        steps.iter().for_each(|step| writer.write(step));
        log.extend((0..).zip(writer.values).map(|(offset, value)| (partition, offset, value)));
    }
    // Interleaves the partitions as fetches do, each in offset order.
    log.sort_by_key(|(partition, offset, _)| (offset / 3, *partition, *offset));
    log
}

proptest! {
    #[test]
    fn batches_and_restarts_do_not_show_in_the_views(
        partitions in vec(vec(step(), 0..40), PARTITIONS as usize),
        batches in vec((1..12_usize, any::<bool>()), 1..12),
    ) {
        let log = log(&partitions);
        prop_assert_eq!(fold_all(&log, &batches), fold_all(&log, &[]));
    }
}

#[test]
fn a_view_that_lags_the_others_catches_up_alone() {
    let steps = [Step::Place { order: 1, customer: 1, day: 1, units: 2 }, Step::Cancel { order: 1 }];
    let log = log(&[steps.to_vec(), vec![]]);
    let batch = Batch::of(log.iter().map(|(partition, offset, value)| (*partition, *offset, value.as_slice())));
    let start = || vec![Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None); PARTITIONS as usize];
    let mut all_progress = start();
    Folder::default().fold(&Records::of(&batch, &Exceptions::default()).unwrap(), &mut all_progress).unwrap();
    let mut behind: Vec<_> =
        all_progress.iter().map(|progress| Progress::new(progress.readers, Feeds::ALL, progress.nonce)).collect();
    behind[0].readers[FeedId::View(customer())] = Reader::START;
    let mut behind: Vec<_> =
        behind.iter().map(|progress| Progress::new(progress.readers, Feeds::ALL, progress.nonce)).collect();
    let changes = Folder::default().fold(&Records::of(&batch, &Exceptions::default()).unwrap(), &mut behind).unwrap();
    assert_eq!((changes.sums[customer()].len(), changes.len()), (1, 1));
    assert!(changes.journal.runs.is_empty());
}

#[test]
fn what_others_fold_is_neither_asked_for_nor_written() {
    let place = |order| Step::Place { order, customer: 1, day: 1, units: 2 };
    let log = log(&[vec![place(1), Step::Restock { product: 1, quantity: 1 }, Step::Cancel { order: 1 }], vec![]]);
    let batch = Batch::of(log.iter().map(|(partition, offset, value)| (*partition, *offset, value.as_slice())));
    let feeds = Feeds::only(FeedId::View(customer()));
    let mut all_progress = vec![Progress::new([Reader::START; FeedId::COUNT], feeds, None); PARTITIONS as usize];
    let mut folder = Folder::default();
    let missing = folder.missing(&Records::of(&batch, &Exceptions::default()).unwrap(), feeds);
    assert!(missing.iter().all(HashMap::is_empty));
    // Rows that are in memory nevertheless.
    folder.remember(fold_all(&log, &[]).rows.map(|rows| rows.into_iter().collect()));
    let changes = folder.fold(&Records::of(&batch, &Exceptions::default()).unwrap(), &mut all_progress).unwrap();
    assert_eq!((changes.sums[customer()].len(), changes.len()), (1, 1));
}

#[test]
fn rows_of_another_source_are_reported_if_they_were_folded_and_dropped_if_they_were_not() {
    let place = |order| Step::Place { order, customer: 1, day: 1, units: 2 };
    let cancel = |order| Step::Cancel { order };
    let log = log(&[vec![place(0), place(1), cancel(0), cancel(1)], vec![]]);
    let (first, later) = log.iter().partition::<Vec<_>, _>(|(partition, offset, _)| *partition > 0 || *offset <= 2);
    let batch = |records: &[&(u32, i64, Vec<u8>)]| {
        Batch::of(records.iter().map(|(partition, offset, value)| (*partition, *offset, value.as_slice())))
    };
    let mut all_progress = vec![Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None); PARTITIONS as usize];
    let before = Folder::default()
        .fold(&Records::of(&batch(&first), &Exceptions::default()).unwrap(), &mut all_progress)
        .unwrap()
        .rows;
    let order = StoredView::named("order").unwrap();
    let (folded, other) = (&later[..1], &later[1..]);
    let mut folder = Folder::default();
    folder.remember_unproved(before.clone());
    let changes =
        folder.fold(&Records::of(&batch(folded), &Exceptions::default()).unwrap(), &mut all_progress).unwrap();
    let [key] = &changes.rows[order].keys().collect::<Vec<_>>()[..] else { panic!("one row was changed") };
    assert_eq!(changes.bases[order], HashMap::from([((*key).clone(), before[order][*key].clone())]));
    let missing = folder.missing(&Records::of(&batch(other), &Exceptions::default()).unwrap(), Feeds::ALL);
    assert_eq!(missing[order].len(), 1, "the other row is not loaded again");
}

#[test]
fn a_claim_with_another_number_of_partitions_halts_the_fold() {
    let fold = |partitions| {
        let mut value = vec![];
        Record::Claim(Claim { nonce: 1, url: "http://owner".into(), partitions }).encode(&mut value);
        let mut all_progress =
            vec![Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None); PARTITIONS as usize];
        let batch = Batch::of([(0, 0, value.as_slice())]);
        Folder::default().fold(&Records::of(&batch, &Exceptions::default()).unwrap(), &mut all_progress).map(|_| ())
    };
    fold(None).unwrap();
    fold(Some(PARTITIONS)).unwrap();
    let error = fold(Some(PARTITIONS - 1)).unwrap_err();
    assert!(matches!(error, FoldError::Partitions { partition: 0, offset: 0, .. }), "{error:?}");
}

#[test]
fn another_history_at_a_checkpoint_halts_the_fold() {
    let steps = |units| vec![Step::Place { order: 1, customer: 1, day: 1, units }, Step::Claim, Step::Fence];
    let one = log(&[steps(1), vec![]]);
    let batch = |log: &[(u32, i64, Vec<u8>)]| {
        Batch::of(log.iter().map(|(partition, offset, value)| (*partition, *offset, value.as_slice())))
    };
    let mut all_progress = vec![Progress::new([Reader::START; FeedId::COUNT], Feeds::ALL, None); PARTITIONS as usize];
    Folder::default().fold(&Records::of(&batch(&one), &Exceptions::default()).unwrap(), &mut all_progress).unwrap();
    let mut again: Vec<_> =
        all_progress.iter().map(|progress| Progress::new(progress.readers, Feeds::ALL, progress.nonce)).collect();
    let mut other = one.clone();
    let last = other.iter().rposition(|(partition, ..)| *partition == 0).unwrap();
    other[last].2 = b"another topic's".to_vec();
    let error =
        Folder::default().fold(&Records::of(&batch(&other), &Exceptions::default()).unwrap(), &mut again).unwrap_err();
    assert!(matches!(error, FoldError::OtherHistory { partition: 0, .. }), "{error:?}");
}
