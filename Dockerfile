# The image of deploy/heddle.yaml: two static programs and nothing else, no shell either.
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=$(git describe --tags --always) -t NAME .
ARG GO=1.26
# The compiler runs on the builder's own architecture and builds for the image's.
FROM --platform=$BUILDPLATFORM golang:${GO} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=devel
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN VERSION=$VERSION GOOS=$TARGETOS GOARCH=$TARGETARCH build/bin /out

FROM scratch
COPY --from=build /out/heddle /out/heddle-cni /
ENTRYPOINT ["/heddle"]
