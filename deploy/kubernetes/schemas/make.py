#!/usr/bin/env python3
"""Fetches the definitions of the custom resources that the manifests use, and writes them here.

Each file is the definition of its operator's release, reduced to the version that the manifests use, without
descriptions. It needs Go, Maven, Java 21 or newer (JAVA, default `java`), and PyYAML, and is run when an operator's
version changes: python3 make.py
"""

import json
import os
import pathlib
import subprocess
import tempfile

import yaml

FOLDER = pathlib.Path(__file__).parent
# Modules, each with the files of definitions in it, and the version to keep.
GO = {
    "github.com/cloudnative-pg/cloudnative-pg@v1.27.0": (["config/crd/bases/postgresql.cnpg.io_clusters.yaml"], "v1"),
    "github.com/kedacore/keda/v2@v2.21.0": (["config/crd/bases/keda.sh_scaledobjects.yaml"], "v1alpha1"),
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        [f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml" for kind in ("podmonitors", "prometheusrules")],
        "v1",
    ),
}
STRIMZI = "1.2.0"
STRIMZI_MODEL = "io.strimzi.api.kafka.model"
STRIMZI_CLASSES = ["kafka.Kafka", "nodepool.KafkaNodePool", "topic.KafkaTopic", "user.KafkaUser"]
POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>stampede</groupId><artifactId>schemas</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>io.strimzi</groupId><artifactId>api</artifactId><version>{STRIMZI}</version></dependency>
    <dependency><groupId>io.strimzi</groupId><artifactId>crd-generator</artifactId><version>{STRIMZI}</version></dependency>
  </dependencies>
</project>
"""


def of_go():
    """Yields the definitions that Go modules contain, each with its source and the version to keep."""
    for module, (files, version) in GO.items():
        # Outside of a module, so that no go.mod decides what is fetched.
        told = subprocess.run(["go", "mod", "download", "-json", module], check=True, capture_output=True, cwd="/")
        for file in files:
            definition = pathlib.Path(json.loads(told.stdout)["Dir"], file).read_text()
            yield yaml.safe_load(definition), version, module


def of_strimzi():
    """Yields Strimzi's definitions, which its generator makes of Java classes."""
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "pom.xml").write_text(POM)
        copy = ["mvn", "-B", "-q", "dependency:copy-dependencies", "-DoutputDirectory=libs"]
        subprocess.run(copy, check=True, cwd=folder)
        options = ["--yaml", "--target-kube", "1.30+", "--crd-api-version", "v1", "--api-versions", "v1"]
        classes = [f"{STRIMZI_MODEL}.{name}=./{name}.yaml" for name in STRIMZI_CLASSES]
        generate = [os.environ.get("JAVA", "java"), "-cp", "libs/*", "io.strimzi.crdgenerator.CrdGenerator"]
        subprocess.run([*generate, *options, "--storage-version", "v1", *classes], check=True, cwd=folder)
        for name in STRIMZI_CLASSES:
            yield yaml.safe_load(pathlib.Path(folder, f"{name}.yaml").read_text()), "v1", f"io.strimzi:api:{STRIMZI}"


def without_descriptions(schema):
    """Returns a schema without descriptions. A property that is itself called `description` is kept."""
    kept = {key: value for key, value in schema.items() if key != "description"}
    for key in ("properties", "patternProperties"):
        if key in kept:
            kept[key] = {name: without_descriptions(inner) for name, inner in kept[key].items()}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(kept.get(key), dict):
            kept[key] = without_descriptions(kept[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in kept:
            kept[key] = [without_descriptions(inner) for inner in kept[key]]
    return kept


def reduced(definition, version, source):
    """Returns a definition with the given version alone."""
    spec = definition["spec"]
    found = next(each for each in spec["versions"] if each["name"] == version)
    schema = without_descriptions(found["schema"]["openAPIV3Schema"])
    # Only an operator writes it.
    schema["properties"]["status"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    kept = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if "subresources" in found:
        kept["subresources"] = found["subresources"]
    name = f"{spec['names']['plural']}.{spec['group']}"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name, "annotations": {"stampede/source": source}},
        "spec": {"group": spec["group"], "names": spec["names"], "scope": spec["scope"], "versions": [kept]},
    }


def main():
    for definition, version, source in [*of_go(), *of_strimzi()]:
        made = reduced(definition, version, source)
        text = json.dumps(made, separators=(",", ":"), sort_keys=True)
        (FOLDER / f"{made['metadata']['name']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
