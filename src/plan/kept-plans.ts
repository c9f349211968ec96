/**
 * Plans that earlier starts have made. A machine makes the same few plans again and again: its GPUs, from the same
 * specs. What is kept of a plan is what a start needs of it, in the form that it is written in, so that of the driver's
 * many mounts none is taken apart.
 *
 * A plan is kept for a grant and a state of all spec files (`Registry.state`), under which it would be made again, byte
 * for byte, but for the device nodes, which are asked for anew each time.
 */

import { type HostsNode, lookAtNode } from "../cdi/edits.ts";
import type { ContainerEdits, DeviceNode } from "../cdi/spec.ts";
import { ReadyEdits } from "../oci/ready-edits.ts";
import type { Grant } from "../policy/grant.ts";
import { readCache, writeCache } from "../sys/cache.ts";
import type { Files, Sys } from "../sys/sys.ts";
import { BUILD } from "../sys/version.ts";
import type { Plan, PlanStore } from "./plan.ts";

/** The head of what is kept, in one line; behind it follow the plan's text and its edits as they are ready. */
interface Head {
  readonly digest: string;
  readonly specs: readonly string[];
  /** The device nodes as the spec has them, and what was made of each. */
  readonly nodes: readonly DeviceNode[];
  readonly resolved: readonly Resolved[];
  /** The length of the plan's text. */
  readonly length: number;
}

/** What the host has a say in of a device node; `null` where there is none. */
type Resolved = readonly [type: string, major: number | null, minor: number | null, fileMode: number | null];

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
    const body = readCache(this.#sys, this.#dir, name, key) ?? "";
    const start = body.indexOf("\n") + 1;
    const kept = parse(body.slice(0, start));
    if (kept === undefined) return undefined;
    const text = body.slice(start, start + kept.length);
    const ready = ReadyEdits.parse(body.slice(start + kept.length));
    if (ready === undefined) return undefined;
    // All of them: one that is gone fails it, whatever has become of another.
    const nodes = kept.nodes.map((node) => ofHost(lookAtNode(node, host)));
    if (nodes.length !== kept.resolved.length || !nodes.every((node, i) => isSame(node, kept.resolved[i]))) {
      return undefined;
    }
    return {
      digest: kept.digest,
      devices: grant.devices,
      get edits() {
        return (JSON.parse(text) as Pick<Plan, "edits">).edits;
      },
      text,
      specs: kept.specs,
      ready,
    };
  }

  /** @param unresolved the edits of the plan with their device nodes as the spec has them */
  keep(grant: Grant, state: string, plan: Plan, unresolved: readonly ContainerEdits[]): void {
    const edits = plan.edits.map((planned) => planned.edits);
    const ready = ReadyEdits.textOf(edits);
    if (ready === undefined) return;
    const head: Head = {
      digest: plan.digest,
      specs: plan.specs,
      nodes: unresolved.flatMap(({ deviceNodes }) => deviceNodes ?? []),
      resolved: edits.flatMap(({ deviceNodes }) => ((deviceNodes ?? []) as HostsNode[]).map(ofHost)),
      length: plan.text.length,
    };
    const [name, key] = this.#place(grant, state);
    writeCache(this.#sys, this.#dir, name, key, `${JSON.stringify(head)}\n${plan.text}${ready}`);
  }

  /** Few places, each for the last plan that fell on it: with a claim for each pod, no two plans are the same. */
  #place(grant: Grant, state: string): [name: string, key: string] {
    const digest = this.#sys.sha256(JSON.stringify(grant));
    return [digest.slice(0, 1), `${BUILD} ${state} ${digest}`];
  }
}

function ofHost({ type, major, minor, fileMode }: HostsNode): Resolved {
  return [type, major ?? null, minor ?? null, fileMode ?? null];
}

function isSame(node: Resolved, before: Resolved | undefined): boolean {
  return node.every((value, i) => value === before?.[i]);
}

function parse(text: string): Head | undefined {
  try {
    const head = JSON.parse(text) as Partial<Head> | null;
    return Array.isArray(head?.nodes) &&
      Array.isArray(head.resolved) &&
      Array.isArray(head.specs) &&
      head.digest !== undefined &&
      head.length !== undefined
      ? (head as Head)
      : undefined;
  } catch {
    return undefined;
  }
}
