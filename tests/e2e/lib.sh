# shellcheck shell=bash
# Runs a client of the plugins, for example podman, in its own namespaces, and checks the results.
#
# A script sources this file, lists required programs with `needs`, defines `drive`, and ends with `client "$@"`. `client`
# installs the plugins in /opt/cni/bin and runs `drive` as process 1 of new namespaces (net, mount, pid, ipc, uts, cgroup).
# There /run, /tmp, /var/lib, /var/log and /var/tmp are empty, and /etc and /opt are overlays. $SOURCE is the checkout.
# `drive` stops its client before it returns; afterwards nothing may be left.
#
# If a script defines `prepare`, it is called first, on the host and without a time limit, for example to build a client.
# Its output goes to $WORK, which is visible to `drive`.

set -euo pipefail
shopt -s inherit_errexit
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C

ME=$(basename "$0")
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SOURCE=${E2E_SOURCE:-$(cd "$HERE/../.." && pwd)}
WORK=${E2E_WORK:-}
LIMIT=${LIMIT:-60}   # seconds for `drive`
CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/gangplank-e2e
NEEDS=(ip:iproute2 nsenter:util-linux mount:mount iptables:iptables nft:nftables jq:jq ping:iputils-ping socat:socat
	busybox:busybox-static ps:procps)

# The uplink, and a host outside without routes to pods.
NODE_IP=172.18.0.5
WORLD_IP=172.18.0.9

say() { printf '%s: %s\n' "$ME" "$*" >&2; }

# --- checks ------------------------------------------------------------------------------------------------------

STEP='setup'
exec 3>&1

# Begins a step. It has passed when the next one begins, or when `drive` ends.
step() {
	pass
	STEP=$*
}

pass() {
	[ -z "$STEP" ] || [ "$STEP" = 'setup' ] || echo "ok - $ME: $STEP" >&3
	STEP=
}

# Ends the script with these lines as the reason.
fail() {
	trap - ERR
	# Already reported by a subshell.
	[ ! -e "$WORK/failed" ] || exit 1
	touch "$WORK/failed"
	[ -z "${E2E_KEEP:-}" ] || { mkdir -p "$CACHE/log" && cp "$WORK"/log/* "$CACHE/log/"; }
	# stdout may be redirected.
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
		echo "# last lines of $(basename "$log"):"
		tail -n "${E2E_LOG_LINES:-12}" "$log" | cut -c 1-900 | sed 's/^/#   /'
	done
}

on_error() { fail "$(basename "${BASH_SOURCE[1]}"), line $1: $2"; }

# same WHAT EXPECTED FOUND
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"; }

# has WHAT WORDS TEXT
has() { [[ "$3" == *"$2"* ]] || fail "$1: expected '$2' in:" "$3"; }

# Waits until a command succeeds: await SECONDS COMMAND...
await() {
	local until=$((SECONDS + $1)) output
	shift
	until output=$("$@" 2>&1); do
		[ "$SECONDS" -lt "$until" ] || fail "timed out: $*" "${output:0:1000}"
		sleep 0.1
	done
}

# Runs a command that must fail. Its output is in $OUTPUT.
fails() {
	if OUTPUT=$("$@" 2>&1); then fail "should have failed: $*" "$OUTPUT"; fi
}

# The rate in kbit/s at which a command writes 1,000,000 bytes to stdout, without the start of its programs: rate_of COMMAND...
rate_of() {
	local answer first start rest end
	answer=$("$@" </dev/null | { head -c 1 | wc -c; date +%s%N; wc -c; date +%s%N; } | tr '\n' ' ')
	read -r first start rest end <<<"$answer"
	same 'the bytes received' 1000000 $((first + rest))
	echo $((8 * rest * 1000000 / (end - start)))
}

# Asserts that a rate in kbit/s is that of the limit 8M, less the overhead of headers: is_limited WHAT RATE
is_limited() {
	[ "$2" -gt 7000 ] && [ "$2" -lt 8400 ] || fail "$1: $2 kbit/s instead of 8000"
}

# The leased addresses of a network, one per line.
leases_of() { find "/var/lib/cni/networks/$1" -name '[0-9]*' -printf '%f\n' | sort; }

# --- on the host --------------------------------------------------------------------------------------------------

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

# Runs apt-get with separate package lists, from the Debian mirror of the host: apt_of SUITE COMMAND...
apt_of() {
	local dir=$CACHE/apt/$1 uri options
	if [ ! -s "$dir/sources.list" ]; then
		mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
		[ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*')" ] || apt-get update -q >"$WORK/apt.log" 2>&1 || true
		# shellcheck disable=SC2016  # apt's own variables
		uri=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
			sed -n "s/^Debian main [a-z]* //p" | head -n 1)
		[ -n "$uri" ] || { say 'apt has no Debian mirror'; return 1; }
		printf "%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $1 main\n" deb deb-src >"$dir/sources.list"
	fi
	options=(-q -oAPT::Sandbox::User=root -oDir::Etc::SourceParts=/dev/null -oDir::Etc::SourceList="$dir/sources.list"
		-oDir::State::Lists="$dir/lists" -oDir::Cache="$dir/cache")
	if [ -z "$(find "$dir/lists" -maxdepth 1 -name '*Sources*' -mmin -1440)" ]; then
		apt-get "${options[@]}" update >"$dir/log" 2>&1 || return 1
	fi
	apt-get "${options[@]}" "${@:2}" >"$dir/log" 2>&1
}

# Copies the plugins to $WORK/bin: those of a directory, or gangplank alone.
copy_plugins() {
	mkdir "$WORK/bin"
	if [ -n "${1:-}" ]; then
		[ -x "$1/bridge" ] || { say "no plugin at $1/bridge"; exit 1; }
		cp -L "$1"/* "$WORK/bin/"
		return
	fi
	copy_gangplank
	"$WORK/gangplank" install "$WORK/bin" >"$WORK/install.log"
}

# Copies gangplank to $WORK: $GANGPLANK_BIN, or a new build.
copy_gangplank() {
	local binary=${GANGPLANK_BIN:-}
	if [ -z "$binary" ]; then
		(cd "$SOURCE" && cargo build --quiet --release --locked) >&2
		binary=${CARGO_TARGET_DIR:-$SOURCE/target}/$(rustc --print host-tuple)/release/gangplank
	fi
	cp "$binary" "$WORK/gangplank"
}

# The mount points of the cgroup hierarchies, with type and options.
hierarchies() { awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) ~ /^cgroup2?$/) print $5, $(i + 1), $(i + 3) }' /proc/self/mountinfo; }

# Creates a cgroup in each hierarchy, which becomes the root of the client's cgroup namespace.
create_cgroups() {
	local dir type options file
	hierarchies | while read -r dir type options; do
		mkdir -p "$dir/$GROUP"
		for file in cpuset.cpus cpuset.mems; do
			[ "$type" = cgroup2 ] || [ ! -e "$dir/$file" ] || cat "$dir/$file" >"$dir/$GROUP/$file"
		done
	done
}

# The processes in these cgroups.
cgroup_members() { hierarchies | while read -r dir _; do find "$dir/$GROUP" -name cgroup.procs -exec cat {} + 2>/dev/null || true; done | sort -un; }

# Kills the remaining processes in the cgroups, prints them, and removes the cgroups.
remove_cgroups() {
	local pids dir
	pids=$(cgroup_members)
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
	echo "the cgroup $GROUP"
}

run_on_host() {
	local status=0 left
	case ${1:-} in
	-h | --help)
		echo "usage: $0 [DIR]   DIR contains the plugins; default: a build of gangplank"
		exit 0
		;;
	esac
	[ "$(id -u)" = 0 ] || { say "$ME needs root"; exit 1; }
	WORK=$(mktemp -d "${TMPDIR:-/tmp}/gangplank-e2e.XXXXXX")
	chmod 755 "$WORK"
	mkdir "$WORK/log"
	trap 'rm -rf "$WORK"' EXIT
	install_needs
	copy_plugins "${1:-}"
	if declare -F prepare >/dev/null; then prepare; fi
	GROUP=gangplank-e2e.$$
	create_cgroups
	(
		hierarchies | while read -r dir _; do echo "$BASHPID" >"$dir/$GROUP/cgroup.procs"; done
		# The loop above runs in a subshell.
		for dir in $(hierarchies | cut -d ' ' -f 1); do echo "$BASHPID" >"$dir/$GROUP/cgroup.procs"; done
		export E2E_SOURCE=$SOURCE E2E_WORK=$WORK E2E_INSIDE=1
		exec timeout --signal=KILL "$LIMIT" unshare --net --mount --pid --ipc --uts --cgroup --fork --kill-child \
			bash "$HERE/$ME"
	) </dev/null || status=$?
	[ "$status" != 137 ] || { echo "not ok - $ME: completes within $LIMIT seconds"; show_logs; }
	left=$(remove_cgroups)
	if [ -n "$left" ]; then
		printf 'not ok - %s: all processes have ended\n# %s\n' "$ME" "${left//$'\n'/$'\n'# }"
		status=1
	fi
	exit "$status"
}

# --- in the client's namespaces -----------------------------------------------------------------------------------

# Mounts empty directories and overlays.
mount_all() {
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
	mount_cgroups "$WORK/hierarchies.$$"
	rm "$WORK/hierarchies.$$"
	copy_sysctls
	rm -rf /etc/cni /opt/cni
	mkdir -p /etc/cni/net.d /opt/cni/bin
	mount --bind "$WORK/bin" /opt/cni/bin
	# Debian's directory of the Go plugins: no client may find other plugins than those under test.
	if [ -d /usr/lib/cni ]; then mount -t tmpfs tmpfs /usr/lib/cni; fi
	ip link set lo up
}

# Mounts the cgroup hierarchies.
mount_cgroups() {
	local dir type options
	if ! grep -q ' cgroup ' "$1"; then
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		# A cgroup with processes cannot enable controllers for its children (cgroups(7), no internal processes).
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

# Bind-mounts copies of host-wide sysctls that kubelet sets.
copy_sysctls() {
	local file copy
	for file in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
		[ -e "/proc/sys/$file" ] || continue
		copy=/run/e2e/over/${file//\//.}
		cat "/proc/sys/$file" >"$copy"
		mount --bind "$copy" "/proc/sys/$file"
	done
}

# Creates the host outside, whose server at port 8080 returns the address of its client.
create_outside_host() {
	ip netns add outside
	ip link add eth0 type veth peer name eth0 netns outside
	ip addr add "$NODE_IP/24" dev eth0
	ip link set eth0 up
	ip route add default via "$WORLD_IP"
	ip -n outside addr add "$WORLD_IP/24" dev eth0
	ip -n outside link set eth0 up
	ip -n outside link set lo up
	echo "nameserver $WORLD_IP" >/etc/resolv.conf
	# shellcheck disable=SC2016  # expanded by socat
	start outside ip netns exec outside socat TCP-LISTEN:8080,fork,reuseaddr 'SYSTEM:echo $SOCAT_PEERADDR'
	await 5 outside_is_reachable
}

outside_is_reachable() { [ "$(busybox nc "$WORLD_IP" 8080 </dev/null)" = "$NODE_IP" ]; }

# Starts a server outside, at port 9090, that sends zeros.
start_source() { start source ip netns exec outside socat TCP-LISTEN:9090,fork,reuseaddr OPEN:/dev/zero; }

declare -A STARTED=()

# Starts a server, with its output in a log: start NAME COMMAND...
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

# Stops a server: stop NAME [SIGNAL]
stop() {
	local pid=${STARTED[$1]} ended=0
	unset "STARTED[$1]"
	kill "-${2:-TERM}" "$pid" 2>/dev/null || true
	for _ in $(seq 100); do
		kill -0 "$pid" 2>/dev/null || { ended=1; break; }
		sleep 0.1
	done
	[ "$ended" = 1 ] || { kill -KILL "$pid" || true; fail "$1 did not stop"; }
	{ wait "$pid" || true; } 2>/dev/null
}

# Links, addresses, routes, rules, leases and other files, one per line. Bridges and their addresses are kept by design.
state() {
	local family bridges
	bridges=$(ip -o link show type bridge | sed 's/^[0-9]*: \([^:@]*\).*/\1/')
	ip -o link show | sed 's/^[0-9]*: \([^:@]*\).*/link \1/' | not_of "$bridges" '^link NAME$'
	ip -o addr show | awk '{ print "address", $2, $4 }' | not_of "$bridges" '^address NAME '
	ip route show | sed 's/ linkdown//; s/ *$//; s/^/route /' | not_of "$bridges" 'dev NAME\b'
	for family in iptables ip6tables iptables-legacy ip6tables-legacy; do
		"$family-save" 2>/dev/null | awk -v family="$family" '/^\*/ { table = substr($1, 2) }
			/^-A|^:.* - / { sub(/ \[[0-9:]*\]$/, ""); print family, "-t", table, $0 }'
	done | grep -vE -e "$KEPT_RULES" || true
	nft -j list ruleset | jq -r '.nftables[] | to_entries[0] | .key as $kind | .value
		| select([.table, .family] | inside(["nat", "filter", "mangle", "raw", "security", "ip", "ip6"]) | not)
		| if $kind == "rule" then "nft rule \(.family) \(.table) \(.chain) \(.comment // (.expr | tostring))"
		elif $kind == "chain" and .hook == null then "nft chain \(.family) \(.table) \(.name)"
		else (.elem // [])[] | "nft element \(tostring)" end'
	find /var/lib/cni -type f ! -name lock ! -name 'last_reserved_ip.*' ! -name .gangplank.boot ! -name .gangplank.index -printf 'file %p\n'
	find /tmp /var/tmp -mindepth 1 -printf 'file %p\n'
	find /run/netns -mindepth 1 -printf 'namespace %p\n'
}

# Removes lines that match the pattern, with NAME replaced by one of the names: not_of NAMES PATTERN
not_of() {
	local name lines
	lines=$(cat)
	for name in $1; do lines=$(grep -vE "${2//NAME/$name}" <<<"$lines" || true); done
	[ -z "$lines" ] || echo "$lines"
}

# Shared chains and rules that the Go plugins portmap and firewall never remove.
KEPT_RULES='-t nat :CNI-HOSTPORT-|-t nat -A (PREROUTING|OUTPUT|POSTROUTING) .*-j CNI-HOSTPORT-|-t nat -A CNI-HOSTPORT-(SETMARK|MASQ) |-t filter :CNI-(FORWARD|ADMIN|ISOLATION-STAGE-[12]) |-t filter -A FORWARD .*-j CNI-(FORWARD|ISOLATION-STAGE-1)|-t filter -A CNI-FORWARD .*-j CNI-ADMIN|-t filter -A CNI-ISOLATION-STAGE-[12] .*-j RETURN'

# The processes in this PID namespace, without those of this script.
processes() { ps -e -o pid=,ppid=,args= | awk '$1 != 1 && !($3 ~ /^(ps|awk|bash|sort|comm|sed|\(|grep)/) { $1 = $2 = ""; print "process", $0 }'; }

# Asserts that the state is as before, with `processes` also the processes: expect_nothing_left STEP [processes]
expect_nothing_left() {
	local left
	step "$1"
	for _ in $(seq "${PATIENCE:-20}"); do
		left=$(comm -13 "$WORK/before" <({ state; ${2:-true}; } | sort))
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	fail 'remaining:' "${left//$'\n'/$'\n'# }"
}

save_state() { { state; processes; } | sort >"$WORK/before"; }

run_in_namespaces() {
	trap 'on_error $LINENO "$BASH_COMMAND"' ERR
	set -E
	[ "$$" = 1 ] || { say 'not process 1 of a new PID namespace'; exit 1; }
	mount_all
	create_outside_host
	save_state
	drive
	expect_nothing_left 'nothing is left at the end' processes
	stop outside
	pass
}

client() {
	if [ -z "${E2E_INSIDE:-}" ]; then run_on_host "$@"; else run_in_namespaces; fi
}
