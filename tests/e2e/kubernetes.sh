# shellcheck shell=bash
# Kubernetes 1.20.2, which still has dockershim, from Debian 12's source package.

KUBERNETES=1.20.2

needs dpkg-source:dpkg-dev /usr/lib/go-1.19/bin/go:golang-1.19-go

# Builds programs that are not in the cache: build_kubernetes PROGRAM...
build_kubernetes() {
	local program dir missing=()
	KUBERNETES_BIN=$CACHE/kubernetes-$KUBERNETES
	mkdir -p "$KUBERNETES_BIN"
	for program in "$@"; do [ -x "$KUBERNETES_BIN/$program" ] || missing+=("./cmd/$program"); done
	[ "${#missing[@]}" -gt 0 ] || return 0
	say "building ${missing[*]##*/} $KUBERNETES, which takes several minutes"
	dir=$WORK/kubernetes
	mkdir -p "$dir/go/src/k8s.io"
	(
		cd "$dir"
		apt_of bookworm source --download-only kubernetes
		dpkg-source -x ./*.dsc "$dir/go/src/k8s.io/kubernetes"
		# The vendored version crashes with Go 1.18 and later.
		apt_of bookworm download golang-github-modern-go-reflect2-dev
		dpkg -x golang-github-modern-go-reflect2-dev_*.deb reflect2
		rm -r "$dir/go/src/k8s.io/kubernetes/vendor/github.com/modern-go/reflect2"
		mv reflect2/usr/share/gocode/src/github.com/modern-go/reflect2 "$dir/go/src/k8s.io/kubernetes/vendor/github.com/modern-go/"
	) >"$WORK/log/source" 2>&1
	(
		cd "$dir/go/src/k8s.io/kubernetes"
		grep -q "really$KUBERNETES-" debian/changelog
		# GOPATH mode, because Debian's changes do not match the list of vendored modules.
		export GO111MODULE=off GOPATH=$dir/go GOCACHE=$dir/cache CGO_ENABLED=0 PATH=/usr/lib/go-1.19/bin:$PATH
		[[ " ${missing[*]} " != *apiserver* ]] || generate_openapi
		nice -n 10 go build -p 2 -tags providerless -o "$dir/bin/" -ldflags "-s -w
			-X k8s.io/component-base/version.gitVersion=v$KUBERNETES
			-X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=20" "${missing[@]}"
	) >"$WORK/log/build" 2>&1 || { show_logs; exit 1; }
	mv "$dir"/bin/* "$KUBERNETES_BIN/"
	chmod -R u+w "$dir"
	rm -r "$dir" "$WORK/log/source" "$WORK/log/build"
}

# Generates the OpenAPI definitions of kube-apiserver.
generate_openapi() {
	local dirs
	go build -o "$GOPATH/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
	dirs=$(grep -rl --include='*.go' --exclude='*_test.go' '+k8s:openapi-gen=' pkg \
		vendor/k8s.io/{api,apimachinery,apiextensions-apiserver,kube-aggregator,metrics,apiserver,client-go,component-base,kube-proxy,kubelet,kube-scheduler,kube-controller-manager,cloud-provider,kubectl,cli-runtime}/ |
		xargs -n 1 dirname | sort -u | sed 's,^vendor/,,; s,^pkg,k8s.io/kubernetes/pkg,' | paste -sd ,)
	nice -n 10 "$GOPATH/openapi-gen" --logtostderr --go-header-file vendor/k8s.io/code-generator/hack/boilerplate.go.txt \
		-i "$dirs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi -o "$GOPATH/src" -r "$GOPATH/violations"
}

# Configures docker with a wrapper of runc that drops negative oom_score_adj values, which require CAP_SYS_RESOURCE.
configure_docker() {
	mkdir -p /etc/docker
	cat >/run/e2e/runc <<-'EOF'
		#!/bin/sh
		bundle= previous=
		for word; do
			[ "$previous" != --bundle ] || bundle=$word
			previous=$word
		done
		if [ -n "$bundle" ]; then
			jq 'if (.process.oomScoreAdj // 0) < 0 then .process.oomScoreAdj = 0 else . end' \
				"$bundle/config.json" >"$bundle/config.new" && cat "$bundle/config.new" >"$bundle/config.json"
			rm "$bundle/config.new"
		fi
		exec runc "$@"
	EOF
	chmod 755 /run/e2e/runc
	echo '{"runtimes": {"e2e": {"path": "/run/e2e/runc"}}, "default-runtime": "e2e", "bridge": "none", "iptables": false,
		"ip6tables": false, "ip-forward": false, "storage-driver": "overlay2", "exec-opts": ["native.cgroupdriver=cgroupfs"]}' \
		>/etc/docker/daemon.json
}

start_docker() {
	start dockerd dockerd
	await 20 docker version
}

# Additional flags for a kubelet without systemd.
KUBELET_FLAGS=(--cgroups-per-qos=false --enforce-node-allocatable= --oom-score-adj=0 --cgroup-driver=cgroupfs --fail-swap-on=false
	--pod-infra-container-image=busybox:latest --image-pull-progress-deadline=5s --eviction-hard= --read-only-port=10255
	--volume-stats-agg-period=0 --node-status-update-frequency=2s --v=2)
