"""`moorage explain`: the decision about one Model in the cluster as it is, with the person's own rights."""
