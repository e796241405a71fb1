"""The command line of `moorage render`.

Exit codes: 0 rendered, 1 the manifest, a header or the cluster file is wrong (the message says which), 2 wrong usage.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from moorage.control.dra import resource_claim, resource_slice
from moorage.control.fleet import GPUs
from moorage.control.projections import node, pod
from moorage.control.settings import load
from moorage.engines.facts import read_facts
from moorage.errors import InvalidSpec, MoorageError
from moorage.placement.inventory import Inventory, build
from moorage.planning.model_place import owner_of
from moorage.planning.neighbours import Neighbour, neighbour_of
from moorage.planning.text import capabilities
from moorage.render.imagine import rendered
from moorage.sizing.errors import HeaderError
from moorage.sizing.reading import Want, drive
from moorage.sources import RepoFile
from moorage.sources.choice import MAX_FILES, needed

EPILOG = """\b
Examples:
  moorage render -f model.yaml --header Qwen3-8B-Q4_K_M.gguf
  moorage render -f model.yaml --header ./Qwen2.5-7B-Instruct
  kubectl get nodes,pods,resourceslices,resourceclaims -A -o yaml > cluster.yaml
  moorage render -f model.yaml --header Qwen3-8B-Q4_K_M.gguf --cluster cluster.yaml -o json
"""

EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)
MODEL_FILES = click.Path(exists=True, path_type=Path)


@click.command("render", epilog=EPILOG)
@click.option("-f", "--filename", required=True, type=EXISTING, help="YAML file with one or several Models.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    type=MODEL_FILES,
    help="GGUF file, or all parts of one, or a folder with config.json and safetensors; headers are enough.",
)
@click.option(
    "--cluster",
    type=EXISTING,
    help="Nodes, pods, ResourceSlices, ResourceClaims and Models, as `kubectl get nodes,pods -A -o yaml` writes them.",
)
@click.option("--config", type=EXISTING, help="Settings of the operator, for its node pools, product sizes and images.")
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
def command(filename: Path, headers: tuple[Path, ...], cluster: Path | None, config: Path | None, output: str) -> None:
    """Print the manifests that the operator would apply, without a cluster or a network.

    \b
    Examples
      moorage render -f model.yaml --header Qwen3-8B-Q4_K_M.gguf
      moorage render -f model.yaml --header Qwen3-8B-Q4_K_M.gguf --cluster cluster.yaml -o json
    """
    try:
        settings = load(config)
        inventory, neighbours = _inventory(cluster, settings.gpus), _neighbours(cluster)
        facts = _facts(headers)
        found = [rendered(m, facts, inventory, settings.defaults(), neighbours) for m in _models(filename)]
    except MoorageError as error:
        raise click.ClickException(str(error)) from error
    if output == "json":
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))
        return
    for one in found:
        _tell(one)


def _tell(one: dict[str, Any]) -> None:
    """Conditions on stderr, manifests on stdout, so that the latter can be piped on."""
    for condition in one["conditions"]:
        if condition["type"] in ("Accepted", "Placed", "Downloaded"):
            text = f"{condition['type']}={condition['status']} {condition['reason']}: {condition['message']}"
            click.echo(text, err=True)
    for remedy in one["remedies"]:
        click.echo(f"Would help: {remedy['change']} ({remedy['effect']})", err=True)
    if one["capabilities"]:
        click.echo(f"Capabilities: {capabilities(one['capabilities'])}", err=True)
    click.echo(yaml.safe_dump_all(one["manifests"], sort_keys=False, width=120), nl=False)


def _documents(path: Path) -> list[Any]:
    try:
        return [d for d in yaml.safe_load_all(path.read_text()) if d]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSpec("InvalidSpec", f"{path}: {error}") from error


def _models(path: Path) -> list[dict[str, Any]]:
    models = [d for d in _documents(path) if isinstance(d, dict) and d.get("kind") == "Model"]
    if not models:
        raise InvalidSpec("InvalidSpec", f"{path}: there is no Model in it")
    return models


_READ: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
    "Node": node,
    "Pod": pod,
    "ResourceSlice": resource_slice,
    "ResourceClaim": resource_claim,
}


def _items(path: Path) -> list[dict[str, Any]]:
    return [i for d in _documents(path) if isinstance(d, dict) for i in (d.get("items") or [d])]


def _neighbours(path: Path | None) -> list[Neighbour]:
    """The cluster's Models, which hold GPUs under the names of their pods' labels."""
    models = [i for i in _items(path) if i.get("kind") == "Model"] if path else []
    try:
        return [neighbour_of(m, owner_of(m["metadata"]["namespace"], m["metadata"]["name"])) for m in models]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidSpec("InvalidSpec", f"{path}: not Models as the API server has them: {error!r}") from error


def _inventory(path: Path | None, gpus: GPUs) -> Inventory:
    if path is None:
        return build((), node_pools=gpus.shapes())
    items = _items(path)
    try:
        found = {kind: [p for i in items if i.get("kind") == kind and (p := read(i))] for kind, read in _READ.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidSpec("InvalidSpec", f"{path}: not Kubernetes objects: {error!r}") from error
    pods = [p for p in found["Pod"] if p["gpus"]]
    return build(
        found["Node"],
        pods,
        found["ResourceSlice"],
        claims=found["ResourceClaim"],
        products=gpus.products,
        node_pools=gpus.shapes(),
    )


def _facts(headers: tuple[Path, ...]) -> dict[str, Any] | None:
    """What the resolver would answer for these files, or for those in a folder."""
    if not headers:
        return None
    by_name = {name: path for given in headers for name, path in sorted(_files(given))}
    files = [RepoFile(name, path.stat().st_size) for name, path in by_name.items()]

    def read(want: Want) -> bytes:
        with by_name[want.path].open("rb") as file:
            file.seek(want.start)
            return file.read(want.length)

    try:
        facts = drive(read_facts(files, whole=False), read)
        chosen, selected = needed(files)
    except HeaderError as error:
        raise InvalidSpec("InvalidSpec", f"{headers[0]}: {error}") from error
    return {
        "files": [{"path": f.path, "sizeBytes": f.size} for f in chosen],
        "selected": selected and len(chosen) <= MAX_FILES,
        "facts": facts,
    }


def _files(given: Path) -> list[tuple[str, Path]]:
    if given.is_file():
        return [(given.name, given)]
    return [(path.relative_to(given).as_posix(), path) for path in given.rglob("*") if path.is_file()]
