#!/bin/bash
# A controller and two hosts, each with a network of its own: started by cluster.py inside namespaces, and ended with
# them. What is written to the standard output once is that all of it runs.
set -eu
cd "$1"
export SLURM_CONF=$PWD/slurm.conf
hostname ctl
mount --make-rprivate /
mount --bind hosts /etc/hosts
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up
munged --force --foreground --key-file="$PWD/munge.key" --socket="$PWD/munge.socket" --pid-file="$PWD/munge.pid" \
    --seed-file="$PWD/munge.seed" --log-file="$PWD/munge.log" >munge.out 2>&1 &
for host in 1 2; do
    unshare -n -u sleep infinity &
    inside=$!
    while ! nsenter -t $inside -n -u test "$(readlink /proc/$inside/ns/net)" != "$(readlink /proc/self/ns/net)"; do
        sleep 0.1
    done
    ip link add v$host type veth peer name eth0 netns $inside
    ip link set v$host master br0 up
    nsenter -t $inside -n -u sh -c \
        "hostname n$host; ip link set lo up; ip addr add 10.77.0.1$host/24 dev eth0; ip link set eth0 up"
    echo $inside >n$host.inside
done
until [ -S munge.socket ]; do sleep 0.1; done
slurmctld -D >slurmctld.out 2>&1 &
for host in 1 2; do
    nsenter -t "$(cat n$host.inside)" -n -u slurmd -D -N n$host >slurmd.n$host.out 2>&1 &
done
echo up
exec sleep infinity
