//! Time to read a record of the log: to decode it, and to find out whether it counts.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use schemas::chain::Reader;
use schemas::record::{Claim, Epoch, Fence, Record};

/// A log with two owners, one record per line.
const LOG: &str = include_str!("../golden/log.st1");
const FENCES: u64 = 10_000;

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    let lines: Vec<_> = LOG.lines().collect();
    for (name, lines) in [("claim", &lines[..1]), ("placed order", &lines[4..5]), ("golden log", &lines[..])] {
        group.throughput(Throughput::Bytes(lines.iter().map(|line| line.len() as u64).sum()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for line in lines {
                    black_box(Record::decode(black_box(line.as_bytes())).expect("the record is readable"));
                }
            });
        });
    }
}

fn read(criterion: &mut Criterion) {
    let claim = Record::Claim(Claim { nonce: 1, url: "http://owner".into(), partitions: None });
    let fence = |seq| Record::Fence(Fence { epoch: Epoch { claim: 0, nonce: 1 }, seq });
    let records: Vec<_> = std::iter::once(claim).chain((1..=FENCES).map(fence)).collect();
    let mut group = criterion.benchmark_group("chain");
    group.throughput(Throughput::Elements(records.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| {
            let mut reader = Reader::START;
            for (offset, record) in (0..).zip(&records) {
                black_box(reader.read(offset, Some(black_box(record))).expect("the offsets have no gap"));
            }
            reader
        });
    });
}

criterion_group!(log, decode, read);
criterion_main!(log);
