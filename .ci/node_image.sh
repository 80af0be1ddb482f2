#!/usr/bin/env bash
# Writes a docker archive with the images localhost/evershell:1 (an agent) and localhost/pause:1, for a node
# that asks no registry:  .ci/node_image.sh ARCHIVE
# Needs root, mmdebstrap, Go, and the environment .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mmdebstrap --quiet --variant=minbase --include=python3 trixie "$work/root" /etc/apt/sources.list.d/debian.sources
rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"
.venv/bin/hatchling build -t wheel -d "$work/dist" >/dev/null
wheel=$(echo "$work"/dist/*.whl)
.venv/bin/uv pip install -q --target "$work/root/opt/evershell" --python-version 3.13 --only-binary :all: \
  --constraints requirements.txt "evershell[agent] @ file://$wheel"
mkdir -p "$work/root/workspace" "$work/root/run/evershell"

mkdir "$work/pause"
printf 'package main\nimport ("os"; "os/signal"; "syscall")\nfunc main() { c := make(chan os.Signal, 1); signal.Notify(c, syscall.SIGTERM, syscall.SIGINT); <-c }\n' >"$work/pause/pause.go"
go=$(command -v go || echo /usr/lib/go-1.24/bin/go)
(cd "$work/pause" && HOME=$work CGO_ENABLED=0 GO111MODULE=off "$go" build -ldflags='-s -w' -o pause pause.go && rm pause.go)

python3 - "$work" "$archive" <<'P'
import hashlib, json, sys, tarfile, io
from pathlib import Path

work, archive = Path(sys.argv[1]), Path(sys.argv[2])
images, names = [], []
with tarfile.open(archive, "w") as whole:
    def add(name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        whole.addfile(info, io.BytesIO(data))

    for folder, tag, config in (
        ("root", "localhost/evershell:1", {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONPATH=/opt/evershell", "PYTHONDONTWRITEBYTECODE=1"], "User": "10001:10001"}),
        ("pause", "localhost/pause:1", {"Entrypoint": ["/pause"], "User": "65535:65535"}),
    ):
        layer = work / f"{folder}.tar"
        with tarfile.open(layer, "w") as tar:
            tar.add(work / folder, arcname=".", recursive=True)
        digest = hashlib.sha256(layer.read_bytes()).hexdigest()
        described = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}
        data = json.dumps(described).encode()
        name = hashlib.sha256(data).hexdigest()
        add(f"{name}.json", data)
        whole.add(layer, arcname=f"{folder}/layer.tar")
        images.append({"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{folder}/layer.tar"]})
    add("manifest.json", json.dumps(images).encode())
P
echo "$archive"
