"""The kopf process: watches, queues, observes, plans, applies."""

import moorage.kube  # noqa: F401  before kopf, which would import all of `kubernetes`
