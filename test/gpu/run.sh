#!/bin/sh
# Runs Sluice's main job on this machine's own NVIDIA driver: gives its GPU to containers in each way of asking, keeps
# it from those that may not have it, and writes down what it saw. This is the `run` of the kit that `make gpu-kit`
# makes (test/gpu/kit.ts), which holds all that it needs: no network, no container engine, no Node, no checkout.
#
#   run [--output DIR]      (default: gpu-report beside where it is called)
#
# As root. Everything happens in a mount namespace of its own, so nothing is left but DIR:
#   report.txt, report.json    what was checked and seen
#   spec.json                  the CDI spec of this machine
#   plan.json                  `sluice plan` of the container that asks by annotation
#   config.json                its config.json as runc got it
#
# Exit: 0 all is as it should be; 1 something is not; 2 it cannot run here at all; 3 there is no NVIDIA GPU here.
set -u

# Where the carried runc and its libraries must lie: runc starts itself anew without an environment, so they cannot be
# found through a variable, and kit.ts has written this path into it.
here=/run/sluice-gpu-kit
# How often a start is timed.
rounds=10

case $0 in */*) kit=$(cd "${0%/*}" && pwd) ;; *) kit=$PWD ;; esac

say() { printf '%s\n' "$*"; }
die() {
  status=$1
  shift
  printf 'gpu-kit: %s\n' "$*" >&2
  exit "$status"
}

# --- Outside: into a mount namespace, by the kit's own busybox, whose shell has all the tools that are used below

if [ "${SLUICE_GPU_KIT:-}" != inside ]; then
  out=$PWD/gpu-report
  case $#,${1:-} in
    0,) ;;
    2,--output) case $2 in /*) out=$2 ;; *) out=$PWD/$2 ;; esac ;;
    *) die 2 "usage: run [--output DIR]" ;;
  esac
  for part in bin/busybox bin/sluice bin/runc lib/libc.so.6 rootfs/usr/bin/cuda rootfs/usr/bin/probe; do
    [ -e "$kit/$part" ] || die 2 "the kit in $kit has no $part; make it anew (make gpu-kit)"
  done
  [ "$("$kit/bin/busybox" id -u)" = 0 ] || die 2 "run it as root"
  "$kit/bin/busybox" mkdir -p "$out" || die 2 "$out cannot be written to"
  # They stay behind as empty folders only if we are killed.
  made=
  for folder in /run "$here" /run/sluice; do
    [ -d "$folder" ] || { "$kit/bin/busybox" mkdir "$folder" || die 2 "$folder cannot be made"; made="$folder $made"; }
  done
  SLUICE_GPU_KIT=inside "$kit/bin/busybox" unshare --mount --propagation private \
    "$kit/bin/busybox" sh "$kit/run" "$out"
  status=$?
  for folder in $made; do "$kit/bin/busybox" rmdir "$folder" 2>/dev/null; done
  exit $status
fi

# --- Inside

out=$1
driver_path=$PATH:/usr/local/nvidia/bin:/usr/bin:/usr/local/bin

mount -t tmpfs -o mode=755 none "$here" && mount -t tmpfs -o mode=755 none /run/sluice ||
  die 2 "nothing can be mounted here"
# runc needs cgroups. Where nobody has mounted any, those of version 2 do.
grep -q ' cgroup2\? ' /proc/mounts || mount -t cgroup2 none /sys/fs/cgroup ||
  die 2 "no cgroups are mounted, and none can be"
for folder in bin lib rootfs; do cp -a "$kit/$folder" "$here/"; done
ln -s busybox "$here/bin/sh"
cp "$here/rootfs/usr/bin/probe" "$here/bin/"
mkdir "$here/cdi" "$here/runc"
export PATH="$here/bin:$driver_path" SLUICE_CONFIG=$here/config.toml
printf '[runtime]\nruntimes = ["%s/bin/runc"]\n[cdi]\nspec_dirs = ["%s/cdi"]\n' "$here" "$here" >"$SLUICE_CONFIG"

# Text as a JSON string.
json() {
  printf '%s' "$1" | awk '
    BEGIN {
      for (i = 1; i < 32; i++) escaped[sprintf("%c", i)] = sprintf("\\u%04x", i)
      escaped["\""] = "\\\""; escaped["\\"] = "\\\\"
      printf "\""
    }
    {
      if (NR > 1) printf "\\n"
      for (i = 1; i <= length($0); i++) { c = substr($0, i, 1); printf "%s", (c in escaped ? escaped[c] : c) }
    }
    END { printf "\"" }'
}

# --- The machine: nodes, driver, nvidia-smi

gpus=$(ls /dev | sed -n 's/^nvidia\([0-9][0-9]*\)$/\1/p' | sort -n)
[ -c /dev/nvidiactl ] && [ -n "$gpus" ] ||
  die 3 "there is no NVIDIA GPU here: /dev/nvidiactl and /dev/nvidia0 are not both there (there is:" \
    "$(ls /dev | grep -i nvidia | tr '\n' ' '))"
first=${gpus%%[!0-9]*}

smi=
for folder in $(printf '%s' "$driver_path" | tr : ' '); do
  [ -n "$smi" ] || [ ! -x "$folder/nvidia-smi" ] || smi=$(readlink -f "$folder/nvidia-smi")
done

# The driver's libraries lie together. A libcuda without libnvidia-ml beside it is one of CUDA's compatibility packages
# or a stub, not the driver's.
library=
lib_dir=/usr/lib/x86_64-linux-gnu
folders=$(printf '%s\n' "${LD_LIBRARY_PATH:-}" | tr : '\n'
  { /sbin/ldconfig -p 2>/dev/null || true; } | sed -n 's:.*libcuda\.so\.1 .*x86-64.* => \(.*\)/libcuda\.so\.1$:\1:p'
  printf '%s\n' /usr/local/nvidia/lib64 /usr/local/nvidia/lib "$lib_dir" /usr/lib64 "$lib_dir/nvidia/current"
  find /usr /opt -xdev -name libcuda.so.1 2>/dev/null | sed 's:/libcuda\.so\.1$::')
for folder in $folders; do
  if [ -z "$library" ] && [ -e "$folder/libcuda.so.1" ] && [ -e "$folder/libnvidia-ml.so.1" ]; then library=$folder; fi
done
[ -n "$smi" ] && [ -n "$library" ] ||
  die 3 "there is a GPU's node but no whole driver: nvidia-smi ${smi:-not found}, libcuda.so.1 ${library:-not found}"
version=$(readlink -f "$library/libcuda.so.1" | sed -n 's/.*\.so\.\([0-9][0-9.]*\)$/\1/p')
host_smi=$(LD_LIBRARY_PATH=$library "$smi" -L 2>&1) || die 1 "nvidia-smi does not work on the machine itself: $host_smi"
# In containers and for the programs that we carry, the driver's libraries need a libc; ours does.
carried() { "$here/lib/ld-linux-x86-64.so.2" --library-path "$here/rootfs$lib_dir:$library" "$@"; }
# It may make nodes (nvidia-uvm), so it runs before the spec is written.
host_cuda=$(carried "$here/rootfs/usr/bin/cuda" | tail -n 1)

# --- The CDI spec: one device a GPU, the driver's files common to all

mount_of() {
  printf '{"hostPath":%s,"containerPath":%s,"options":["ro","nosuid","nodev","rbind","rprivate"]}\n' \
    "$(json "$1")" "$(json "$2")"
}
mounts() {
  mount_of "$smi" /usr/bin/nvidia-smi
  for file in "$library"/lib*.so.*; do
    target=$(readlink -f "$file")
    # Files of this driver, under their own names and those that programs load them by (lib*.so.1). The two that matter
    # most also where their version does not show in their names.
    case $target in
      *".so.${version:-none}" | "$library"/libcuda.so.1 | "$library"/libnvidia-ml.so.1)
        mount_of "$target" "$lib_dir/${file##*/}"
        ;;
    esac
  done
}
node_of() { printf '{"path":"%s"}\n' "$1"; }
control() {
  for node in nvidiactl nvidia-uvm nvidia-uvm-tools nvidia-modeset; do
    if [ -c "/dev/$node" ]; then node_of "/dev/$node"; fi
  done
}
device() { printf '{"name":"%s","containerEdits":{"deviceNodes":[%s]}}\n' "$1" "$2"; }
devices() {
  for gpu in $gpus; do device "$gpu" "$(node_of "/dev/nvidia$gpu")"; done
  device all "$(for gpu in $gpus; do node_of "/dev/nvidia$gpu"; done | paste -sd , -)"
}
list() { "$1" | paste -sd , -; }
cat >"$here/cdi/nvidia.json" <<JSON
{
  "cdiVersion": "0.5.0",
  "kind": "nvidia.com/gpu",
  "devices": [$(list devices)],
  "containerEdits": {"deviceNodes": [$(list control)], "mounts": [$(list mounts)]}
}
JSON
cp "$here/cdi/nvidia.json" "$out/spec.json"

# --- Containers

# A bundle with a command for busybox's shell. It may make device nodes, as containers of most engines may: whether it
# can open them is for the device cgroup to say.
#   bundle NAME SCRIPT [ANNOTATIONS] [VARIABLE]     annotations as the inside of a JSON object
bundle() {
  mkdir -p "$here/$1"
  caps='["CAP_MKNOD","CAP_DAC_OVERRIDE","CAP_SETUID","CAP_SETGID"]'
  cat >"$here/$1/config.json" <<JSON
{
  "ociVersion": "1.0.2",
  "process": {
    "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
    "args": ["/bin/busybox", "sh", "-c", $(json "$2")],
    "env": ["PATH=/usr/bin:/bin"${4:+, $(json "$4")}],
    "capabilities": {"bounding": $caps, "effective": $caps, "permitted": $caps}
  },
  "root": {"path": "$here/rootfs"},
  "hostname": "gpu-kit",
  "annotations": {${3:-}},
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "noexec"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
  ],
  "linux": {
    "resources": {"devices": [{"allow": false, "access": "rwm"}]},
    "namespaces": [
      {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
    ]
  }
}
JSON
}

# Runs a bundle's container through Sluice. Its output in $said, its exit status in $code.
container() {
  sluice runtime --root "$here/runc" run --bundle "$here/$1" "gpu-kit-$1" >"$here/$1/said" 2>&1 </dev/null
  code=$?
  said=$(cat "$here/$1/said")
}

checks=
failed=0
# Notes a check: its name, whether it holds (a command's success), and what was seen.
check() {
  name=$1 seen=$2
  shift 2
  if "$@"; then ok=true mark='ok    '; else ok=false mark='FAILED' failed=$((failed + 1)); fi
  checks="$checks${checks:+,}{\"check\":$(json "$name"),\"ok\":$ok,\"seen\":$(json "$seen")}"
  printf '%s  %s\n' "$mark" "$name" | tee -a "$out/report.txt"
  $ok || printf '%s\n' "$seen" | sed 's/^/          | /' | tee -a "$out/report.txt"
}
: >"$out/report.txt"
has() { printf '%s\n' "$1" | grep -qF -- "$2"; }
lacks() { ! has "$1" "$2"; }
refused() { [ "$1" -ne 0 ] && has "$2" "$3"; }
no_gpu() { has "$1" '"error":"cuInit: ' || has "$1" '"count":0,'; }
# One line, which is one of those.
one_of() { [ "$(printf '%s\n' "$1" | grep -c .)" = 1 ] && has "$2" "$1"; }

ask="\"gpu.sluice.dev\":\"nvidia.com/gpu=$first\""
numbers() { stat -c '%t %T' "/dev/nvidia$1" | { read -r major minor && printf '%d %d' "0x$major" "0x$minor"; }; }
# The UUID that nvidia-smi gives a GPU: (UUID: GPU-...)
uuids() { printf '%s\n' "$1" | sed -n 's/.*(UUID: \([^)]*\)).*/\1/p'; }

# The container's own view: whether each GPU's node opens, made by hand where it is not there.
look='for n in '"$(printf '%s ' $gpus)"'; do [ -e /dev/nvidia$n ] && echo "has /dev/nvidia$n"; done
'"$(for gpu in $gpus; do say "mknod /tmp/nvidia$gpu c $(numbers "$gpu") && probe open /tmp/nvidia$gpu"; done)"

seen=$(sluice cdi validate "$here/cdi/nvidia.json" 2>&1)
check "the CDI spec of this machine is valid" "$seen" test $? = 0

bundle plain "$look; cuda"
cp "$here/plain/config.json" "$here/plain.json"
container plain
check "without a request, config.json stays as it was" "" cmp -s "$here/plain.json" "$here/plain/config.json"
check "without a request, there is no node of a GPU" "$said" lacks "$said" "has /dev/nvidia"
for gpu in $gpus; do
  check "without a request, GPU $gpu's node cannot be opened, made by hand" "$said" has "$said" "/tmp/nvidia$gpu EPERM"
done
check "without a request, there is no CUDA" "$said" has "$said" '"error":"libcuda.so.1'

bundle asks "nvidia-smi -L || exit; echo --; $look; probe open /dev/nvidia$first /dev/nvidiactl; cuda" "$ask"
sluice plan --bundle "$here/asks" --json >"$out/plan.json"
container asks
cp "$here/asks/config.json" "$out/config.json"
inside=$said
cuda=$(printf '%s\n' "$said" | tail -n 1)
check "with a request, the container runs" "$said" test "$code" = 0
check "with a request, GPU $first's node opens" "$said" has "$said" "/dev/nvidia$first open"
check "with a request, nvidia-smi sees one GPU, one of the machine's" "$said" \
  one_of "$(uuids "$said")" "$(uuids "$host_smi")"
check "with a request, CUDA copies to the GPU and back" "$cuda" has "$cuda" '"count":1,'
for gpu in $gpus; do
  [ "$gpu" != "$first" ] || continue
  check "with a request for GPU $first, GPU $gpu's node cannot be opened, made by hand" "$said" \
    has "$said" "/tmp/nvidia$gpu EPERM"
done

bundle driver "$look; cuda" "" NVIDIA_VISIBLE_DEVICES=none
container driver
check "with the driver alone (NVIDIA_VISIBLE_DEVICES=none), libcuda.so.1 is there and finds no GPU" "$said" \
  no_gpu "$said"
for gpu in $gpus; do
  check "with the driver alone, GPU $gpu's node cannot be opened, made by hand" "$said" \
    has "$said" "/tmp/nvidia$gpu EPERM"
done

way() {
  bundle way "cuda" "$2" "$3"
  container way
  check "$1 gives the GPU" "$said" has "$said" "\"count\":$4,"
}
way "annotation cdi.k8s.io/gpu=nvidia.com/gpu=$first" "\"cdi.k8s.io/gpu\":\"nvidia.com/gpu=$first\"" "" 1
way "variable NVIDIA_VISIBLE_DEVICES=$first" "" "NVIDIA_VISIBLE_DEVICES=$first" 1
way "variable NVIDIA_VISIBLE_DEVICES=all" "" NVIDIA_VISIBLE_DEVICES=all "$(printf '%s\n' "$gpus" | grep -c .)"

bundle absent true '"gpu.sluice.dev":"nvidia.com/gpu=4096"'
container absent
check "a GPU that is not there keeps the container from starting" "$said" \
  refused "$code" "$said" E_CDI_UNKNOWN_DEVICE

# One that stays, for its receipt and a second command.
bundle stays "sleep 1000" "$ask"
runtime() { sluice runtime --root "$here/runc" "$@" </dev/null >"$here/log" 2>&1; }
receipt=/run/sluice/receipts/gpu-kit-stays.json
runtime create --bundle "$here/stays" gpu-kit-stays && runtime start gpu-kit-stays
check "a container that runs has a receipt" "$(cat "$here/log")" grep -qs "nvidia.com/gpu=$first" "$receipt"
runtime exec gpu-kit-stays cuda
check "a command that is run in it later has the GPU too" "$(cat "$here/log")" grep -q '"count":1,' "$here/log"
runtime delete --force gpu-kit-stays
check "the receipt goes with the container" "$(cat "$here/log")" test ! -e "$receipt"

# What a start costs, as a user feels it: create, start and delete of a container that ends at once.
timed() {
  fresh="cp $here/$1.json $here/$1/config.json"
  probe time "$rounds" sh -c "$fresh && $2 --root $here/runc run --bundle $here/$1 gpu-kit-$1"
}
bundle bare true && cp "$here/bare/config.json" "$here/bare.json"
bundle gpu true "$ask" && cp "$here/gpu/config.json" "$here/gpu.json"
runc_plain=$(timed bare runc)
with_plain=$(timed bare "sluice runtime")
with_gpu=$(timed gpu "sluice runtime")

# --- The report

pair() { printf '{"shortest":%s,"middle":%s}' "${1% *}" "${1#* }"; }
cgroups=$(awk '$3 ~ /^cgroup/ && $2 ~ /^\/sys\/fs\/cgroup/ { print $3, $2 }' /proc/mounts)
cat >"$out/report.json" <<JSON
{
  "sluice": $(json "$(sluice version)"),
  "runc": $(json "$(runc --version)"),
  "kernel": $(json "$(uname -r)"),
  "cgroups": $(json "$cgroups"),
  "driver": $(json "$version"),
  "libraries": $(json "$library"),
  "nodes": $(json "$(ls -l /dev | grep -i nvidia)"),
  "nvidia_smi": {"machine": $(json "$host_smi"), "container": $(json "$(printf '%s\n' "$inside" | sed '/^--$/,$d')")},
  "cuda": {"machine": $(case $host_cuda in {*) say "$host_cuda" ;; *) json "$host_cuda" ;; esac), "container": $(
    case $cuda in {*) say "$cuda" ;; *) json "$cuda" ;; esac)},
  "start_us": {"runc": $(pair "${runc_plain:-null null}"), "sluice, no request": $(pair "${with_plain:-null null}"),
    "sluice, a GPU": $(pair "${with_gpu:-null null}")},
  "failed": $failed,
  "checks": [$checks]
}
JSON
{
  say "" "driver $version in $library, kernel $(uname -r)"
  say "on the machine:    $host_smi"
  say "CUDA, machine:     $host_cuda"
  say "CUDA, container:   $cuda"
  say "a start (shortest and middle of $rounds, microseconds): runc alone $runc_plain;" \
    "through Sluice without a request $with_plain; with a GPU $with_gpu"
  say "" "$failed checks failed"
} | tee -a "$out/report.txt"
[ "$failed" -eq 0 ]
