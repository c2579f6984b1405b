use schemas::cache::End;

use super::state::SHOWN_WITHIN;
use super::*;

const SOON: Duration = Duration::from_secs(5);
const NO_TIME: Duration = Duration::from_millis(1);

fn product() -> FeedId {
    FeedId::named("product").unwrap()
}

fn positions() -> Positions {
    let positions = Positions::default();
    positions.know_log(Log { id: LogId::of_nonce(1), partitions: 2 }, FormerLogs::new());
    positions
}

fn token(partition: u32, offset: i64) -> Token {
    Token::new(LogId::of_nonce(1), partition, offset)
}

fn applied(partition: u32, offset: i64) -> [Applied<'static>; 1] {
    [Applied { view: "product", partition, offset }]
}

fn making(incarnation: u64) -> Making {
    Making { incarnation, generation: 1, revision: 0 }
}

/// Sets the position of partition 0 in Redis.
fn know_cache(positions: &Positions, incarnation: u64, offset: i64) {
    let shown = Shown { making: making(incarnation), offset, hash: None }.to_string();
    let news = News { partition: 0, values: vec![("product", shown.as_str())] };
    positions.know_cache([news], RedisClock { ms: 0, read_at: Instant::now() });
}

fn tell(positions: &Positions, (incarnation, partition): (u64, u32), offset: i64) -> bool {
    let shown = Shown { making: making(incarnation), offset, hash: None }.to_string();
    positions.advance_cache(&News { partition, values: vec![("product", shown.as_str())] })
}

/// Expects Redis, with these incarnations and offsets by partition.
fn cache(shown: [Option<(u64, i64)>; 2]) -> Place {
    Place::Cache {
        makings: shown.map(|shown| shown.map(|(incarnation, _)| making(incarnation))).into(),
        offsets: shown.map(|shown| shown.map_or(NOTHING, |(_, offset)| offset)).into(),
    }
}

#[tokio::test]
async fn redis_is_preferred_where_it_shows_enough_and_postgres_is_read_where_it_is_ahead() {
    let positions = positions();
    positions.advance_store(applied(0, 7), Instant::now());
    know_cache(&positions, 1, 5);
    let reach = async |offset| positions.reach(product(), Places::Any, &token(0, offset), NO_TIME, None).await;
    assert_eq!(reach(5).await, Ok(cache([Some((1, 5)), None])));
    assert_eq!(reach(7).await, Ok(Place::Store));
    let behind = Some(format!("{}.0-7", LogId::of_nonce(1)));
    assert_eq!(reach(8).await, Err(NotReached::Behind { token: behind }));
}

#[tokio::test]
async fn a_wait_ends_with_the_notification_that_reaches_its_token() {
    let positions = Arc::new(positions());
    know_cache(&positions, 1, 5);
    let waits = tokio::spawn({
        let positions = positions.clone();
        async move { positions.reach(product(), Places::Any, &token(0, 7), SOON, None).await }
    });
    positions.someone_waits().await;
    assert!(tell(&positions, (1, 0), 6));
    assert!(tell(&positions, (1, 1), 9));
    assert!(tell(&positions, (1, 0), 7));
    assert_eq!(waits.await.unwrap(), Ok(cache([Some((1, 7)), Some((1, 9))])));
    assert_eq!(positions.waiters(), 0);
}

#[tokio::test]
async fn a_wait_for_several_partitions_ends_when_one_place_shows_them_all() {
    let positions = Arc::new(positions());
    know_cache(&positions, 1, 5);
    let both: Token = format!("{}.0-7,1-4", LogId::of_nonce(1)).parse().unwrap();
    let waits = tokio::spawn({
        let positions = positions.clone();
        async move { positions.reach(product(), Places::Any, &both, SOON, None).await }
    });
    positions.someone_waits().await;
    // Each place shows one half of the token, so neither shows all of it.
    tell(&positions, (1, 0), 7);
    positions.advance_store(applied(1, 4), Instant::now());
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    // One partition starts anew at an earlier offset, and catches up.
    tell(&positions, (2, 0), 6);
    tell(&positions, (1, 1), 9);
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    tell(&positions, (2, 0), 8);
    assert_eq!(waits.await.unwrap(), Ok(cache([Some((2, 8)), Some((1, 9))])));
}

#[test]
fn a_new_incarnation_sets_its_own_position_and_leaves_other_partitions_alone() {
    let positions = positions();
    assert!(!tell(&positions, (1, 0), 9), "the positions of Redis are unknown");
    know_cache(&positions, 1, 5);
    tell(&positions, (1, 1), 7);
    assert_eq!(positions.place(product()), cache([Some((1, 5)), Some((1, 7))]));
    // Late notifications change nothing.
    tell(&positions, (1, 0), 4);
    assert_eq!(positions.place(product()), cache([Some((1, 5)), Some((1, 7))]));
    // A new incarnation may start behind the old one.
    tell(&positions, (2, 0), 4);
    assert_eq!(positions.place(product()), cache([Some((2, 4)), Some((1, 7))]));
    // A reader found other positions there.
    let view = StoredView::named("product").unwrap();
    positions.know_shown(view, 1, Some(Shown { making: making(3), offset: 8, hash: None }));
    positions.know_shown(view, 0, None);
    assert_eq!(positions.place(product()), cache([None, Some((3, 8))]));
    positions.lose_cache();
    assert_eq!(positions.place(product()), Place::Store);
}

#[test]
fn a_redis_that_lags_behind_postgres_for_too_long_is_not_used_until_it_catches_up() {
    let (positions, begun) = (positions(), Instant::now());
    let after = |seconds: f64| begun + SHOWN_WITHIN.mul_f64(seconds);
    know_cache(&positions, 1, 5);
    tell(&positions, (1, 1), 7);
    positions.advance_store(applied(0, 6), after(0.0));
    positions.advance_store(applied(0, 9), after(0.9));
    assert_eq!(positions.place(product()), cache([Some((1, 5)), Some((1, 7))]), "Redis may be about to catch up");
    positions.advance_store(applied(0, 9), after(1.0));
    assert_eq!(positions.place(product()), cache([None, Some((1, 7))]));
    // A full read that finds the same positions changes nothing.
    know_cache(&positions, 1, 5);
    assert_eq!(positions.place(product()), cache([None, None]));
    tell(&positions, (1, 0), 6);
    assert_eq!(positions.place(product()), cache([Some((1, 6)), None]), "Redis has caught up with the floor");
    positions.advance_store(applied(0, 9), after(2.0));
    assert_eq!(positions.place(product()), cache([None, None]));
}

#[tokio::test]
async fn a_read_of_postgres_waits_for_its_position_which_redis_announces() {
    let positions = Arc::new(positions());
    positions.advance_store(applied(0, 5), Instant::now());
    know_cache(&positions, 1, 9);
    let reach = async |within| positions.reach(product(), Places::StoreAlone, &token(0, 7), within, None).await;
    let behind = Some(format!("{}.0-5", LogId::of_nonce(1)));
    assert_eq!(reach(NO_TIME).await, Err(NotReached::Behind { token: behind }));
    let (reached, told) = tokio::join!(reach(SOON), async {
        positions.someone_waits().await;
        let told = |name, value| positions.advance_cache(&News { partition: 0, values: vec![(name, value)] });
        told("product@", "6") && told("journal@", "7") && told("product@", "7")
    });
    assert!(told);
    assert_eq!(reached, Ok(Place::Store));
}

#[test]
fn a_failed_request_stops_reads_of_its_partition_of_a_cluster_or_of_a_whole_redis() {
    let positions = positions();
    know_cache(&positions, 1, 5);
    tell(&positions, (1, 1), 7);
    positions.doubt_cache(Some(9));
    assert_eq!(positions.place(product()), cache([Some((1, 5)), Some((1, 7))]), "there is no such partition");
    positions.doubt_cache(Some(0));
    assert_eq!(positions.place(product()), cache([None, Some((1, 7))]));
    positions.doubt_cache(None);
    assert_eq!(positions.place(product()), Place::Store);
    know_cache(&positions, 1, 5);
    assert_eq!(positions.place(product()), cache([Some((1, 5)), None]), "the positions were read again");
}

#[tokio::test]
async fn no_place_shows_a_token_before_the_log_is_known() {
    let positions = Positions::default();
    positions.advance_store(applied(0, 7), Instant::now());
    know_cache(&positions, 1, 7);
    let reached = positions.reach(product(), Places::Any, &token(0, 7), NO_TIME, None).await;
    assert_eq!(reached, Err(NotReached::Behind { token: None }));
    assert_eq!((positions.shown(product()), positions.waiters()), (None, 0));
}

#[test]
fn positions_never_go_back_and_unknown_views_are_ignored() {
    let mut offsets = Offsets::none(2);
    assert_eq!(offsets.advance(applied(0, 3)), [(product(), 0, 3)]);
    assert_eq!(offsets.advance(applied(0, 2)), []);
    assert_eq!(offsets.advance(applied(2, 9)), []);
    assert_eq!(offsets.advance([Applied { view: "of another build", partition: 0, offset: 9 }]), []);
    assert_eq!(offsets.of(product()), [3, NOTHING]);
}

#[test]
fn a_token_is_covered_by_every_one_of_its_positions() {
    let both: Token = format!("{}.0-3,1-4", LogId::of_nonce(1)).parse().unwrap();
    assert!(covers(&[3, 4], &both));
    assert!(!covers(&[3, 3], &both));
    assert!(!covers(&[3], &both));
}

#[test]
fn an_answers_token_names_what_its_scope_shows() {
    let log = Log { id: LogId::of_nonce(1), partitions: 3 };
    let id = log.id;
    assert_eq!(token_text(log.id, &[3, NOTHING, 0], Scope::All), Some(format!("{id}.0-3,2-0")));
    assert_eq!(token_text(log.id, &[3, NOTHING, 0], Scope::One(2)), Some(format!("{id}.2-0")));
    assert_eq!(token_text(log.id, &[3, NOTHING, 0], Scope::One(1)), None);
}

#[test]
fn a_feeds_lag_counts_the_records_that_only_other_feeds_show() {
    let positions = positions();
    assert_eq!(positions.lag(product()), None);
    positions.advance_store(applied(0, 7), Instant::now());
    positions.advance_store([Applied { view: "journal", partition: 1, offset: 2 }], Instant::now());
    know_cache(&positions, 1, 9);
    assert_eq!(positions.lag(product()), Some(3));
    assert_eq!(positions.lag(FeedId::Journal), Some(10));
    assert_eq!(positions.shown(product()), Some(format!("{}.0-9", LogId::of_nonce(1))));
}

#[test]
fn a_served_generation_is_reported_although_an_older_poll_of_postgres_ends_later() {
    let (positions, product) = (positions(), StoredView::named("product").unwrap());
    positions.know_generation("product", 1);
    positions.note_generation(product, 2);
    positions.know_generation("product", 1);
    assert_eq!(positions.generation(product), 2);
    positions.know_generation("product", 3);
    assert_eq!(positions.generation(product), 3);
}

#[tokio::test]
async fn a_token_that_the_log_does_not_reach_is_refused_and_one_that_it_reached_meanwhile_is_not() {
    let positions = positions();
    let told = |next_offset, at_ms| {
        let end = End { next_offset, at_ms }.to_string();
        positions.know_cache(
            [News { partition: 0, values: vec![(END, end.as_str())] }],
            RedisClock { ms: 1_000_000, read_at: Instant::now() },
        );
    };
    let reach = async |offset| positions.reach(product(), Places::Any, &token(0, offset), NO_TIME, None).await;
    told(5, 999_500);
    assert_eq!(reach(999_999_999_999).await, Err(NotReached::Ahead));
    assert_eq!(reach(5).await, Err(NotReached::Behind { token: None }));
    // The end was read from Kafka while the request waited.
    told(5, 1_001_500);
    assert_eq!(positions.reach(product(), Places::Any, &token(0, 5), SOON, None).await, Err(NotReached::Ahead));
    assert_eq!(reach(4).await, Err(NotReached::Behind { token: None }));
    assert_eq!(positions.age(), None);
}
