"""The kopf process: watches, queues, observes, plans, applies."""
