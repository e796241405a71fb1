"""Pure builders of the Kubernetes objects Moorage owns."""
