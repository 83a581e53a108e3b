# make demo   build, and bake the embedded demo disk
# make test   install what the tests need (as root), run every check and test
# make bench  the figures of docs/performance.md
# make soak   the long forms of the random tests; make fuzz: every fuzz target for FUZZTIME
# make inputs the demo's disks and image anew (needs root)

export CGO_ENABLED := 0
TAGS := containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_zfs containers_image_docker_daemon_stub
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GO := go
BUILD := $(GO) build -trimpath -tags "$(TAGS)" -ldflags "-s -w -X main.version=$(VERSION)"
PACKAGES := attr btrfs-progs bmap-tools bubblewrap buildah ca-certificates cloud-guest-utils cpio crun cryptsetup-bin db5.3-util docker-registry \
	dosfstools e2fsprogs fdisk gdisk gnupg grub-common kmod libcap2-bin libvirt-clients libvirt-daemon-system lvm2 \
	mmdebstrap mount mtools openssh-server openssl ostree pigz podman policycoreutils qemu-system-x86 qemu-utils rpm selinux-policy-default selinux-utils \
	shellcheck skopeo sqlite3 systemd thin-provisioning-tools umoci user-mode-linux util-linux xfsprogs xz-utils zstd

.PHONY: all build demo test check inputs bench soak fuzz tools clean

all: build

build: bin/nodebake

.PHONY: bin/nodebake
bin/nodebake:
	@mkdir -p bin
	$(BUILD) -o $@ ./cmd/nodebake

demo: build
	@examples/demo/run.sh

# Everything a release must pass. CI=true makes a missing tool a failure. The integration tests take as long as all the
# others, so the two run side by side; the machines in QEMU start when the others are through.
BOOTS := ^(TestBoot|TestBootGrown|TestOstreeBoot)$$
TEST := $(GO) test -tags "$(TAGS)" -timeout 29m
test: tools check
	@$(TEST) -skip '$(BOOTS)' ./integration & a=$$!; \
	$(TEST) -p 1 $$($(GO) list -tags "$(TAGS)" ./... | grep -v '/integration$$'); b=$$?; \
	$(TEST) -run '$(BOOTS)' ./integration; c=$$?; \
	wait $$a && [ $$b$$c = 00 ]

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt on the files above"; exit 1; }
	$(GO) vet -tags "$(TAGS)" ./...
	$(GO) tool staticcheck -tags "$(TAGS)" ./...

# Packages that the tests drive, installed only where one is missing and only as root.
tools:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing: " $$missing; \
			apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
		else \
			echo "not installed, so some tests will be skipped (or fail where CI=true): " $$missing; \
		fi; \
	fi

bench: tools build
	$(GO) test -tags "$(TAGS)" -run '^$$' -bench . -benchtime 1x -timeout 90m ./integration/...
	$(GO) test -tags "$(TAGS)" -run '^$$' -bench . -benchtime 1x -timeout 90m ./qcow ./storeseed ./imagebuild/...

soak: tools
	NODEBAKE_SOAK=1 $(GO) test -tags "$(TAGS)" -count 1 -timeout 12h ./...

FUZZTIME ?= 60s
fuzz:
	@for p in $$($(GO) list -tags "$(TAGS)" ./...); do \
		for f in $$($(GO) test -tags "$(TAGS)" -list '^Fuzz' $$p | grep '^Fuzz'); do \
			echo "$$p $$f"; \
			$(GO) test -tags "$(TAGS)" -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x $$p || exit 1; \
		done; \
	done

inputs: tools
	examples/demo/make-inputs.sh
	examples/demo/make-ostree.sh

clean:
	rm -rf bin dist
