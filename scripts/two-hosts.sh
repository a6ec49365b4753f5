#!/usr/bin/env bash
# Two hosts on one machine: network namespaces joined by a veth pair, as two machines would be by a cable. As root, with iproute2.
#
#   scripts/two-hosts.sh up [name]             makes them: <name>a with 10.87.0.1, <name>b with 10.87.0.2 (name: moe)
#   scripts/two-hosts.sh run [name] -n 2 CMD   mpirun on both, one rank after the other; all that ranks say to each other crosses the pair
#   scripts/two-hosts.sh cut|mend [name]       takes the link down, or up again
#   scripts/two-hosts.sh bytes [name]          bytes that crossed it so far
#   scripts/two-hosts.sh down [name]           removes them
#
# mpirun starts its daemons by this script instead of ssh (`agent`): the host's name is the namespace's. TCP alone, on the pair alone.
set -euo pipefail

verb="${1:-}"
name="${2:-moe}"

case "$verb" in
  up)
    for side in a b; do
      ip netns add "$name$side"
      ip -n "$name$side" link set lo up
      # Data that nobody acknowledges is given up after some 13 s instead of 15 minutes: keepalive (below) is for connections that are idle.
      ip netns exec "$name$side" sh -c 'echo 5 > /proc/sys/net/ipv4/tcp_retries2'
    done
    ip link add "${name}0" netns "${name}a" type veth peer name "${name}1" netns "${name}b"
    ip -n "${name}a" address add 10.87.0.1/24 dev "${name}0"
    ip -n "${name}b" address add 10.87.0.2/24 dev "${name}1"
    ip -n "${name}a" link set "${name}0" up
    ip -n "${name}b" link set "${name}1" up
    ;;
  run)
    shift 2
    # The daemons' own connection is given up after some 15 s, so that mpirun, too, notices a cut link.
    exec ip netns exec "${name}a" env MOE_TWO_HOSTS="$name" mpirun --allow-run-as-root --oversubscribe --bind-to none \
      --host "10.87.0.1:64,10.87.0.2:64" --map-by node \
      --mca plm_rsh_agent "$0 agent" --mca btl tcp,self --mca btl_tcp_if_include 10.87.0.0/24 --mca oob_tcp_if_include 10.87.0.0/24 \
      --mca oob_tcp_keepalive_time 5 --mca oob_tcp_keepalive_intvl 3 --mca oob_tcp_keepalive_probes 3 \
      -x MOE_TWO_HOSTS "$@"
    ;;
  agent)
    # agent <host> <command as one or several words>, as mpirun calls ssh.
    case "$2" in
      10.87.0.1) side=a ;;
      *) side=b ;;
    esac
    shift 2
    exec ip netns exec "$MOE_TWO_HOSTS$side" bash -c "$*"
    ;;
  cut) ip -n "${name}a" link set "${name}0" down ;;
  mend) ip -n "${name}a" link set "${name}0" up ;;
  bytes) ip netns exec "${name}a" cat "/sys/class/net/${name}0/statistics/tx_bytes" 2>/dev/null || ip -n "${name}a" -s -j link show "${name}0" | grep -o '"tx":{"bytes":[0-9]*' | grep -o '[0-9]*$' ;;
  down)
    for side in a b; do ip netns del "$name$side" 2>/dev/null || true; done
    ;;
  *)
    sed -n '2,/^set/{/^#/p}' "$0" >&2
    exit 2
    ;;
esac
