"""The agent: one per GPU node, tells what NVML sees and, by the kubelet, whose it is. No rights in the cluster."""
