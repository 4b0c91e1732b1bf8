{{/*
What the pods of all parts have in common: what is in `spec` beside the container's command, ports
and probes. Takes `root` and `part`.
*/}}
{{- define "messager.podSpec" -}}
{{- $part := index .root.Values .part -}}
serviceAccountName: {{ .root.Values.serviceAccountName | default "default" }}
automountServiceAccountToken: false
{{- /* A Service named `postgres` would otherwise set POSTGRES_PORT. */}}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with $part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $files := include "messager.merged" (dict "root" .root "part" .part "of" "files") | fromYaml }}
{{- if or $files .root.Values.extraVolumes }}
volumes:
  {{- range $name, $from := $files }}
  - name: {{ include "messager.volume" $name }}
    {{- if $from.secret }}
    secret: { secretName: {{ $from.secret | quote }}, defaultMode: 0440 }
    {{- else }}
    configMap: { name: {{ $from.configMap | quote }}, defaultMode: 0440 }
    {{- end }}
  {{- end }}
  {{- with .root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Image, settings, mounts and limits of a part's container. Takes `root` and `part`. */}}
{{- define "messager.container" -}}
{{- $part := index .root.Values .part -}}
{{- $image := mergeOverwrite (deepCopy .root.Values.image) (deepCopy $part.image) -}}
{{- $files := include "messager.merged" (dict "root" .root "part" .part "of" "files") | fromYaml -}}
{{- $secrets := include "messager.merged" (dict "root" .root "part" .part "of" "secrets") | fromYaml -}}
{{- if $image.digest }}
image: {{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else }}
image: {{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) | quote }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
resources:
  {{- toYaml $part.resources | nindent 2 }}
{{- if or $files .root.Values.extraVolumeMounts }}
volumeMounts:
  {{- /* The whole folder, because a file that is mounted alone is never replaced. */}}
  {{- range $name, $_ := $files }}
  - { name: {{ include "messager.volume" $name }}, mountPath: {{ include "messager.folder" $name }}, readOnly: true }
  {{- end }}
  {{- with .root.Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Settings from Secrets and paths of files, as a list of variables. Takes `root` and `part`. */}}
{{- define "messager.env" -}}
{{- range $name, $from := include "messager.merged" (dict "root" .root "part" .part "of" "secrets") | fromYaml }}
- name: {{ $name }}
  valueFrom: { secretKeyRef: { name: {{ $from.name | quote }}, key: {{ $from.key | default $name | quote }} } }
{{- end }}
{{- range $name, $from := include "messager.merged" (dict "root" .root "part" .part "of" "files") | fromYaml }}
- { name: {{ $name }}, value: {{ printf "%s/%s" (include "messager.folder" $name) $from.key | quote }} }
{{- end }}
{{- end -}}

{{/* Secrets whose keys are settings. Takes `root` and `part`. */}}
{{- define "messager.secretsFrom" -}}
{{- range concat .root.Values.secretsFrom (index .root.Values .part).secretsFrom }}
- secretRef: { name: {{ . | quote }} }
{{- end }}
{{- end -}}

{{- define "messager.volume" -}}{{ . | lower | replace "_" "-" }}{{- end -}}
{{- define "messager.folder" -}}/etc/messager/{{ . | lower | replace "_" "-" }}{{- end -}}
