# shellcheck shell=bash
# A machine of its own for a client of the plugins, and checks of what the client does there.
#
# A script sources this, says with `needs` what it runs, defines `drive`, and ends with `client "$@"`. That makes the
# plugins ready, and runs `drive` as process 1 of new namespaces (net, mount, pid, ipc, uts, cgroup): /run, /tmp,
# /var/lib, /var/log and /var/tmp are empty there, and what is written to /etc and /opt is gone in the end. The plugins
# are in /opt/cni/bin, the checkout in $SOURCE. `drive` returns when its client is ended; then nothing may be left.
#
# A script that defines `prepare` has it run before, on the machine itself and without a limit of time: to build a
# client. Its products go to $WORK, which `drive` sees, too.

set -euo pipefail
shopt -s inherit_errexit
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C

ME=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SOURCE=${E2E_SOURCE:-$(cd "$HERE/../.." && pwd)}
WORK=${E2E_WORK:-}
LIMIT=${LIMIT:-60}   # seconds for `drive`
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/gangplank-e2e
GO_PLUGINS=/usr/lib/cni
NEEDS=(ip:iproute2 nsenter:util-linux mount:mount iptables:iptables nft:nftables jq:jq ping:iputils-ping socat:socat
	busybox:busybox-static ps:procps "$GO_PLUGINS/portmap:containernetworking-plugins")

# The machine's link to the world, which knows no way to pods.
NODE_IP=172.18.0.5
WORLD_IP=172.18.0.9

say() { printf '%s: %s\n' "$ME" "$*" >&2; }

# --- checks ------------------------------------------------------------------------------------------------------

STEP='it starts'
exec 3>&1

# What follows is that. It holds when the next one begins, or `drive` ends.
step() {
	pass
	STEP=$*
}

pass() {
	[ -z "$STEP" ] || [ "$STEP" = 'it starts' ] || echo "ok - $ME: $STEP" >&3
	STEP=
}

# Ends the script; the reasons are the arguments, a line each.
fail() {
	trap - ERR
	# A subshell has said it.
	[ ! -e "$WORK/failed" ] || exit 1
	touch "$WORK/failed"
	[ -z "${E2E_KEEP:-}" ] || { mkdir -p "$CACHE/log" && cp "$WORK"/log/* "$CACHE/log/"; }
	# Whoever calls may have the output in a file.
	exec >&3
	echo "not ok - $ME: $STEP"
	printf '# %s\n' "$@"
	show_logs
	exit 1
}

show_logs() {
	local log
	for log in "${WORK:-/nonexistent}"/log/*; do
		[ -s "$log" ] || continue
		echo "# the end of $(basename "$log"):"
		tail -n "${E2E_LOG_LINES:-12}" "$log" | cut -c 1-900 | sed 's/^/#   /'
	done
}

on_error() { fail "$(basename "${BASH_SOURCE[1]}"), line $1: $2"; }

# same WHAT EXPECTED SEEN
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', saw '$3'"; }

# has WHAT NEEDLE TEXT
has() { [[ "$3" == *"$2"* ]] || fail "$1: expected '$2' in:" "$3"; }

# Waits at most so many seconds until a command succeeds: await SECONDS COMMAND...
await() {
	local until=$((SECONDS + $1)) said
	shift
	until said=$("$@" 2>&1); do
		[ "$SECONDS" -lt "$until" ] || fail "waited in vain for: $*" "${said:0:1000}"
		sleep 0.1
	done
}

# That a command fails; what it says is in $SAID.
refused() {
	if SAID=$("$@" 2>&1); then fail "it should have failed: $*" "$SAID"; fi
}

# The addresses that a network has given away, a line each.
leases_of() { find "/var/lib/cni/networks/$1" -name '[0-9]*' -printf '%f\n' | sort; }

# --- the machine itself ------------------------------------------------------------------------------------------

# needs PROGRAM:PACKAGE...
needs() { NEEDS+=("$@"); }

missing() {
	local need
	for need in "${NEEDS[@]}"; do
		command -v "${need%%:*}" >/dev/null || echo "${need#*:}"
	done
}

install_needs() {
	local packages
	packages=$(missing | sort -u | tr '\n' ' ')
	[ -n "$packages" ] || return 0
	command -v apt-get >/dev/null || { say "missing: $packages"; exit 1; }
	say "installing $packages"
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086  # a list of words
	{ apt-get update -q && apt-get install -qy --no-install-recommends $packages; } >"$WORK/apt.log" 2>&1 || {
		tail -n 20 "$WORK/apt.log" >&2
		exit 1
	}
	packages=$(missing | sort -u | tr '\n' ' ')
	[ -z "$packages" ] || { say "still missing: $packages"; exit 1; }
}

# Apt with lists of its own: apt_of SUITE COMMAND..., from the mirror of Debian that this machine uses.
apt_of() {
	local dir=$CACHE/apt/$1 uri options
	if [ ! -s "$dir/sources.list" ]; then
		mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
		[ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*')" ] || apt-get update -q >"$WORK/apt.log" 2>&1 || true
		# shellcheck disable=SC2016  # apt's own variables
		uri=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
			sed -n "s/^Debian main [a-z]* //p" | head -n 1)
		[ -n "$uri" ] || { say 'apt knows no mirror of Debian'; return 1; }
		printf "%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1 main\n" deb deb-src >"$dir/sources.list"
	fi
	options=(-q -oAPT::Sandbox::User=root -oDir::Etc::SourceParts=/dev/null -oDir::Etc::SourceList="$dir/sources.list"
		-oDir::State::Lists="$dir/lists" -oDir::Cache="$dir/cache")
	if [ -z "$(find "$dir/lists" -maxdepth 1 -name '*Sources*' -mmin -1440)" ]; then
		apt-get "${options[@]}" update >"$dir/log" 2>&1 || return 1
	fi
	apt-get "${options[@]}" "${@:2}" >"$dir/log" 2>&1
}

# Puts the plugins into $WORK/bin: those of a directory, or our own, built now; behind them the other Go plugins.
place_plugins() {
	local binary
	mkdir "$WORK/bin"
	cp -a "$GO_PLUGINS"/. "$WORK/bin/"
	if [ -n "${1:-}" ]; then
		[ -x "$1/bridge" ] || { say "there is no plugin at $1/bridge"; exit 1; }
		for plugin in bridge host-local loopback; do cp -L --remove-destination "$1/$plugin" "$WORK/bin/$plugin"; done
		return
	fi
	binary=${GANGPLANK_BIN:-}
	if [ -z "$binary" ]; then
		(cd "$SOURCE" && cargo build --quiet --release --locked) >&2
		binary=${CARGO_TARGET_DIR:-$SOURCE/target}/$(rustc --print host-tuple)/release/gangplank
	fi
	rm "$WORK"/bin/{bridge,host-local,loopback}
	"$binary" install "$WORK/bin" >"$WORK/install.log"
	cp "$binary" "$WORK/gangplank"
}

# The mount points of the hierarchies of control groups, with their type and their options.
hierarchies() { awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) ~ /^cgroup2?$/) print $5, $(i + 1), $(i + 3) }' /proc/self/mountinfo; }

# A group of our own in each hierarchy, which becomes the root of the client's cgroup namespace.
make_groups() {
	local dir type options file
	hierarchies | while read -r dir type options; do
		mkdir -p "$dir/$GROUP"
		for file in cpuset.cpus cpuset.mems; do
			[ "$type" = cgroup2 ] || [ ! -e "$dir/$file" ] || cat "$dir/$file" >"$dir/$GROUP/$file"
		done
	done
}

# The processes in our groups.
group_members() { hierarchies | while read -r dir _; do find "$dir/$GROUP" -name cgroup.procs -exec cat {} + 2>/dev/null || true; done | sort -un; }

# Ends all that is still in our groups, by process id, and removes them. Says what it had to end.
remove_groups() {
	local pids dir
	pids=$(group_members)
	if [ -n "$pids" ]; then
		# shellcheck disable=SC2086  # a list of words
		ps -o pid=,args= -p "$(echo $pids | tr ' ' ,)" | cut -c 1-120 || true
		# shellcheck disable=SC2086
		kill -KILL $pids 2>/dev/null || true
	fi
	for _ in $(seq 50); do
		hierarchies | while read -r dir _; do find "$dir/$GROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
		[ -n "$(hierarchies | while read -r dir _; do [ ! -d "$dir/$GROUP" ] || echo "$dir"; done)" ] || return 0
		sleep 0.1
	done
	echo "the control group $GROUP"
}

outside() {
	local status=0 left
	case ${1:-} in
	-h | --help)
		echo "usage: $0 [DIR]   DIR has the plugins bridge, host-local and loopback; without it, gangplank is built"
		exit 0
		;;
	esac
	[ "$(id -u)" = 0 ] || { say "$ME needs root"; exit 1; }
	WORK=$(mktemp -d "${TMPDIR:-/tmp}/gangplank-e2e.XXXXXX")
	chmod 755 "$WORK"
	mkdir "$WORK/log"
	trap 'rm -rf "$WORK"' EXIT
	install_needs
	place_plugins "${1:-}"
	if declare -F prepare >/dev/null; then prepare; fi
	GROUP=gangplank-e2e.$$
	make_groups
	(
		hierarchies | while read -r dir _; do echo "$BASHPID" >"$dir/$GROUP/cgroup.procs"; done
		# The loop ran in a process of its own.
		for dir in $(hierarchies | cut -d ' ' -f 1); do echo "$BASHPID" >"$dir/$GROUP/cgroup.procs"; done
		export E2E_SOURCE=$SOURCE E2E_WORK=$WORK E2E_INSIDE=machine
		exec timeout --signal=KILL "$LIMIT" unshare --net --mount --pid --ipc --uts --cgroup --fork --kill-child \
			bash "$HERE/$ME"
	) </dev/null || status=$?
	[ "$status" != 137 ] || { echo "not ok - $ME: it ends within $LIMIT seconds"; show_logs; }
	left=$(remove_groups)
	if [ -n "$left" ]; then
		printf 'not ok - %s: every process has ended\n# %s\n' "$ME" "${left//$'\n'/$'\n'# }"
		status=1
	fi
	exit "$status"
}

# --- in the client's namespaces ----------------------------------------------------------------------------------

# Empty directories and overlays instead of the machine's own.
furnish() {
	local dir type options
	hierarchies >"$WORK/hierarchies.$$"
	mount -t tmpfs -o mode=755 tmpfs /mnt
	mkdir -p /mnt/{source,work,cache,over}
	mount --rbind "$SOURCE" /mnt/source
	mount --rbind "$WORK" /mnt/work
	if [ -d "$CACHE" ]; then mount --rbind "$CACHE" /mnt/cache; fi
	for dir in run tmp var/lib var/log var/tmp; do mount -t tmpfs -o mode=755 tmpfs "/$dir"; done
	chmod 1777 /tmp /var/tmp
	mkdir -p /run/e2e /run/lock /run/netns /run/home /var/lib/cni
	mount --move /mnt /run/e2e
	SOURCE=/run/e2e/source WORK=/run/e2e/work CACHE=/run/e2e/cache
	HERE=$SOURCE/tests/e2e
	export HOME=/run/home E2E_SOURCE=$SOURCE E2E_WORK=$WORK XDG_CACHE_HOME=/run/e2e TMPDIR=/tmp
	for dir in etc opt; do
		mkdir -p /run/e2e/over/$dir/{up,work}
		mount -t overlay overlay -o "lowerdir=/$dir,upperdir=/run/e2e/over/$dir/up,workdir=/run/e2e/over/$dir/work" "/$dir"
	done
	cd "$SOURCE"
	mount -t proc proc /proc
	mount -t sysfs sysfs /sys
	furnish_groups "$WORK/hierarchies.$$"
	rm "$WORK/hierarchies.$$"
	spare_sysctls
	rm -rf /etc/cni /opt/cni
	mkdir -p /etc/cni/net.d /opt/cni/bin
	mount --bind "$WORK/bin" /opt/cni/bin
	ip link set lo up
}

# The hierarchies, seen from our groups.
furnish_groups() {
	local dir type options
	if ! grep -q ' cgroup ' "$1"; then
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		# No group with processes of its own hands controllers down (cgroups(7), no internal processes).
		mkdir -p /sys/fs/cgroup/init
		while read -r pid; do echo "$pid" >/sys/fs/cgroup/init/cgroup.procs || true; done </sys/fs/cgroup/cgroup.procs
		sed 's/\([a-z]\)\b/\1/; s/[a-z_]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control || true
		return
	fi
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	while read -r dir type options; do
		mkdir -p "$dir"
		options=${options#rw,}
		if [ "$type" = cgroup2 ]; then
			mount -t cgroup2 cgroup2 "$dir"
		else
			mount -t cgroup -o "${options/#name=/none,name=}" cgroup "$dir"
		fi
	done <"$1"
}

# kubelet sets these for the whole machine; it may set copies.
spare_sysctls() {
	local file copy
	for file in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
		[ -e "/proc/sys/$file" ] || continue
		copy=/run/e2e/over/${file//\//.}
		cat "/proc/sys/$file" >"$copy"
		mount --bind "$copy" "/proc/sys/$file"
	done
}

# A world beyond the machine's card, which tells whoever asks at port 8080 by which address it sees him.
make_world() {
	ip netns add world
	ip link add eth0 type veth peer name eth0 netns world
	ip addr add "$NODE_IP/24" dev eth0
	ip link set eth0 up
	ip route add default via "$WORLD_IP"
	ip -n world addr add "$WORLD_IP/24" dev eth0
	ip -n world link set eth0 up
	ip -n world link set lo up
	echo "nameserver $WORLD_IP" >/etc/resolv.conf
	# shellcheck disable=SC2016  # socat sets it
	start world ip netns exec world socat TCP-LISTEN:8080,fork,reuseaddr 'SYSTEM:echo $SOCAT_PEERADDR'
	await 5 nc_world
}

nc_world() { [ "$(busybox nc "$WORLD_IP" 8080 </dev/null)" = "$NODE_IP" ]; }

declare -A STARTED=()

# Starts a server: start NAME COMMAND... Its output goes to a log.
start() {
	local name=$1
	shift
	(
		trap - ERR
		[ "$(type -t "$1")" = function ] || exec "$@"
		"$@"
	) >>"$WORK/log/$name" 2>&1 </dev/null 3>&- &
	STARTED[$name]=$!
}

# Ends a server: stop NAME [SIGNAL]
stop() {
	local pid=${STARTED[$1]} ended=0
	unset "STARTED[$1]"
	kill "-${2:-TERM}" "$pid" 2>/dev/null || true
	for _ in $(seq 100); do
		kill -0 "$pid" 2>/dev/null || { ended=1; break; }
		sleep 0.1
	done
	[ "$ended" = 1 ] || { kill -KILL "$pid" || true; fail "$1 does not end"; }
	{ wait "$pid" || true; } 2>/dev/null
}

# What there is of a network on this machine, a thing a line. Bridges stay, by design, and so does their address.
footprint() {
	local family bridges
	bridges=$(ip -o link show type bridge | sed 's/^[0-9]*: \([^:@]*\).*/\1/')
	ip -o link show | sed 's/^[0-9]*: \([^:@]*\).*/link \1/' | not_of "$bridges" '^link NAME$'
	ip -o addr show | awk '{ print "address", $2, $4 }' | not_of "$bridges" '^address NAME '
	ip route show | sed 's/ linkdown//; s/ *$//; s/^/route /' | not_of "$bridges" 'dev NAME\b'
	for family in iptables ip6tables iptables-legacy ip6tables-legacy; do
		"$family-save" 2>/dev/null | awk -v family="$family" '/^\*/ { table = substr($1, 2) }
			/^-A|^:.* - / { sub(/ \[[0-9:]*\]$/, ""); print family, "-t", table, $0 }'
	done | grep -vE -e "$STANDING" || true
	nft -j list ruleset | jq -r '.nftables[] | to_entries[0] | .key as $kind | .value
		| select([.table, .family] | inside(["nat", "filter", "mangle", "raw", "security", "ip", "ip6"]) | not)
		| if $kind == "rule" then "nft rule \(.family) \(.table) \(.chain) \(.comment // (.expr | tostring))"
		elif $kind == "chain" and .hook == null then "nft chain \(.family) \(.table) \(.name)"
		else (.elem // [])[] | "nft element \(tostring)" end'
	find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip.*' ! -name .gangplank.boot ! -name .gangplank.index -printf 'file %p\n'
	find /tmp /var/tmp -mindepth 1 -printf 'file %p\n'
	find /run/netns -mindepth 1 -printf 'namespace %p\n'
}

# Drops the lines that match a pattern with one of the names for NAME.
not_of() {
	local name lines
	lines=$(cat)
	for name in $1; do lines=$(grep -vE "${2//NAME/$name}" <<<"$lines" || true); done
	[ -z "$lines" ] || echo "$lines"
}

# Go's portmap and firewall keep these for whoever comes next.
STANDING='-t nat :CNI-HOSTPORT-|-t nat -A (PREROUTING|OUTPUT|POSTROUTING) .*-j CNI-HOSTPORT-|-t nat -A CNI-HOSTPORT-(SETMARK|MASQ) |-t filter :CNI-(FORWARD|ADMIN|ISOLATION-STAGE-[12]) |-t filter -A FORWARD .*-j CNI-(FORWARD|ISOLATION-STAGE-1)|-t filter -A CNI-FORWARD .*-j CNI-ADMIN|-t filter -A CNI-ISOLATION-STAGE-[12] .*-j RETURN'

# The processes of this machine, without this script's own.
processes() { ps -e -o pid=,ppid=,args= | awk '$1 != 1 && !($3 ~ /^(ps|awk|bash|sort|comm|sed|\(|grep)/) { $1 = $2 = ""; print "process", $0 }'; }

# The one thing that is asked of all: that it is as before. With the word `processes`, of these, too: a client that is up
# has some. expect_nothing_left STEP [processes]
expect_nothing_left() {
	local left
	step "$1"
	for _ in $(seq "${PATIENCE:-20}"); do
		left=$(comm -13 "$WORK/before" <({ footprint; ${2:-true}; } | sort))
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	fail 'left behind:' "${left//$'\n'/$'\n'# }"
}

mark_footprint() { { footprint; processes; } | sort >"$WORK/before"; }

inside() {
	trap 'on_error $LINENO "$BASH_COMMAND"' ERR
	set -E
	[ "$$" = 1 ] || { say 'this is no namespace of its own'; exit 1; }
	furnish
	make_world
	mark_footprint
	drive
	expect_nothing_left 'in the end, nothing is left' processes
	stop world
	pass
}

client() {
	case ${E2E_INSIDE:-} in
	'') outside "$@" ;;
	*) "inside${E2E_INSIDE/#machine/}" ;;
	esac
}
