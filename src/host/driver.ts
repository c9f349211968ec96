import { readElf } from "./elf.ts";
import { parseLdCache } from "./ld-cache.ts";
import type { Look } from "./look.ts";

/** What a container may ask of a driver (`NVIDIA_DRIVER_CAPABILITIES`, reference nvidia-amd-cdi.md 1.4). */
export type Capability = "compute" | "compat32" | "display" | "graphics" | "ngx" | "utility" | "video";

export interface DriverLibrary {
  /** Where it was found; on Debian and NixOS a link to where it lies. */
  readonly path: string;
  /** The name that programs load it by. */
  readonly soname: string;
  readonly bits: 32 | 64;
  /** As ELF numbers them (`e_machine`): 62 is x86-64, 3 is i386, 183 is AArch64. */
  readonly machine: number;
  readonly capability: Capability;
}

export interface DriverFile {
  readonly path: string;
  readonly capability: Capability;
}

/** The files of NVIDIA's driver that a container needs, of one version. */
export interface Driver {
  readonly version: string;
  readonly libraries: readonly DriverLibrary[];
  /** Programs, firmware, and configuration of Vulkan, EGL, OpenCL, X and the rest. */
  readonly files: readonly DriverFile[];
  /**
   * Other versions of libcuda that lie in the library folders: with another one loaded than lies there, the driver was
   * upgraded and the machine not restarted.
   */
  readonly otherVersions: readonly string[];
}

/**
 * Folders in which distributions keep libraries, the preferred first: Debian's (with its `current` alternative), Red
 * Hat's and SUSE's, and NixOS's. The 32-bit set lies in folders of its own, or beside, told apart by the files.
 */
const LIBRARY_FOLDERS = [
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
  "/usr/lib/x86_64-linux-gnu/nvidia/current",
  "/usr/lib/aarch64-linux-gnu/nvidia/current",
  "/lib/x86_64-linux-gnu",
  "/lib/aarch64-linux-gnu",
  "/usr/lib64",
  "/lib64",
  "/usr/lib/i386-linux-gnu",
  "/usr/lib/i386-linux-gnu/nvidia/current",
  "/usr/lib32",
  "/usr/lib",
  "/run/opengl-driver/lib",
  "/run/opengl-driver-32/lib",
];

/** Bytes. A cache of 5000 libraries has a tenth of that. */
const MAX_CACHE = 4 << 20;

/** Below a library folder: drivers of VDPAU and of GBM. */
const SUBFOLDERS = ["", "/vdpau", "/gbm"];

/** Names of libraries without `lib` and `.so...`, by what they are for. What is not here is for graphics. */
const CAPABILITIES: Readonly<Record<Exclude<Capability, "compat32" | "graphics">, readonly string[]>> = {
  compute: [
    "cuda",
    "cudadebugger",
    "nvidia-allocator",
    "nvidia-compiler",
    "nvidia-fatbinaryloader",
    "nvidia-gpucomp",
    "nvidia-nvvm",
    "nvidia-nvvm70",
    "nvidia-opencl",
    "nvidia-pkcs11",
    "nvidia-pkcs11-openssl3",
    "nvidia-ptxjitcompiler",
    "nvidia-tileiras",
  ],
  display: ["glxserver_nvidia", "nvidia-gtk2", "nvidia-gtk3", "nvidia-wayland-client"],
  ngx: ["nvidia-ngx"],
  utility: ["nvidia-cfg", "nvidia-ml", "nvidia-nscq", "nvidia-sandboxutils"],
  video: ["nvcuvid", "nvidia-encode", "nvidia-opticalflow", "vdpau_nvidia"],
};
const CAPABILITY_OF = new Map(
  Object.entries(CAPABILITIES).flatMap(([capability, names]) => names.map((name) => [name, capability as Capability])),
);

/** Libraries that have versions of their own and are the driver's all the same. */
const OWN_VERSION = /^libnvidia-(?:egl-(?:gbm|wayland2?|xcb|xlib)|nvvm70|api)\.so\.[\d.]+$/;

const PROGRAMS: readonly (readonly [name: string, capability: Capability])[] = [
  ["nvidia-smi", "utility"],
  ["nvidia-debugdump", "utility"],
  ["nvidia-persistenced", "utility"],
  ["nvidia-cuda-mps-control", "compute"],
  ["nvidia-cuda-mps-server", "compute"],
  ["nvidia-imex", "compute"],
  ["nvidia-imex-ctl", "compute"],
];
const PROGRAM_FOLDERS = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/run/current-system/sw/bin"];

const CONFIGURATION: readonly (readonly [name: string, capability: Capability])[] = [
  ["vulkan/icd.d/nvidia_icd.json", "graphics"],
  ["vulkan/icd.d/nvidia_icd.x86_64.json", "graphics"],
  ["vulkan/icd.d/nvidia_layers.json", "graphics"],
  ["vulkan/implicit_layer.d/nvidia_layers.json", "graphics"],
  ["vulkansc/icd.d/nvidia_icd_vksc.json", "graphics"],
  ["egl/egl_external_platform.d/10_nvidia_wayland.json", "graphics"],
  ["egl/egl_external_platform.d/15_nvidia_gbm.json", "graphics"],
  ["egl/egl_external_platform.d/20_nvidia_xcb.json", "graphics"],
  ["egl/egl_external_platform.d/20_nvidia_xlib.json", "graphics"],
  ["glvnd/egl_vendor.d/10_nvidia.json", "graphics"],
  ["nvidia/nvoptix.bin", "graphics"],
  ["X11/xorg.conf.d/10-nvidia.conf", "display"],
  ["X11/xorg.conf.d/nvidia-drm-outputclass.conf", "display"],
  ["OpenCL/vendors/nvidia.icd", "compute"],
];
const CONFIGURATION_FOLDERS = ["/etc", "/usr/share", "/run/opengl-driver/share", "/run/opengl-driver/etc"];

const FIRMWARE_FOLDERS = ["/lib/firmware", "/usr/lib/firmware", "/run/current-system/firmware"];

const X_FOLDERS = ["/usr/lib/xorg/modules", "/usr/lib64/xorg/modules", "/usr/lib/x86_64-linux-gnu/nvidia/xorg"];

/**
 * The driver's files on disk. `loaded` is the version of the kernel module: libraries of another version do not work
 * with it. Where no module tells, the version is that of the libcuda that lies there.
 *
 * @returns `undefined` where there is none
 */
export function readDriver(look: Look, loaded: string | undefined): Driver | undefined {
  const usual = libraryFolders(look);
  const isUsual = usual.some((folder) => versionsIn(look, folder).length > 0);
  const folders = isUsual ? usual : [...usual, ...cachedFolders(look)];
  const present = [...new Set(folders.flatMap((folder) => versionsIn(look, folder)))];
  const version = loaded ?? present[0];
  if (version === undefined) return undefined;
  const files = [
    ...PROGRAMS.flatMap(([name, capability]) => firstOf(look, PROGRAM_FOLDERS, name, capability)),
    ...CONFIGURATION.flatMap(([name, capability]) => firstOf(look, CONFIGURATION_FOLDERS, name, capability)),
    ...firmware(look, version),
    ...xModules(look, version),
  ];
  return {
    version,
    libraries: firstOfEach(folders.flatMap((folder) => librariesIn(look, folder, version))),
    files,
    otherVersions: present.filter((other) => other !== version),
  };
}

/** Those that are there, each once: of /lib and /usr/lib one is a link to the other on most machines. */
export function libraryFolders(look: Look): string[] {
  const seen = new Set<string>();
  return LIBRARY_FOLDERS.flatMap((folder) => SUBFOLDERS.map((below) => `${folder}${below}`)).filter((folder) => {
    const stat = look.stat(folder);
    if (stat?.kind !== "dir" || seen.has(stat.stamp)) return false;
    seen.add(stat.stamp);
    return true;
  });
}

/** Where the loader finds libcuda in a folder that no distribution has: somebody named it in /etc/ld.so.conf. */
function cachedFolders(look: Look): string[] {
  const cache = parseLdCache(look.bytes("/etc/ld.so.cache", MAX_CACHE) ?? "") ?? [];
  const paths = cache.flatMap(({ name, path }) => (name === "libcuda.so.1" && path.startsWith("/") ? [path] : []));
  return [...new Set(paths.map((path) => path.slice(0, path.lastIndexOf("/"))))];
}

/** Without the characters that part names in the arguments of our hook. */
const LIBRARY = /^lib[\w.+-]+$/;

/** The versions of libcuda in a folder: `libcuda.so.580.65.06`. */
function versionsIn(look: Look, folder: string): string[] {
  return look.names(folder).flatMap((name) => /^libcuda\.so\.(\d+\.[\d.]+)$/.exec(name)?.[1] ?? []);
}

function librariesIn(look: Look, folder: string, version: string): DriverLibrary[] {
  return look.names(folder).flatMap((name): DriverLibrary[] => {
    const isVersioned = LIBRARY.test(name) && name.endsWith(`.so.${version}`);
    if (!isVersioned && !OWN_VERSION.test(name)) return [];
    const path = `${folder}/${name}`;
    const stem = name.slice("lib".length, name.indexOf(".so."));
    // A link to a neighbour, as libnvidia-egl-gbm.so.1 to .so.1.1.2: that is found by itself.
    if (look.link(path)?.includes("/") === false) return [];
    const elf = readElf(look.files, path);
    const soname = elf?.soname ?? name;
    if (elf === undefined || !LIBRARY.test(soname)) {
      look.note(path, "it is not a library that can be read");
      return [];
    }
    const capability = elf.bits === 32 ? "compat32" : (CAPABILITY_OF.get(stem) ?? "graphics");
    return [{ path, soname, bits: elf.bits, machine: elf.machine, capability }];
  });
}

/** One library of a name: the loader, too, takes the first that it finds. */
function firstOfEach(libraries: readonly DriverLibrary[]): DriverLibrary[] {
  const seen = new Set<string>();
  return libraries.filter(({ soname, bits }) => {
    const key = `${soname} ${bits}`;
    return !seen.has(key) && seen.add(key);
  });
}

function firstOf(look: Look, folders: readonly string[], name: string, capability: Capability): DriverFile[] {
  const path = folders.map((folder) => `${folder}/${name}`).find((place) => look.stat(place)?.kind === "file");
  return path === undefined ? [] : [{ path, capability }];
}

/** The firmware that the GPU's own processor runs; containers need it for nothing but Vulkan and CUDA's self-tests. */
function firmware(look: Look, version: string): DriverFile[] {
  for (const folder of FIRMWARE_FOLDERS) {
    const place = `${folder}/nvidia/${version}`;
    const found = look.names(place).filter((name) => /^gsp.*\.bin$/.test(name));
    if (found.length > 0) return found.map((name) => ({ path: `${place}/${name}`, capability: "utility" as const }));
  }
  return [];
}

function xModules(look: Look, version: string): DriverFile[] {
  const names = ["drivers/nvidia_drv.so", `extensions/libglxserver_nvidia.so.${version}`, "nvidia_drv.so"];
  return names.flatMap((name) => firstOf(look, X_FOLDERS, name, "display"));
}
