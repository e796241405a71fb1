"""How a Model's pod asks for its GPUs: of a device plugin by name, or of DRA by a claim. Never both."""

import json
from typing import TypedDict

from moorage.manifests import model as manifests
from moorage.placement.request import Decision
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import Manifest, Ref


class GPURequest(TypedDict):
    """The parts of a `ServerPod` that say whose GPUs it asks for."""

    gpu_resource: str
    claim_template: str


def asked(step: ModelPass, found: Decision | None, resource: str) -> GPURequest:
    """Whom the pod asks; the claim template that it needs is added to the plan.

    Without a place (the pod runs, and is changed in something else) it asks as it did, else for `resource`.
    """
    if found is None:
        return {"gpu_resource": "", "claim_template": ""}
    if found.claim_template is not None:
        template = manifests.claim_template(step.seen.model, dict(found.claim_template["spec"]))
        step.apply.append(template)
        return {"gpu_resource": "", "claim_template": template["metadata"]["name"]}
    if not found.resource and (live := step.seen.deployment) is not None and (claims := claimed(live)):
        return {"gpu_resource": "", "claim_template": claims[0]}
    return {"gpu_resource": found.resource or resource, "claim_template": ""}


def claimed(live: Manifest) -> list[str]:
    """Names of the claim templates that a Deployment's pods are made with."""
    return list(json.loads(live["placement"]).get("claims", ())) if live.get("placement") else []


def outdated(step: ModelPass, live: Manifest) -> list[Ref]:
    """The Model's claim templates that no pod is made with any more."""
    used = claimed(live)
    return [
        Ref("resource.k8s.io/v1", "ResourceClaimTemplate", t["namespace"], t["name"], t["uid"])
        for t in step.seen.claim_templates
        if t["name"] not in used and t["owner"] == step.model.metadata.uid
    ]
