{{- /* The settings of the sidecars. Their URL is in every pod, for all to see. */ -}}
{{- define "weir.sidecar" -}}
{{- $redis := .Values.sidecar.redis.url }}
{{- if not $redis }}
{{- if or .Values.redis.urlFrom.secretName (contains "@" .Values.redis.url) }}
{{- fail "sidecar.redis.url is required where the manager's URL is secret: the same without user and password" }}
{{- end }}
{{- $redis = include "weir.redis.url" . }}
{{- end -}}
image: {{ printf "%s:%s" .Values.sidecar.image.repository (.Values.sidecar.image.tag | default .Chart.AppVersion) }}
imagePullPolicy: {{ .Values.sidecar.image.pullPolicy }}
redis: {{ $redis }}
{{- with .Values.sidecar.redis.configURL }}
configRedis: {{ . }}
{{- end }}
maxKeysPerPolicy: {{ int64 .Values.sidecar.maxKeysPerPolicy }}
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
guaranteedResources:
  {{- toYaml .Values.sidecar.guaranteedResources | nindent 2 }}
{{- end }}
