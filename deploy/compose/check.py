#!/usr/bin/env python3
"""Checks compose.yaml: against the specification's schema, the settings that the services have, and the promises of its
head. It needs the packages of .ci/checkers.txt. It also checks that it finds faults, since a check that finds none looks
the same as one that does not look.
"""

import copy
import json
import pathlib
import re
import subprocess
import sys

import yaml

FOLDER = pathlib.Path(__file__).parent
DEPLOY = FOLDER.parent
# Settings of programs that compose.yaml may set.
PROGRAMS = ["command-api", "query-api", "projector", "edge"]
# What a service may only have with a reason in the file.
WRITES_ITS_ROOT = {"kafka-1", "kafka-2", "kafka-3"}


def settings():
    """Returns the settings of each program: for each name, its entry in settings.json."""
    text = json.loads((DEPLOY / "settings.json").read_text())
    known = {program: {entry["name"]: entry for entry in entries} for program, entries in text.items()}
    # The edge is no service of the reference.
    section = (DEPLOY / "SETTINGS.md").read_text().split("\n## edge\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\w+) \| (\w+|`[^|]*`) \|", section, re.M)
    known["edge"] = {name: {"required": default == "required", "secret": False} for name, _, default in rows}
    return known


def program_of(service):
    """Returns the program that a service runs, or None for a server."""
    image = re.search(r"/([a-z-]+):\$\{VERSION", service["image"])
    if not image:
        return None
    return service["command"][0] if image[1] == "tools" else image[1]


def faults_of_settings(name, service, known):
    program = program_of(service)
    if program is None:
        return
    variables = service.get("environment", {})
    for variable in variables:
        entry = known[program].get(variable)
        file_of = known[program].get(variable.removesuffix("_FILE")) if variable.endswith("_FILE") else None
        if entry is None and not (file_of and file_of["secret"]):
            yield f"{name}: {program} has no setting {variable}"
    for setting, entry in known[program].items():
        is_set = setting in variables or f"{setting}_FILE" in variables
        if entry["required"] and not is_set and "command" not in service:
            yield f"{name}: {program} requires {setting}"
        if entry["secret"] and re.search(r"://[^@/]*:[^@/]*@", str(variables.get(setting, ""))):
            yield f"{name}: {setting} contains a password"


def faults_of_secrets(name, service, top):
    has = set(service.get("secrets", []))
    for variable, value in service.get("environment", {}).items():
        if str(value).startswith("/run/secrets/") and value.removeprefix("/run/secrets/") not in has:
            yield f"{name}: {variable} names a secret that the service does not get"
    for secret in has - set(top):
        yield f"{name}: no secret {secret}"


def faults_of_confinement(name, service):
    if not service.get("read_only") and name not in WRITES_ITS_ROOT:
        yield f"{name}: its root can be written"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
        yield f"{name}: it has capabilities or may get some"
    for limit in ("mem_limit", "pids_limit"):
        if limit not in service:
            yield f"{name}: no {limit}"
    for port in service.get("ports", []):
        if not port.startswith("127.0.0.1:"):
            yield f"{name}: {port} is published beyond loopback"
    if not re.fullmatch(r"\$\{\w+:-[\w./-]+(:v?\d[\w.]*)?\}.*|.*:\$\{VERSION:-[\d.]+\}", service["image"]) or "latest" in service["image"]:
        yield f"{name}: the image {service['image']} has no variable or no version"


def faults(compose, known, makes):
    """Returns everything that is wrong."""
    found = []
    for name, service in compose["services"].items():
        found += faults_of_settings(name, service, known)
        found += faults_of_secrets(name, service, compose["secrets"])
        found += faults_of_confinement(name, service)
    for secret in set(compose["secrets"]) - makes:
        found.append(f"secrets.sh does not make {secret}")
    return found


def made_by_script():
    """Returns the secrets that secrets.sh makes."""
    script = (FOLDER / "secrets.sh").read_text()
    listed = re.search(r"for name in (.*?); do", script, re.S)[1].replace("\\\n", " ").split()
    return set(listed) | set(re.findall(r">([a-z-]+)(?: <<|$)", script, re.M))


def with_faults(compose):
    """Returns copies of the file with a fault each."""

    def changed(name, change):
        copied = copy.deepcopy(compose)
        change(copied["services"][name])
        return copied

    yield changed("query-api", lambda each: each["environment"].update(POSTGRES_URI="x"))
    yield changed("query-api", lambda each: each["environment"].pop("REDIS_URL"))
    yield changed("projector", lambda each: each["environment"].update(REDIS_URL="redis://projector:secret@valkey/"))
    yield changed("edge", lambda each: each["environment"].pop("QUERY_APIS"))
    yield changed("edge", lambda each: each.update(ports=["8080:8080"]))
    yield changed("projector", lambda each: each["secrets"].remove("service-token"))
    yield changed("command-api-1", lambda each: each.update(read_only=False))
    yield changed("valkey", lambda each: each.pop("mem_limit"))
    yield changed("valkey", lambda each: each.update(image="valkey/valkey:latest"))
    yield changed("migrate", lambda each: each.update(cap_drop=[]))
    yield changed("migrate", lambda each: each["secrets"].append("unknown"))


def main():
    path = DEPLOY / "compose.yaml"
    schema = pathlib.Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([schema, "--quiet", "--builtin-schema", "vendor.compose-spec", path], check=True)
    compose, known, makes = yaml.safe_load(path.read_text()), settings(), made_by_script()
    found = faults(compose, known, makes)
    for fault in found:
        print(fault)
    for number, faulty in enumerate(with_faults(compose), 1):
        if not set(faults(faulty, known, makes)) - set(found):
            found.append(f"fault {number} is not found")
            print(found[-1])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
