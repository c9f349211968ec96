import { type Driver, readDriver } from "./driver.ts";
import { PROC, readDriverVersion } from "./driver-version.ts";
import type { Look } from "./look.ts";
import { type MigDevice, type MigMinors, readMigDevices, readMigMinors, readMigUuids } from "./mig.ts";
import { type Node, nodeAt, nodesIn, readMajors } from "./node.ts";
import { ADDRESS, type PciDevice, pciFolder } from "./pci.ts";

export const NVIDIA_VENDOR = 0x10de;

/**
 * Whether a GPU can be given to a container, and if not why:
 *
 * | state | |
 * |---|---|
 * | `usable` | its driver and its node are there |
 * | `lost` | it fell off the bus: the driver knows it and the bus does not, or it does not answer any more |
 * | `excluded` | the driver was told to leave it alone (NVreg_ExcludedGpus) |
 * | `no-node` | `/dev/nvidia<minor>` is missing, or is another device's |
 * | `vfio` | a VFIO driver has it, for virtual machines |
 * | `no-driver` | another driver has it, or none |
 */
export type NvidiaGpuState = "usable" | "lost" | "excluded" | "no-node" | "vfio" | "no-driver";

export interface NvidiaGpu {
  readonly address: string;
  readonly state: NvidiaGpuState;
  /** Its place among the GPUs that the driver has, in the order of their addresses, as `nvidia-smi` counts. */
  readonly index?: number;
  /** Of its node `/dev/nvidia<minor>`: not the index. */
  readonly minor?: number;
  /** Absent of a GPU that nobody has opened since the machine started: its driver does not know it yet. */
  readonly uuid?: string;
  readonly model?: string;
  readonly node?: Node;
  /** What the bus tells of it; absent of one that is lost. */
  readonly pci?: PciDevice;
  /** Nodes below /dev/dri. */
  readonly drm: readonly Node[];
  /**
   * Its MIG devices, where it has been cut into GPU instances: it is then not given as a whole. Whether a GPU that has
   * not been cut is in MIG mode, no file tells.
   */
  readonly mig?: readonly MigDevice[];
}

export interface Nvidia {
  /** Of the kernel module that is loaded: `580.65.06`. */
  readonly driverVersion?: string;
  /** Its files on disk; absent where there are none. */
  readonly driver?: Driver;
  readonly gpus: readonly NvidiaGpu[];
  /** `/dev/nvidiactl`, `nvidia-uvm`, `nvidia-uvm-tools`, `nvidia-modeset`: those that are there. */
  readonly control: readonly Node[];
  readonly nvswitches: readonly Node[];
  /** IMEX channels, by number. */
  readonly imexChannels: readonly Node[];
  /** GPUDirect Storage, GDRCopy, and InfiniBand verbs. */
  readonly gds: readonly Node[];
  readonly gdrcopy: readonly Node[];
  readonly mofed: readonly Node[];
  /** Sockets of the persistence daemon and of the fabric manager. */
  readonly sockets: readonly string[];
  /** Of the GPUs' nodes and the control nodes; absent where the driver is not there. */
  readonly major?: number;
  /** Majors that the kernel gives out anew at each boot. */
  readonly uvmMajor?: number;
  readonly capsMajor?: number;
  readonly imexMajor?: number;
  readonly hasModeset: boolean;
  /** Minors of the capability nodes of MIG's administration. */
  readonly migConfigMinor?: number;
  readonly migMonitorMinor?: number;
  /**
   * The driver's settings as its own libraries read them, but for one: with `ModifyDeviceFiles: 1` they make the nodes of
   * GPUs that are not there, which in a container are those that it was not given.
   */
  readonly params?: string;
}

/** Of the persistence daemon and the fabric manager, which run where the administrator wants them. */
export const SOCKETS: readonly string[] = ["/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"];

/**
 * Everything of NVIDIA's on a machine with its own driver; Tegra and WSL are not of this kind.
 *
 * @param smi what `nvidia-smi -L` prints there
 */
export function readNvidia(look: Look, functions: readonly PciDevice[], smi?: string): Nvidia {
  const majors = readMajors(look);
  const driverVersion = readDriverVersion(look);
  const driver = readDriver(look, driverVersion);
  // The module's own name for its nodes has changed with the kernel's.
  const major = majors.get("nvidia") ?? majors.get("nvidia-frontend");
  const uvmMajor = majors.get("nvidia-uvm");
  const capsMajor = majors.get("nvidia-caps");
  const imexMajor = majors.get("nvidia-caps-imex-channels");
  const minors = readMigMinors(look);
  const [migConfigMinor, migMonitorMinor] = [minors("config"), minors("monitor")];
  const params = look.text(`${PROC}/params`);
  return {
    ...(driverVersion === undefined ? {} : { driverVersion }),
    ...(driver === undefined ? {} : { driver }),
    gpus: readGpus(
      look,
      functions.filter((one) => one.vendor === NVIDIA_VENDOR && one.physicalFunction === undefined),
      major,
      minors,
      smi === undefined ? new Map() : readMigUuids(smi),
    ),
    control: ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"].flatMap(
      (name) => nodeAt(look, `/dev/${name}`) ?? [],
    ),
    nvswitches: nodesIn(look, "/dev", /^nvidia-nvswitch(?:ctl|\d+)$/),
    imexChannels: nodesIn(look, "/dev/nvidia-caps-imex-channels", /^channel\d+$/),
    gds: nodesIn(look, "/dev", /^nvidia-fs\d+$/),
    gdrcopy: nodesIn(look, "/dev", /^gdrdrv$/),
    mofed: nodesIn(look, "/dev/infiniband", /^(?:uverbs\d+|rdma_cm)$/),
    sockets: SOCKETS.filter((path) => look.stat(path)?.kind === "socket"),
    ...(major === undefined ? {} : { major }),
    ...(uvmMajor === undefined ? {} : { uvmMajor }),
    ...(capsMajor === undefined ? {} : { capsMajor }),
    ...(imexMajor === undefined ? {} : { imexMajor }),
    hasModeset: look.stat("/sys/module/nvidia_modeset") !== undefined,
    ...(migConfigMinor === undefined ? {} : { migConfigMinor }),
    ...(migMonitorMinor === undefined ? {} : { migMonitorMinor }),
    ...(params === undefined
      ? {}
      : { params: `${params.replace(/^ModifyDeviceFiles: .*$/m, "ModifyDeviceFiles: 0")}\n` }),
  };
}

/** What the driver tells of a GPU in `gpus/<address>/information`, a line each of `Name: value`. */
interface Information {
  readonly model?: string;
  readonly uuid?: string;
  readonly minor?: number;
  readonly isExcluded: boolean;
}

function readInformation(look: Look, address: string): Information {
  const fields = new Map<string, string>();
  for (const line of (look.text(`${PROC}/gpus/${address}/information`) ?? "").split("\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) fields.set(line.slice(0, colon).trim(), line.slice(colon + 1).trim());
  }
  const uuid = fields.get("GPU UUID");
  const minor = fields.get("Device Minor");
  const model = fields.get("Model");
  return {
    ...(model === undefined || model === "" ? {} : { model }),
    // Of a GPU that nobody has opened since the machine started, the driver writes question marks.
    ...(uuid !== undefined && /^GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid) ? { uuid } : {}),
    ...(minor !== undefined && /^\d{1,4}$/.test(minor) ? { minor: Number(minor) } : {}),
    isExcluded: fields.get("GPU Excluded") === "Yes",
  };
}

function readGpus(
  look: Look,
  functions: readonly PciDevice[],
  major: number | undefined,
  minors: MigMinors,
  migUuids: ReadonlyMap<string, string>,
): NvidiaGpu[] {
  const ofDriver = look.names(`${PROC}/gpus`).filter((name) => ADDRESS.test(name));
  const onBus = new Map(functions.map((one) => [one.address, one]));
  const addresses = [...new Set([...ofDriver, ...onBus.keys()])].sort();
  const taken = new Set<number>();
  return addresses.map((address) => {
    const pci = onBus.get(address);
    const drm = (pci?.drm ?? []).flatMap((name) => nodeAt(look, `/dev/dri/${name}`) ?? []);
    const index = ofDriver.indexOf(address);
    if (index < 0) {
      const state = pci?.driver !== undefined && /vfio/.test(pci.driver) ? "vfio" : "no-driver";
      return { address, state, ...(pci === undefined ? {} : { pci }), drm };
    }
    const { model, uuid, minor, isExcluded } = readInformation(look, address);
    const isOwn = minor !== undefined && !taken.has(minor);
    if (minor !== undefined && !isOwn)
      look.note(`${PROC}/gpus/${address}/information`, `another GPU has minor ${minor}`);
    if (isOwn) taken.add(minor);
    const node = isOwn ? gpuNode(look, minor, major) : undefined;
    const state = isExcluded
      ? "excluded"
      : pci === undefined || hasFallenOff(look, address)
        ? "lost"
        : node === undefined
          ? "no-node"
          : "usable";
    const mig = minor === undefined ? undefined : readMigDevices(look, minor, minors, index, migUuids);
    return {
      address,
      state,
      index,
      ...(minor === undefined ? {} : { minor }),
      ...(uuid === undefined ? {} : { uuid }),
      ...(model === undefined ? {} : { model }),
      ...(node === undefined ? {} : { node }),
      ...(pci === undefined ? {} : { pci }),
      drm,
      ...(mig === undefined ? {} : { mig }),
    };
  });
}

/**
 * Every read of the configuration of a function that does not answer gives ones. What the driver and the kernel
 * remember of it (name, UUID, ids) they still tell.
 */
function hasFallenOff(look: Look, address: string): boolean {
  return look.bytes(`${pciFolder(address)}/config`, 4) === "\xff\xff\xff\xff";
}

/** A GPU's node, if it is this GPU's: one with other numbers opens something else. */
function gpuNode(look: Look, minor: number, major: number | undefined): Node | undefined {
  const path = `/dev/nvidia${minor}`;
  const node = nodeAt(look, path);
  if (node === undefined) return undefined;
  if (node.minor === minor && (major === undefined || node.major === major)) return node;
  look.note(path, `it is device ${node.major}:${node.minor}, not ${major ?? node.major}:${minor}`);
  return undefined;
}
