# shellcheck shell=bash
# Nodes on one wire: network, mount and UTS namespaces inside the machine, with directories of their own.

# The other end of the world's card becomes a switch, which the nodes are on, too.
make_wire() {
	ip -n world link add wire type bridge
	ip -n world addr flush dev eth0
	ip -n world link set eth0 master wire
	ip -n world addr add "$WORLD_IP/24" dev wire
	ip -n world link set wire up
	await 5 nc_world
}

# make_node NAME ADDRESS
make_node() {
	start "$1" unshare --net --mount --uts bash -c "$(declare -f furnish_node); furnish_node $1; exec sleep infinity"
	await 5 on "$1" test -e /run/furnished
	ip link add eth0 netns "${STARTED[$1]}" type veth peer name "$1" netns world
	ip -n world link set "$1" master wire up
	on "$1" ip link set lo up
	on "$1" ip addr add "$2/24" dev eth0
	on "$1" ip link set eth0 up
	on "$1" ip route add default via "$WORLD_IP"
	call_on "$1" footprint | sort >"$WORK/before-$1"
}

# Empty directories, and copies of what is written to: in the node's namespaces.
furnish_node() {
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
	touch /run/furnished
}

# Runs a program on a node: on NODE COMMAND...
on() { nsenter --target "${STARTED[$1]}" --mount --net --uts -- "${@:2}"; }

# Calls one of this script's functions there: call_on NODE FUNCTION...
call_on() {
	# shellcheck disable=SC2016  # for the other bash
	on "$1" bash -c "$(declare -f); $(declare -p STANDING); set -euo pipefail"'; "$@"' bash "${@:2}"
}

# Starts a server there: start_on NODE NAME COMMAND...
start_on() { start "$2-$1" nsenter --target "${STARTED[$1]}" --mount --net --uts -- "${@:3}"; }

# That a node is as it was when it was made, but for the routes that it was given to the others.
nothing_left_on() {
	local left
	for _ in $(seq "${PATIENCE:-50}"); do
		left=$(comm -13 "$WORK/before-$1" <(call_on "$1" footprint | grep -v '^route .* proto 71$' | sort))
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	fail "left behind on $1:" "${left//$'\n'/$'\n'# }"
}
