#!/usr/bin/env bash
# Runs a command on the node of one_node.sh. First adds what other clusters have, but this node
# lacks: addresses of Services (kube-proxy), their names (dnsmasq), a route from pods to the API
# server, and volumes.
#   one_node.sh .ci/node_services.sh COMMAND...
# Needs kube-proxy on PATH, dnsmasq, iptables and kubectl. Everything lives in the namespaces of
# one_node.sh. /run/kubelet.pid has the process id of the kubelet.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
state=$(dirname "$KUBECONFIG")
# The address at which pods reach this machine, and the network of the Services' addresses.
address=10.89.0.1 services=10.96.0.0/24
# The DNS of many clusters caches answers for this time.
cache_seconds=30
pids=()
stop() {
  kubectl delete pods --all --all-namespaces --wait --timeout=60s >/dev/null 2>&1 || true
  kill "${pids[@]}" 2>/dev/null || true
  wait || true
}
trap stop EXIT
start() {
  "$@" >"$state/${1##*/}.log" 2>&1 &
  pids+=($!)
}
ended() { [[ ! -e /proc/$1/exe ]]; }
# Waits until a command succeeds. After a minute, prints the problem and fails.
limited() {
  local problem=$1 deadline=$((SECONDS + 60))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || { echo "$problem" >&2; return 1; }
    sleep 0.1
  done
}

# Gives pods a default route, so that they reach more than their own bridge. containerd notices the
# new file.
cat >"$state/cni/10-test.conflist" <<C
{"cniVersion": "0.4.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
   "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
ip address add "$address/32" dev lo

# Forwards calls from pods to the API server, which listens only on loopback.
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
iptables -t nat -A PREROUTING -d "${services%.*}.1" -p tcp --dport 443 -j DNAT --to-destination 127.0.0.1:6443
start kube-proxy --kubeconfig "$KUBECONFIG" --hostname-override node1 --proxy-mode iptables --masquerade-all \
  --healthz-bind-address 127.0.0.1:10256 --metrics-bind-address 127.0.0.1:10249 --conntrack-max-per-core 0 \
  --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0

# Adds the certificate of the API server's authority to the tokens of service accounts. It is the
# last certificate in the chain.
awk '/BEGIN/ {pem = ""} {pem = pem $0 "\n"} END {printf "%s", pem}' "$state/certs/apiserver.crt" >"$state/ca.crt"
start kube-controller-manager --controllers=serviceaccount-token --kubeconfig "$KUBECONFIG" --leader-elect=false \
  --root-ca-file "$state/ca.crt" --service-account-private-key-file "$state/sa.key" --port 0 --secure-port 0

touch "$state/names"
start dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file="$state/dnsmasq.pid" --user=root \
  --listen-address="$address" --bind-interfaces --no-resolv --no-hosts --addn-hosts="$state/names" \
  --local=/cluster.local/
# Waits until dnsmasq handles signals. Before that, SIGHUP would end it.
limited "dnsmasq does not serve." test -s "$state/dnsmasq.pid"
python=$here/../.venv/bin/python
start "$python" "$here/cluster_names.py" "$state/names" "$(<"$state/dnsmasq.pid")" $cache_seconds
start "$python" "$here/pod_sandboxes.py" /run/containerd/containerd.sock

# Starts the kubelet again. Pods now use dnsmasq as their name server, and the kubelet listens at an
# address that the API server reaches.
cp /etc/hosts "$state/hosts"
echo "$address node1" >>"$state/hosts"
mount --bind "$state/hosts" /etc/hosts
sed -i 's/^address: .*/address: 0.0.0.0/' "$state/kubelet.yaml"
printf 'clusterDNS: [%s]\nclusterDomain: cluster.local\n' "$address" >>"$state/kubelet.yaml"
# Lets the kubelet make more calls. It checks each pod every second. With the default of 5 calls a
# second, its reports would be late.
printf 'kubeAPIQPS: 500\nkubeAPIBurst: 500\n' >>"$state/kubelet.yaml"
mapfile -d '' -t kubelet <"/proc/$P_kubelet/cmdline"
kill "$P_kubelet"
limited "The kubelet has not ended." ended "$P_kubelet"
start "${kubelet[@]/127.0.0.2/$address}"
echo $! >/run/kubelet.pid

# Adds volumes for claims without a storage class.
for number in $(seq 60); do
  mkdir -p -m 0777 "$state/volumes/$number"
  cat <<C
{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "volume-$number"}, "spec": {"capacity":
 {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "$state/volumes/$number"}}}
C
done | kubectl apply -f - >/dev/null

limited "The kubelet does not serve." curl -sf --max-time 2 -o /dev/null http://127.0.0.1:10248/healthz ||
  { tail -5 "$state/kubelet.log"; exit 1; }
"$@"
