# Two commands do everything, set-up included: make lab, make test.
# Go may be missing from root's PATH: /usr/local/go/bin is looked at too.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export CGO_ENABLED := 0
# A machine without a home directory (a service, CI) still has Go's cache.
export HOME ?= /root

GO := go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Namespaces, taps and raw sockets need root; as another user the target runs itself through sudo.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=GOPROXY,GOFLAGS,GOSUMDB,PORTCULLIS_CACHE,PORTCULLIS_POWERCUTS,PORTCULLIS_POWERCUT_SEED,TMPDIR)
FUZZCOUNT ?= 200000x
# Nothing of the machine or of the commit is in a program: the same code gives the same bytes.
BUILDFLAGS := -trimpath -buildvcs=false -ldflags='-s -w -buildid='

.PHONY: all setup kernel kernel-go lab test test-go fuzz fuzz-ci soak soak-go lint bench bench-go clean

all:
	$(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...

setup:
	@deploy/setup.sh

lab: setup
	@$(AS_ROOT) deploy/room.sh 4
	@$(MAKE) --no-print-directory all
	$(AS_ROOT) bin/portcullis lab up

test: setup
	@$(AS_ROOT) deploy/room.sh 16
	$(AS_ROOT) $(MAKE) --no-print-directory test-go fuzz-ci

# Of the quick packages one more than there are processors at a time: some wait most of
# theirs, attestserver/server for seven eighths of two minutes.
# The packages below lab/ boot machines and are run one after the other, after the
# quick ones; where a package lets tests run side by side, two do: a Pi that boots is
# busy on one core most of the time. Their results are never cached: the services they
# run are not among their imports.
test-go:
	$(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...
	$(GO) test -timeout 10m -p $$(($$(nproc) + 1)) $$($(GO) list ./... | grep -v '^portcullis/lab')
	$(GO) test -timeout 60m -p 1 -parallel 2 -count 1 ./lab/...

# What a stranger's bytes reach first: DHCP decision, TFTP names, HTTP ranges, manifest,
# evidence, each for as many inputs as take about 10 s on two slow cores. `make fuzz` runs
# every target of the module for FUZZCOUNT inputs.
FUZZ_CI := ./pxe/dhcp:FuzzDecide ./pxe/tftp:FuzzTFTPName ./pxe/httpboot:FuzzHTTPRange ./images/manifest:FuzzOpen \
  ./attestserver/challenge:FuzzEvidence

fuzz-ci:
	@sh deploy/fuzz.sh 250000x $(FUZZ_CI)

fuzz:
	@sh deploy/fuzz.sh $(FUZZCOUNT)

# The long runs: the power of a Pi is cut SOAK times in its first boot and SOAK times
# in an update, at moments drawn from PORTCULLIS_POWERCUT_SEED (1); then a card whose
# key a Zymbit module keeps alone, the scenarios of `lab check` through the built card,
# every attack of lab/tamper, the hardened kernel, built twice and booted, and the guard
# of Docker against every engine of lab/dockerd. Hours; a summary at the end.
SOAK ?= 100
soak:
	@deploy/setup.sh soak
	@$(AS_ROOT) deploy/room.sh 24
	$(AS_ROOT) $(MAKE) --no-print-directory SOAK=$(SOAK) soak-go

# The hardened kernel of the PC (docs/kernel.md), into the cache of the image build:
# 20 to 25 minutes of one core. Root, because its tools run in a root directory of their own.
kernel: setup
	$(AS_ROOT) $(MAKE) --no-print-directory kernel-go

kernel-go:
	$(GO) build $(BUILDFLAGS) -o bin/ ./cmd/portcullis
	bin/portcullis image kernel

soak-go:
	$(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...
	@GO=$(GO) sh deploy/soak.sh $(SOAK)

lint:
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "lint: gofmt the files above"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags soak ./cmd/gatewayd ./lab ./lab/piscenario ./lab/tamper
	$(GO) run $(STATICCHECK) ./...

# One after the other on a machine that does nothing else, for the ratios to mean
# something; RUNS of each kind.
RUNS ?= 3
bench:
	@deploy/setup.sh bench
	$(AS_ROOT) $(MAKE) --no-print-directory bench-go RUNS=$(RUNS)

bench-go:
	$(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...
	$(GO) run ./bench/netboot -n $(RUNS)
	$(GO) run ./bench/piboot -n $(RUNS)
	$(GO) run ./bench/piimage -n $(RUNS)
	$(GO) run ./bench/verify -n $(RUNS)

clean:
	rm -rf bin build
