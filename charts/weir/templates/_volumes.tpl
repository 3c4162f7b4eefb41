{{- /* What is mounted for the manager, and where. */ -}}
{{- define "weir.volumeMounts" -}}
{{- if .Values.sidecar.enabled }}
- name: config
  mountPath: /etc/weir
  readOnly: true
{{- end }}
{{- if eq .Values.webhook.certificates "CertManager" }}
- name: webhook
  mountPath: /etc/weir-webhook
  readOnly: true
{{- end }}
{{- if .Values.redis.credentials.secretName }}
- name: redis
  mountPath: /etc/weir-redis/manager
  readOnly: true
{{- end }}
{{- if .Values.sidecar.redis.credentials.secretName }}
- name: redis-of-sidecars
  mountPath: /etc/weir-redis/sidecar
  readOnly: true
{{- end }}
{{- end }}

{{- define "weir.volumes" -}}
{{- if .Values.sidecar.enabled }}
- name: config
  configMap:
    name: weir-manager
{{- end }}
{{- if eq .Values.webhook.certificates "CertManager" }}
- name: webhook
  secret:
    secretName: weir-webhook-cert-manager
    defaultMode: 0440
{{- end }}
{{- with .Values.redis.credentials.secretName }}
- name: redis
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with .Values.sidecar.redis.credentials.secretName }}
- name: redis-of-sidecars
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
