#!/usr/bin/env bash
# Runs a command with its own Docker Engine, which has the images of an archive and needs no
# registry:
#   IMAGES=ARCHIVE .ci/with_docker.sh COMMAND...
# The engine and the command have their own mount and network namespaces, and the engine's files are
# in memory. So nothing stays on the machine. Needs root, and from Debian iproute2, docker.io,
# docker-cli and docker-compose.
set -euo pipefail
if [[ -z ${OWN_NAMESPACES:-} ]]; then
  OWN_NAMESPACES=1 exec unshare --mount --net --propagation private "$(realpath "$0")" "$@"
fi
export PATH=$PATH:/usr/sbin
ip link set lo up
# Unmounts version 2 of cgroups if both versions are mounted: the engine would use the controllers
# of both.
umount /sys/fs/cgroup/unified 2>/dev/null || true
mount -t tmpfs tmpfs /run
export DOCKER_HOST=unix:///run/docker.sock
dockerd --host "$DOCKER_HOST" --data-root /run/images --exec-root /run/docker --pidfile /run/docker.pid \
  >/run/docker.log 2>&1 &
engine=$!
stop() {
  kill "$engine" 2>/dev/null || true
  wait || true
  find /sys/fs/cgroup/*/docker -depth -type d -exec rmdir {} + 2>/dev/null || true
}
trap stop EXIT
for _ in $(seq 300); do
  if docker info >/dev/null 2>&1; then
    docker load --quiet --input "$IMAGES" >/dev/null
    "$@"
    exit
  fi
  kill -0 "$engine" 2>/dev/null || break
  sleep 0.1
done
echo "The Docker Engine did not start:" >&2
tail -5 /run/docker.log >&2
exit 1
