//! The log of a world, judged record by record as it grows.

use std::fmt::{self, Debug};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use domain::{AggregateType, Rejection, State, TimeMs};
use schemas::answers::{Answer, rejection_name};
use schemas::chain::{Reader, Verdict};
use schemas::events::WireEvent;
use schemas::record::{Commit, Epoch, Record};

use super::clients::{Attempt, TRIES, WISHES};
use crate::partition::tests::{PARTITION, encoded, int};

/// A violated property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flaw {
    /// An acknowledged command does not count, or counts elsewhere.
    Acknowledged,
    /// The records that count are not one chain, each decided on all before it.
    Chain,
    /// A command counts twice.
    Twice,
    /// An answer without events was never true.
    Untrue,
    /// A command that was answered as not counting counts.
    Refused,
    /// A command was answered twice, or with an answer that no owner may give in the model.
    Nonsense,
    /// An owner cannot read on in the log.
    Halted,
    /// An owner never stops reading.
    Endless,
}

/// An encoded record, compared by its digest.
#[derive(Debug, Clone)]
pub(super) struct Value {
    bytes: Arc<[u8]>,
    digest: u64,
}

impl Value {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest_of(&bytes), bytes: bytes.into() }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

pub(super) fn digest_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// An append-only log: a property of a prefix holds for ever.
#[derive(Clone)]
pub(super) struct History {
    entries: Vec<Arc<Entry>>,
    reader: Reader,
    /// Digest of all values.
    digest: u64,
}

struct Entry {
    value: Value,
    is_claim: bool,
    /// Attempt whose command counts here.
    commit: Option<usize>,
    /// Epoch after this entry, and sequence number of the last record that counts in it.
    chain: Option<(Epoch, u64)>,
    /// State of the product after this entry.
    product: Arc<Product>,
}

struct Product {
    state: State,
    version: u64,
}

impl Product {
    fn initial() -> Self {
        Self { state: State::initial(AggregateType::Product), version: 0 }
    }

    fn decide(&self, wish: usize) -> Result<Vec<domain::Event>, Rejection> {
        let command = domain::Command::Product((WISHES[wish].command)());
        domain::decide(&self.state, &command, TimeMs(0))
    }

    /// Returns `Ok` if the command has no effect, or else the reason for its rejection.
    fn says(&self, wish: usize) -> Result<(), &'static str> {
        match self.decide(wish) {
            Ok(events) if events.is_empty() => Ok(()),
            Ok(_) => Err("it changes something"),
            Err(rejection) => Err(rejection_name(&rejection)),
        }
    }
}

impl History {
    pub(super) const EMPTY: Self = Self { entries: Vec::new(), reader: Reader::START, digest: 0 };

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn value(&self, offset: usize) -> &[u8] {
        &self.entries[offset].value.bytes
    }

    pub(super) fn claims(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_claim).count()
    }

    /// Returns the length of the log when the product last changed.
    pub(super) fn changed_at(&self) -> usize {
        self.entries.iter().rposition(|entry| entry.commit.is_some()).map_or(0, |offset| offset + 1)
    }

    /// Returns the offsets at which the command counts.
    fn commits(&self, wish: usize) -> impl Iterator<Item = usize> {
        let is_of = move |(_, entry): &(usize, &Arc<Entry>)| entry.commit.is_some_and(|it| it / TRIES == wish);
        self.entries.iter().enumerate().filter(is_of).map(|(offset, _)| offset)
    }

    /// Returns the product as of this length of the log.
    fn product(&self, length: usize) -> Arc<Product> {
        length.checked_sub(1).map_or_else(|| Arc::new(Product::initial()), |last| self.entries[last].product.clone())
    }

    pub(super) fn append(&mut self, value: Value, attempts: &[Attempt]) -> Result<(), Flaw> {
        let offset = int(self.len());
        let record = Record::decode(&value.bytes).expect("only encoded records are sent");
        let verdict = self.reader.read(offset, record.as_ref()).map_err(|_| Flaw::Halted)?;
        let (chain, counts) = follow(self.entries.last().and_then(|last| last.chain), offset, record.as_ref());
        let mut flaw = if counts == (verdict == Verdict::Counts) { Ok(()) } else { Err(Flaw::Chain) };
        let (mut commit, mut product) = (None, self.product(self.len()));
        if let (true, Some(Record::Commit(counted))) = (counts, &record) {
            flaw = flaw.and(self.judge(counted, &product, attempts));
            commit = attempt_of(counted);
            let events = counted.events.iter().map(WireEvent::upcast);
            let state = events.fold(product.state.clone(), |state, event| domain::evolve(state, &event));
            product = Arc::new(Product { state, version: counted.version });
        }
        let is_claim = matches!(record, Some(Record::Claim(_)));
        self.digest = digest_of(&(self.digest, value.digest));
        self.entries.push(Arc::new(Entry { value, is_claim, commit, chain, product }));
        flaw
    }

    /// Checks that a commit that counts was requested, was decided on everything before it, and was not answered as not
    /// counting.
    fn judge(&self, commit: &Commit<'_>, before: &Product, attempts: &[Attempt]) -> Result<(), Flaw> {
        let Some(attempt) = attempt_of(commit) else { return Err(Flaw::Chain) };
        let wish = attempt / TRIES;
        if self.commits(wish).next().is_some() {
            return Err(Flaw::Twice);
        }
        if attempts[attempt] == Attempt::Refused {
            return Err(Flaw::Refused);
        }
        let events: Vec<_> = commit.events.iter().map(WireEvent::upcast).collect();
        let follows = commit.version == before.version + events.len() as u64;
        if follows && before.decide(wish) == Ok(events) { Ok(()) } else { Err(Flaw::Chain) }
    }

    /// Checks that an answer matches the log, and was true at some point since the log had length `asked_at`.
    pub(super) fn check(&self, attempt: usize, asked_at: usize, answer: &Answer) -> Result<(), Flaw> {
        let wish = attempt / TRIES;
        let at_some_moment = |version: u64, decision: Result<(), &str>| {
            let mut during = (asked_at..=self.len()).map(|length| self.product(length));
            let is_true = during.any(|product| product.version == version && product.says(wish) == decision);
            if is_true { Ok(()) } else { Err(Flaw::Untrue) }
        };
        match answer {
            Answer::Accepted { version, events, .. } if events.is_empty() => at_some_moment(*version, Ok(())),
            Answer::Rejected { rejection, version, .. } => at_some_moment(*version, Err(rejection)),
            Answer::Accepted { version, position, .. } => {
                let mut commits = self.commits(wish);
                let (Some(offset), None) = (commits.next(), commits.next()) else { return Err(Flaw::Acknowledged) };
                let is_named = self.entries[offset].product.version == *version
                    && position.0 == PARTITION
                    && (int(offset)..int(self.len())).contains(&position.1);
                if is_named { Ok(()) } else { Err(Flaw::Acknowledged) }
            }
            // Another attempt may count: the client retries under the same key.
            Answer::NoOwner | Answer::Misdirected | Answer::Overloaded { .. } => {
                let counts = self.entries.iter().any(|entry| entry.commit == Some(attempt));
                if counts { Err(Flaw::Refused) } else { Ok(()) }
            }
            Answer::PreconditionFailed { .. }
            | Answer::KeyReused
            | Answer::KeyExpired { .. }
            | Answer::Invalid { .. }
            | Answer::NoSuchCommand
            | Answer::Quarantined
            | Answer::OutcomeUnknown => Err(Flaw::Nonsense),
        }
    }

    /// Returns a record that would count next, but is from another incarnation of the topic, where the same offset held
    /// another claim.
    pub(super) fn ghost(&self) -> Vec<u8> {
        let Reader { epoch: Some(epoch), last_seq, .. } = self.reader else { return vec![] };
        encoded(&Record::Commit(Commit {
            epoch: Epoch { nonce: !epoch.nonce, ..epoch },
            seq: last_seq + 1,
            command_id: "ghost".into(),
            at_ms: 0,
            aggregate: "product/p".into(),
            version: 99,
            events: vec![WireEvent::newest(&domain::Event::Product(domain::product::Event::Restocked {
                quantity: 99,
            }))],
            fingerprint: 0,
            cause: None,
            trace: None,
            origin: None,
        }))
    }
}

/// Implements the chain rule independently: a record counts if it names the last claim before it, and if the number of
/// records that count from that claim up to and including it is its sequence number.
fn follow(chain: Option<(Epoch, u64)>, offset: i64, record: Option<&Record<'_>>) -> (Option<(Epoch, u64)>, bool) {
    let (epoch, seq) = match record {
        Some(Record::Claim(claim)) => return (Some((Epoch { claim: offset, nonce: claim.nonce }, 0)), false),
        Some(Record::Commit(commit)) => (commit.epoch, commit.seq),
        Some(Record::Fence(fence)) => (fence.epoch, fence.seq),
        None => return (chain, false),
    };
    let next = chain.map(|(epoch, seq)| (epoch, seq + 1));
    if next == Some((epoch, seq)) { (next, true) } else { (chain, false) }
}

fn attempt_of(commit: &Commit<'_>) -> Option<usize> {
    let attempt: usize = commit.trace.as_deref()?.parse().ok()?;
    (WISHES.get(attempt / TRIES)?.key == commit.command_id).then_some(attempt)
}

impl Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| Record::decode(&entry.value.bytes))).finish()
    }
}
