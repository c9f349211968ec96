/** The CDI specs of NVIDIA's devices (reference nvidia-amd-cdi.md 1.8, for what NVIDIA's own generator writes). */

import type { DeviceNode, Hook, Mount } from "../cdi/spec.ts";
import type { Files } from "../sys/sys.ts";
import { ALL, Draft, type Fault, type MadeSpec, type Seen } from "./draft.ts";
import { type Capability, type Driver, type DriverLibrary, libraryFolders } from "./driver.ts";
import { PROC } from "./driver-version.ts";
import type { MigDevice } from "./mig.ts";
import type { Node } from "./node.ts";
import { type Nvidia, type NvidiaGpu, SOCKETS } from "./nvidia.ts";
import type { Feature, SpecOptions } from "./origin.ts";
import { pciFolder } from "./pci.ts";

const KIND = "nvidia.com/gpu";

/** Graphics and display are one thing to the kernel: both need its mode setting. */
const SCREEN: readonly Capability[] = ["graphics", "display"];

/** Libraries that serve more than what they are sorted under: the graphics stack loads them too. */
const SHARED: Readonly<Record<string, readonly Capability[]>> = {
  "libnvidia-allocator": ["graphics", "display", "video"],
  "libnvidia-gpucomp": ["graphics", "display", "video"],
  "libnvidia-ptxjitcompiler": ["graphics"],
  "libnvidia-glcore": ["display"],
  "libnvidia-glsi": ["display"],
  "libnvidia-tls": ["display"],
  libGLX_nvidia: ["display"],
};

/** Libraries that programs are linked to, or open, by a name without any version. */
const DEVELOPMENT = new Set([
  "libcuda",
  "libnvidia-ml",
  "libnvcuvid",
  "libnvidia-encode",
  "libnvidia-opticalflow",
  "libnvidia-fbc",
]);

const READ_ONLY = ["ro", "nosuid", "nodev", "bind"];
/** A socket is written to, and no program. */
const SOCKET = ["nosuid", "nodev", "noexec", "bind"];

export function nvidiaSpecs(
  files: Files,
  nvidia: Nvidia,
  options: SpecOptions,
  seen: Seen,
  notices: string[],
  faults: Fault[],
): (MadeSpec | undefined)[] {
  if (nvidia.gpus.every((gpu) => gpu.index === undefined)) return [];
  const draft = new Draft(files, KIND, seen, notices);
  const mismatch = mismatchOf(nvidia);
  if (mismatch !== undefined) {
    awaitLibraries(draft);
    faults.push({ kind: KIND, ...mismatch });
    return [];
  }
  return [gpuSpec(draft, nvidia, options), ...featureSpecs(files, nvidia, options, seen, notices)];
}

/** The driver that is loaded works with libraries of its own version only: with others, no container would work. */
function mismatchOf({ driverVersion, driver }: Nvidia): Pick<Fault, "what" | "remedy"> | undefined {
  if (driverVersion === undefined || driver === undefined || driver.otherVersions.length === 0) return undefined;
  if (driver.libraries.some(({ soname, bits }) => soname === "libcuda.so.1" && bits === 64)) return undefined;
  return {
    what: `driver ${driverVersion} is loaded, and libcuda.so.${driverVersion} is gone: there is that of ${driver.otherVersions.join(", ")}`,
    remedy: "restart the machine, or unload the driver's modules and load those of the new version",
  };
}

/** Notes the folders where libraries that are missing now may appear, as in the middle of the driver's upgrade. */
function awaitLibraries(draft: Draft): void {
  for (const folder of libraryFolders(draft.look)) draft.fact("stamp", folder);
}

function gpuSpec(draft: Draft, nvidia: Nvidia, options: SpecOptions): MadeSpec | undefined {
  const all: DeviceNode[] = [];
  for (const gpu of nvidia.gpus) {
    if (gpu.index === undefined) continue;
    draft.fact("names", migFolder(gpu));
    // Also of an instance that holds no compute instance yet: `nvidia-smi mig` makes the two one after the other.
    const instances = draft.look.names(migFolder(gpu)).filter((name) => /^gi\d+$/.test(name));
    for (const name of instances) draft.fact("names", `${migFolder(gpu)}/${name}`);
    const nodes = gpuNodes(draft, gpu, nvidia);
    if (nodes === undefined) continue;
    if (gpu.mig === undefined) {
      const own = [nodes.gpu, ...nodes.drm];
      draft.device([String(gpu.index), gpu.uuid], { deviceNodes: own });
      all.push(...own);
      continue;
    }
    for (const mig of gpu.mig) {
      const access = capabilityNodes(draft, mig, nvidia.capsMajor);
      if (access === undefined) {
        draft.notices.push(`MIG device ${gpu.index}:${mig.index} has no capability nodes, and is left out`);
        continue;
      }
      const own = [nodes.gpu, ...access];
      draft.device([`${gpu.index}:${mig.index}`, mig.uuid], { deviceNodes: own });
      all.push(...own.filter((node) => !all.some((other) => other.path === node.path)));
    }
  }
  if (all.length === 0) return undefined;
  draft.device([ALL], { deviceNodes: all });

  draft.common.env = ["NVIDIA_VISIBLE_DEVICES=void"]; // so that NVIDIA's own hook and runtime add nothing
  draft.common.deviceNodes = controlNodes(draft, nvidia);
  for (const path of SOCKETS) draft.fact("kind", path);
  const { driver } = nvidia;
  if (driver === undefined || driver.libraries.length === 0) {
    awaitLibraries(draft);
    draft.notices.push("no libraries of NVIDIA's driver were found: containers get device nodes only");
    return draft.finish(options);
  }
  const libraries = driver.libraries.map((library) => new Delivered(library));
  draft.common.mounts = [
    ...libraries.map((library) => libraryMount(draft, library)),
    ...(options.hook === "" ? linkMounts(draft, libraries) : []),
    ...driver.files.flatMap((file) => fileMount(draft, file.path, [file.capability])),
    ...nvidia.sockets.map((path) => socketMount(draft, path)),
  ];
  if (options.hook !== "") {
    const params = nvidia.params === undefined ? "" : options.params;
    if (params !== "") draft.expect("kind", params, "file");
    draft.common.hooks = [hook(options.hook, params, driver, libraries)];
  }
  return draft.finish(options, driver.version);
}

function migFolder(gpu: NvidiaGpu): string {
  return `/proc/driver/nvidia/capabilities/gpu${gpu.minor}/mig`;
}

/** A GPU's own nodes, of one that can be given. */
function gpuNodes(draft: Draft, gpu: NvidiaGpu, nvidia: Nvidia): { gpu: DeviceNode; drm: DeviceNode[] } | undefined {
  const name = `NVIDIA GPU ${gpu.index} (${gpu.uuid ?? gpu.address})`;
  if (gpu.state === "excluded") {
    draft.notices.push(`${name} is excluded from the driver by its settings, and is left out`);
    return undefined;
  }
  // Of one that is lost too: it may answer again.
  if (gpu.pci === undefined) draft.fact("head", `${pciFolder(gpu.address)}/config`);
  const answers = gpu.pci !== undefined && draft.answers(gpu.pci);
  if (gpu.state === "lost" || !answers) {
    draft.notices.push(`${name} is lost: it does not answer any more, and is left out`);
    return undefined;
  }
  // Until somebody uses it, the driver does not know its UUID.
  if (gpu.uuid === undefined) draft.fact("text", `${PROC}/gpus/${gpu.address}/information`);
  const node = gpu.minor === undefined ? undefined : draft.numbered(`/dev/nvidia${gpu.minor}`, nvidia.major, gpu.minor);
  if (node === undefined) {
    draft.notices.push(`${name} has no device node, and the driver does not tell its number: it is left out`);
    return undefined;
  }
  const drm = gpu.drm.map((one) => draft.node(one));
  for (const { path } of drm) draft.tag(path, ...SCREEN);
  return { gpu: node, drm };
}

function capabilityNodes(draft: Draft, mig: MigDevice, major: number | undefined): DeviceNode[] | undefined {
  const minors = [mig.gpuInstanceMinor, mig.computeInstanceMinor];
  const nodes = minors.map((minor) => capabilityNode(draft, major, minor));
  return nodes.every((node) => node !== undefined) ? nodes : undefined;
}

function capabilityNode(draft: Draft, major: number | undefined, minor: number): DeviceNode | undefined {
  return draft.numbered(`/dev/nvidia-caps/nvidia-cap${minor}`, major, minor, 0o444);
}

/** The nodes that every GPU needs, with the numbers of those that nothing has made yet. */
function controlNodes(draft: Draft, { major, uvmMajor, hasModeset }: Nvidia): DeviceNode[] {
  const modeset = hasModeset ? draft.numbered("/dev/nvidia-modeset", major, 254) : undefined;
  if (modeset !== undefined) draft.tag(modeset.path, ...SCREEN);
  const uvm = [
    uvmMajor === undefined ? undefined : draft.numbered("/dev/nvidia-uvm", uvmMajor, 0),
    uvmMajor === undefined ? undefined : draft.numbered("/dev/nvidia-uvm-tools", uvmMajor, 1),
  ];
  if (uvmMajor === undefined) {
    // When the module is loaded the node appears, and with it the need for another spec.
    draft.fact("kind", "/dev/nvidia-uvm");
    draft.notices.push("the module nvidia-uvm is not loaded: CUDA will not work in containers");
  }
  for (const node of uvm) if (node !== undefined) draft.tag(node.path, "compute", "video");
  const control = draft.numbered("/dev/nvidiactl", major, 255);
  return [control, ...uvm, modeset].filter((node) => node !== undefined);
}

/** A library as it lies in the container. */
class Delivered {
  readonly library: DriverLibrary;
  /** Its folder there. */
  readonly folder: string;
  readonly file: string;
  /** The part of its name before `.so`. */
  readonly stem: string;

  constructor(library: DriverLibrary) {
    this.library = library;
    const end = library.path.lastIndexOf("/");
    this.folder = folderInContainer(library, library.path.slice(0, end));
    this.file = library.path.slice(end + 1);
    this.stem = this.file.slice(0, this.file.indexOf(".so"));
  }

  get path(): string {
    return `${this.folder}/${this.file}`;
  }

  /** Links that it is found by beside it, and what each holds. */
  links(): [name: string, target: string][] {
    const { soname } = this.library;
    const links: [string, string][] = soname === this.file ? [] : [[soname, this.file]];
    if (DEVELOPMENT.has(this.stem)) links.push([`${this.stem}.so`, soname]);
    return links;
  }

  get capabilities(): readonly Capability[] {
    const { capability } = this.library;
    return capability === "compat32" ? [capability] : [capability, ...(SHARED[this.stem] ?? [])];
  }
}

/** Folders that are the same in a container: what looks for a library in one of them on the machine finds it there. */
const USUAL = /^\/usr\/lib(?:64|32|\/(?:x86_64|aarch64|i386)-linux-gnu)?(?:\/(?:vdpau|gbm))?$/;
const TRIPLETS: Readonly<Record<number, string>> = { 3: "i386", 62: "x86_64", 183: "aarch64" };

/** Folders of one distribution alone (Debian's alternatives, NixOS's) become those where Debian and Ubuntu look. */
function folderInContainer({ machine }: DriverLibrary, folder: string): string {
  const plain = folder.startsWith("/lib") ? `/usr${folder}` : folder;
  if (USUAL.test(plain)) return plain;
  const below = /\/(?:vdpau|gbm)$/.exec(folder)?.[0] ?? "";
  return `/usr/lib/${TRIPLETS[machine] ?? "x86_64"}-linux-gnu${below}`;
}

function libraryMount(draft: Draft, library: Delivered): Mount {
  const hostPath = library.library.path;
  draft.fact("stamp", hostPath.slice(0, hostPath.lastIndexOf("/")));
  draft.tag(library.path, ...library.capabilities);
  return { hostPath, containerPath: library.path, type: "bind", options: READ_ONLY };
}

/** The names that programs load, as mounts of their own: for whoever cannot have a hook. */
function linkMounts(draft: Draft, libraries: readonly Delivered[]): Mount[] {
  return libraries.flatMap((library) =>
    library.links().map(([name]) => {
      const containerPath = `${library.folder}/${name}`;
      draft.tag(containerPath, ...library.capabilities);
      return { hostPath: library.library.path, containerPath, type: "bind", options: READ_ONLY };
    }),
  );
}

/** A file where it lies on the machine; NixOS's lie where they are no use in a container. */
function fileMount(draft: Draft, hostPath: string, capabilities: readonly Capability[]): Mount[] {
  if (draft.fact("stamp", hostPath) === "") return [];
  const containerPath = hostPath
    .replace(/^\/run\/current-system\/sw\/bin\//, "/usr/bin/")
    .replace(/^\/run\/current-system\/firmware\//, "/lib/firmware/")
    .replace(/^\/run\/opengl-driver\/(?=share\/)/, "/usr/")
    .replace(/^\/run\/opengl-driver\/(?=etc\/)/, "/");
  draft.tag(containerPath, ...capabilities);
  return [{ hostPath, containerPath, type: "bind", options: READ_ONLY }];
}

function socketMount(draft: Draft, path: string): Mount {
  draft.tag(path, "utility", "compute");
  return { hostPath: path, containerPath: path, type: "bind", options: SOCKET };
}

interface Link {
  readonly folder: string;
  readonly name: string;
  readonly target: string;
}

/**
 * The one process that we start in a container's creation: it links the libraries to the names that programs load, and
 * writes them into the loader's cache, which a mount could only replace. It has an environment of its own: without one,
 * runtimes give a hook that of the container (CVE-2025-23266).
 */
function hook(path: string, params: string, driver: Driver, libraries: readonly Delivered[]): Hook {
  const args = ["sluice", "cdi-hook", "--driver", driver.version];
  /** One argument for each folder, as short as can be: the runtime, too, reads and writes it several times. */
  const add = (option: string, links: readonly Link[]): void => {
    const groups = new Map<string, string[]>();
    for (const { folder, name, target } of links) {
      groups.set(folder, [...(groups.get(folder) ?? []), `${name}=${target}`]);
    }
    for (const [folder, group] of groups) args.push(option, `${folder}/${group.join(":")}`);
  };
  add(
    "--library",
    libraries.map(({ folder, file, library }) => ({ folder, name: file, target: library.soname })),
  );
  const development = libraries.flatMap((library) =>
    library
      .links()
      .filter(([name]) => name !== library.library.soname)
      .map(([name, target]) => ({ folder: library.folder, name, target })),
  );
  const of = (stem: string) => libraries.filter((library) => library.stem === stem);
  const glx = of("libGLX_nvidia").map(({ folder, library }) => {
    return { folder, name: "libGLX_indirect.so.0", target: library.soname };
  });
  const allocators = of("libnvidia-allocator").map(({ folder, library }) => {
    return { folder: `${folder}/gbm`, name: "nvidia-drm_gbm.so", target: `../${library.soname}` };
  });
  add("--link", [...development, ...glx, ...allocators]);
  if (params !== "") args.push("--params", params);
  return { hookName: "createContainer", path, args, env: ["LC_ALL=C"], timeout: 10 };
}

const allOf = (draft: Draft, nodes: readonly Node[]): DeviceNode[] => nodes.map((node) => draft.node(node));

type FeatureDevices = (nvidia: Nvidia, draft: Draft) => (readonly [device: string, nodes: DeviceNode[]])[];

/** Of each feature the class of its devices, and the devices. Each of a kind of its own, as policy allows each. */
const FEATURES: Readonly<Record<Feature, readonly [className: string, devices: FeatureDevices]>> = {
  gds: ["gds", ({ gds }, draft) => [[ALL, allOf(draft, gds)]]],
  mofed: ["mofed", ({ mofed }, draft) => [[ALL, allOf(draft, mofed)]]],
  gdrcopy: ["gdrcopy", ({ gdrcopy }, draft) => [[ALL, allOf(draft, gdrcopy)]]],
  nvswitch: ["nvswitch", ({ nvswitches }, draft) => [[ALL, allOf(draft, nvswitches)]]],
  imex: [
    "imex-channel",
    ({ imexChannels }, draft) => {
      draft.fact("names", "/dev/nvidia-caps-imex-channels");
      return imexChannels.map((node) => [node.path.replace(/^.*channel/, ""), [draft.node(node)]] as const);
    },
  ],
  "mig-config": ["mig", (nvidia, draft) => migAdministration(nvidia, draft, "config", nvidia.migConfigMinor)],
  "mig-monitor": ["mig", (nvidia, draft) => migAdministration(nvidia, draft, "monitor", nvidia.migMonitorMinor)],
};

function migAdministration(
  { gpus, capsMajor }: Nvidia,
  draft: Draft,
  device: string,
  minor: number | undefined,
): [string, DeviceNode[]][] {
  if (minor === undefined || !gpus.some((gpu) => draft.look.stat(migFolder(gpu))?.kind === "dir")) return [];
  const node = capabilityNode(draft, capsMajor, minor);
  return node === undefined ? [] : [[device, [node]]];
}

function featureSpecs(
  files: Files,
  nvidia: Nvidia,
  options: SpecOptions,
  seen: Seen,
  notices: string[],
): (MadeSpec | undefined)[] {
  const drafts = new Map<string, Draft>();
  for (const feature of options.features) {
    const [name, devices] = FEATURES[feature];
    const draft = drafts.get(name) ?? new Draft(files, `nvidia.com/${name}`, seen, notices);
    drafts.set(name, draft);
    for (const [device, deviceNodes] of devices(nvidia, draft)) {
      if (deviceNodes.length > 0) draft.device([device], { deviceNodes, ...extras(feature, draft) });
    }
  }
  return [...drafts.values()].map((draft) => draft.finish(options));
}

/** What GPUDirect Storage reads beside its nodes. */
function extras(feature: Feature, draft: Draft): { mounts?: Mount[] } {
  if (feature !== "gds") return {};
  const mounts = fileMount(draft, "/etc/cufile.json", []);
  if (draft.fact("kind", "/run/udev") === "dir") {
    mounts.push({ hostPath: "/run/udev", containerPath: "/run/udev", type: "bind", options: READ_ONLY });
  }
  return mounts.length === 0 ? {} : { mounts };
}
