"""`moorage render`: what the operator would decide and apply, without a cluster and without a network."""
