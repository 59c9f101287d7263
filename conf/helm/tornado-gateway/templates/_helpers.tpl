{{- define "gateway.labels" -}}
app.kubernetes.io/name: {{ .Release.Name }}
{{- end }}

{{- /* Several pods share settings, aliases, stored decisions and events in Redis. */ -}}
{{- define "gateway.check" -}}
{{- $several := or .Values.autoscaling.enabled (gt (int .Values.replicas) 1) -}}
{{- if and $several (not (or .Values.options.REDIS_HOST .Values.options.REDIS_SENTINELS)) -}}
{{- fail "more than one pod needs options.REDIS_HOST or options.REDIS_SENTINELS" -}}
{{- end -}}
{{- range list "WORKERS" "DATA_DIR" "PORT" -}}
{{- if hasKey $.Values.options . -}}
{{- fail (printf "options.%s: the chart sets this option (see workers)" .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "gateway.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end }}

{{- define "gateway.secret" -}}
{{ .Values.secret.existing | default .Release.Name }}
{{- end }}

{{- define "gateway.memory" -}}
{{ add 64 (mul 256 (add 1 (int .Values.workers))) }}Mi
{{- end }}
