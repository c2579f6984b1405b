#!/usr/bin/env python3
"""The dashboards, for Grafana 11 or newer. `check.py --write` writes `dashboards/*.json` from this table.

A panel has a title, a unit of Grafana, and queries with their legends. A query in `QUIET` may have an empty answer on a
healthy stack; its reason becomes the panel's description. Queries contain no variables, so that the same text can be asked
of any Prometheus.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def quantiles(metric):
    """Returns the queries of the median and of the 99th percentile of a histogram."""
    buckets = f"sum by (le) (rate({metric}_bucket[1m]))"
    return {name: f"histogram_quantile({at}, {buckets})" for name, at in [("p50", 0.5), ("p99", 0.99)]}


def p99(metric):
    return quantiles(metric)["p99"]


# Begins the text of each reason.
EMPTY = "Empty on a healthy stack: "
QUIET = {
    "Commands refused": "nothing is refused.",
    "Commands forwarded": "the edge knows the owners, or one instance has all partitions.",
    "Owners that were given up or lost": "owners last.",
    "Suspicions and doubts": "owners answer, and Kafka confirms each record.",
    "Records that do not count": "nobody writes under a claim that ended.",
    "Errors of queries": "no query fails.",
    "Reads refused": "no server is overloaded.",
    "Waits for a token": "no query had a token yet.",
    "Replicas behind": "there are no read replicas.",
    "Redis failures": "Redis accepts every update.",
    "Snapshots": "no aggregate has a long history yet.",
    "Deadlines fired": "no deadline was due yet.",
    "Reaction steps": "no order was placed yet.",
    "Time since Redis was declared stale": "this projector has never had to.",
    "Certificates": "without TLS.",
    "TLS handshakes that fail": "all callers agree on TLS, or there is none.",
    "Halted partitions": "no reader has halted.",
}

DASHBOARDS = {
    "overview": ("overview", {
        "Now": [
            ("Alerts that fire", "table", {"": 'sort_desc(ALERTS{alertstate="firing"})'}),
            ("Instances that answer", "short", {"{{job}}": "sum by (job) (up)"}),
            ("Processors busy", "short", {"{{instance}}": "sum by (instance) (rate(process_cpu_seconds_total[1m]))"}),
            ("Memory", "bytes", {"{{instance}}": "sum by (instance) (process_resident_memory_bytes)"}),
            ("Partitions without an owner", "short", {
                "": "count(group by (partition) (stampede_mailbox_depth)) - sum(max by (partition) (stampede_partition_owned))",
            }),
        ],
        "Objectives": [
            ("Budget spent too fast, of an hour", "x", {"{{slo}}": "stampede:slo_burn:rate1h"}),
            ("Budget spent too fast, of three days", "x", {"{{slo}}": "stampede:slo_burn:rate3d"}),
            ("Budget left of 30 days", "percentunit", {
                "{{slo}}": "1 - sum_over_time(stampede:slo_bad:rate1m[30d]) / sum_over_time(stampede:slo_all:rate1m[30d])"
                " / stampede:slo_budget",
            }),
        ],
        "Commands": [
            ("Commands by outcome", "reqps", {"{{outcome}}": "stampede:commands:rate1m"}),
            ("Latency of commands", "s", {"p99": "stampede:command_seconds:p99_1m"}),
            ("Commands that wait", "short", {"": "stampede:commands_waiting"}),
        ],
        "Queries": [
            ("Queries by status", "reqps", {"{{status}}": "stampede:queries:rate1m"}),
            ("Latency of queries", "s", {"p99": "stampede:query_seconds:p99_1m"}),
            ("Queries that wait for their token", "short", {"": "stampede:token_waiters"}),
        ],
        "Views and reactions": [
            ("Commits folded", "ops", {"": "stampede:commits_folded:rate1m"}),
            ("Views behind the log", "s", {"{{view}} in {{server}}": "stampede:view_behind_seconds"}),
            ("Oldest that waits", "s", {
                "reaction": "max(stampede_reaction_open_seconds)",
                "deadline": "max(stampede_deadline_overdue_seconds)",
            }),
        ],
    }),
    "command-api": ("command-api", {
        "Traffic": [
            ("Commands by outcome", "reqps", {"{{outcome}}": "stampede:commands:rate1m"}),
            ("Commands by name", "reqps", {
                "{{aggregate}} {{command}}": "topk(12, sum by (aggregate, command) (rate(stampede_commands_total[1m])))",
            }),
            ("Commands refused", "reqps", {"{{reason}}": "sum by (reason) (rate(stampede_commands_refused_total[1m]))"}),
            ("Commands forwarded", "reqps", {"{{instance}}": "sum by (instance) (rate(stampede_commands_forwarded_total[1m]))"}),
        ],
        "Latency": [
            ("Commands, from receipt to answer", "s", quantiles("stampede_command_seconds")),
            ("Steps of a command, p99", "s", {
                "mailbox": p99("stampede_command_mailbox_seconds"),
                "decide": p99("stampede_command_decide_seconds"),
                "append": p99("stampede_command_append_seconds"),
            }),
            ("Commands whose answer waits for the log", "short", {"{{instance}}": "sum by (instance) (stampede_in_flight)"}),
        ],
        "Saturation": [
            ("Fullest mailboxes", "short", {
                "partition {{partition}}": "topk(5, max by (partition) (stampede_mailbox_depth))",
                "capacity": "max(stampede_mailbox_capacity)",
            }),
            ("Memory of aggregates", "bytes", {
                "{{instance}}": "sum by (instance) (stampede_resident_bytes)",
                "limit": "max(stampede_resident_limit_bytes)",
            }),
            ("Largest state", "bytes", {
                "": "max(stampede_largest_state_bytes)",
                "limit": "max(stampede_state_limit_bytes)",
            }),
            ("Aggregates in memory", "short", {"{{instance}}": "sum by (instance) (stampede_resident_aggregates)"}),
            ("Idempotency keys in memory", "short", {"{{instance}}": "sum by (instance) (stampede_remembered_keys)"}),
            ("Known aggregates", "short", {"": "sum(max by (partition) (stampede_known_names))"}),
        ],
        "Ownership": [
            ("Partitions owned", "short", {"{{instance}}": "sum by (instance) (stampede_partition_owned)"}),
            ("Claims", "ops", {"{{instance}}": "sum by (instance) (rate(stampede_claims_total[5m]))"}),
            ("Owners that were given up or lost", "ops", {
                "{{cause}}": "sum by (cause) (rate(stampede_steps_down_total[5m]))",
            }),
            ("Suspicions and doubts", "ops", {
                "suspicions": "sum(rate(stampede_suspicions_total[5m]))",
                "doubts, {{cause}}": "sum by (cause) (rate(stampede_doubts_total[5m]))",
            }),
            ("Aggregates in quarantine", "short", {"": "sum(stampede_quarantined)"}),
            ("Records that a takeover reads", "short", {"": "max(stampede_tail_records)"}),
        ],
    }),
    "query-api": ("query-api", {
        "Traffic": [
            ("Queries by route", "reqps", {"{{route}}": "sum by (route) (rate(stampede_queries_total[1m]))"}),
            ("Queries by status", "reqps", {"{{status}}": "stampede:queries:rate1m"}),
            ("Errors of queries", "reqps", {
                "{{route}} {{status}}": 'sum by (route, status) (rate(stampede_queries_total{status=~"[45].."}[1m]))',
            }),
        ],
        "Latency": [
            ("Queries, from head to answer", "s", quantiles("stampede_query_seconds")),
            ("Waits for a token", "reqps", {"{{outcome}}": "sum by (outcome) (rate(stampede_token_waits_total[1m]))"}),
            ("Queries that wait for their token", "short", {
                "{{instance}}": "sum by (instance) (stampede_token_waiters)",
                "limit": "max(stampede_token_waiters_limit)",
            }),
        ],
        "Sources": [
            ("Reads by origin", "reqps", {"{{origin}}": "sum by (origin) (rate(stampede_reads_total[1m]))"}),
            ("Reads by view", "reqps", {"{{view}}": "sum by (view) (rate(stampede_reads_total[1m]))"}),
            ("Reads refused", "reqps", {"{{server}}": "sum by (server) (rate(stampede_reads_refused_total[1m]))"}),
            ("Views behind the log", "s", {"{{view}} in {{server}}": "stampede:view_behind_seconds"}),
            ("Replicas behind", "s", {
                "replica {{replica}} at {{instance}}": "max by (instance, replica) (stampede_replica_behind_seconds)",
            }),
        ],
    }),
    "projector": ("projector and reactor", {
        "Views": [
            ("Commits folded", "ops", {"{{instance}}": "sum by (instance) (rate(stampede_commits_folded_total[1m]))"}),
            ("Projectors that fold", "short", {"{{instance}}": "sum by (instance) (stampede_projector_active)"}),
            ("Views behind the log", "s", {"{{view}} in {{server}}": "stampede:view_behind_seconds"}),
            ("Partitions furthest behind", "s", {
                "{{view}} in partition {{partition}}": "topk(12, max by (view, partition) (stampede_partition_behind_seconds))",
            }),
            ("From a batch to its commit in Postgres", "s", quantiles("stampede_projection_seconds")),
            ("Views that wait for a rebuild", "short", {"{{view}}": "max by (view) (stampede_view_waits_for_rebuild)"}),
            ("Aggregates with parked records", "short", {"{{view}}": "max by (view) (stampede_parked)"}),
            ("Snapshots", "ops", {"{{outcome}}": "sum by (outcome) (rate(stampede_snapshots_total[5m]))"}),
            ("Segments closed", "ops", {"": "sum(rate(stampede_segments_closed_total[5m]))"}),
        ],
        "Redis": [
            ("Updates of Redis", "s", quantiles("stampede_cache_seconds")),
            ("Redis failures", "ops", {"{{instance}}": "sum by (instance) (rate(stampede_cache_failures_total[5m]))"}),
            ("Time since Redis was declared stale", "s", {
                "{{instance}}": "min by (instance) (stampede_incarnation_age_seconds)",
            }),
        ],
        "Reactions": [
            ("Reaction steps", "ops", {"{{outcome}}": "sum by (outcome) (rate(stampede_reaction_steps_total[1m]))"}),
            ("From an event to the end of its reactions", "s", quantiles("stampede_reaction_seconds")),
            ("Oldest that waits", "s", {
                "reaction": "max(stampede_reaction_open_seconds)",
                "deadline": "max(stampede_deadline_overdue_seconds)",
                "parked, {{view}}": "max by (view) (stampede_parked_age_seconds)",
            }),
            ("Deadlines fired", "ops", {"": "sum(rate(stampede_deadlines_fired_total[5m]))"}),
            ("Deadlines overdue", "short", {"": "max(stampede_deadlines_overdue)"}),
        ],
        "Postgres": [
            ("Dead rows", "percentunit", {
                "{{table}}": "max by (table) (stampede_postgres_dead_rows"
                " / clamp_min(stampede_postgres_dead_rows + stampede_postgres_live_rows, 1))",
            }),
            ("Rows", "short", {"{{table}}": "max by (table) (stampede_postgres_live_rows)"}),
            ("Vacuum held back", "s", {"": "max(stampede_postgres_vacuum_held_seconds)"}),
        ],
    }),
    "log": ("the log and Kafka, as the services see them", {
        "Writing": [
            ("Appends of commits", "s", quantiles("stampede_command_append_seconds")),
            ("Appends of fences", "s", quantiles("stampede_command_fence_seconds")),
            ("Commands whose answer waits for the log", "short", {"": "sum(stampede_in_flight)"}),
            ("Suspicions and doubts", "ops", {
                "suspicions": "sum(rate(stampede_suspicions_total[5m]))",
                "doubts, {{cause}}": "sum by (cause) (rate(stampede_doubts_total[5m]))",
            }),
            ("Claim that counts", "none", {"partition {{partition}}": "max by (partition) (stampede_partition_epoch)"}),
            ("Topic differs", "short", {"{{job}}": "max by (job) (stampede_topic_differs)"}),
        ],
        "Reading": [
            ("Records read by projectors", "ops", {"{{instance}}": "sum by (instance) (rate(stampede_records_read_total[1m]))"}),
            ("Records that do not count", "ops", {
                "{{job}} {{reason}}": "sum by (job, reason) (rate(stampede_records_passed_over_total[5m]))",
            }),
            ("Halted partitions", "short", {
                "{{job}} {{reader}}": "sum by (job, reader) (stampede_partition_halted)",
            }),
            ("Partitions furthest behind", "s", {
                "partition {{partition}}": "topk(12, max by (partition) (stampede_partition_behind_seconds))",
            }),
        ],
        "Clocks and certificates": [
            ("Lead over the clock", "s", {
                "{{instance}} over Kafka's": "max by (instance) (stampede_clock_skew_seconds)",
                "{{instance}} over Postgres's": "max by (instance) (stampede_postgres_clock_skew_seconds)",
            }),
            ("Certificates", "s", {
                "{{job}} {{setting}}": "min by (job, setting) (stampede_certificate_expires_in_seconds)",
            }),
            ("TLS handshakes that fail", "ops", {
                "{{job}}": "sum by (job) (rate(stampede_tls_handshakes_failed_total[5m]))",
            }),
        ],
    }),
}


def panel(number, title, unit, queries, place):
    """Returns a panel of a third of the width."""
    is_table = unit == "table"
    targets = [
        {"refId": chr(ord("A") + at), "datasource": DATASOURCE, "expr": query, "legendFormat": legend or title}
        | ({"instant": True, "format": "table"} if is_table else {})
        for at, (legend, query) in enumerate(queries.items())
    ]
    lines = {"fillOpacity": 10, "showPoints": "never", "spanNulls": False}
    return {
        "id": number,
        "type": "table" if is_table else "timeseries",
        "title": title,
        "description": EMPTY + QUIET[title] if title in QUIET else "",
        "datasource": DATASOURCE,
        "gridPos": {"x": place % 3 * 8, "y": place // 3 * 8, "w": 8, "h": 8},
        "fieldConfig": {
            "defaults": {"custom": {}} if is_table else {"unit": unit, "min": 0, "custom": lines},
            "overrides": [],
        },
        "options": {} if is_table else {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": targets,
    }


def panels(rows):
    """Returns the panels of a dashboard, three beside each other, with a headline for each row of the table."""
    made, top = [], 0
    for headline, members in rows.items():
        made.append({
            "id": len(made) + 1, "type": "row", "title": headline, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
        })
        for place, (title, unit, queries) in enumerate(members):
            member = panel(len(made) + 1, title, unit, queries, place)
            member["gridPos"]["y"] += top + 1
            # A lead may be negative.
            if title == "Lead over the clock" or title == "Certificates":
                del member["fieldConfig"]["defaults"]["min"]
            made.append(member)
        top += 1 + (len(members) + 2) // 3 * 8
    return made


def dashboard(name, title, rows):
    return {
        "uid": f"stampede-{name}",
        "title": f"Stampede: {title}",
        "tags": ["stampede"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [{
            "type": "dashboards", "title": "Stampede", "tags": ["stampede"], "asDropdown": False, "keepTime": True,
            "includeVars": True,
        }],
        "templating": {"list": [{
            "type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "current": {},
        }]},
        "annotations": {"list": [{
            "name": "Critical alerts", "enable": True, "iconColor": "red", "datasource": DATASOURCE,
            "expr": 'ALERTS{alertstate="firing",severity="critical"}', "titleFormat": "{{alertname}}",
        }]},
        "panels": panels(rows),
    }


def files():
    """Returns the text of each file by its path."""
    made = {name: dashboard(name, title, rows) for name, (title, rows) in DASHBOARDS.items()}
    return {FOLDER / f"{name}.json": json.dumps(each, indent=1) + "\n" for name, each in made.items()}


def queries():
    """Returns each query with the dashboard and the panel that it is in."""
    return [
        (f"{name}: {title}", query)
        for name, (_, rows) in DASHBOARDS.items()
        for members in rows.values()
        for title, _, targets in members
        for query in targets.values()
    ]
