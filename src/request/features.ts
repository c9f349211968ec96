/**
 * What reaches beyond a container's GPUs, to other nodes of the machine or its network: an image asks for it with a
 * variable, and anyone with the name of its CDI device. Both count only as far as the settings allow (policy/grant.ts).
 */

import { quote } from "../sys/error.ts";
import { badVariable, checkLength, type NvidiaVariables } from "./nvidia.ts";

export const FEATURE_NAMES = ["gds", "mofed", "gdrcopy", "nvswitch", "imex", "mig-config", "mig-monitor"] as const;
export type FeatureName = (typeof FEATURE_NAMES)[number];

export interface Feature {
  /** As the setting policy.features has it. */
  readonly name: FeatureName;
  /** For a person. */
  readonly title: string;
  readonly variable: string;
  /** The class of its CDI devices, of the vendor nvidia.com. */
  readonly class: string;
  /** The device that the variable asks for; absent where the variable names devices itself. */
  readonly device?: string;
}

const FEATURES: readonly Feature[] = [
  { name: "gds", title: "GPUDirect Storage", variable: "NVIDIA_GDS", class: "gds", device: "all" },
  { name: "mofed", title: "InfiniBand verbs", variable: "NVIDIA_MOFED", class: "mofed", device: "all" },
  { name: "gdrcopy", title: "GDRCopy", variable: "NVIDIA_GDRCOPY", class: "gdrcopy", device: "all" },
  { name: "nvswitch", title: "the NVSwitches", variable: "NVIDIA_NVSWITCH", class: "nvswitch", device: "all" },
  { name: "imex", title: "an IMEX channel", variable: "NVIDIA_IMEX_CHANNELS", class: "imex-channel" },
  {
    name: "mig-config",
    title: "the right to change MIG",
    variable: "NVIDIA_MIG_CONFIG_DEVICES",
    class: "mig",
    device: "config",
  },
  {
    name: "mig-monitor",
    title: "the right to watch all MIG devices",
    variable: "NVIDIA_MIG_MONITOR_DEVICES",
    class: "mig",
    device: "monitor",
  },
];

/** A device that a variable asks for. */
interface AskedFeature {
  /** `vendor/class=name` */
  readonly name: string;
  readonly from: string;
}

/** NVIDIA's drivers, plugins and tools name devices of nvidia.com and of vendors below it. */
export function isNvidia(name: string): boolean {
  const slash = name.indexOf("/");
  // Most names are of nvidia.com itself, which the length tells.
  return slash >= 10 && name.slice(slash - 10, slash) === "nvidia.com" && (slash === 10 || name[slash - 11] === ".");
}

/** The feature that a CDI device gives, if it is one of a feature. */
export function featureOf(name: string): Feature | undefined {
  if (!isNvidia(name)) return undefined;
  const equals = name.indexOf("=");
  const deviceClass = name.slice(name.indexOf("/") + 1, equals);
  let found: Feature | undefined;
  for (const feature of FEATURES) {
    if (feature.class !== deviceClass) continue;
    if (feature.device === name.slice(equals + 1)) return feature;
    // A device of the class "mig" that is neither of ours counts as the graver right.
    found ??= feature;
  }
  return found;
}

/**
 * The devices that the features' variables ask for. `NVIDIA_GDS`, `NVIDIA_MOFED`, `NVIDIA_GDRCOPY` and
 * `NVIDIA_NVSWITCH` ask with the value `enabled`, and with any other for nothing, as with NVIDIA's toolkit.
 *
 * @throws SluiceError E_REQUEST_ENV
 */
export function readFeatures(variables: NvidiaVariables): AskedFeature[] {
  const asked: AskedFeature[] = [];
  for (const { variable, class: deviceClass, device } of FEATURES) {
    const value = variables.get(variable);
    if (value === undefined) continue;
    for (const name of devicesOf(variable, value, device)) {
      asked.push({ name: `nvidia.com/${deviceClass}=${name}`, from: `variable ${variable}` });
    }
  }
  return asked;
}

function devicesOf(variable: string, value: string, device: string | undefined): readonly string[] {
  if (device === undefined) return readChannels(variable, value.trim());
  const isAsked = device === "all" ? value === "enabled" : readMigRight(variable, value.trim());
  return isAsked ? [device] : [];
}

/**
 * The right is one for the whole machine, a single node that each container with it shares, so no less than `all` can
 * be asked for.
 */
function readMigRight(variable: string, value: string): boolean {
  if (value === "all") return true;
  if (value === "" || value === "none" || value === "void") return false;
  throw badVariable(variable, `${quote(value)} is not "all"`, "set it to all, or unset it");
}

/** As libnvidia-container bounds it. What of these the machine has, its CDI spec says. */
const MAX_CHANNEL = 2 ** 20 - 1;

/** Numbers of IMEX channels. `all` asks for none, as with NVIDIA's toolkit: which ones are ours, it does not say. */
function readChannels(variable: string, value: string): readonly string[] {
  if (value === "" || value === "all" || value === "none" || value === "void") return [];
  checkLength(variable, value);
  return value.split(",").map((raw) => {
    const item = raw.trim();
    if (!/^(?:0|[1-9]\d{0,6})$/.test(item) || Number(item) > MAX_CHANNEL) {
      throw badVariable(
        variable,
        `${quote(item)} is not the number of an IMEX channel`,
        `use a comma list of numbers from 0 to ${MAX_CHANNEL}`,
      );
    }
    return item;
  });
}
