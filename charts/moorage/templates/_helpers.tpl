{{/*
Gives every value that is missing its default; each template begins with it. `helm upgrade --reuse-values` brings the
values of the release as its own chart had them, so that whatever came to values.yaml since is missing.
*/}}
{{- define "moorage.defaults" -}}
{{- include "moorage.fill" (dict "values" .Values "defaults" (.Files.Get "files/defaults.yaml" | fromYaml)) }}
{{- end }}

{{/* Maps that are a value as a whole, of a user's own keys, are not looked into: a key taken out with null stays out. */}}
{{- define "moorage.fill" -}}
{{- $values := .values }}
{{- range $name, $default := .defaults }}
{{- $value := index $values $name }}
{{- if kindIs "invalid" $value }}
{{- $_ := set $values $name $default }}
{{- else if and (kindIs "map" $value) (not (has $name (list "resources" "nodeSelector" "labels"))) }}
{{- include "moorage.fill" (dict "values" $value "defaults" $default) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Name of the chart in labels. */}}
{{- define "moorage.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of every object: the release's where it says moorage already, else both. */}}
{{- define "moorage.fullname" -}}
{{- $name := include "moorage.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "moorage.serviceAccountName" -}}
{{- default (include "moorage.fullname" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "moorage.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "moorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: moorage
{{- end }}

{{/* Labels of pods: without versions, so that a new version of the chart alone starts no pod anew. */}}
{{- define "moorage.podLabels" -}}
app.kubernetes.io/name: {{ include "moorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: moorage
{{- end }}

{{/* What selects the operator's pods; never changes, for a Deployment's selector cannot. */}}
{{- define "moorage.operatorSelector" -}}
app.kubernetes.io/name: {{ include "moorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* The same for the gateway's. */}}
{{- define "moorage.gatewaySelector" -}}
app.kubernetes.io/name: {{ include "moorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end }}

{{/* The Secret with the token that gateways and operator share, and the Service that takes the reports. */}}
{{- define "moorage.reportTokenSecret" -}}
{{- default (printf "%s-reports" (include "moorage.fullname" .)) .Values.gateway.reportTokenSecret }}
{{- end }}

{{/* What selects the agents' pods. */}}
{{- define "moorage.agentSelector" -}}
app.kubernetes.io/name: {{ include "moorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end }}

{{- define "moorage.image" -}}
{{- default (printf "%s/moorage:%s" .Values.images.registry .Chart.AppVersion) .Values.images.moorage }}
{{- end }}

{{- define "moorage.llamaCppImage" -}}
{{- default (printf "%s/llamacpp-cpu:%s" .Values.images.registry .Chart.AppVersion) .Values.images.llamaCpp }}
{{- end }}

{{/* The settings file of the operator (operator/moorage/control/settings.py). */}}
{{- define "moorage.config" -}}
images:
  moorage: {{ include "moorage.image" . | quote }}
  llamaCpp: {{ include "moorage.llamaCppImage" . | quote }}
  llamaCppNvidia: {{ .Values.images.llamaCppNvidia | quote }}
  llamaCppAmd: {{ .Values.images.llamaCppAmd | quote }}
  vllm: {{ .Values.images.vllm | quote }}
  vllmNvidia: {{ .Values.images.vllmNvidia | quote }}
  vllmAmd: {{ .Values.images.vllmAmd | quote }}
  pullSecrets: {{ toJson .Values.images.pullSecrets }}
vllm:
  allowRemoteCode: {{ .Values.vllm.allowRemoteCode }}
sources:
  huggingFaceEndpoint: {{ .Values.sources.huggingFaceEndpoint | quote }}
  allowPrivateHosts: {{ .Values.sources.allowPrivateHosts }}
  allowedHosts: {{ toJson .Values.sources.allowedHosts }}
  deniedNetworks: {{ toJson .Values.sources.deniedNetworks }}
proxy:
  http: {{ .Values.proxy.http | quote }}
  https: {{ .Values.proxy.https | quote }}
  noProxy: {{ .Values.proxy.noProxy | quote }}
downloads:
  maxRunning: {{ int .Values.downloads.maxRunning }}
gpus:
  products: {{ toJson .Values.gpus.products }}
  nodePools: {{ toJson .Values.gpus.nodePools }}
  nodeDeadline: {{ .Values.gpus.nodeDeadline | quote }}
scaling:
  scaleDownAfterSeconds: {{ int .Values.scaling.scaleDownAfterSeconds }}
  preemptionCooldownSeconds: {{ int .Values.scaling.preemptionCooldownSeconds }}
  maxLoadedModels: {{ toJson .Values.scaling.maxLoadedModels }}
agents:
  namespace: {{ ternary .Release.Namespace "" .Values.agent.enabled | quote }}
  maxWaitSeconds: {{ int .Values.agent.maxWaitSeconds }}
workers: {{ int .Values.operator.workers }}
resyncSeconds: {{ int .Values.operator.resyncSeconds }}
{{- end }}
