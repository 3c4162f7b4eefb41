# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VERSION ?= $(shell git -c safe.directory="*" describe --tags --always --dirty 2>/dev/null || echo unknown)
MODULES := . hack/bench hack/tools/cluster hack/tools/generate hack/tools/helm hack/tools/lint

# One set of flags for all, so that the demo and the tests find in the compiler's cache what the builds left.
# The version is stamped by us, and git may not trust the folder that CI cloned into.
export GOFLAGS := -trimpath -buildvcs=false
export CGO_ENABLED := 0
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help
help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Try it

.PHONY: demo
demo: build ## Show limits at work in a cluster of its own; ends by itself
	$(DEMO)

.PHONY: demo-up
demo-up: build ## Start what the demo starts, and leave it running
	$(DEMO) up

.PHONY: demo-down
demo-down: ## End what demo-up started
	$(DEMO) down

# Assigned in the shell first, so that a failing script fails the target.
DEMO = @assets=$$(hack/control-plane.sh); redis=$$(hack/redis.sh); \
	KUBEBUILDER_ASSETS=$$assets REDIS_SERVER=$$redis go run ./hack/demo

.PHONY: node-up
node-up: images ## Start a real Kubernetes node with our images in it, and leave it running
	go run ./hack/node up dist/weir-manager.tar dist/weir-sidecar.tar dist/workload.tar dist/redis.tar

.PHONY: node-down
node-down: ## End what node-up started
	go run ./hack/node down

##@ Develop

.PHONY: build
build: ## Build bin/weir-manager and bin/weir-sidecar
	go build -ldflags "$(LDFLAGS)" -o bin/weir-manager ./cmd/manager
	go build -ldflags "$(LDFLAGS)" -o bin/weir-sidecar ./cmd/sidecar

.PHONY: images
images: ## Build OCI archives of our images and of those for tests in dist, without a container engine
	go run ./hack/images -version $(VERSION) weir-manager weir-sidecar workload redis

.PHONY: generate
generate: ## Generate the deep copies of the API types
	@controller_gen=$$(hack/tool.sh controller-gen); set -x; $$controller_gen object:headerFile=hack/boilerplate.go.txt paths=./api/...

.PHONY: manifests
manifests: ## Generate the CRD and the manager's role, for config and for the chart
	hack/manifests.sh

.PHONY: fmt
fmt: ## Format the Go code
	@golangci_lint=$$(hack/tool.sh golangci-lint); set -x; $$golangci_lint fmt

.PHONY: tidy
tidy: ## Tidy every Go module of the repository
	@for module in $(MODULES); do (set -x; go -C $$module mod tidy); done

.PHONY: clean
clean: ## Remove what was built; the tools in the user's cache folder stay
	rm -rf bin dist .ci/out

##@ Check

.PHONY: test
test: ## Run all that CI runs: generated files, lint, every test, the demo
	@hack/test.sh

.PHONY: test-unit
# The race detector is in C.
test-unit: export CGO_ENABLED := 1
test-unit: ## Run unit and conformance tests, and those against a real API server
	$(call TEST,unit,-race $$(go list ./... | grep -v -e /test/e2e -e /test/faults))

.PHONY: test-e2e
test-e2e: build ## Run the whole way end to end, with the built binaries, and on a real node
	@hack/network.sh
	$(call TEST,e2e,-p 1 -timeout 30m ./test/e2e/... ./test/faults)

.PHONY: test-faults
test-faults: ## Break the store under live traffic, and say what was expected and measured
	@hack/network.sh; redis=$$(hack/redis.sh); export REDIS_SERVER=$$redis; set -x; go test -count=1 -timeout 20m -v ./test/faults && \
		go test -count=1 -v -run 'Test[CR][0-9]' ./internal/limiter/guard ./internal/limiter/redisstore ./internal/match

# TEST runs go test, with its output summed up, and kept in .ci/out/NAME.json. The servers and programs that
# tests start are nothing that the test cache knows of, hence -count=1.
define TEST
@mkdir -p .ci/out
@assets=$$(hack/control-plane.sh); redis=$$(hack/redis.sh); \
	export KUBEBUILDER_ASSETS=$$assets REDIS_SERVER=$$redis; \
	set -x; go test -count=1 -json $(2) | tee .ci/out/$(1).json | go run ./hack/testsum $(1)
endef

.PHONY: test-long
test-long: ## Run for longer what is random, and plant faults; PARTS="ladder mutation" are some of the parts
	@hack/test-long.sh $(PARTS)

.PHONY: mutation
mutation: ## Plant faults, one by one, and demand that the tests find each of them
	@redis=$$(hack/redis.sh); REDIS_SERVER=$$redis go run ./hack/mutate

.PHONY: bench
bench: ## Measure decisions in process and in Redis, side by side with other limiters
	@redis=$$(hack/redis.sh); REDIS_SERVER=$$redis go -C hack/bench run .

.PHONY: tools
tools: ## Get every tool that is not there yet: builds them, and installs redis-server
	@hack/redis.sh
	@hack/node.sh
	@for tool in controller-gen golangci-lint helm; do hack/tool.sh $$tool; done

.PHONY: lint
lint: ## Lint the Go code
	@golangci_lint=$$(hack/tool.sh golangci-lint); set -x; $$golangci_lint run; cd hack/bench; $$golangci_lint run

.PHONY: verify
verify: ## Generate, format and tidy anew, and fail if that changed a file
	hack/verify.sh
