import type { Files } from "../sys/sys.ts";
import { type Amd, readAmd } from "./amd.ts";
import { type IntelGpu, readIntel } from "./intel.ts";
import { Look, type Unseen } from "./look.ts";
import { type Nvidia, readNvidia } from "./nvidia.ts";
import { readGpuFunctions } from "./pci.ts";
import { readVfio, type Vfio } from "./vfio.ts";

/** What a machine has. Read from procfs, sysfs and /dev alone: no daemon, no library of a vendor, nothing is changed. */
export interface Host {
  /** `wsl`: GPUs are Windows'; `tegra`: NVIDIA's system on a chip. Both have other drivers, which are not read yet. */
  readonly platform: "linux" | "wsl" | "tegra";
  readonly nvidia: Nvidia;
  readonly amd: Amd;
  readonly intel: readonly IntelGpu[];
  readonly vfio: Vfio;
  /** What is there and could not be read, by us. */
  readonly unseen: readonly Unseen[];
}

/**
 * @param files the machine's own, or another tree's (`--root`), which may be hostile
 * @param smi what `nvidia-smi -L` prints there, for the UUIDs of MIG devices
 */
export function readHost(files: Files, smi?: string): Host {
  const look = new Look(files);
  const functions = readGpuFunctions(look);
  return {
    platform: platformOf(look),
    nvidia: readNvidia(look, functions, smi),
    amd: readAmd(look, functions),
    intel: readIntel(look, functions),
    vfio: readVfio(look, functions),
    unseen: look.unseen,
  };
}

function platformOf(look: Look): Host["platform"] {
  if (look.stat("/dev/dxg")?.kind === "char") return "wsl";
  // NVIDIA's Linux for Tegra names its release; the device tree tells of others.
  if (look.stat("/etc/nv_tegra_release")?.kind === "file") return "tegra";
  return /^nvidia,tegra/m.test((look.text("/proc/device-tree/compatible") ?? "").replaceAll("\0", "\n"))
    ? "tegra"
    : "linux";
}
