{{- /* Not empty where the chart brings Redis: where no other is named. */ -}}
{{- define "weir.redis.bundled" -}}
{{- if not (or .Values.redis.url .Values.redis.urlFrom.secretName) }}true{{ end -}}
{{- end }}

{{- define "weir.redis.url" -}}
{{- .Values.redis.url | default (printf "redis://weir-redis.%s:6379" .Release.Namespace) -}}
{{- end }}

{{- /* The flags that say who logs in. */ -}}
{{- define "weir.redis.users" -}}
{{- if include "weir.redis.bundled" . }}
{{- if or .Values.redis.credentials.secretName .Values.sidecar.redis.credentials.secretName }}
{{- fail "redis.credentials and sidecar.redis.credentials go with redis.url or redis.urlFrom only: the bundled Redis has users of its own" }}
{{- end }}
- --redis-users=weir-redis-users
{{- end }}
{{- with .Values.redis.credentials.secretName }}
{{- if eq . $.Values.sidecar.redis.credentials.secretName }}
{{- fail "sidecar.redis.credentials must be another Secret than redis.credentials: sidecars never log in as the manager" }}
{{- end }}
- --redis-credentials=/etc/weir-redis/manager
{{- end }}
{{- if .Values.sidecar.redis.credentials.secretName }}
- --sidecar-redis-credentials=/etc/weir-redis/sidecar
{{- end }}
{{- end }}
