/** The fixture hosts are whole: what one file says of another, or of a node, is so. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { elfLibrary, ldCache } from "../fixtures/hosts/elf.ts";
import { hostile } from "../fixtures/hosts/hostile.ts";
import { HOSTS, type Host } from "../fixtures/hosts/hosts.ts";
import { CAP, migMinors } from "../fixtures/hosts/nvidia.ts";
import { type MemorySys, memory, type NodeSpec } from "../support/memory-files.ts";

interface Loaded {
  readonly host: Host;
  readonly sys: MemorySys;
}

const loaded: Loaded[] = Object.values(HOSTS).map((make) => {
  const host = make();
  return { host, sys: memory(host.tree) };
});

const read = (sys: MemorySys, path: string): string => sys.readText(path, 1 << 20);
const optional = (sys: MemorySys, path: string): string | undefined =>
  sys.stat(path) === undefined ? undefined : read(sys, path);
const entries = (sys: MemorySys, path: string): string[] => (sys.list(path) ?? []).map(({ name }) => name);
const nodesOf = (host: Host): [path: string, node: NodeSpec][] =>
  Object.entries(host.tree).filter((entry): entry is [string, NodeSpec] => typeof entry[1] !== "string");
const basename = (path: string): string => path.slice(path.lastIndexOf("/") + 1);

/** Where a folder's link leads, as a path without links: the links of these trees are one step long there. */
function target(sys: MemorySys, path: string): string {
  const to = sys.readLink(path);
  if (to.startsWith("/")) return to;
  const steps = path.split("/").slice(0, -1);
  for (const step of to.split("/")) {
    if (step === "..") steps.pop();
    else if (step !== ".") steps.push(step);
  }
  return steps.join("/");
}

/** Majors of character devices, by name, as /proc/devices lists them. */
function majors(sys: MemorySys): Map<string, number> {
  const [chars] = read(sys, "/proc/devices").split("\nBlock devices:");
  const lines = [...(chars ?? "").matchAll(/^ *(\d+) (.+)$/gm)];
  return new Map(lines.map((line) => [line[2] as string, Number(line[1])]));
}

/** Bytes as in the file: one character each. */
function le(bytes: string, at: number, size: number): number {
  let value = 0;
  for (let i = size - 1; i >= 0; i--) value = value * 256 + bytes.charCodeAt(at + i);
  return value;
}

const text = (bytes: string, at: number): string => bytes.slice(at, bytes.indexOf("\0", at));

/** The SONAME of an ELF file by its program headers and dynamic section, as a loader finds it. */
function sonameOf(bytes: string): string | undefined {
  assert.equal(bytes.slice(0, 4), "\x7fELF");
  const is64 = bytes.charCodeAt(4) === 2;
  const word = is64 ? 8 : 4;
  const at = le(bytes, is64 ? 32 : 28, word);
  const [size, count] = [le(bytes, is64 ? 54 : 42, 2), le(bytes, is64 ? 56 : 44, 2)];
  const segments = Array.from({ length: count }, (_, i) => {
    const start = at + i * size;
    const place = start + (is64 ? 8 : 4);
    return {
      type: le(bytes, start, 4),
      offset: le(bytes, place, word),
      address: le(bytes, place + word, word),
      size: le(bytes, place + 3 * word, word),
    };
  });
  const offsetOf = (address: number): number => {
    const segment = segments.find((s) => s.type === 1 && address >= s.address && address < s.address + s.size);
    assert.ok(segment !== undefined, `address ${address} lies in no segment`);
    return address - segment.address + segment.offset;
  };
  const dynamic = segments.find((s) => s.type === 2);
  assert.ok(dynamic !== undefined, "no dynamic section");
  const tags = new Map<number, number>();
  for (let i = dynamic.offset; i < dynamic.offset + dynamic.size; i += 2 * word) {
    tags.set(le(bytes, i, word), le(bytes, i + word, word));
  }
  const name = tags.get(14);
  return name === undefined ? undefined : text(bytes, offsetOf(tags.get(5) as number) + name);
}

/** The bytes of a file of a tree, through its links. */
function bytesOf(sys: MemorySys, path: string): string {
  return sys.readBytes(path, 0, sys.stat(path)?.size ?? 0);
}

function cacheOf(sys: MemorySys): { name: string; path: string; flags: number }[] {
  if (sys.stat("/etc/ld.so.cache") === undefined) return [];
  const bytes = bytesOf(sys, "/etc/ld.so.cache");
  assert.equal(bytes.slice(0, 20), "glibc-ld.so.cache1.1");
  return Array.from({ length: le(bytes, 20, 4) }, (_, i) => {
    const at = 48 + 24 * i;
    return {
      flags: le(bytes, at, 4),
      name: text(bytes, le(bytes, at + 4, 4)),
      path: text(bytes, le(bytes, at + 8, 4)),
    };
  });
}

test("each fixture host has its name, its facts and where they come from", () => {
  for (const [name, make] of Object.entries(HOSTS)) {
    const host = make();
    assert.equal(host.name, name);
    assert.ok(host.facts.length >= 2, name);
    assert.ok(
      host.facts.some((fact) => /^\[(reference: [a-z-]+|source|package|known)/.test(fact)),
      name,
    );
  }
});

test("a fixture host is the same each time it is made", () => {
  for (const { host } of loaded) assert.deepEqual(HOSTS[host.name as keyof typeof HOSTS]().tree, host.tree, host.name);
});

test("no path of a fixture host leads through a link or a file, so that it can be written to a disk", () => {
  for (const { host } of loaded) {
    for (const path of Object.keys(host.tree)) {
      assert.match(path, /^(?:\/[^/]+)+$/);
      for (let at = path.lastIndexOf("/"); at > 0; at = path.lastIndexOf("/", at - 1)) {
        const node = host.tree[path.slice(0, at)];
        assert.ok(node === undefined || (typeof node === "object" && node.kind === "dir"), `${host.name}: ${path}`);
      }
    }
  }
});

test("each link of a fixture host leads to something, but for those that lead nowhere on the real machine too", () => {
  for (const { host, sys } of loaded) {
    const loose = nodesOf(host)
      .filter(([path, node]) => node.kind === "link" && sys.stat(path) === undefined)
      .map(([path]) => path);
    assert.deepEqual(loose, [...(host.dangling ?? [])], host.name);
  }
});

test("no relative link of a fixture host climbs above the root", () => {
  for (const { host } of loaded) {
    for (const [path, node] of nodesOf(host)) {
      if (node.kind !== "link" || node.target?.startsWith("/") !== false) continue;
      const up = node.target.split("/").filter((step) => step === "..").length;
      assert.ok(up < path.split("/").length - 1, `${host.name}: ${path} -> ${node.target}`);
    }
  }
});

test("the links of sysfs are relative, as the kernel makes them", () => {
  for (const { host } of loaded) {
    for (const [path, node] of nodesOf(host)) {
      if (node.kind === "link" && path.startsWith("/sys/"))
        assert.ok(node.target?.startsWith("/") === false, `${host.name}: ${path}`);
    }
  }
});

test("the major of each device node is in /proc/devices, and each misc node's minor in /proc/misc", () => {
  for (const { host, sys } of loaded) {
    const known = new Set(majors(sys).values());
    const misc = new Set([...read(sys, "/proc/misc").matchAll(/^ *(\d+) \S+$/gm)].map((line) => Number(line[1])));
    for (const [path, node] of nodesOf(host)) {
      if (node.kind !== "char") continue;
      assert.ok(known.has(node.major ?? 0), `${host.name}: ${path} has major ${node.major}`);
      if (node.major === 10) assert.ok(misc.has(node.minor ?? 0), `${host.name}: ${path}`);
    }
  }
});

test("a driver's nodes have the major that /proc/devices gives it", () => {
  const expected: readonly (readonly [path: RegExp, names: readonly string[]])[] = [
    [/^\/dev\/nvidia(?:\d+|ctl|-modeset)$/, ["nvidia", "nvidia-frontend"]],
    [/^\/dev\/nvidia-uvm(?:-tools)?$/, ["nvidia-uvm"]],
    [/^\/dev\/nvidia-caps\/nvidia-cap\d+$/, ["nvidia-caps"]],
    [/^\/dev\/nvidia-caps-imex-channels\/channel\d+$/, ["nvidia-caps-imex-channels"]],
    [/^\/dev\/nvidia-nvswitch(?:\d+|ctl)$/, ["nvidia-nvswitch"]],
    [/^\/dev\/dri\/(?:card|renderD)\d+$/, ["drm"]],
    [/^\/dev\/vfio\/\d+$/, ["vfio"]],
    [/^\/dev\/kfd$/, ["kfd"]],
  ];
  for (const { host, sys } of loaded) {
    const known = majors(sys);
    for (const [path, node] of nodesOf(host)) {
      const names = expected.find(([pattern]) => pattern.test(path))?.[1];
      if (names === undefined || node.kind !== "char") continue;
      assert.ok(
        names.some((name) => known.get(name) === node.major),
        `${host.name}: ${path} has ${node.major}`,
      );
      const number = /(?:nvidia|nvidia-cap|channel|card|renderD)(\d+)$/.exec(path)?.[1];
      if (number !== undefined) assert.equal(node.minor, Number(number), `${host.name}: ${path}`);
    }
  }
});

test("/sys/dev/char and /dev/char agree with the nodes that they stand for", () => {
  for (const { host, sys } of loaded) {
    for (const name of entries(sys, "/sys/dev/char")) {
      const folder = `/sys/dev/char/${name}`;
      assert.equal(read(sys, `${folder}/dev`), `${name}\n`, host.name);
      const node = sys.stat(`/dev/${/^DEVNAME=(.*)$/m.exec(read(sys, `${folder}/uevent`))?.[1]}`);
      assert.equal(`${node?.major}:${node?.minor}`, name, host.name);
    }
    for (const name of entries(sys, "/dev/char")) {
      const node = sys.stat(`/dev/char/${name}`);
      assert.equal(`${node?.major}:${node?.minor}`, name, host.name);
    }
  }
});

test("a PCI function, its driver, its IOMMU group and its configuration space tell the same", () => {
  for (const { host, sys } of loaded) {
    for (const bdf of entries(sys, "/sys/bus/pci/devices")) {
      const at = `/sys/bus/pci/devices/${bdf}`;
      const folder = target(sys, at);
      assert.equal(basename(folder), bdf, host.name);
      const uevent = read(sys, `${at}/uevent`);
      assert.match(uevent, new RegExp(`^PCI_SLOT_NAME=${bdf}$`, "m"), host.name);
      const ids = [read(sys, `${at}/vendor`), read(sys, `${at}/device`)].map((id) => id.trim().slice(2));
      assert.match(uevent, new RegExp(`^PCI_ID=${ids.join(":")}$`, "im"), host.name);
      const head = sys.readBytes(`${at}/config`, 0, 4);
      if (head !== "\xff\xff\xff\xff") {
        const [vendor, device] = ids.map((id) => Number.parseInt(id, 16));
        assert.deepEqual([le(head, 0, 2), le(head, 2, 2)], [vendor, device], `${host.name}: ${bdf}`);
      } else {
        const isVirtual = sys.stat(`${at}/physfn`) !== undefined;
        assert.ok(isVirtual || host.name === "lost-gpu", `${host.name}: ${bdf}`);
      }
      const driver = /^DRIVER=(.*)$/m.exec(uevent)?.[1];
      assert.equal(sys.stat(`${at}/driver`) === undefined ? undefined : basename(target(sys, `${at}/driver`)), driver);
      if (driver !== undefined) assert.equal(target(sys, `/sys/bus/pci/drivers/${driver}/${bdf}`), folder, host.name);
      if (sys.stat(`${at}/iommu_group`) !== undefined) {
        const group = basename(target(sys, `${at}/iommu_group`));
        assert.equal(target(sys, `/sys/kernel/iommu_groups/${group}/devices/${bdf}`), folder, host.name);
      }
    }
  }
});

test("each IOMMU group holds devices that name it, and a group's node exists where VFIO has it", () => {
  for (const { host, sys } of loaded) {
    for (const group of entries(sys, "/sys/kernel/iommu_groups")) {
      const devices = entries(sys, `/sys/kernel/iommu_groups/${group}/devices`);
      assert.ok(devices.length > 0, `${host.name}: ${group}`);
      for (const device of devices) {
        const folder = target(sys, `/sys/kernel/iommu_groups/${group}/devices/${device}`);
        assert.equal(basename(target(sys, `${folder}/iommu_group`)), group, host.name);
      }
    }
    for (const group of entries(sys, "/sys/class/vfio")) {
      assert.equal(sys.stat(`/dev/vfio/${group}`)?.kind, "char", host.name);
      assert.ok(sys.stat(`/sys/kernel/iommu_groups/${group}`), host.name);
    }
  }
});

test("virtual functions and their physical one point at each other, and are as many as it says", () => {
  for (const { host, sys } of loaded) {
    for (const bdf of entries(sys, "/sys/bus/pci/devices")) {
      const at = `/sys/bus/pci/devices/${bdf}`;
      const virtual = entries(sys, at).filter((name) => name.startsWith("virtfn"));
      const numvfs = optional(sys, `${at}/sriov_numvfs`);
      if (numvfs !== undefined) assert.equal(virtual.length, Number(numvfs), `${host.name}: ${bdf}`);
      for (const name of virtual) {
        const folder = target(sys, `${target(sys, at)}/${name}`);
        assert.equal(target(sys, `${folder}/physfn`), target(sys, at), host.name);
      }
    }
  }
});

test("a mediated device lies below a parent that lists its type, and in that type's folder", () => {
  let count = 0;
  for (const { host, sys } of loaded) {
    for (const uuid of entries(sys, "/sys/bus/mdev/devices")) {
      const folder = target(sys, `/sys/bus/mdev/devices/${uuid}`);
      const parent = folder.slice(0, folder.lastIndexOf("/"));
      assert.ok(entries(sys, "/sys/class/mdev_bus").includes(basename(parent)), host.name);
      const type = target(sys, `${folder}/mdev_type`);
      assert.equal(target(sys, `${type}/devices/${uuid}`), folder, host.name);
      assert.equal(read(sys, `${type}/device_api`), "vfio-pci\n", host.name);
      count++;
    }
  }
  assert.equal(count, 2);
});

test("what the NVIDIA driver says of a GPU fits its PCI function, its node and nvidia-smi", () => {
  let count = 0;
  for (const { host, sys } of loaded) {
    for (const bdf of entries(sys, "/proc/driver/nvidia/gpus")) {
      const information = read(sys, `/proc/driver/nvidia/gpus/${bdf}/information`);
      const field = (name: string): string => new RegExp(`^${name}:\\s+(.*)$`, "m").exec(information)?.[1] ?? "";
      assert.equal(field("Bus Location"), bdf, host.name);
      assert.equal(read(sys, `/sys/bus/pci/devices/${bdf}/vendor`), "0x10de\n", host.name);
      assert.equal(basename(target(sys, `/sys/bus/pci/devices/${bdf}/driver`)), "nvidia", host.name);
      count++;
      if (field("GPU UUID").includes("?")) continue; // never opened: no UUID yet, and no node
      assert.equal(sys.stat(`/dev/nvidia${field("Device Minor")}`)?.minor, Number(field("Device Minor")), host.name);
      const isLost = host.name === "lost-gpu" && bdf === "0000:ca:00.0";
      if (host.name !== "half-upgraded" && !isLost) {
        assert.ok(host.smi?.includes(`: ${field("Model")} (UUID: ${field("GPU UUID")})`), `${host.name}: ${bdf}`);
      }
    }
  }
  assert.equal(count, 8 + 4 * 2 + 2 + 4 + 3 + 1 + 5 + 1); // all but those of the hosts without a driver, and the one removed
});

test("the loaded NVIDIA module has one version everywhere, and each loaded module is in /proc/modules", () => {
  for (const { host, sys } of loaded) {
    const version = optional(sys, "/proc/driver/nvidia/version");
    assert.equal(version === undefined, optional(sys, "/sys/module/nvidia/version") === undefined, host.name);
    if (version !== undefined)
      assert.ok(version.includes(`  ${read(sys, "/sys/module/nvidia/version").trim()}  `), host.name);
    const modules = read(sys, "/proc/modules")
      .split("\n")
      .map((line) => line.split(" ")[0] ?? "");
    for (const name of entries(sys, "/sys/module")) {
      if (sys.stat(`/sys/module/${name}/initstate`) !== undefined)
        assert.ok(modules.includes(name), `${host.name}: ${name}`);
    }
  }
});

test("capability minors are those that the MIG guide publishes, and the list has every GPU's", () => {
  const lines = migMinors().trimEnd().split("\n");
  assert.equal(lines.length, 2 + 32 * 15 * 9);
  for (const line of [
    "config 1",
    "monitor 2",
    "gpu0/gi0/access 3",
    "gpu0/gi0/ci0/access 4",
    "gpu0/gi1/ci0/access 13",
  ]) {
    assert.ok(lines.includes(line), line);
  }
  assert.deepEqual([CAP.gi(0, 2), CAP.ci(0, 2, 0), CAP.gi(0, 7), CAP.ci(0, 7, 0)], [21, 22, 66, 67]);
  assert.equal(lines.at(-1), `gpu31/gi14/ci7/access ${2 + 32 * 135}`);
});

test("each MIG instance has the minor of the list, a node with it, and a line of nvidia-smi for each compute instance", () => {
  const cuts: Record<string, string[]> = {};
  for (const { host, sys } of loaded) {
    const root = "/proc/driver/nvidia/capabilities";
    const known = new Map(
      (optional(sys, "/proc/driver/nvidia-caps/mig-minors") ?? "")
        .split("\n")
        .map((line) => line.split(" ") as [string, string]),
    );
    const check = (capability: string, name: string): void => {
      const minor = /^DeviceFileMinor: (\d+)$/m.exec(read(sys, `${root}/${capability}`))?.[1] ?? "";
      assert.equal(minor, known.get(name), `${host.name}: ${capability}`);
      const node = sys.stat(`/dev/nvidia-caps/nvidia-cap${minor}`);
      if (host.name === "a100-mig-2-half") return; // has no nodes of instances
      const mode = /^DeviceFileMode: (\d+)$/m.exec(read(sys, `${root}/${capability}`))?.[1];
      assert.equal(node?.mode, Number(mode), `${host.name}: ${capability}`);
    };
    const cut: string[] = [];
    for (const gpu of entries(sys, root).filter((name) => /^gpu\d+$/.test(name))) {
      for (const gi of entries(sys, `${root}/${gpu}/mig`)) {
        check(`${gpu}/mig/${gi}/access`, `${gpu}/${gi}/access`);
        for (const ci of entries(sys, `${root}/${gpu}/mig/${gi}`).filter((name) => name !== "access")) {
          check(`${gpu}/mig/${gi}/${ci}/access`, `${gpu}/${gi}/${ci}/access`);
          cut.push(`${gpu}/${gi}/${ci}`);
        }
      }
    }
    assert.equal(host.smi?.match(/\(UUID: MIG-/g)?.length ?? 0, cut.length, host.name);
    if (cut.length > 0) cuts[host.name] = cut;
  }
  assert.deepEqual(
    Object.entries(cuts).map(([name, cut]) => [name, cut.length]),
    [
      ["a100-mig-2", 11],
      ["a100-mig-2-half", 2],
      ["a100-mig-2-compute", 5],
      ["a100-mig-2-uncut", 1],
    ],
  );
});

test("a library's file has the SONAME of the link that leads to it", () => {
  let count = 0;
  for (const { host, sys } of loaded) {
    for (const [path, node] of nodesOf(host)) {
      if (node.kind !== "link" || !/\/lib[^/]*\.so\.\d+$/.test(path) || host.dangling?.includes(path) === true)
        continue;
      assert.equal(sonameOf(bytesOf(sys, path)), basename(path), `${host.name}: ${path}`);
      count++;
    }
  }
  assert.ok(count > 300, `${count} links`);
});

test("the library cache names files that are there, each by its SONAME or a development link", () => {
  const missing: string[] = [];
  for (const { host, sys } of loaded) {
    for (const { name, path, flags } of cacheOf(sys)) {
      if (sys.stat(path) === undefined) {
        missing.push(`${host.name}: ${path}`);
        continue;
      }
      assert.equal(basename(path), name, host.name);
      const bytes = bytesOf(sys, path);
      const soname = sonameOf(bytes) ?? "";
      assert.ok(soname === name || soname.startsWith(`${name}.`), `${host.name}: ${path} is ${soname}`);
      assert.equal(flags, { 62: 0x303, 3: 3, 183: 0xa03 }[le(bytes, 18, 2)], `${host.name}: ${path}`);
    }
  }
  assert.deepEqual(missing, ["half-upgraded: /lib/x86_64-linux-gnu/libnvidia-rtcore.so.580.65.06"]);
});

test("each AMD partition that KFD lists has a render node, and a GPU at its bus address", () => {
  let count = 0;
  for (const { host, sys } of loaded) {
    const nodes = "/sys/class/kfd/kfd/topology/nodes";
    for (const number of entries(sys, nodes)) {
      const properties = read(sys, `${nodes}/${number}/properties`);
      const value = (name: string): number => Number(new RegExp(`^${name} (\\d+)$`, "m").exec(properties)?.[1]);
      if (read(sys, `${nodes}/${number}/gpu_id`) === "0\n") continue;
      assert.equal(sys.stat(`/dev/dri/renderD${value("drm_render_minor")}`)?.kind, "char", host.name);
      const bus = Math.floor((value("location_id") % 2 ** 28) / 256);
      const at = `/sys/bus/pci/devices/0000:${bus.toString(16).padStart(2, "0")}:00.0`;
      assert.equal(read(sys, `${at}/device`), "0x74a1\n", host.name);
      count++;
    }
  }
  assert.equal(count, 8 + 1 + 1 + 1 + 2 + 4);
});

test("an ELF file is what a loader expects, in each machine's size", () => {
  const cases = [
    [64, "x86_64", 62],
    [32, "i386", 3],
    [64, "aarch64", 183],
  ] as const;
  for (const [bits, machine, number] of cases) {
    const bytes = elfLibrary({ soname: "libcuda.so.1", bits, machine });
    assert.equal(sonameOf(bytes), "libcuda.so.1");
    assert.equal(le(bytes, 16, 2), 3); // ET_DYN
    assert.equal(le(bytes, 18, 2), number);
    assert.equal(sonameOf(elfLibrary({ bits, machine })), undefined);
  }
});

test("the library cache is in the order of glibc's search, the highest version first", () => {
  const entry = (name: string) => ({ name, path: `/lib/${name}`, machine: "x86_64" as const });
  const sys = memory({
    "/etc/ld.so.cache": {
      kind: "file",
      bytes: ldCache(["libb.so.2", "liba.so.1", "libb.so.10", "libb.so"].map(entry)),
    },
  });
  assert.deepEqual(
    cacheOf(sys).map(({ name }) => name),
    ["libb.so.10", "libb.so.2", "libb.so", "liba.so.1"],
  );
});

test("the hostile tree names nothing twice, and is the same each time", () => {
  const host = hostile("/somewhere");
  assert.deepEqual(hostile("/somewhere").tree, host.tree);
  const sys = memory(host.tree);
  assert.throws(() => sys.stat("/dev/nvidiactl"), { code: "ELOOP" });
  assert.throws(() => sys.stat("/sys/class/drm/loop"), { code: "ELOOP" });
  assert.match(sys.readLink("/dev/nvidia1"), /^(?:\.\.\/){40}somewhere\/nvidia1$/);
  assert.equal(sys.stat("/dev/nvidia2")?.kind, "fifo");
  for (const path of Object.keys(host.tree)) {
    for (let at = path.lastIndexOf("/"); at > 0; at = path.lastIndexOf("/", at - 1)) {
      const node = host.tree[path.slice(0, at)];
      assert.ok(node === undefined || (typeof node === "object" && node.kind === "dir"), path);
    }
  }
});
