# All commands of a developer. CONTRIBUTING.md says more.

GO ?= go
LINT_VERSION := v2.15.0
LINT := bin/golangci-lint-$(LINT_VERSION)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: help run build test quick lint docs bench setup

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: ## start a server with its data in ./data
	$(GO) run ./cmd/myelin

build: ## build bin/myelin, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/myelin ./cmd/myelin

test: setup ## set up and run every test
	test/suite

setup: ## install what the tests need (Debian; root or sudo)
	test/setup

quick: ## run the tests that need nothing but Go and PostgreSQL's programs, once
	test/suite unit

lint: $(LINT) ## look for mistakes and missing documentation
	$(LINT) run ./...

# Built from source, because no download of a binary is then part of the build.
$(LINT):
	mkdir -p bin/lint
	GOBIN=$(CURDIR)/bin/lint CGO_ENABLED=0 $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv bin/lint/golangci-lint $(LINT)

docs: ## write what is generated in docs/ anew
	$(GO) test ./homeserver/config -run TestDocumentationIsCurrent -update

bench: ## run the benchmarks of the hot paths
	$(GO) test -run '^$$' -bench . -benchmem ./...
