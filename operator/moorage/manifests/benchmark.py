"""The Job of one benchmark run."""

from moorage import names
from moorage.manifests.common import Manifest, container_security, metadata, pod_security, stamped, without_none

CONTAINER = "bench"
DEADLINE_SECONDS = 900


def job(
    owner: Manifest, run: str, *, image: str, args: tuple[str, ...], pull_secrets: tuple[str, ...] = ()
) -> Manifest:
    """A Job that runs `moorage bench` with `args` once; `run` names what is measured and is part of the Job's name."""
    model = owner["metadata"]["name"]
    labels = {names.COMPONENT: "benchmark", names.MODEL_LABEL: names.dns_label(model)}
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": pod_security(),
        "imagePullSecrets": [{"name": s} for s in pull_secrets],
        "containers": [
            {
                "name": CONTAINER,
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "args": ["bench", *args],
                "resources": {"requests": {"cpu": "100m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}},
                "securityContext": container_security(),
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
    }
    return stamped(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata(names.benchmark_job(model, run), owner, labels, annotations={names.INPUTS_HASH: run}),
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": DEADLINE_SECONDS,
                "ttlSecondsAfterFinished": 3600,
                # A drained or preempted pod measured nothing: it runs again and counts as no failure.
                "podFailurePolicy": {
                    "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]
                },
                "template": {
                    "metadata": {"labels": {names.MANAGED_BY: "moorage", **labels}},
                    "spec": without_none(pod),
                },
            },
        }
    )
