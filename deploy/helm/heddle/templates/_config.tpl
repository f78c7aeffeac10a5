{{/* In Flannel's words. */}}
{{- define "heddle.netConf" -}}
{{- $backend := dict "Type" .Values.backend.type -}}
{{- with .Values.mtu }}{{ $_ := set $backend "MTU" . }}{{ end -}}
{{- $net := dict "Backend" (merge $backend .Values.backend.options) -}}
{{- with .Values.network }}{{ $_ := set $net "Network" . }}{{ else }}{{ $_ := set $net "EnableIPv4" false }}{{ end -}}
{{- with .Values.ipv6Network }}{{ $_ := set $net "EnableIPv6" true }}{{ $_ := set $net "IPv6Network" . }}{{ end -}}
{{- toPrettyJson $net -}}
{{- end }}

{{/* The agents' configuration. */}}
{{- define "heddle.config" -}}
{{- toYaml (merge (dict "store" (dict "type" "kubernetes") "netConf" "/etc/heddle/net-conf.json") .Values.config) -}}
{{- end }}
