/**
 * Plans that earlier starts have made. A machine makes the same few plans again and again: its GPUs, from the same
 * specs. What is kept of a plan is what a start needs of it, in the form that it is written in, so that of the driver's
 * many mounts none is taken apart.
 *
 * A plan is kept for a grant and a state of all spec files (`Registry.state`), under which it would be made again, byte
 * for byte, but for the device nodes, which are asked for anew each time.
 */

import { resolveDeviceNodes } from "../cdi/edits.ts";
import type { ContainerEdits, DeviceNode } from "../cdi/spec.ts";
import { DEPTH, depthOf, toMount } from "../oci/apply.ts";
import { TEXT } from "../oci/lossless.ts";
import type { Mount } from "../oci/spec.ts";
import type { Grant } from "../policy/grant.ts";
import { readCache, writeCache } from "../sys/cache.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { BUILD } from "../sys/version.ts";
import type { Plan, PlanStore } from "./plan.ts";

/** The edits of a plan in the form that is kept. */
export interface Rendered {
  /** In the order of the plan, without mounts; device nodes are resolved. */
  readonly edits: readonly ContainerEdits[];
  /** The mounts of all edits, for a container without a user namespace: destination, its depth, all of it as text. */
  readonly mounts: readonly Mount[];
}

/** The head of what is kept. */
interface Head {
  readonly digest: string;
  readonly specs: readonly string[];
  /** Without mounts; device nodes as the spec has them. */
  readonly edits: readonly ContainerEdits[];
  /** The device nodes as they were resolved. */
  readonly nodes: readonly DeviceNode[];
}

/** A mount of which no more is known than where it goes. Whoever writes it without care gets it whole all the same. */
class ReadyMount implements Mount {
  readonly destination: string;
  readonly [DEPTH]: number;
  readonly [TEXT]: string;

  constructor(depth: number, destination: string, text: string) {
    this.destination = destination;
    this[DEPTH] = depth;
    this[TEXT] = text;
  }

  toJSON(): unknown {
    return JSON.parse(this[TEXT]);
  }
}

/** A destination that would break the form of a line. */
const SEPARATOR = /[\t\n]/;

export class KeptPlans implements PlanStore {
  readonly #sys: Sys;
  readonly #dir: string;

  constructor(sys: Sys, stateDir: string) {
    this.#sys = sys;
    this.#dir = `${stateDir}/plans`;
  }

  /** @throws SluiceError E_CDI_DEVICE_NODE where a node of the plan cannot be had any more */
  find(grant: Grant, state: string, host: Files): Plan | undefined {
    const [name, key] = this.#place(grant, state);
    const [head, text, ...lines] = readCache(this.#sys, this.#dir, name, key)?.split("\n") ?? [];
    const kept = head === undefined ? undefined : parse(head);
    if (kept === undefined || text === undefined) return undefined;
    const edits = kept.edits.map(({ deviceNodes, ...rest }): ContainerEdits => {
      return deviceNodes === undefined ? rest : { ...rest, deviceNodes: resolveDeviceNodes(deviceNodes, host) };
    });
    const nodes = edits.flatMap((one) => one.deviceNodes ?? []);
    if (JSON.stringify(nodes) !== JSON.stringify(kept.nodes)) return undefined;
    const mounts: Mount[] = [];
    for (const line of lines) {
      const [depth, destination, mount] = line.split("\t");
      if (destination === undefined || mount === undefined) return undefined;
      mounts.push(new ReadyMount(Number(depth), destination, mount));
    }
    return {
      digest: kept.digest,
      devices: grant.devices,
      get edits() {
        return (JSON.parse(text) as Pick<Plan, "edits">).edits;
      },
      text,
      specs: kept.specs,
      rendered: { edits, mounts },
    };
  }

  /** @param unresolved the edits of the plan with their device nodes as the spec has them */
  keep(grant: Grant, state: string, plan: Plan, unresolved: readonly ContainerEdits[]): void {
    const mounts = unresolved.flatMap((edits) => edits.mounts ?? []);
    if (mounts.some((mount) => SEPARATOR.test(mount.containerPath))) return;
    const head: Head = {
      digest: plan.digest,
      specs: plan.specs,
      edits: unresolved.map(({ mounts: _, ...rest }) => rest),
      nodes: plan.edits.flatMap(({ edits }) => edits.deviceNodes ?? []),
    };
    const lines = mounts.map((mount) => {
      const { containerPath } = mount;
      return `${depthOf(containerPath)}\t${containerPath}\t${JSON.stringify(toMount(mount, false))}`;
    });
    const [name, key] = this.#place(grant, state);
    writeCache(this.#sys, this.#dir, name, key, [JSON.stringify(head), plan.text, ...lines].join("\n"));
  }

  /** Few places, each for the last plan that fell on it: with a claim for each pod, no two plans are the same. */
  #place(grant: Grant, state: string): [name: string, key: string] {
    const digest = this.#sys.sha256(JSON.stringify(grant));
    return [digest.slice(0, 1), `${BUILD} ${state} ${digest}`];
  }
}

function parse(text: string): Head | undefined {
  try {
    const head = JSON.parse(text) as Partial<Head> | null;
    return Array.isArray(head?.edits) &&
      Array.isArray(head.nodes) &&
      Array.isArray(head.specs) &&
      head.digest !== undefined
      ? (head as Head)
      : undefined;
  } catch {
    return undefined;
  }
}
