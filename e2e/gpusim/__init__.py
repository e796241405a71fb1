"""SIMULATED GPUs for a machine that has none: a device plugin for the real kubelet, and a stub of NVIDIA's NVML.

One text file says what the machine pretends to have. The device plugin offers it to the kubelet, the stub library
shows it to the agent; an edit of the file is a change of the hardware. What this can show: scheduling, admission,
environment, who holds which GPU, and what Moorage makes of numbers. What it cannot: memory that really runs out, CUDA,
a real driver.
"""
