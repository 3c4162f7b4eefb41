# SPDX-License-Identifier: Apache-2.0
#
#   docker build --target manager --build-arg VERSION=v0.1.0 -t weir-manager:v0.1.0 .
#   docker build --target sidecar --build-arg VERSION=v0.1.0 -t weir-sidecar:v0.1.0 .

# The build runs on the builder's own platform and crosses to the target's.
FROM --platform=$BUILDPLATFORM golang:1.26.8 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY api api
COPY cmd cmd
COPY internal internal
ARG TARGETOS TARGETARCH VERSION=dev
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/manager ./cmd/sidecar

# Certificates for rediss:// and issuers; nothing else of the build image is taken along.
FROM scratch AS base
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
USER 65532:65532

FROM base AS sidecar
COPY --from=build /out/sidecar /weir-sidecar
ENTRYPOINT ["/weir-sidecar"]

FROM base AS manager
COPY --from=build /out/manager /weir-manager
ENTRYPOINT ["/weir-manager"]
