//! What projectors measure of Postgres for the alerts, with the rights that they have.

use crate::fixture::{Shop, eventually};
use crate::outages::Snapshot;

#[tokio::test(flavor = "multi_thread")]
async fn an_overdue_deadline_and_a_snapshot_that_holds_back_vacuum_are_shown() {
    let shop = Shop::with_views(1).await;
    let deadline = |order: &str, due: &str| {
        format!(
            "INSERT INTO deadlines (kind, aggregate, due_at, cause) \
             VALUES ('expire-order', 'order/{order}', now() + interval '{due}', '0-0-1')"
        )
    };
    shop.sql(&deadline("late", "-100 seconds")).await;
    let snapshot = Snapshot::open(&shop.postgres_url).await;
    // Something later, whose dead rows the snapshot would keep.
    shop.sql(&deadline("early", "1 day")).await;
    // Without a reactor, so that nothing fires.
    let projector = shop.start_projector();
    eventually("both are shown", async || {
        let metrics = projector.admin_client().get("/metrics").await.text;
        let value = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok())
        };
        let is_shown = value("stampede_deadlines_overdue")? == 1.0
            && (100.0..300.0).contains(&value("stampede_deadline_overdue_seconds")?)
            && value("stampede_postgres_vacuum_held_seconds")? > 5.0
            && value("stampede_postgres_clock_skew_seconds")?.abs() < 5.0
            && metrics.contains("stampede_postgres_live_rows{table=\"deadlines\"}");
        is_shown.then_some(())
    })
    .await;
    snapshot.end().await;
}
