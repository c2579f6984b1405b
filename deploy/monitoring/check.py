#!/usr/bin/env python3
"""Checks the rules and the dashboards: each metric that they name exists, each query can be parsed, each alert has a
section in the runbooks and a test, and the tests pass. With --write, it first writes the dashboards, and copies the rules
into the manifest of the Prometheus operator.

It needs PyYAML and promtool, which `cargo stack setup` installs. It also checks that it finds faults, since a check
that finds none looks the same as one that does not look.
"""

import copy
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

# The next import leaves no folder of compiled code.
sys.dont_write_bytecode = True
import dashboards

FOLDER = pathlib.Path(__file__).parent
DEPLOY = FOLDER.parent
RULES = FOLDER / "rules.yml"
EXPORTERS = FOLDER / "exporters.yml"
TESTS = FOLDER / "rules.test.yml"
MANIFEST = DEPLOY / "kubernetes/components/monitoring/rules.yaml"
# Labels that Prometheus adds, and that of a histogram's buckets.
LABELS_OF_ALL = {"job", "instance", "le"}
SEVERITIES = {"critical", "warning", "none"}
# Metrics of exporters that alerts may name.
FOREIGN = {
    "node_exporter": ["node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_timex_sync_status"],
    "kafka_exporter": ["kafka_brokers", "kafka_topic_partition_under_replicated_partition"],
    "postgres_exporter": ["pg_settings_max_connections", "pg_stat_activity_count"],
    "redis_exporter": ["redis_evicted_keys_total"],
    "nginx-prometheus-exporter": ["nginx_connections_accepted", "nginx_connections_handled"],
    "blackbox_exporter": ["probe_ssl_earliest_cert_expiry", "probe_success"],
}


def series():
    """Returns the labels of each series that the services have."""
    rows = re.findall(r"^\| `((?:stampede|process)_\w+)` \| (\w+) \| ([^|]*) \|", (DEPLOY / "METRICS.md").read_text(), re.MULTILINE)
    known = {}
    for name, kind, labels in rows:
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            known.setdefault(name + suffix, set()).update(re.findall(r"`(\w+)`", labels), LABELS_OF_ALL)
    return known


def sections():
    """Returns the text of the runbooks by alert."""
    text = (DEPLOY / "RUNBOOKS.md").read_text()
    alerts = [text.split(f"\n## {title}\n")[1].split("\n## ")[0] for title in ("Alerts", "Alerts of exporters")]
    return {part.partition("\n")[0]: part for each in alerts for part in each.split("\n### ")[1:]}


def faults_of_expression(name, expression, known, recorded):
    for metric, selector in re.findall(r"\b((?:stampede|process)_\w+)(?:\{([^}]*)\})?", expression):
        if metric not in known:
            yield f"{name}: no service has the metric {metric}"
            continue
        for label in re.findall(r"(\w+)\s*(?:=|!)", selector):
            if label not in known[metric]:
                yield f"{name}: {metric} has no label {label}"
    for metric in re.findall(r"\bstampede:\w+(?::\w+)?", expression):
        if metric not in recorded:
            yield f"{name}: no rule records {metric}"


def faults_of_exporters(groups):
    """Returns which alerts of exporters name a metric that is not in the list."""
    known = {metric for metrics in FOREIGN.values() for metric in metrics}
    for rule in (rule for group in groups for rule in group["rules"]):
        for metric in re.findall(r"\b(?!stampede)[a-z]+_\w+(?=[{\[ )]|$)", rule["expr"]):
            if metric not in known:
                yield f"{rule['alert']}: no exporter in the list has {metric}"


def faults_of_alert(rule, books, tests):
    name, notes = rule["alert"], rule.get("annotations", {})
    if rule.get("labels", {}).get("severity") not in SEVERITIES:
        yield f"{name}: no severity"
    for note in ("summary", "description"):
        if not notes.get(note):
            yield f"{name}: no {note}"
    if notes.get("runbook_url") != f"deploy/RUNBOOKS.md#{name.lower()}":
        yield f"{name}: its runbook_url is not that of its section"
    if "Over: " not in books.get(name, "").replace("\n", " "):
        yield f"{name}: the runbooks do not say what to do and when it is over"
    expected = [each["exp_samples"] for test in tests if test["name"] == name for each in test["promql_expr_test"]]
    if not any(expected) or all(expected):
        # That of the objectives has others in the same test that do not fire, and one always fires.
        if not (any(expected) and (name.startswith("Slo") or name == "Watchdog")):
            yield f"{name}: no test in which it fires and does not fire"


def faults_of_dashboards(queries, groups):
    """Returns which queries name what does not exist, and which notes belong to no panel."""
    recorded = {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}
    known = series()
    for place, query in queries:
        yield from faults_of_expression(place, query, known, recorded)
    titles = {place.split(": ")[1] for place, _ in queries}
    for title in sorted(set(dashboards.QUIET) - titles):
        yield f"no dashboard has the panel {title}"


def unparsed(queries):
    """Returns what promtool finds wrong with queries: as rules, since it has no command that parses an expression."""
    rules = [{"record": "query", "expr": query, "labels": {"at": str(at)}} for at, (_, query) in enumerate(queries)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "queries.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
        return promtool("check", "rules", str(path))


def outdated():
    """Returns the dashboards that are not as the table has them."""
    wanted = dashboards.files()
    is_same = {path: path.exists() and path.read_text() == text for path, text in wanted.items()}
    strays = set(dashboards.FOLDER.glob("*")) - set(wanted)
    return sorted(str(path) for path in strays | {path for path, same in is_same.items() if not same})


def faults_of(groups, tests):
    """Returns all faults of the rules."""
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    known, books, faults = series(), sections(), []
    for rule in rules:
        faults += faults_of_expression(rule.get("alert") or rule["record"], rule["expr"], known, recorded)
    alerts = [rule for rule in rules if "alert" in rule]
    for rule in alerts:
        faults += faults_of_alert(rule, books, tests)
    names = {rule["alert"] for rule in alerts}
    return faults + [f"the runbooks describe {name}, which is no alert" for name in sorted(set(books) - names)]


def spoil(groups, tests):
    """Yields faults that the check must find: what is wrong, and the rules and tests with it."""

    def changed(change):
        copied = copy.deepcopy(groups)
        alert = next(rule for group in copied for rule in group["rules"] if rule.get("alert") == "RecordsParked")
        change(alert)
        return copied, tests

    yield "a metric that does not exist", changed(lambda alert: alert.update(expr="stampede_parking > 0"))
    yield "a label that does not exist", changed(lambda alert: alert.update(expr='stampede_parked{kind="x"} > 0'))
    yield "a recorded metric that does not exist", changed(lambda alert: alert.update(expr="stampede:parked > 0"))
    yield "no severity", changed(lambda alert: alert.pop("labels"))
    yield "another section", changed(lambda alert: alert["annotations"].update(runbook_url="deploy/RUNBOOKS.md"))
    yield "no description", changed(lambda alert: alert["annotations"].pop("description"))
    yield "an alert without a section", changed(lambda alert: alert.update(alert="Parked"))
    yield "an alert without a test", (groups, [test for test in tests if test["name"] != "RecordsParked"])


def spoil_others():
    """Yields faults of exporters' alerts and of dashboards that the check must find, with what it finds."""
    foreign = [{"rules": [{"alert": "Disk", "expr": "min(node_disk_free) < 1"}]}]
    yield "a metric of no exporter", list(faults_of_exporters(foreign))
    dashed = [("a: b", 'stampede_parked{kind="x"}'), ("a: b", "stampede:parked")]
    yield "a dashboard's metric or label that does not exist", len(list(faults_of_dashboards(dashed, []))) > 2
    yield "a query that cannot be parsed", unparsed([("a: b", "sum by (")])


def manifest():
    """Returns the manifest with the rules for the Prometheus operator."""
    head = (
        "# Copied from deploy/monitoring/rules.yml by its check.py --write.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: stampede\nspec:\n"
    )
    text = RULES.read_text()
    lines = text[text.index("groups:") :].splitlines()
    return head + "".join(f"  {line}".rstrip() + "\n" for line in lines)


def promtool(*args):
    """Returns what promtool finds wrong."""
    program = shutil.which("promtool")
    if program is None:
        return ["promtool is missing; `cargo stack setup` installs it"]
    ended = subprocess.run([program, *args], cwd=FOLDER, capture_output=True, text=True)
    return [] if ended.returncode == 0 else [ended.stdout + ended.stderr]


def main():
    if "--write" in sys.argv:
        MANIFEST.write_text(manifest())
        dashboards.FOLDER.mkdir(exist_ok=True)
        for path, text in dashboards.files().items():
            path.write_text(text)
    own, foreign = (yaml.safe_load(path.read_text())["groups"] for path in (RULES, EXPORTERS))
    groups, tests, queries = own + foreign, yaml.safe_load(TESTS.read_text())["tests"], dashboards.queries()
    faults = faults_of(groups, tests) + list(faults_of_exporters(foreign)) + list(faults_of_dashboards(queries, own))
    for what, spoilt in spoil(groups, tests):
        if set(faults_of(*spoilt)) <= set(faults):
            faults.append(f"the check does not find {what}")
    for what, found in spoil_others():
        if not found:
            faults.append(f"the check does not find {what}")
    faults += [f"{path} is not as dashboards.py has it; run check.py --write" for path in outdated()] + unparsed(queries)
    if MANIFEST.read_text() != manifest():
        faults.append(f"{MANIFEST} has other rules; run check.py --write")
    faults += promtool("check", "rules", RULES.name, EXPORTERS.name) + promtool("test", "rules", TESTS.name)
    for fault in faults:
        print(fault)
    if not faults:
        count = sum("alert" in rule for group in groups for rule in group["rules"])
        print(f"rules: {count} alerts and {len(queries)} queries of dashboards fit")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
