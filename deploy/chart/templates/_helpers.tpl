{{/* The labels of an object, by its name. */}}
{{- define "evershell.labels" -}}
{app.kubernetes.io/name: {{ . }}, app.kubernetes.io/part-of: evershell}
{{- end }}

{{- define "evershell.image" -}}
{{ .Values.image.repository }}
{{- with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The settings of all programs. */}}
{{- define "evershell.settings" -}}
POD_IMAGE: {{ .Values.agentImage | default (include "evershell.image" .) | quote }}
POD_TEMPLATE_FILE: /etc/evershell-agents/agents.yaml
# Agents have their own port, which accepts only agents with their certificates.
AGENT_TLS: "on"
RUNTIME_SERVICE: workers:50151
LISTEN_HOST: 0.0.0.0
METRICS_ADDRESS: 0.0.0.0:9100
STATE_DIR: /etc/evershell
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}

{{/* The template of the agents' pods. */}}
{{- define "evershell.agents" -}}
{{- $pod := .Values.agents.pod -}}
{{- with .Values.imagePullSecret -}}
{{- $pod = merge (dict) $pod (dict "imagePullSecrets" (list (dict "name" .))) -}}
{{- end -}}
{{- toYaml (dict "resources" .Values.agents.resources "pod" $pod "volume" .Values.agents.volume) -}}
{{- end }}

{{/* The template of the pods of a Deployment, up to its containers. */}}
{{- define "evershell.template" -}}
{{- $root := first . }}{{ $name := last . -}}
metadata:
  labels: {{ include "evershell.labels" $name }}
  # A change of the settings replaces the pods.
  annotations: {checksum/settings: {{ cat (include "evershell.settings" $root) (include "evershell.agents" $root) | sha256sum | trunc 16 | quote }}}
spec:
  serviceAccountName: {{ eq $name "controller" | ternary "controller" "evershell" }}
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector: {matchLabels: {app.kubernetes.io/name: {{ $name }}}}
    {{- end }}
  {{- include "evershell.pod" . | nindent 2 }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "evershell.pod" -}}
{{- $values := (first .).Values -}}
# Only the controller calls the API server.
automountServiceAccountToken: {{ eq (last .) "controller" }}
enableServiceLinks: false
{{- with $values.imagePullSecret }}
imagePullSecrets: [{name: {{ . | quote }}}]
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.podSpec }}
{{ toYaml . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What all containers have in common. */}}
{{- define "evershell.container" -}}
image: {{ include "evershell.image" . }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* A program may take 60 s to start. It is replaced if it does not answer for 15 s. */}}
{{- define "evershell.liveness" -}}
startupProbe:
  grpc: {port: 50051, service: liveness}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 20
livenessProbe:
  grpc: {port: 50051, service: liveness}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 5
  terminationGracePeriodSeconds: 1
{{- end }}

{{- define "evershell.ports" -}}
{{- range . }}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end }}
