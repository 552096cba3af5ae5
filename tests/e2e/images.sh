# shellcheck shell=bash
# Builds an image with busybox, without a registry.

# Creates a root filesystem with busybox: rootfs DIR
rootfs() {
	mkdir -p "$1"/{bin,dev,etc,proc,sys,tmp,run}
	cp "$(command -v busybox)" "$1/bin/busybox"
	busybox --list | grep -vx busybox | while read -r name; do ln -s busybox "$1/bin/$name"; done
	echo 'root:x:0:0:root:/:/bin/sh' >"$1/etc/passwd"
}

# Creates an image in the format of `docker save`: image NAME ROOTFS FILE
image() {
	local dir layer
	dir=$(mktemp -d "$WORK/image.XXXXXX")
	tar -C "$2" --owner=0 --group=0 -cf "$dir/layer.tar" .
	layer=$(sha256sum "$dir/layer.tar" | cut -d ' ' -f 1)
	jq -n --arg layer "sha256:$layer" --arg arch "$(dpkg --print-architecture)" '{architecture: $arch, os: "linux",
		config: {Env: ["PATH=/bin"], Cmd: ["sh", "-c", "trap \"exit 0\" TERM INT; sleep 100000 & wait"]},
		rootfs: {type: "layers", diff_ids: [$layer]}, history: [{created: "2020-01-01T00:00:00Z"}]}' >"$dir/config.json"
	jq -n --arg name "$1" '[{Config: "config.json", RepoTags: [$name], Layers: ["layer.tar"]}]' >"$dir/manifest.json"
	tar -C "$dir" -cf "$3" config.json manifest.json layer.tar
	rm -r "$dir"
}
