#!/usr/bin/env bash
# Runs a command with its own Kubernetes API server, which has no nodes, and sets KUBECONFIG:
#   .ci/with_api_server.sh FOLDER COMMAND...
# FOLDER contains the programs etcd and kube-apiserver. Everything listens on loopback. Needs the
# environment .venv. If API_AUDIT_LOG names a file, the API server writes a line to it for each
# call.
set -euo pipefail
programs=$1
python=$(dirname "$0")/../.venv/bin/python
shift
state=$(mktemp -d)
pids=()
stop() {
  ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
  wait || true
  rm -rf "$state"
}
trap stop EXIT

# Chooses two ports for etcd and one for the API server.
read -r client peer port < <(cd "$(dirname "$0")/.." &&
  .venv/bin/python -c 'from tests.support.ports import free_ports; print(*free_ports(3))')
"$python" - "$state/account.key" <<'P'
import sys
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
key = rsa.generate_private_key(65537, 2048)
encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
open(sys.argv[1], "wb").write(key.private_bytes(encoding, form, serialization.NoEncryption()))
P
echo 'test,admin,admin,"system:masters"' >"$state/tokens.csv"
cat >"$state/kubeconfig" <<C
{"apiVersion": "v1", "kind": "Config", "current-context": "test",
 "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:$port", "insecure-skip-tls-verify": true}}],
 "users": [{"name": "test", "user": {"token": "test"}}],
 "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}]}
C
export KUBECONFIG=$state/kubeconfig

audit=()
if [[ -n ${API_AUDIT_LOG:-} ]]; then
  echo '{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}],
    "omitStages": ["RequestReceived", "ResponseStarted"]}' >"$state/audit.json"
  audit=(--audit-policy-file "$state/audit.json" --audit-log-path "$API_AUDIT_LOG" --audit-log-maxsize 0)
fi
"$programs/etcd" --data-dir "$state/etcd" --unsafe-no-fsync --log-level error \
  --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
  --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
  --initial-cluster "default=http://127.0.0.1:$peer" >"$state/etcd.log" 2>&1 &
pids+=($!)
"$programs/kube-apiserver" --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 \
  --advertise-address 127.0.0.1 --secure-port "$port" --cert-dir "$state/certificates" \
  --service-account-issuer https://kubernetes.default.svc \
  --service-account-signing-key-file "$state/account.key" --service-account-key-file "$state/account.key" \
  --token-auth-file "$state/tokens.csv" --authorization-mode RBAC --service-cluster-ip-range 10.96.0.0/24 \
  --endpoint-reconciler-type none --allow-privileged=false "${audit[@]}" >"$state/api-server.log" 2>&1 &
pids+=($!)
is_ready() {
  "$python" - "https://127.0.0.1:$port/readyz" <<'P'
import ssl, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"authorization": "Bearer test"})
try:
    urllib.request.urlopen(request, timeout=2, context=ssl._create_unverified_context())
except OSError:
    sys.exit(1)
P
}
for _ in $(seq 300); do
  if is_ready; then
    "$@"
    exit
  fi
  kill -0 "${pids[1]}" 2>/dev/null || break
  sleep 0.2
done
echo "The API server did not start:" >&2
tail -5 "$state/etcd.log" "$state/api-server.log" >&2
exit 1
