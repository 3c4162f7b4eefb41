{{- /* Has cert-manager write the caBundles. */ -}}
{{- define "weir.webhooks.annotations" -}}
{{- if eq .Values.webhook.certificates "CertManager" -}}
annotations:
  cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/weir-webhook
{{- end }}
{{- end }}
