"""Makes the schemas of this folder from checkouts of their projects."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from infra.files import CHECKOUT

HERE = Path(__file__).parent
KINDS = {"rayjob": "rayjobs", "raycluster": "rayclusters"}
CRDS = "ray-operator/config/crd/bases/ray.io_{}.yaml"


def bare(schema: Any) -> Any:
    """Without descriptions."""
    if isinstance(schema, dict):
        return {k: bare(v) for k, v in schema.items() if not (k == "description" and isinstance(v, str))}
    return [bare(v) for v in schema] if isinstance(schema, list) else schema


def used(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """The part of a CRD's schema that values use. Unknown names are refused, as `kubectl` does by default."""
    out = {k: v for k, v in schema.items() if not k.startswith("x-kubernetes") or k == "x-kubernetes-int-or-string"}
    if "properties" in schema:
        out["properties"] = {
            name: used(inner, [v[name] for v in values if name in v]) if any(name in v for v in values) else {}
            for name, inner in schema["properties"].items()
        }
        out["additionalProperties"] = False
    if isinstance(schema.get("items"), dict):
        out["items"] = used(schema["items"], [item for v in values for item in v])
    return out


def write(name: str, source: str, schema: dict[str, Any]) -> None:
    note = f"{source}, Apache-2.0; cut down by tests/contract/schemas/__main__.py"
    (HERE / f"{name}.json").write_text(
        json.dumps({"$comment": note, **schema}, indent=None, separators=(",", ":")) + "\n"
    )


def main(kuberay: str, kuberay_commit: str, compose: str, compose_commit: str) -> None:
    for name, plural in KINDS.items():
        crd = yaml.safe_load((Path(kuberay) / CRDS.format(plural)).read_text())
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        manifest = yaml.safe_load((CHECKOUT / "infra" / "cluster" / f"{name}.yaml").read_text())
        source = f"ray-project/kuberay {CRDS.format(plural)} at {kuberay_commit}"
        schema = bare(version["schema"]["openAPIV3Schema"])
        write(name, source, used(schema, [manifest]))
    schema = bare(json.loads(Path(compose).read_text()))
    write("compose", f"compose-spec/compose-spec schema/compose-spec.json at {compose_commit}", schema)


if __name__ == "__main__":
    main(*sys.argv[1:])
