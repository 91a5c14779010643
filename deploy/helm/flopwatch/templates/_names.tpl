{{- define "flopwatch.labels" -}}
app.kubernetes.io/name: flopwatch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "flopwatch.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "flopwatch.collector" -}}
{{- if .Values.agent.collector -}}
{{ .Values.agent.collector }}
{{- else if .Values.collector.enabled -}}
{{ .Release.Name }}-collector.{{ .Release.Namespace }}:{{ .Values.collector.ingestPort }}
{{- else -}}
{{ fail "agent.collector: HOST:PORT of the collector's ingest, or enable the collector of this chart" }}
{{- end -}}
{{- end }}
