//! Time to fold a batch of the log into every view.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use domain::TimeMs;
use domain::ids::{CustomerId, PaymentId, ProductId};
use domain::order::{Event, Line, Payment, Placement};
use projector::bench::fold;
use schemas::events::WireEvent;
use schemas::record::{Claim, Commit, Epoch, Record};

const ORDERS: u64 = 1_000;

/// A log that is being written.
struct Log {
    values: Vec<Vec<u8>>,
}

impl Log {
    const EPOCH: Epoch = Epoch { claim: 0, nonce: 1 };

    fn claimed() -> Self {
        let claim = Claim { nonce: Self::EPOCH.nonce, url: "http://owner".into(), partitions: Some(1) };
        let mut log = Self { values: Vec::new() };
        log.append(&Record::Claim(claim));
        log
    }

    fn commit(&mut self, order: u64, version: u64, event: Event) {
        let seq = self.values.len() as u64;
        self.append(&Record::Commit(Commit {
            epoch: Self::EPOCH,
            seq,
            command_id: format!("0198c5a2-7c00-7000-8000-{seq:012}").into(),
            at_ms: 1_700_000_000_000 + seq,
            aggregate: format!("order/o-{order}").into(),
            version,
            events: vec![WireEvent::newest(&domain::Event::Order(event))],
            fingerprint: seq,
            cause: None,
            trace: None,
            origin: None,
        }));
    }

    fn append(&mut self, record: &Record<'_>) {
        let mut value = Vec::new();
        record.encode(&mut value);
        self.values.push(value);
    }
}

/// Returns orders of two lines, each placed and paid.
fn orders() -> Log {
    let mut log = Log::claimed();
    for number in 0..ORDERS {
        let line =
            |product| Line { product: ProductId(format!("p-{product}").into()), quantity: 1, amount_cents: 1999 };
        let lines = vec![line(number % 100), line(number % 100 + 1)];
        let customer = CustomerId(format!("c-{}", number % 300).into());
        let ordered_at = TimeMs(1_700_000_000_000 + number);
        let placement = Placement { customer, lines: lines.clone(), sale: None, ordered_at };
        log.commit(number, 1, Event::Placed(placement));
        let payment = PaymentId(format!("pay-{number}").into());
        log.commit(number, 2, Event::Paid(Payment { payment, amount_cents: 3998, lines, sale: None }));
    }
    log
}

fn benches(criterion: &mut Criterion) {
    let Log { values } = orders();
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(values.len() as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            for value in &values {
                black_box(Record::decode(black_box(value)).expect("the record is readable"));
            }
        });
    });
    group.bench_function("decode and fold", |bencher| bencher.iter(|| fold(black_box(&values))));
}

criterion_group!(fold_benches, benches);
criterion_main!(fold_benches);
