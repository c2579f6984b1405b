//! Sharing of work between concurrent requests: those that want the same at the same time wait for one task.
//!
//! Invariant: the task does not belong to the request that started it. It continues if that request is dropped, and
//! however it ends, by a panic too, it wakes all requests that wait for it and leaves no entry behind.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Map, Shared};
use hashbrown::HashMap;
use tokio::task::{JoinError, JoinHandle};

/// Result of a task, for each request that waits for it; `None` if the task panicked.
pub(crate) type Answer<V> = Shared<Map<JoinHandle<V>, fn(Result<V, JoinError>) -> Option<V>>>;

/// Tasks in flight by key, each with the terms on which it was started.
pub(crate) struct SingleFlight<K, T, V> {
    flights: Arc<Mutex<Flights<K, T, V>>>,
    linger: Duration,
}

struct Flights<K, T, V> {
    next_id: u64,
    by_key: HashMap<K, Flight<T, V>>,
}

struct Flight<T, V> {
    id: u64,
    terms: T,
    /// Result of a task that has ended and lingers.
    ended: Option<V>,
    answer: Answer<V>,
}

/// The entry of a task, removed when dropped.
struct Entry<K: Hash + Eq, T, V> {
    flights: Arc<Mutex<Flights<K, T, V>>>,
    key: K,
    id: u64,
}

impl<K, T, V> SingleFlight<K, T, V>
where
    K: Hash + Eq + Send + 'static,
    T: Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Creates an empty registry. A task can still be joined until it has ended for as long as `linger`.
    pub(crate) fn new(linger: Duration) -> Self {
        let flights = Flights { next_id: 0, by_key: HashMap::new() };
        Self { flights: Arc::new(Mutex::new(flights)), linger }
    }

    /// Returns the answer of the task under `key` if `serves` accepts its terms and, once it has ended, its result. Else
    /// starts a task on the given terms, which takes the key over.
    pub(crate) fn join<Q, F>(
        &self,
        key: &Q,
        terms: T,
        serves: impl FnOnce(&T, Option<&V>) -> bool,
        begin: impl FnOnce() -> F,
    ) -> Answer<V>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + Hash + Eq + ?Sized,
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = lock(&self.flights);
        if let Some(Flight { terms, ended, answer, .. }) = flights.by_key.get(key)
            && serves(terms, ended.as_ref())
        {
            return answer.clone();
        }
        let id = flights.next_id;
        flights.next_id += 1;
        let (own, own_key, work, linger) = (self.flights.clone(), key.to_owned(), begin(), self.linger);
        let task = tokio::spawn(async move {
            // Created by the task itself: a runtime that shuts down drops a new task at once, under this very lock.
            let entry = Entry { flights: own, key: own_key, id };
            let value = work.await;
            if !linger.is_zero() {
                entry.end(value.clone());
                // This task ends by itself after the sleep.
                tokio::spawn(async move {
                    tokio::time::sleep(linger).await;
                    drop(entry);
                });
            }
            value
        });
        let answer = task.map(Result::ok as fn(Result<V, JoinError>) -> Option<V>).shared();
        flights.by_key.insert(key.to_owned(), Flight { id, terms, ended: None, answer: answer.clone() });
        answer
    }
}

impl<K: Hash + Eq, T, V> Entry<K, T, V> {
    /// Records the result of the task, unless a later one has taken the key over.
    fn end(&self, value: V) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.by_key.get_mut(&self.key).filter(|flight| flight.id == self.id) {
            flight.ended = Some(value);
        }
    }
}

impl<K: Hash + Eq, T, V> Drop for Entry<K, T, V> {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights);
        // A later task may have taken the key over.
        if flights.by_key.get(&self.key).is_some_and(|flight| flight.id == self.id) {
            flights.by_key.remove(&self.key);
        }
    }
}

fn lock<K, T, V>(flights: &Mutex<Flights<K, T, V>>) -> MutexGuard<'_, Flights<K, T, V>> {
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    type Numbers = SingleFlight<String, u32, Result<usize, &'static str>>;

    const SOON: Duration = Duration::from_secs(5);

    /// Work that waits for a permit and then returns how often it ran, or fails.
    struct Work {
        permits: Arc<Semaphore>,
        runs: Arc<AtomicUsize>,
    }

    impl Work {
        fn new() -> Self {
            Self { permits: Arc::new(Semaphore::new(0)), runs: Arc::default() }
        }

        fn begin(&self, fails: bool) -> impl Future<Output = Result<usize, &'static str>> + Send + use<> {
            let (permits, runs) = (self.permits.clone(), self.runs.clone());
            async move {
                permits.acquire().await.expect("the semaphore is never closed").forget();
                let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
                if fails { Err("on purpose") } else { Ok(run) }
            }
        }

        fn join(&self, numbers: &Numbers) -> Answer<Result<usize, &'static str>> {
            numbers.join("a", 0, in_flight, || self.begin(false))
        }
    }

    async fn told(answer: Answer<Result<usize, &'static str>>) -> Option<Result<usize, &'static str>> {
        tokio::time::timeout(SOON, answer).await.expect("a request was left waiting")
    }

    fn in_flight(_: &u32, ended: Option<&Result<usize, &'static str>>) -> bool {
        ended.is_none()
    }

    fn is_empty(numbers: &Numbers) -> bool {
        lock(&numbers.flights).by_key.is_empty()
    }

    async fn until_empty(numbers: &Numbers) {
        let emptied = async {
            while !is_empty(numbers) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, emptied).await.expect("an entry was left behind");
    }

    #[tokio::test]
    async fn one_task_serves_all_that_ask_while_it_runs_and_leaves_no_entry() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        let all: Vec<_> = (0..100).map(|_| work.join(&numbers)).collect();
        work.permits.add_permits(1);
        for answer in all {
            assert_eq!(told(answer).await, Some(Ok(1)));
        }
        assert!(is_empty(&numbers));
    }

    #[tokio::test]
    async fn a_request_that_comes_after_the_end_starts_anew() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        work.permits.add_permits(2);
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(1)));
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn a_task_that_fails_wakes_all_and_is_not_joined_again() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        let all: Vec<_> = (0..3).map(|_| numbers.join("a", 0, in_flight, || work.begin(true))).collect();
        work.permits.add_permits(2);
        for answer in all {
            assert_eq!(told(answer).await, Some(Err("on purpose")));
        }
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn a_failure_that_no_request_awaited_is_not_joined_while_it_lingers() {
        let (numbers, work) = (Numbers::new(SOON), Work::new());
        drop(numbers.join("a", 0, in_flight, || work.begin(true)));
        work.permits.add_permits(2);
        while work.runs.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(2)));
    }

    #[tokio::test]
    async fn a_task_that_panics_wakes_all_and_leaves_no_entry() {
        let (numbers, work) = (Numbers::new(SOON), Work::new());
        let panics = async { panic!("on purpose") };
        let first = numbers.join("a", 0, in_flight, || panics);
        let second = work.join(&numbers);
        assert_eq!((told(first).await, told(second).await), (None, None));
        assert!(is_empty(&numbers));
        work.permits.add_permits(1);
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(1)));
    }

    #[tokio::test]
    async fn a_task_continues_without_the_request_that_started_it() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        let first = work.join(&numbers);
        let second = work.join(&numbers);
        drop(first);
        work.permits.add_permits(1);
        assert_eq!(told(second).await, Some(Ok(1)));
        drop(work.join(&numbers));
        work.permits.add_permits(1);
        until_empty(&numbers).await;
        assert_eq!(work.runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_request_that_a_task_does_not_serve_takes_the_key_over() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        let serves_own = |terms: &u32, _: Option<&_>| *terms == 1;
        let old = work.join(&numbers);
        let new = numbers.join("a", 1, serves_own, || work.begin(false));
        work.permits.add_permits(1);
        assert_eq!(told(old).await, Some(Ok(1)));
        // The end of the first task does not remove the second.
        let joined = numbers.join("a", 1, serves_own, || work.begin(false));
        work.permits.add_permits(1);
        assert_eq!((told(new).await, told(joined).await), (Some(Ok(2)), Some(Ok(2))));
        assert!(is_empty(&numbers));
    }

    #[tokio::test]
    async fn tasks_of_different_keys_do_not_wait_for_each_other() {
        let (numbers, work) = (Numbers::new(Duration::ZERO), Work::new());
        let held = work.join(&numbers);
        let other = numbers.join("b", 0, in_flight, async || Ok(7));
        assert_eq!(told(other).await, Some(Ok(7)));
        assert!(held.peek().is_none());
    }

    #[tokio::test]
    async fn an_ended_task_is_joined_while_it_lingers_if_its_result_serves() {
        let (numbers, work) = (Numbers::new(Duration::from_millis(20)), Work::new());
        work.permits.add_permits(2);
        assert_eq!(told(work.join(&numbers)).await, Some(Ok(1)));
        let wants = |least| move |_: &u32, ended: Option<&Result<usize, _>>| ended.is_none_or(|run| *run >= Ok(least));
        assert_eq!(told(numbers.join("a", 0, wants(1), || work.begin(false))).await, Some(Ok(1)));
        assert_eq!(told(numbers.join("a", 0, wants(2), || work.begin(false))).await, Some(Ok(2)));
        until_empty(&numbers).await;
    }
}
