"""Which accelerator a Model gets, and why. Pure."""
