import assert from "node:assert/strict";
import { test } from "node:test";
import { showGpus } from "../../src/cli/gpus.part.ts";
import { readElf } from "../../src/host/elf.ts";
import { type Host, readHost } from "../../src/host/host.ts";
import { elfLibrary, ldCache } from "../fixtures/hosts/elf.ts";
import { hostile, outsideFiles } from "../fixtures/hosts/hostile.ts";
import { HOSTS, type HostName } from "../fixtures/hosts/hosts.ts";
import { binary, char, fifo, memory } from "../support/memory-files.ts";

function read(name: HostName): Host {
  return readHost(memory(HOSTS[name]().tree));
}

/** What `sluice gpus` prints of a fixture. */
function shown(name: HostName): string {
  const sys = memory(HOSTS[name]().tree);
  showGpus(sys, sys, false);
  return sys.output;
}

const states = (host: Host): string[] => host.nvidia.gpus.map((gpu) => gpu.state);

test("everything of every fixture is seen", () => {
  for (const name of Object.keys(HOSTS) as HostName[]) assert.deepEqual(read(name).unseen, [], name);
});

test("GPUs are counted by address, and their nodes by the driver's own number", () => {
  const { nvidia } = read("h100x8");
  assert.equal(nvidia.driverVersion, "580.65.06");
  assert.deepEqual(
    nvidia.gpus.map(({ index, minor, node }) => [index, minor, node?.path]),
    [2, 3, 0, 1, 6, 7, 4, 5].map((minor, index) => [index, minor, `/dev/nvidia${minor}`]),
  );
  const [first] = nvidia.gpus;
  assert.equal(first?.model, "NVIDIA H100 80GB HBM3");
  assert.match(first?.uuid ?? "", /^GPU-[0-9a-f-]{36}$/);
  assert.equal(first?.pci?.numaNode, 0);
  assert.deepEqual(
    first?.drm.map((node) => node.path),
    ["/dev/dri/card1", "/dev/dri/renderD128"],
  );
  assert.equal(first?.mig, undefined);
});

test("what belongs to a whole machine is found: control nodes, switches, channels, storage, sockets", () => {
  const { nvidia } = read("h100x8");
  const paths = (nodes: readonly { path: string }[]): string[] => nodes.map((node) => node.path);
  assert.deepEqual(paths(nvidia.control), [
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
  ]);
  assert.equal(paths(nvidia.nvswitches).length, 5);
  assert.deepEqual(paths(nvidia.imexChannels), ["/dev/nvidia-caps-imex-channels/channel0"]);
  assert.deepEqual(paths(nvidia.gds).slice(0, 2), ["/dev/nvidia-fs0", "/dev/nvidia-fs1"]);
  assert.deepEqual(nvidia.sockets, ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"]);
  assert.equal(nvidia.imexMajor, nvidia.imexChannels[0]?.major);
  assert.ok(nvidia.capsMajor !== undefined && nvidia.capsMajor !== nvidia.imexMajor);
});

test("a MIG device is its two capability nodes, by the driver's numbers, in the order of the instances", () => {
  const [seven, mixed] = read("a100-mig-2").nvidia.gpus;
  assert.equal(seven?.mig?.length, 7);
  assert.deepEqual(
    mixed?.mig?.map((device) => [device.index, device.gpuInstance, device.computeInstance]),
    [
      [0, 2, 0],
      [1, 3, 0],
      [2, 9, 0],
      [3, 10, 0],
    ],
  );
  // The formula of reference sharing-kubernetes.md 3.1, of which the fixture's tables are made.
  const first = mixed?.mig?.[0];
  assert.deepEqual([first?.gpuInstanceMinor, first?.computeInstanceMinor], [3 + 135 + 9 * 2, 3 + 135 + 9 * 2 + 1]);

  const [split] = read("a100-mig-2-compute").nvidia.gpus;
  assert.deepEqual(
    split?.mig?.slice(0, 3).map((device) => [device.gpuInstance, device.computeInstance, device.gpuInstanceMinor]),
    [
      [1, 0, 12],
      [1, 1, 12],
      [1, 2, 12],
    ],
  );
  assert.deepEqual(
    read("a100-mig-2-uncut").nvidia.gpus.map((gpu) => gpu.mig?.length),
    [undefined, 1],
  );
});

test("a capability that says no minor has that of the driver's table, and none is invented", () => {
  const tree = HOSTS["a100-mig-2-compute"]().tree;
  const access = "/proc/driver/nvidia/capabilities/gpu0/mig/gi9/access";
  const minor = read("a100-mig-2-compute").nvidia.gpus[0]?.mig?.[3]?.gpuInstanceMinor;
  const silent = readHost(memory({ ...tree, [access]: "" }));
  assert.equal(silent.nvidia.gpus[0]?.mig?.[3]?.gpuInstanceMinor, minor);
  const unknown = readHost(memory({ ...tree, [access]: "", "/proc/driver/nvidia-caps/mig-minors": "config 1\n" }));
  assert.equal(unknown.nvidia.gpus[0]?.mig?.length, 3);
  assert.deepEqual(unknown.unseen, [
    { path: access, reason: "it does not tell its device's minor, nor does mig-minors" },
  ]);
});

test("a lost GPU takes nothing but itself away", () => {
  assert.deepEqual(states(read("lost-gpu")), ["usable", "usable", "lost", "usable"]);
  // Taken from the bus too: nobody knows it any more, and those behind it count one less.
  assert.deepEqual(states(read("lost-gpu-removed")), ["usable", "usable", "usable"]);
  const tree = HOSTS["lost-gpu-removed"]().tree;
  const known = "/proc/driver/nvidia/gpus/0000:ca:00.0/information";
  const forgotten = readHost(memory({ ...tree, [known]: "Model: \t NVIDIA L4\nDevice Minor: \t 2\n" }));
  assert.deepEqual(states(forgotten), ["usable", "usable", "lost", "usable"]);
});

test("a GPU that nobody has opened since the boot has no node and no UUID yet, and is not lost", () => {
  assert.deepEqual(states(read("fresh-boot")), ["no-node", "no-node"]);
  const { nvidia } = readHost(memory({ ...HOSTS["fresh-boot"]().tree, "/dev/nvidia0": char(195, 0) }));
  assert.deepEqual([nvidia.gpus[0]?.state, nvidia.gpus[0]?.uuid], ["usable", undefined]);
});

test("of two GPUs with one minor, only the first can be given", () => {
  const tree = HOSTS["lost-gpu-removed"]().tree;
  const second = "/proc/driver/nvidia/gpus/0000:65:00.0/information";
  const { nvidia, unseen } = readHost(memory({ ...tree, [second]: "Model: \t NVIDIA L4\nDevice Minor: \t 0\n" }));
  assert.deepEqual(
    nvidia.gpus.map((gpu) => gpu.state),
    ["usable", "no-node", "usable"],
  );
  assert.deepEqual(unseen, [{ path: second, reason: "another GPU has minor 0" }]);
});

test("a GPU without its node, or with another device's, is told, not given", () => {
  const tree = HOSTS["h100x8"]().tree;
  const { nvidia, unseen } = readHost(memory({ ...tree, "/dev/nvidia2": char(1, 5), "/dev/nvidia3": fifo() }));
  assert.deepEqual(
    nvidia.gpus.slice(0, 3).map((gpu) => [gpu.state, gpu.node?.path]),
    [
      ["no-node", undefined],
      ["no-node", undefined],
      ["usable", "/dev/nvidia0"],
    ],
  );
  assert.deepEqual(unseen, [{ path: "/dev/nvidia2", reason: "it is device 1:5, not 195:2" }]);
});

test("a GPU that the driver does not have is told apart by who has it", () => {
  assert.deepEqual(states(read("no-driver")), ["no-driver", "vfio"]);
});

test("the driver's libraries are found in the folders of each distribution, by the names that programs load", () => {
  const folders: Partial<Record<HostName, string>> = {
    h100x8: "/usr/lib/x86_64-linux-gnu",
    debian: "/usr/lib/x86_64-linux-gnu/nvidia/current",
    rhel: "/usr/lib64",
    suse: "/usr/lib64",
    nixos: "/run/opengl-driver/lib",
  };
  for (const [name, folder] of Object.entries(folders)) {
    const { driver, driverVersion } = read(name as HostName).nvidia;
    assert.equal(driver?.version, driverVersion);
    const cuda = driver?.libraries.find((library) => library.soname === "libcuda.so.1" && library.bits === 64);
    assert.deepEqual(
      cuda,
      {
        path: `${folder}/libcuda.so.${driverVersion}`,
        soname: "libcuda.so.1",
        bits: 64,
        machine: 62,
        capability: "compute",
      },
      name,
    );
    const names = driver?.libraries.map((library) => `${library.soname} ${library.bits}`) ?? [];
    assert.equal(new Set(names).size, names.length, `${name}: a library is there twice`);
    assert.ok(driver?.files.some((file) => file.path.endsWith("/nvidia-smi")));
  }
});

test("libraries in a folder that only the loader's cache names are found too", () => {
  const version = "580.65.06";
  const library = binary(elfLibrary({ soname: "libcuda.so.1", bits: 64, machine: "x86_64" }));
  const path = "/opt/nvidia/lib/libcuda.so.1";
  const tree = { "/sys/module/nvidia/version": `${version}\n`, [`/opt/nvidia/lib/libcuda.so.${version}`]: library };
  assert.deepEqual(readHost(memory(tree)).nvidia.driver?.libraries, []);
  const cache = binary(ldCache([{ name: "libcuda.so.1", path, machine: "x86_64" }]));
  const { driver } = readHost(memory({ ...tree, "/etc/ld.so.cache": cache })).nvidia;
  assert.deepEqual(
    driver?.libraries.map((one) => one.path),
    [`/opt/nvidia/lib/libcuda.so.${version}`],
  );
});

test("a library belongs to the capability that it serves", () => {
  const libraries = read("h100x8").nvidia.driver?.libraries ?? [];
  const of = (soname: string, bits = 64): string | undefined =>
    libraries.find((library) => library.soname === soname && library.bits === bits)?.capability;
  assert.equal(of("libnvidia-ml.so.1"), "utility");
  assert.equal(of("libnvcuvid.so.1"), "video");
  assert.equal(of("libvdpau_nvidia.so.1"), "video");
  assert.equal(of("libnvidia-ngx.so.1"), "ngx");
  assert.equal(of("libGLX_nvidia.so.0"), "graphics");
  assert.equal(of("libnvidia-egl-gbm.so.1"), "graphics");
  assert.equal(of("libcuda.so.1", 32), "compat32");
});

test("a driver that was upgraded under a running module shows both versions", () => {
  const { driver, driverVersion } = read("half-upgraded").nvidia;
  assert.equal(driverVersion, "580.65.06");
  assert.equal(driver?.version, "580.65.06");
  assert.deepEqual(driver?.otherVersions, ["580.82.07"]);
  assert.equal(
    driver?.libraries.find((library) => library.soname === "libcuda.so.1" && library.bits === 64),
    undefined,
  );
});

test("the version is read from the closed and the open module, with sysfs and without", () => {
  const version = (line: string): string | undefined =>
    readHost(memory({ "/proc/driver/nvidia/version": `NVRM version: ${line}\nGCC version: gcc 12\n` })).nvidia
      .driverVersion;
  const at = "Release Build  (root@build)  Mon Jan  1 00:00:00 UTC 2026";
  assert.equal(version(`NVIDIA UNIX x86_64 Kernel Module  550.163.01  ${at}`), "550.163.01");
  assert.equal(version(`NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  ${at}`), "580.65.06");
  assert.equal(version(`NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  ${at}`), "580.65.06");
  assert.equal(version("something else"), undefined);
  assert.equal(readHost(memory({ "/sys/module/nvidia/version": "580.65.06\n" })).nvidia.driverVersion, "580.65.06");
});

test("AMD's GPUs are devices, and so are the partitions of one", () => {
  const { amd } = read("mi300-dpx");
  assert.equal(amd.kfd?.path, "/dev/kfd");
  assert.deepEqual(
    amd.gpus.flatMap((gpu) =>
      gpu.devices.map((device) => [gpu.computePartition, device.index, device.partition, device.drm[1]?.path]),
    ),
    [
      ["DPX", 0, 0, "/dev/dri/renderD128"],
      ["DPX", 1, 1, "/dev/dri/renderD129"],
      ["QPX", 2, 0, "/dev/dri/renderD136"],
      ["QPX", 3, 1, "/dev/dri/renderD137"],
      ["QPX", 4, 2, "/dev/dri/renderD138"],
      ["QPX", 5, 3, "/dev/dri/renderD139"],
    ],
  );
  assert.deepEqual(
    read("mi300-spx").amd.gpus.map((gpu) => [gpu.computePartition, gpu.devices.map((device) => device.partition)]),
    [
      ["SPX", [undefined]],
      ["SPX", [undefined]],
    ],
  );
});

test("Intel's GPUs are those of its drivers", () => {
  assert.deepEqual(
    read("arc").intel.map(({ index, pci, drm }) => [index, pci.driver, drm.map((node) => node.path)]),
    [
      [0, "i915", ["/dev/dri/card1", "/dev/dri/renderD129"]],
      [1, "xe", ["/dev/dri/card0", "/dev/dri/renderD128"]],
    ],
  );
});

test("mediated devices: the types of each parent, and what has been made of them", () => {
  const { vfio } = read("a100-mdev");
  const parent = vfio.mdevParents.find(({ name }) => name === "0000:41:00.5");
  assert.equal(parent?.physicalFunction, "0000:41:00.0");
  assert.deepEqual(parent?.types, [
    { id: "nvidia-692", name: "GRID A100D-4C", available: 0 },
    { id: "nvidia-694", name: "GRID A100D-10C", available: 1 },
    { id: "nvidia-699", name: "GRID A100D-1-10C", available: 0 },
  ]);
  assert.deepEqual(vfio.mdevs, [
    { uuid: "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", parent: "0000:41:00.4", type: "nvidia-694", iommuGroup: "192" },
  ]);
  assert.ok(vfio.groups.some((node) => node.path === "/dev/vfio/192"));
  assert.match(shown("a100-mdev"), /^ +mdev type +GRID A100D-10C +nvidia-694 .* 7 available$/m);
});

test("vGPUs of the vendor's own framework: what each function is, and could be", () => {
  const { vfio, nvidia } = read("l40s-vgpu");
  assert.deepEqual(states(read("l40s-vgpu")), ["usable"]);
  assert.equal(nvidia.gpus.length, 1, "virtual functions are no GPUs");
  assert.equal(vfio.vgpuFunctions.length, 32);
  const [used, free] = vfio.vgpuFunctions;
  assert.deepEqual([used?.address, used?.physicalFunction, used?.currentType], ["0000:c1:00.4", "0000:c1:00.0", 1161]);
  assert.deepEqual(used?.creatable, []);
  assert.deepEqual(free?.creatable, [{ id: 1161, name: "NVIDIA L40S-8Q" }]);
});

test("machines with drivers of other kinds are named as such", () => {
  assert.equal(read("wsl").platform, "wsl");
  assert.equal(read("tegra").platform, "tegra");
  assert.match(shown("wsl"), /Windows Subsystem for Linux.*does not serve it yet/);
  assert.equal(shown("empty"), "No GPUs.\n");
});

test("gpus: a table for people, with what could not be seen beside it", () => {
  const sys = memory({ ...HOSTS["lost-gpu"]().tree });
  sys.euid = 1000;
  sys.fail("readText", "/proc/driver/nvidia/gpus/0000:17:00.0/information", "EACCES");
  showGpus(sys, sys, false);
  assert.match(sys.output, /^NVIDIA, driver 580\.65\.06, \d+ libraries of 580\.65\.06$/m);
  assert.match(sys.output, /^2 +NVIDIA L4 .* lost: it does not answer any more$/m);
  assert.match(sys.errors, /^sluice: not seen: \/proc\/driver\/nvidia\/gpus\/0000:17:00\.0\/information \(EACCES\)$/m);
  assert.match(sys.errors, /^sluice: run it as root to see all$/m);
});

test("an ELF file tells its word size, machine and SONAME, and anything else nothing", () => {
  const files = memory({
    "/lib64.so": binary(elfLibrary({ soname: "libcuda.so.1", bits: 64, machine: "x86_64" })),
    "/lib32.so": binary(elfLibrary({ soname: "libcuda.so.1", bits: 32, machine: "i386" })),
    "/arm.so": binary(elfLibrary({ soname: "libcuda.so.1", bits: 64, machine: "aarch64" })),
    "/text": "#!/bin/sh\n",
    "/empty": "",
    "/fifo": fifo(),
  });
  assert.deepEqual(readElf(files, "/lib64.so"), { bits: 64, machine: 62, soname: "libcuda.so.1" });
  assert.deepEqual(readElf(files, "/lib32.so"), { bits: 32, machine: 3, soname: "libcuda.so.1" });
  assert.deepEqual(readElf(files, "/arm.so"), { bits: 64, machine: 183, soname: "libcuda.so.1" });
  for (const path of ["/text", "/empty", "/fifo", "/absent"]) assert.equal(readElf(files, path), undefined, path);
});

test("every cut and every changed byte of an ELF file gives something or nothing, never an error", () => {
  const whole = elfLibrary({ soname: "libcuda.so.1", bits: 64, machine: "x86_64" });
  for (let i = 0; i < whole.length; i++) {
    const cut = memory({ "/a": binary(whole.slice(0, i)) });
    const soname = readElf(cut, "/a")?.soname;
    assert.ok(soname === undefined || soname === "libcuda.so.1", `cut at ${i}: ${soname}`);
    for (const byte of ["\0", "\xff"]) {
      const changed = memory({ "/a": binary(whole.slice(0, i) + byte + whole.slice(i + 1)) });
      const other = readElf(changed, "/a")?.soname;
      assert.ok(other === undefined || /^[\w.+-]+$/.test(other), `byte ${i}: ${other}`);
    }
  }
});

test("a hostile tree is read to the end, and nothing outside it", () => {
  const secret = "a-secret-from-outside";
  const inside = Object.entries(hostile("/outside").tree).map(([path, node]) => [
    `/tree${path === "/" ? "" : path}`,
    node,
  ]);
  const sys = memory({ ...Object.fromEntries(inside), ...outsideFiles(secret) });
  const files = sys.under("/tree");
  const host = readHost(files);
  assert.ok(host.unseen.length > 0);
  assert.ok(!JSON.stringify(host).includes(secret));
  showGpus(sys, files, false);
  assert.ok(!`${sys.output}${sys.errors}`.includes(secret));
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the ones that must not be there
  assert.ok(!/[\0-\x09\x0b-\x1f\x7f]/.test(`${sys.output}${sys.errors}`));
});
