import assert from "node:assert/strict";
import { test } from "node:test";
import { showGpus } from "../../src/cli/gpus.part.ts";
import { containerOf, readHolders } from "../../src/host/holders.ts";
import type { Plan } from "../../src/plan/plan.ts";
import { Receipts } from "../../src/plan/receipt.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { char, dir, file, link, type MemorySys, memory, type NodeSpec } from "../support/memory-files.ts";

const A = "a".repeat(64);
const B = "0123456789abcdef".repeat(4);
const GPU = { path: "/dev/nvidia0", major: 195, minor: 0 };
const OTHER = { path: "/dev/nvidia1", major: 195, minor: 1 };
const MOUNTS = "21 1 0:5 / /dev rw - devtmpfs udev rw\n40 1 0:9 / /dev/fuse0 rw - fuse.hostile x rw\n";

/** A process with files open: of each descriptor where it leads, and the mount that it lies in. */
function process(
  pid: number,
  name: string,
  cgroup: string,
  open: Readonly<Record<number, readonly [target: string, mount: number]>>,
): Record<string, string | NodeSpec> {
  const tree: Record<string, string | NodeSpec> = {
    [`/proc/${pid}/comm`]: `${name}\n`,
    [`/proc/${pid}/cgroup`]: `0::${cgroup}\n`,
    [`/proc/${pid}/mountinfo`]: MOUNTS,
    [`/proc/${pid}/fd`]: dir(),
  };
  for (const [fd, [target, mount]] of Object.entries(open)) {
    tree[`/proc/${pid}/fd/${fd}`] = link(target);
    tree[`/proc/${pid}/fdinfo/${fd}`] = `pos:\t0\nflags:\t02\nmnt_id:\t${mount}\nino:\t5\n`;
  }
  return tree;
}

const NODES = { "/dev/nvidia0": char(195, 0), "/dev/nvidia1": char(195, 1), "/dev/null": char(1, 3) };

test("a container is told by the names that engines give to cgroups", () => {
  const cases: readonly (readonly [path: string, id: string | undefined])[] = [
    [`/system.slice/docker-${A}.scope`, A],
    [`/docker/${A}`, A],
    [`/docker/${A}/init.scope`, A],
    [`/kubepods.slice/kubepods-pod1.slice/cri-containerd-${A}.scope`, A],
    [`/kubepods/besteffort/pod4711/${A}`, A],
    [`/system.slice/kubepods-besteffort-pod1.slice:cri-containerd:${A}`, A],
    [`/kubepods.slice/crio-${A}.scope/container`, A],
    [`/machine.slice/libpod-${A}.scope`, A],
    [`/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-${A}.scope/container`, A],
    [`/docker/${A}/docker/${B}`, A],
    ["/system.slice/nvidia-persistenced.service", undefined],
    [`/system.slice/${A}0`, undefined],
    ["/", undefined],
  ];
  for (const [path, id] of cases) assert.equal(containerOf(`0::${path}\n`), id, path);
  // Of cgroup v1 there is a line for each hierarchy, and a path may have colons.
  assert.equal(containerOf(`12:devices:/docker/${A}\n1:name=systemd:/docker/${A}\n`), A);
  assert.equal(containerOf(`3:cpu,cpuacct:/\n2:devices:/system.slice:cri-containerd:${B}\n`), B);
  assert.equal(containerOf(""), undefined);
});

test("who has a node open is told by the node's numbers, under whatever name", () => {
  const sys = memory({
    ...NODES,
    "/dev/renamed": char(195, 1),
    ...process(7, "python3", `/docker/${A}`, {
      0: ["/dev/null", 21],
      3: ["/dev/renamed", 21],
      4: ["/dev/renamed", 21],
    }),
    ...process(5, "nvidia-persiste", "/system.slice/x.service", { 3: ["/dev/nvidia0", 21], 9: ["/dev/nvidia1", 21] }),
    ...process(8, "bash", "/", { 0: ["/dev/null", 21], 1: ["socket:[5]", 0], 2: ["/etc/passwd", 21] }),
    "/proc/self": link("7"),
    "/proc/version": "Linux",
  });
  assert.deepEqual(readHolders(sys, [GPU, OTHER]), {
    processes: [
      { pid: 5, name: "nvidia-persiste", nodes: ["/dev/nvidia0", "/dev/nvidia1"] },
      { pid: 7, name: "python3", container: A, nodes: ["/dev/nvidia1"] },
    ],
    total: 3,
    denied: 0,
  });
  assert.equal(sys.count("stat /proc/7/fd/0"), 0, "what everybody has open is not looked at");
});

test("a file whose file system a container answers for is not looked at: its name must do", () => {
  const sys = memory({
    ...NODES,
    ...process(7, "hostile", `/docker/${A}`, { 3: ["/dev/fuse0/nvidia1", 40], 4: ["/dev/nvidia0 (deleted)", 40] }),
  });
  sys.fail("stat", "/proc/7/fd/3", "EIO");
  sys.fail("stat", "/proc/7/fd/4", "EIO");
  assert.deepEqual(readHolders(sys, [GPU, OTHER]).processes, [
    { pid: 7, name: "hostile", container: A, nodes: ["/dev/nvidia0"] },
  ]);
  assert.equal(sys.count("stat /proc/7/fd/"), 0);
});

test("in another tree, where the kernel does not follow such links, the name must do as well", () => {
  const sys = memory({ ...NODES, ...process(7, "x", "/", { 3: ["/dev/nvidia1", 21] }) });
  sys.fail("stat", "/proc/7/fd/3", "ELOOP");
  assert.deepEqual(readHolders(sys, [GPU, OTHER]).processes[0]?.nodes, ["/dev/nvidia1"]);
});

test("what goes while it is looked at is not there, and what is denied is counted", () => {
  const sys = memory({
    ...NODES,
    ...process(7, "x", "/", { 3: ["/dev/nvidia1", 21] }),
    ...process(8, "y", "/", { 3: ["/dev/nvidia1", 21] }),
    ...process(9, "z", "/", { 3: ["/dev/nvidia1", 21] }),
  });
  sys.fail("list", "/proc/7/fd", "EACCES");
  sys.fail("list", "/proc/8/fd", "ESRCH");
  sys.fail("readText", "/proc/9/comm", "ESRCH");
  assert.deepEqual(readHolders(sys, [OTHER]), {
    processes: [{ pid: 9, name: "?", nodes: ["/dev/nvidia1"] }],
    total: 2,
    denied: 1,
  });
  assert.deepEqual(readHolders(memory(), [OTHER]), { processes: [], total: 0, denied: 0 });
});

/** A fixture with processes and receipts, and what `sluice gpus` prints of it. */
function shown(name: HostName, tree: Record<string, string | NodeSpec>, prepare?: (sys: MemorySys) => void): string {
  const sys = memory({ ...HOSTS[name]().tree, ...tree });
  prepare?.(sys);
  showGpus(sys, sys, false, "/run/sluice");
  return sys.output;
}

function give(sys: MemorySys, id: string, major: number, minor: number): void {
  const body = {
    devices: [{ name: "nvidia.com/gpu=0", from: "x", grant: "y" }],
    edits: [
      {
        reason: "r",
        source: { spec: "/etc/cdi/x.json" },
        edits: { deviceNodes: [{ path: "/dev/nvidia0", type: "c", major, minor }] },
      },
    ],
  };
  const text = JSON.stringify(body);
  const plan: Plan = { ...body, digest: sys.sha256(text), text, specs: [] };
  sys.put(`/bundle/${id}/config.json`, "{}");
  new Receipts(sys, "/run/sluice").write(id, "runtime", `/bundle/${id}/config.json`, "", plan);
}

test("gpus: containers that Sluice gave a GPU to, and processes, stand beside it", () => {
  const output = shown(
    "lost-gpu-removed",
    {
      ...process(7, "python3", `/docker/${A}`, { 3: ["/dev/nvidia1", 21] }),
      ...process(8, "python3", `/docker/${A}`, { 3: ["/dev/nvidia1", 21] }),
      ...process(9, "Xorg", "/", { 3: ["/dev/nvidia1", 21] }),
    },
    (sys) => {
      give(sys, A, 195, 1);
      give(sys, "by-hand", 195, 0);
      give(sys, "gone", 195, 0);
      sys.remove("/bundle/gone");
    },
  );
  assert.match(output, /^0 +NVIDIA L4 .* usable +container by-hand \(sluice runtime\)$/m);
  assert.match(
    output,
    /^1 +NVIDIA L4 .* usable +container aaaaaaaaaaaa \(sluice runtime\): 7 python3, 8 python3\n +9 Xorg$/m,
  );
  assert.match(output, /^2 +NVIDIA L4 .* usable +-$/m);
  assert.ok(!output.includes("gone"));
});

test("gpus: a container that sluiced gave a GPU to, of which no config.json is known, has it too", () => {
  const output = shown("lost-gpu-removed", {}, (sys) => {
    const text = JSON.stringify({
      devices: [],
      edits: [
        {
          reason: "r",
          source: {},
          edits: { deviceNodes: [{ path: "/dev/nvidia1", type: "c", major: 195, minor: 1 }] },
        },
      ],
    });
    const plan = { ...JSON.parse(text), digest: sys.sha256(text), text, specs: [] } as Plan;
    new Receipts(sys, "/run/sluice").write("in-a-pod", "nri", "", "", plan);
  });
  assert.match(output, /^1 +NVIDIA L4 .* usable +container in-a-pod \(sluice nri\)$/m);
});

test("gpus: who has a MIG device stands at it, and who has the GPU for itself at the GPU", () => {
  const output = shown("a100-mig-2-half", {
    "/dev/nvidia-caps/nvidia-cap148": char(237, 148),
    ...process(7, "train", `/docker/${A}`, { 3: ["/dev/nvidia1", 21], 4: ["/dev/nvidia-caps/nvidia-cap148", 99] }),
    ...process(9, "nvidia-persiste", "/", { 3: ["/dev/nvidia0", 21], 4: ["/dev/nvidia1", 21] }),
  });
  assert.match(output, /^0 .* usable +9 nvidia-persiste$/m);
  assert.match(output, /^1 .* cut into 2 MIG devices +9 nvidia-persiste$/m);
  assert.match(output, /^ {2}1:0 .* MIG device +container aaaaaaaaaaaa: 7 train$/m);
  assert.match(output, /^ {2}1:1 .* MIG device +-$/m);
});

test("gpus: a virtual machine has a mediated device, or a vGPU function, by its VFIO group", () => {
  assert.match(
    shown("a100-mdev", process(7, "qemu-system-x86", "/", { 3: ["/dev/vfio/192", 99] })),
    /^ {2}mdev +GRID A100D-10C .* \/dev\/vfio\/192 +made +7 qemu-system-x86$/m,
  );
  assert.match(
    shown("l40s-vgpu", process(7, "qemu", "/", { 3: ["/dev/vfio/301", 99] })),
    /^ {2}vGPU .* 0000:c1:00\.4 .* \/dev\/vfio\/301 +made +7 qemu\n {2}function .* and 30 more .*NVIDIA L40S-8Q +-$/m,
  );
  assert.match(
    shown("no-driver", process(7, "qemu", "/", { 3: ["/dev/vfio/30", 99] })),
    /given to virtual machines \(VFIO\) +7 qemu$/m,
  );
});

test("gpus: names of processes do not draw on the terminal", () => {
  const output = shown("gvtg", process(7, "\u001b[31mred", "/", { 3: ["/dev/dri/card0", 99] }));
  assert.match(output, /7 \\u001b\[31mred$/m);
});

test("gpus: without root it says that there may be more, and another tree's receipts do not count", () => {
  const sys = memory({ ...HOSTS["lost-gpu"]().tree, ...process(7, "x", "/", { 3: ["/dev/nvidia1", 21] }) });
  sys.euid = 1000;
  sys.fail("list", "/proc/7/fd", "EACCES");
  sys.fail("list", "/run/sluice/receipts", "EACCES");
  showGpus(sys, sys, false, "/run/sluice");
  assert.match(
    sys.errors,
    /not seen: what others hold \(1 of 1 processes are other users'\); run it as root to see all$/m,
  );

  const other = memory({ "/host": dir(), "/run": dir() });
  for (const [path, node] of Object.entries(HOSTS["lost-gpu"]().tree)) other.put(`/host${path}`, node);
  give(other, A, 195, 1);
  showGpus(other, other.under("/host"), false);
  assert.ok(!other.output.includes("HELD BY"));
});

test("gpus --json: users with their nodes, and none where nothing can be known", () => {
  const sys = memory({
    ...HOSTS["lost-gpu"]().tree,
    ...process(7, "x", `/docker/${A}`, { 3: ["/dev/nvidia1", 21] }),
    "/proc/7/environ": file("secret"),
  });
  give(sys, A, 195, 1);
  showGpus(sys, sys, true, "/run/sluice");
  assert.deepEqual(JSON.parse(sys.output).users, [
    {
      container: A,
      door: "runtime",
      devices: ["nvidia.com/gpu=0"],
      processes: [{ pid: 7, name: "x" }],
      nodes: ["/dev/nvidia1"],
    },
  ]);
  const other = memory(HOSTS["lost-gpu"]().tree);
  showGpus(other, other, true);
  assert.equal(JSON.parse(other.output).users, undefined);
});
