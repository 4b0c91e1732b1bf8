{{/* The name of the release's objects. */}}
{{- define "messager.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 44 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 44 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 44 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The labels by which a part's pods are found. They never change. Takes `root` and `part`. */}}
{{- define "messager.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* The labels of every object. Takes `root` and `part`. */}}
{{- define "messager.labels" -}}
{{ include "messager.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: messager
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The settings of a part as a YAML map of texts. Takes `root` and `part`. */}}
{{- define "messager.config" -}}
{{- $ports := dict "api" 8082 "processor" 8083 "consumer" 8084 "migrate" 8082 -}}
{{- $own := dict "APP_PORT" 8080 "PROMETHEUS_SERVER_PORT" (get $ports .part) "SHUTDOWN_GRACE" 20 -}}
{{- $config := mergeOverwrite $own (deepCopy .root.Values.config) (deepCopy (index .root.Values .part).config) -}}
{{- range $name, $value := $config }}
{{- if regexMatch "(PASSWORD|SECRET|TOKEN|API_KEY|ACCESS_KEY|SIGNING_KEY|PAYLOAD_KEY|PEPPER)$" $name }}
{{- fail (printf "config.%s is a secret, and everyone could read it in the ConfigMap: put it into a Secret, and name that in secrets.%s" $name $name) }}
{{- end }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ include "messager.text" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A value as a quoted text. Helm reads whole numbers as floats, and would print 1e+06. */}}
{{- define "messager.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- printf "%.0f" . | quote -}}
{{- else -}}
{{- toString . | quote -}}
{{- end -}}
{{- end -}}

{{/* `secrets` or `files` of a part, as a YAML map. Takes `root`, `part` and `of`. */}}
{{- define "messager.merged" -}}
{{- $merged := deepCopy (index .root.Values .of) -}}
{{- range $name, $from := index .root.Values .part .of -}}
{{- $_ := set $merged $name $from -}}
{{- end -}}
{{- toYaml $merged -}}
{{- end -}}

{{/* Fails if the settings cannot work, because pods that cannot start show it later and less clearly. */}}
{{- define "messager.validate" -}}
{{- range $part := list "api" "processor" "consumer" }}
{{- $at := dict "root" $ "part" $part }}
{{- $config := include "messager.config" $at | fromYaml }}
{{- $secrets := include "messager.merged" (merge (dict "of" "secrets") $at) | fromYaml }}
{{- $elsewhere := concat $.Values.secretsFrom (index $.Values $part).secretsFrom }}
{{- if not $elsewhere }}
{{- range $name := list "POSTGRES_HOST" "POSTGRES_DB" "POSTGRES_USER" }}
{{- if not (or (hasKey $config $name) (hasKey $secrets $name)) }}
{{- fail (printf "config.%s is not set: the pods of %s have no disk for SQLite, so they need a PostgreSQL" $name $part) }}
{{- end }}
{{- end }}
{{- if ne (hasKey $config "PRODUCER_URL") (hasKey $config "CONSUMER_URL") }}
{{- fail "config.PRODUCER_URL and config.CONSUMER_URL: set both for Kafka, or neither for the queue in PostgreSQL" }}
{{- end }}
{{- end }}
{{- range $of := list "config" "secrets" }}
{{- range $name, $_ := include "messager.merged" (merge (dict "of" "files") $at) | fromYaml }}
{{- if hasKey (ternary $config $secrets (eq $of "config")) $name }}
{{- fail (printf "%s.%s and files.%s are both set for %s" $of $name $name $part) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
