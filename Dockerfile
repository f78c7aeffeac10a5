# The image of deploy/heddle.yaml: two static programs and nothing else, no shell either.
# build/image compiles them first, with the Go that go.mod names, and gives their folder as the context: no image is pulled.
FROM scratch
ARG TARGETARCH
COPY linux-${TARGETARCH}/heddle linux-${TARGETARCH}/heddle-cni /
ENTRYPOINT ["/heddle"]
