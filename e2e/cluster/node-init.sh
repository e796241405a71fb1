#!/bin/sh
# Process 1 of the node's namespaces: gives them what a machine has for itself, says so, and waits to be stopped.
# When it ends, the kernel ends every process in here, and with the last one go all mounts, links and iptables rules.
set -eu
folder=$1 name=$2 pause=$3

# What a program in the node finds under a machine-wide path is this cluster's own folder.
own() { mkdir -p "$1" "$2" && mount --bind "$1" "$2"; }

echo "$name" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/containerd
own "$folder/kubelet" /var/lib/kubelet
own "$folder/cni/state" /var/lib/cni
own "$folder/logs/pods" /var/log/pods
own "$folder/logs/containers" /var/log/containers

# sysfs shows the network devices of the namespace that mounts it.
mkdir -p "$folder/cgroup"
mount --rbind /sys/fs/cgroup "$folder/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$folder/cgroup" /sys/fs/cgroup
umount --recursive "$folder/cgroup"

# The kubelet sets these for the whole machine unless it finds them as it wants them (setupKernelTunables in
# pkg/kubelet/cm/container_manager_linux.go). A test must not decide how its host panics: here it finds them so.
pretend() {
	mkdir -p "$folder/sysctl"
	shown="$folder/sysctl/$(echo "$1" | tr / .)"
	echo "$2" >"$shown"
	mount --bind "$shown" "/proc/sys/$1"
}
pretend vm/overcommit_memory 1
pretend vm/panic_on_oom 0
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend kernel/keys/root_maxkeys 1000000
pretend kernel/keys/root_maxbytes 25000000

# Containers with mountPropagation find the root as systemd would have left it. Nothing leads back to the host.
mount --make-rshared /

echo 1 >/proc/sys/net/ipv4/ip_forward
ip link set lo up
touch "$folder/node-ready"
exec "$pause"
