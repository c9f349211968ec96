import { type HostsNode, lookAtNode } from "../cdi/edits.ts";
import { openRegistry, type Registry } from "../cdi/registry.ts";
import type { ContainerEdits, DeviceNode } from "../cdi/spec.ts";
import { openIndex } from "../cdi/spec-index.ts";
import type { Config } from "../oci/spec.ts";
import type { Settings } from "../policy/config.ts";
import type { Grant } from "../policy/grant.ts";
import { type Request, readRequest, wordsOf } from "../request/request.ts";
import { makeRoom } from "../sys/bounded.ts";
import { isSettled } from "../sys/cache.ts";
import { OsError } from "../sys/error.ts";
import type { Files } from "../sys/sys.ts";
import { BUILD } from "../sys/version.ts";
import type { AllocatedHere } from "./allocated-here.ts";
import type { Machine } from "./machine.ts";
import type { Plan, PlanStore } from "./plan.ts";

/** Plans that are kept, requests, and answers on allocations. */
const MOST = 64;
/** Characters of what a request or an answer is kept by. */
const LONGEST = 4096;

/**
 * What a process that lives keeps from one container to the next: the registry, and the plans that were made from it. It
 * is used only while every spec file has the stamp with which it was read, and nothing has come or gone beside it.
 */
export class Memory implements PlanStore {
  #known: { readonly registry: Registry; readonly folders: readonly Folder[] } | undefined;
  #plans = new Map<string, Kept>();
  #answers = new Map<string, AllocatedHere>();
  #settings: Settings | undefined;
  readonly #requests = new Map<string, Request>();
  readonly #texts = new WeakMap<object, string>();
  /**
   * What was told last (audit.ts) of containers that were given a plan, which was all that they asked for, and with
   * nothing else to be told of them.
   */
  readonly told = new WeakMap<Plan, { readonly request: Request; readonly told: string }>();

  registry({ sys, host, specDirs, stateDir }: Pick<Machine, "sys" | "host" | "specDirs" | "stateDir">): Registry {
    if (this.#known !== undefined && isUnchanged(host, specDirs, this.#known.folders)) return this.#known.registry;
    // Before the files are read: what changes later has another stamp.
    const folders = lookAt(host, specDirs, sys.now());
    const registry = openRegistry(host, specDirs, openIndex(sys, stateDir, BUILD));
    // A file that was written just now may change once more under the same stamp: the index knows.
    this.#known = folders !== undefined && registry.state() !== undefined ? { registry, folders } : undefined;
    this.#plans.clear();
    this.#answers.clear();
    return registry;
  }

  /** What a container asks for: many ask in the same words. @throws SluiceError as `readRequest` */
  request(config: Config, defaultKind: string): Request {
    const key = `${defaultKind} ${wordsOf(config)}`;
    const known = this.#requests.get(key);
    if (known !== undefined) return known;
    const request = readRequest(config, defaultKind);
    if (key.length > LONGEST) return request;
    makeRoom(this.#requests, MOST);
    this.#requests.set(key, request);
    return request;
  }

  /** As JSON. What is kept comes again as the same object, and is written once. */
  textOf(value: object): string {
    let text = this.#texts.get(value);
    if (text === undefined) {
      text = JSON.stringify(value);
      this.#texts.set(value, text);
    }
    return text;
  }

  /** What is kept for the key, from this registry and these settings. */
  judged(registry: Registry, settings: Settings, key: string): AllocatedHere | undefined {
    return registry === this.#known?.registry && settings === this.#settings ? this.#answers.get(key) : undefined;
  }

  keepJudged(registry: Registry, settings: Settings, key: string, answer: AllocatedHere): void {
    if (registry !== this.#known?.registry || key.length > LONGEST) return;
    if (settings !== this.#settings) this.#answers.clear();
    this.#settings = settings;
    makeRoom(this.#answers, MOST);
    this.#answers.set(key, answer);
  }

  find(grant: Grant, state: string, host: Files): Plan | undefined {
    const known = this.#plans.get(this.#keyOf(grant, state));
    if (known === undefined) return undefined;
    // All of them: one that is gone fails it, whatever has become of another.
    const now = known.unresolved.map((node) => lookAtNode(node, host));
    const isSame = now.every((node, i) => isSameNode(node, known.nodes[i]));
    return isSame ? known.plan : undefined;
  }

  keep(grant: Grant, state: string, plan: Plan, unresolved: readonly ContainerEdits[]): void {
    makeRoom(this.#plans, MOST);
    this.#plans.set(this.#keyOf(grant, state), {
      plan,
      unresolved: unresolved.flatMap((edits) => edits.deviceNodes ?? []),
      nodes: plan.edits.flatMap(({ edits }) => edits.deviceNodes ?? []),
    });
  }

  #keyOf(grant: Grant, state: string): string {
    return `${state}\n${this.textOf(grant)}`;
  }
}

interface Kept {
  readonly plan: Plan;
  /** Its device nodes as the specs have them, and as they were resolved. */
  readonly unresolved: readonly DeviceNode[];
  readonly nodes: readonly DeviceNode[];
}

/** By what is taken from the host's node; the rest is the spec's. */
function isSameNode(a: HostsNode, b: DeviceNode | undefined): boolean {
  return a.type === b?.type && a.major === b?.major && a.minor === b?.minor && a.fileMode === b?.fileMode;
}

/** A spec folder, as it was when the registry was made. */
interface Folder {
  readonly dir: string;
  /** Empty where it does not exist. */
  readonly stamp: string;
  readonly names: readonly string[];
  readonly stamps: readonly string[];
}

/** @returns `undefined` where a folder cannot be read (whoever reads it says why), or may change under the same stamp */
function lookAt(host: Files, dirs: readonly string[], now: number): Folder[] | undefined {
  const folders: Folder[] = [];
  try {
    for (const dir of dirs) {
      const stat = host.stat(dir);
      if (stat !== undefined && !isSettled(stat, now)) return undefined;
      const names = (host.list(dir) ?? []).map(({ name }) => name);
      folders.push({ dir, stamp: stat?.stamp ?? "", names, stamps: host.stamps(dir, names) });
    }
  } catch (thrown) {
    if (thrown instanceof OsError) return undefined;
    throw thrown;
  }
  return folders;
}

/** A folder's own stamp tells what has come and gone, its files' stamps what was written. */
function isUnchanged(host: Files, dirs: readonly string[], folders: readonly Folder[]): boolean {
  if (dirs.length !== folders.length) return false;
  try {
    return folders.every(
      ({ dir, stamp, names, stamps }, i) =>
        dir === dirs[i] &&
        (host.stat(dir)?.stamp ?? "") === stamp &&
        host.stamps(dir, names).every((now, k) => now === stamps[k]),
    );
  } catch (thrown) {
    if (thrown instanceof OsError) return false;
    throw thrown;
  }
}
