# shellcheck shell=bash
# Nodes on one network: network, mount and UTS namespaces with their own directories.

# Creates a bridge in the outside namespace, to which the nodes are connected.
create_switch() {
	ip -n outside link add switch type bridge
	ip -n outside addr flush dev eth0
	ip -n outside link set eth0 master switch
	ip -n outside addr add "$WORLD_IP/24" dev switch
	ip -n outside link set switch up
	await 5 outside_is_reachable
}

# create_node NAME ADDRESS
create_node() {
	start "$1" unshare --net --mount --uts bash -c "$(declare -f mount_in_node); mount_in_node $1; exec sleep infinity"
	await 5 on "$1" test -e /run/ready
	ip link add eth0 netns "${STARTED[$1]}" type veth peer name "$1" netns outside
	ip -n outside link set "$1" master switch up
	on "$1" ip link set lo up
	on "$1" ip addr add "$2/24" dev eth0
	on "$1" ip link set eth0 up
	on "$1" ip route add default via "$WORLD_IP"
	call_on "$1" state | sort >"$WORK/before-$1"
}

# Mounts empty and writable directories in a node's namespaces.
mount_in_node() {
	set -e
	hostname "$1"
	mount --make-rprivate /
	mount --rbind /run/e2e /mnt
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/e2e /run/lock /run/netns /run/home /run/groups
	mount --move /mnt /run/e2e
	mount --rbind /sys/fs/cgroup /run/groups
	mount -t sysfs sysfs /sys
	mount --move /run/groups /sys/fs/cgroup
	mount -t tmpfs -o mode=755 tmpfs /mnt
	cp -a /etc/. /mnt/
	mount --move /mnt /etc
	for dir in tmp var/lib var/log var/tmp opt usr/local/bin; do mount -t tmpfs -o mode=755 tmpfs "/$dir"; done
	chmod 1777 /tmp /var/tmp
	mkdir -p /var/lib/cni /opt/cni/bin
	echo "127.0.0.1 localhost $1" >/etc/hosts
	touch /run/ready
}

# Runs a program on a node: on NODE COMMAND...
on() { nsenter --target "${STARTED[$1]}" --mount --net --uts -- "${@:2}"; }

# Calls a function of this script on a node: call_on NODE FUNCTION...
call_on() {
	# shellcheck disable=SC2016  # expanded by the other bash
	on "$1" bash -c "$(declare -f); $(declare -p KEPT_RULES); set -euo pipefail"'; "$@"' bash "${@:2}"
}

# Starts a server on a node: start_on NODE NAME COMMAND...
start_on() { start "$2-$1" nsenter --target "${STARTED[$1]}" --mount --net --uts -- "${@:3}"; }

# Asserts that the state of a node is that at its creation, except for routes to other nodes.
expect_nothing_left_on() {
	local left
	for _ in $(seq "${PATIENCE:-50}"); do
		left=$(comm -13 "$WORK/before-$1" <(call_on "$1" state | grep -v '^route .* proto 71$' | sort))
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	fail "remaining on $1:" "${left//$'\n'/$'\n'# }"
}
