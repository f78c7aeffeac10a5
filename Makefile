# Every recipe is one call; what it does stands in build/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test test-short build setup lint fmt bench bench-bgp bench-cni bench-datapath bench-policy \
	test-bgp chaos scale window probe test-vm fuzz cross image install uninstall clean kube-setup kube-up kube-down kube kube-conformance

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile

demo: setup-demo build ## bring up a lab of three nodes and six pods, print who reaches whom, leave it running
	@build/demo up

demo-down: ## take the demo lab down
	@build/demo down

test: setup build lint ## install what tests need and run everything (root, or sudo)
	@build/test all

test-short: ## run the tests that need neither root nor time
	@build/test short

build: setup-build ## build bin/heddle and bin/heddle-cni
	@build/bin

setup: ## install the tools that are missing (Debian, Ubuntu)
	@build/setup test

.PHONY: setup-build setup-demo
setup-build:
	@build/setup build
setup-demo:
	@build/setup demo

lint: setup-build ## run go vet and golangci-lint
	@build/lint

fmt: setup-build ## format the code and apply the linters' own fixes
	@build/lint --fix

bench: setup build ## measure: CNI calls, data path, policies and BGP, beside the reference chain, the floor and BIRD (ARGS=-short)
	@build/bench all $(ARGS)

bench-cni: setup build ## measure ADD and DEL beside the reference CNI chain
	@build/bench cni $(ARGS)

bench-datapath: setup build ## measure host-gw and vxlan beside static routes
	@build/bench datapath $(ARGS)

bench-bgp: setup build ## measure BGP: 500 nodes through two reflectors, ours and BIRD's; how soon BFD notices (ARGS=-short, NODES, ROUNDS)
	@build/bench bgp $(ARGS)

bench-policy: setup build ## measure what policies cost per packet, with 10 to 100,000 table entries
	@build/bench policy $(ARGS)

test-bgp: setup build ## run the labs of BGP, and what speaks with BIRD and FRR
	@build/test bgp

chaos: setup build ## kill agent and store 200 times during ADD and DEL (KILLS=n)
	@build/test chaos

scale: setup build ## join a network of 1,000 nodes; police in one of 100,000 workloads and 10,000 policies
	@build/test scale

window: setup build ## add 1,000 pods that send at once to where policies deny everything (PODS=n)
	@build/test window

probe: setup build ## probe 20,000 pairs under random policies in real labs (PROBES=n)
	@build/test probe

test-vm: setup build ## run what needs ipip, wireguard, netem… on an emulated machine (KERNEL=6.12, ARGS='-run TestX ./internal/y')
	@build/vm-test $(if $(KERNEL),--kernel $(KERNEL)) $(ARGS)

fuzz: setup-build ## fuzz every parser of outside bytes for a while (FUZZTIME=10s each)
	@build/test fuzz

kube-setup: setup-build ## build Kubernetes, containerd and upstream's suites for the lab, once (15 minutes on two cores)
	@build/kube suites

kube-up: build ## bring up a real Kubernetes of two nodes with Heddle in namespaces (ARGS, see test/kube/README.md)
	@build/kube up $(ARGS)

kube-down: ## take the Kubernetes lab down
	@build/kube down $(ARGS)

kube: build ## test Heddle on real Kubernetes labs
	@build/kube test $(ARGS)

kube-conformance: build ## run upstream's suites on such a lab (SUITE=netpol|conformance|dualstack|cnp; default: all)
	@build/kube conformance $(ARGS)

cross: setup-build ## build for linux/amd64 and linux/arm64 into bin/
	@for arch in amd64 arm64; do GOOS=linux GOARCH=$$arch build/bin bin/linux-$$arch || exit; done

image: ## build the container image with docker or buildah (IMAGE=name, PLATFORMS=linux/amd64,linux/arm64)
	@build/image $(IMAGE)

install: build ## install the programs and systemd units (PREFIX, CNI_BIN, UNITS, DESTDIR)
	@build/install install

uninstall: ## stop the units and remove what install put there; configuration and state stay
	@build/install uninstall

clean: ## remove what was built
	@rm -rf bin
