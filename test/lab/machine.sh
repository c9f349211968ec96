#!/bin/sh
# A private machine for a test: a Debian root of the lab in mount, PID, cgroup and network namespaces of its own.
#
#   machine.sh hold ROOT DIR [FSTYPE:OPTIONS:PLACE:CGROUP]...
#
# Lives as long as its standard input is open, then takes everything back: processes, mounts, cgroups and DIR. So it
# does not matter how the test that holds the other end of the pipe comes to its end.
#
# ROOT   the root, read only; what is written lies in memory
# DIR    a folder that is made for the machine and removed with it. DIR/shared has the same path inside
# ...    for each cgroup hierarchy how it is mounted and where the machine sees it, and the cgroup that is the machine's
#
# DIR/shared/pid appears when the machine is up: the process ID of its init, as it is seen from outside.
set -eu

step=$1 root=$2 dir=$3

# A cgroup that is new in the hierarchy of v1's cpuset controller has no CPUs and takes no processes.
make_cgroup() {
  mkdir "$1"
  for file in cpuset.cpus cpuset.mems; do
    if [ -e "$1/$file" ] && [ ! -e "$1/cgroup.controllers" ]; then cat "${1%/*}/$file" >"$1/$file"; fi
  done
}

hold() {
  mkdir -m 755 "$dir" "$dir/shared" "$dir/top"
  for hierarchy; do make_cgroup "${hierarchy##*:}"; done
  # The init enters the cgroups, we stay outside: who is in a cgroup cannot remove it.
  sh "$0" enter "$root" "$dir" "$@" || :
}

# Everything that was in the namespaces is dead by now.
release() {
  trap '' EXIT
  for hierarchy; do remove_cgroup "${hierarchy##*:}"; done
  rm -rf "$dir"
}

# From the innermost outwards. The kernel may hold one for a moment after its last process has ended (EBUSY).
remove_cgroup() {
  tries=0
  while [ -e "$1" ] && [ "$tries" -lt 200 ]; do
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
    tries=$((tries + 1))
  done
}

enter() {
  for hierarchy; do echo $$ >"${hierarchy##*:}/cgroup.procs"; done
  exec unshare --cgroup --mount --propagation private --net --ipc --uts --pid --fork --kill-child \
    sh "$0" init "$root" "$dir" "$@"
}

# v2 allows processes in the innermost cgroups only (but for the root), and engines make cgroups beside ours.
leave_root_of_cgroup2() {
  for hierarchy; do
    case $hierarchy in
      cgroup2:*)
        mkdir "${hierarchy##*:}/init"
        echo 0 >"${hierarchy##*:}/init/cgroup.procs"
        ;;
    esac
  done
}

init() {
  # /proc is still the outer one, so this is our process ID as it is seen outside.
  read -r pid _ </proc/self/stat
  leave_root_of_cgroup2 "$@"
  new=$dir/top/root
  mount -t tmpfs -o mode=755 none "$dir/top"
  mkdir "$dir/top/upper" "$dir/top/work" "$new"
  mount -t overlay -o "lowerdir=$root,upperdir=$dir/top/upper,workdir=$dir/top/work" none "$new"
  mount -t proc proc "$new/proc"
  mount -t sysfs sysfs "$new/sys"
  # Not on the overlay: container engines put overlays of their own there.
  for folder in home run tmp var/lib var/tmp; do mount -t tmpfs -o mode=755 none "$new/$folder"; done
  chmod 1777 "$new/tmp" "$new/var/tmp"
  make_dev "$new/dev"
  mount_cgroups "$new" "$@"
  mkdir -p "$new$dir/shared"
  mount --bind "$dir/shared" "$new$dir/shared"
  mkdir "$new/run/outside"
  cd "$new"
  pivot_root . run/outside
  umount -l /run/outside
  rmdir /run/outside
  ip link set lo up
  echo "$pid" >"$dir/shared/.pid"
  mv "$dir/shared/.pid" "$dir/shared/pid"
  # tini reaps what loses its parent. It ends, and all with it, when the shell has read the end of the pipe.
  exec tini -s -- sh -c 'read -r _'
}

make_dev() {
  mount -t tmpfs -o mode=755 none "$1"
  while read -r name major minor; do
    mknod -m 666 "$1/$name" c "$major" "$minor"
  done <<NODES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
NODES
  mkdir "$1/pts" "$1/shm"
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$1/pts"
  mount -t tmpfs -o mode=1777 none "$1/shm"
  ln -s pts/ptmx "$1/ptmx"
  ln -s /proc/self/fd "$1/fd"
  ln -s fd/0 "$1/stdin"
  ln -s fd/1 "$1/stdout"
  ln -s fd/2 "$1/stderr"
}

# Each hierarchy with the machine's own cgroup for its root.
mount_cgroups() {
  top=$1
  shift
  case $1 in *:/sys/fs/cgroup/*:*) mount -t tmpfs -o mode=755 none "$top/sys/fs/cgroup" ;; esac
  for hierarchy; do
    IFS=: read -r type options place _ <<HIERARCHY
$hierarchy
HIERARCHY
    mkdir -p "$top$place"
    mount -t "$type" ${options:+-o "$options"} "$type" "$top$place"
  done
}

shift 3
case $step in
  hold)
    trap 'release "$@"' EXIT
    trap : INT TERM HUP
    hold "$@"
    ;;
  enter) enter "$@" ;;
  init) init "$@" ;;
esac
