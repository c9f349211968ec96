/**
 * CDI specs from what a machine has: one for each kind of device. `docker run --device` and every engine's own CDI run
 * none of our code, so what stands in a spec must be right by itself:
 *
 * - the lowest `cdiVersion` that can say it, so that no engine is too old for it;
 * - a node's numbers only where the engine could not ask the node itself, as most majors change with each boot;
 * - a GPU that is lost takes away its own devices, and no others;
 * - one hook at most, for what mounts cannot say.
 */

import type { DeviceNode } from "../cdi/spec.ts";
import type { Files } from "../sys/sys.ts";
import type { Amd } from "./amd.ts";
import { nvidiaSpecs } from "./cdi-nvidia.ts";
import { ALL, Draft, type Fault, type MadeSpec, type Seen, type Surveyed, survey } from "./draft.ts";
import { type Host, readHost } from "./host.ts";
import type { IntelGpu } from "./intel.ts";
import type { Fact, SpecOptions } from "./origin.ts";
import { pciFolder } from "./pci.ts";

export interface Made {
  readonly host: Host;
  readonly specs: readonly MadeSpec[];
  readonly faults: readonly Fault[];
  /** Devices that were left out, and other things that a person should know: a line each. */
  readonly notices: readonly string[];
  /** All that the specs rest on, and the want of specs too: as long as none has changed, they would be made the same. */
  readonly facts: readonly Fact[];
  /** What the file of `SpecOptions.params` must hold; absent where no spec needs it. */
  readonly params?: string;
}

/**
 * Makes the specs of a machine; changes nothing. The same machine gives the same specs, byte for byte.
 *
 * @param files the machine's own, or those of another tree (`--root`), which may be hostile
 * @param smi what `nvidia-smi -L` prints there, which alone tells the UUIDs of MIG devices
 */
export function makeSpecs(files: Files, options: SpecOptions, smi?: string): Made {
  // Before anything else is read: what changes in between must show as changed.
  const all = new Map<string, Fact>();
  const seen = (of: Surveyed): Seen => ({ survey: survey(files, of), all });
  const [nvidia, amd, intel, features] = [seen("nvidia"), seen("amd"), seen("intel"), seen("features")];
  const host = readHost(files, smi);
  const notices: string[] = [];
  const faults: Fault[] = [];
  const drafts = [
    ...nvidiaSpecs(files, host.nvidia, options, nvidia, notices, faults),
    amdSpec(files, host.amd, amd, notices)?.finish(options),
    intelSpec(files, host.intel, intel, notices)?.finish(options),
  ];
  const specs = drafts.filter((one) => one !== undefined);
  const params = options.params === "" ? undefined : host.nvidia.params;
  const own = options.features.length === 0 ? [] : features.survey;
  const facts = [...own, ...[nvidia, amd, intel].flatMap(({ survey }) => survey), ...all.values()];
  return { host, specs, faults, notices, facts, ...(params === undefined ? {} : { params }) };
}

function amdSpec(files: Files, amd: Amd, seen: Seen, notices: string[]): Draft | undefined {
  const draft = new Draft(files, "amd.com/gpu", seen, notices);
  const all: DeviceNode[] = [];
  draft.fact("names", "/sys/class/kfd/kfd/topology/nodes");
  for (const { pci, uniqueId, devices } of amd.gpus) {
    draft.fact("text", `${pciFolder(pci.address)}/current_compute_partition`);
    if (!draft.answers(pci)) {
      notices.push(`AMD GPU ${pci.address} is lost: it does not answer any more, and is left out`);
      continue;
    }
    for (const { index, partition, drm } of devices) {
      const deviceNodes = drm.map((node) => draft.node(node));
      if (deviceNodes.length === 0) {
        notices.push(`AMD GPU ${pci.address} has no nodes in /dev/dri, and is left out`);
        continue;
      }
      all.push(...deviceNodes);
      draft.device([String(index), partition === undefined ? nameOf(uniqueId) : undefined], { deviceNodes });
    }
  }
  if (all.length === 0) return undefined;
  if (amd.kfd !== undefined) draft.common.deviceNodes = [draft.node(amd.kfd)];
  draft.device([ALL], { deviceNodes: all });
  return draft;
}

/** A name that a file tells, if CDI allows it as a device's. */
function nameOf(text: string | undefined): string | undefined {
  return text !== undefined && /^[0-9a-f]{8,32}$/.test(text) ? text : undefined;
}

function intelSpec(files: Files, gpus: readonly IntelGpu[], seen: Seen, notices: string[]): Draft | undefined {
  const draft = new Draft(files, "intel.com/gpu", seen, notices);
  const all: DeviceNode[] = [];
  for (const { index, pci, drm } of gpus) {
    const deviceNodes = draft.answers(pci) ? drm.map((node) => draft.node(node)) : [];
    if (deviceNodes.length === 0) {
      const why = drm.length === 0 ? "has no nodes in /dev/dri" : "is lost: it does not answer any more";
      notices.push(`Intel GPU ${pci.address} ${why}, and is left out`);
      continue;
    }
    all.push(...deviceNodes);
    draft.device([String(index)], { deviceNodes });
  }
  if (all.length === 0) return undefined;
  draft.device([ALL], { deviceNodes: all });
  return draft;
}
