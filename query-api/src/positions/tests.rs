use super::*;

const SOON: Duration = Duration::from_secs(5);
const NO_TIME: Duration = Duration::from_millis(1);

fn product() -> FeedId {
    FeedId::named("product").unwrap()
}

fn positions() -> Positions {
    let positions = Positions::default();
    positions.know_log(Log { id: LogId::of_nonce(1), partitions: 2 });
    positions
}

fn token(partition: u32, offset: i64) -> Token {
    Token::new(LogId::of_nonce(1), partition, offset)
}

fn applied(partition: u32, offset: i64) -> [Applied<'static>; 1] {
    [Applied { view: "product", partition, offset }]
}

fn know_cache(positions: &Positions, incarnation: &str, offset: i64) {
    let applied = HashMap::from([("product/0".to_owned(), offset)]);
    positions.know_cache(incarnation, &applied, (0, Instant::now()));
}

fn cache(incarnation: &str, offsets: [i64; 2]) -> Place {
    Place::Cache { incarnation: incarnation.into(), offsets: offsets.into() }
}

#[tokio::test]
async fn redis_is_preferred_where_it_shows_enough_and_postgres_stands_in_where_it_is_ahead() {
    let positions = positions();
    positions.advance_store(applied(0, 7));
    know_cache(&positions, "a", 5);
    let reach = async |offset| positions.reach(product(), &token(0, offset), NO_TIME, None).await;
    assert_eq!(reach(5).await, Ok(cache("a", [5, NOTHING])));
    assert_eq!(reach(7).await, Ok(Place::Store));
    let behind = Some(format!("{}.0-7", LogId::of_nonce(1)));
    assert_eq!(reach(8).await, Err(NotReached::Behind { token: behind }));
}

#[tokio::test]
async fn a_wait_ends_with_the_news_that_reach_its_token() {
    let positions = Arc::new(positions());
    know_cache(&positions, "a", 5);
    let waits = tokio::spawn({
        let positions = positions.clone();
        async move { positions.reach(product(), &token(0, 7), SOON, None).await }
    });
    positions.someone_waits().await;
    assert!(positions.advance_cache("a", applied(0, 6)));
    assert!(positions.advance_cache("a", applied(1, 9)));
    assert!(positions.advance_cache("a", applied(0, 7)));
    assert_eq!(waits.await.unwrap(), Ok(cache("a", [7, 9])));
    assert_eq!(positions.waiters(), 0);
}

#[tokio::test]
async fn a_wait_for_several_partitions_ends_when_one_place_shows_them_all() {
    let positions = Arc::new(positions());
    know_cache(&positions, "a", 5);
    let both: Token = format!("{}.0-7,1-4", LogId::of_nonce(1)).parse().unwrap();
    let waits = tokio::spawn({
        let positions = positions.clone();
        async move { positions.reach(product(), &both, SOON, None).await }
    });
    positions.someone_waits().await;
    // Either place has one half: neither shows the token.
    positions.advance_cache("a", applied(0, 7));
    positions.advance_store(applied(1, 4));
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    // Redis begins again, further behind, and gets there.
    positions.lose_cache();
    know_cache(&positions, "b", 6);
    positions.advance_cache("b", applied(1, 9));
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    positions.advance_cache("b", applied(0, 8));
    assert_eq!(waits.await.unwrap(), Ok(cache("b", [8, 9])));
}

#[tokio::test]
async fn another_incarnation_is_read_before_it_is_believed() {
    let positions = positions();
    know_cache(&positions, "a", 5);
    assert!(!positions.advance_cache("b", applied(0, 9)));
    assert_eq!(positions.place(product()), cache("a", [5, NOTHING]));
    // It may be behind what the old one showed: then its positions are the truth.
    know_cache(&positions, "b", 4);
    assert_eq!(positions.place(product()), cache("b", [4, NOTHING]));
    positions.lose_cache();
    assert_eq!(positions.place(product()), Place::Store);
}

#[test]
fn positions_never_go_back_and_strangers_are_passed_over() {
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
fn a_feeds_lag_is_what_the_others_show_and_it_does_not() {
    let positions = positions();
    assert_eq!(positions.lag(product()), None);
    positions.advance_store(applied(0, 7));
    positions.advance_store([Applied { view: "journal", partition: 1, offset: 2 }]);
    know_cache(&positions, "a", 9);
    assert_eq!(positions.lag(product()), Some(3));
    assert_eq!(positions.lag(FeedId::Journal), Some(10));
    assert_eq!(positions.shown(product()), Some(format!("{}.0-9", LogId::of_nonce(1))));
}

#[test]
fn a_generation_that_was_served_is_told_although_an_older_look_at_postgres_ends_later() {
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
        let applied = HashMap::from([("end/0".to_owned(), next_offset), ("end_at/0".to_owned(), at_ms)]);
        positions.know_cache("a", &applied, (1_000_000, Instant::now()));
    };
    let reach = async |offset| positions.reach(product(), &token(0, offset), NO_TIME, None).await;
    told(5, 999_500);
    assert_eq!(reach(999_999_999_999).await, Err(NotReached::Ahead));
    assert_eq!(reach(5).await, Err(NotReached::Behind { token: None }));
    // Asked of Kafka while the request waits.
    told(5, 1_001_500);
    assert_eq!(positions.reach(product(), &token(0, 5), SOON, None).await, Err(NotReached::Ahead));
    assert_eq!(reach(4).await, Err(NotReached::Behind { token: None }));
    assert_eq!(positions.age(), None);
}
