{{- /* Not empty where the chart brings Redis: where no other is named. */ -}}
{{- define "weir.redis.bundled" -}}
{{- if not (or .Values.redis.url .Values.redis.urlFrom.secretName) }}true{{ end -}}
{{- end }}

{{- define "weir.redis.url" -}}
{{- .Values.redis.url | default (printf "redis://weir-redis.%s:6379" .Release.Namespace) -}}
{{- end }}
