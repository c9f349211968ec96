/** A CDI spec in the making: its edits, and the facts of the machine that they rest on. */

import type { ContainerEdits, Device, DeviceNode, Spec } from "../cdi/spec.ts";
import { minimumVersion } from "../cdi/version.ts";
import type { Files } from "../sys/sys.ts";
import type { Capability } from "./driver.ts";
import { Look } from "./look.ts";
import { type Node, nodeAt } from "./node.ts";
import { type Fact, type FactLook, glanceAt, lookAt, type Origin, type SpecOptions } from "./origin.ts";
import { type PciDevice, pciFolder } from "./pci.ts";

export interface MadeSpec {
  readonly spec: Spec;
  readonly origin: Origin;
}

/** Why there is no spec of a kind although the machine has such devices. */
export interface Fault {
  readonly kind: string;
  /** As of a SluiceError. */
  readonly what: string;
  readonly remedy: string;
}

/** What tells that a machine has other devices of a vendor, or another driver, than before. */
const SURVEY = {
  nvidia: [
    ["text", "/sys/module/nvidia/version"],
    ["names", "/proc/driver/nvidia/gpus"],
  ],
  amd: [
    ["names", "/sys/bus/pci/drivers/amdgpu"],
    ["kind", "/dev/kfd"],
  ],
  intel: [
    ["names", "/sys/bus/pci/drivers/i915"],
    ["names", "/sys/bus/pci/drivers/xe"],
  ],
  /** Of what comes and goes by itself, in kinds of its own. */
  features: [
    ["kind", "/dev/nvidia-fs0"],
    ["kind", "/dev/gdrdrv"],
    ["kind", "/dev/nvidia-nvswitchctl"],
    ["names", "/dev/infiniband"],
    ["names", "/dev/nvidia-caps-imex-channels"],
  ],
} as const satisfies Record<string, readonly (readonly [look: FactLook, path: string])[]>;

export type Surveyed = keyof typeof SURVEY;

/** The facts by which a machine, also one without any spec, shows that it may need another one. */
export function survey(files: Files, of: Surveyed): Fact[] {
  return SURVEY[of].map(([look, path]) => ({ look, path, saw: lookAt(files, look, path) }));
}

/** What is known of a machine before a draft begins, and what all drafts have looked at. */
export interface Seen {
  /** Facts that the draft begins with. */
  readonly survey: readonly Fact[];
  /** By look and path. Drafts add theirs, so that it is known too what a spec rests on that came to nothing. */
  readonly all: Map<string, Fact>;
}

/** A spec in the making: its edits, and what they rest on. */
export class Draft {
  readonly look: Look;
  readonly kind: string;
  readonly common: ContainerEdits = {};
  readonly notices: string[];
  readonly #devices: Device[] = [];
  readonly #facts = new Map<string, Fact>();
  readonly #expected: Fact[] = [];
  readonly #seen: Seen["all"];
  readonly #capabilities = new Map<Capability, Set<string>>();

  constructor(files: Files, kind: string, { survey: facts, all }: Seen, notices: string[]) {
    this.look = new Look(files);
    this.kind = kind;
    this.notices = notices;
    this.#seen = all;
    for (const fact of facts) this.#note(fact);
  }

  #note(fact: Fact): void {
    const key = `${fact.look} ${fact.path}`;
    this.#facts.set(key, fact);
    this.#seen.set(key, fact);
  }

  /** Looks at a place, and notes what is there as one of the things that the spec rests on. */
  fact(look: FactLook, path: string): string {
    // What another draft has seen there counts: it was before, and what changed in between must show.
    const key = `${look} ${path}`;
    const fact = this.#facts.get(key) ??
      this.#seen.get(key) ?? { look, path, saw: lookAt(this.look.files, look, path) };
    this.#note(fact);
    return fact.saw;
  }

  /** Notes a thing that the spec rests on and that will be there once it is published. */
  expect(look: FactLook, path: string, saw: string): void {
    this.#expected.push({ look, path, saw });
  }

  /** Whether a PCI function still answers. A virtual function has no ids of its own to answer with. */
  answers(pci: PciDevice): boolean {
    if (pci.physicalFunction !== undefined) return true;
    const folder = pciFolder(pci.address);
    // A function that may sleep while nobody uses it is woken by the look: no fact, to be looked at again and again.
    const maySleep = lookAt(this.look.files, "text", `${folder}/power/control`) === "auto";
    const config = `${folder}/config`;
    return (maySleep ? lookAt(this.look.files, "head", config) : this.fact("head", config)) !== "ffffffff";
  }

  /** The edit for a node that is there, as the machine has it. */
  node(node: Node): DeviceNode {
    this.fact("kind", node.path);
    const { path, uid, gid } = node;
    return { path, permissions: "rw", ...(uid === undefined ? {} : { uid }), ...(gid === undefined ? {} : { gid }) };
  }

  /**
   * The edit for a node whose numbers the driver tells. Where /dev has it, the engine asks it; where /dev has none, or
   * one of other numbers, they stand in the spec, and the runtime makes the node in the container.
   */
  numbered(path: string, major: number | undefined, minor: number, fileMode = 0o666): DeviceNode | undefined {
    // A driver that is loaded anew may have other majors, and nobody makes its old nodes anew.
    this.fact("text", "/proc/devices");
    const kind = this.fact("kind", path);
    const node = nodeAt(this.look, path);
    if (node !== undefined && node.minor === minor && node.major === (major ?? node.major)) return this.node(node);
    if (major === undefined) return undefined;
    const what = kind === "" ? "is not there" : `is something else (${kind})`;
    this.notices.push(`${path} ${what}: containers get a node by the driver's numbers, ${major}:${minor}`);
    return { path, type: "c", major, minor, fileMode, permissions: "rw" };
  }

  /** Says that a path in the container is for those who ask for a capability. */
  tag(path: string, ...capabilities: readonly Capability[]): void {
    for (const capability of capabilities) {
      const paths = this.#capabilities.get(capability) ?? new Set();
      this.#capabilities.set(capability, paths.add(path));
    }
  }

  device(names: readonly (string | undefined)[], containerEdits: ContainerEdits): void {
    for (const name of names) {
      if (name === undefined || this.#devices.some((one) => one.name === name)) continue;
      this.#devices.push({ name, containerEdits });
    }
  }

  /** `undefined` where there is no device: a spec without one is not valid. */
  finish(options: SpecOptions, driver?: string): MadeSpec | undefined {
    if (this.#devices.length === 0) return undefined;
    const hasCommon = Object.keys(this.common).length > 0;
    const spec: Spec = {
      cdiVersion: "0.3.0",
      kind: this.kind,
      ...(hasCommon ? { containerEdits: this.common } : {}),
      devices: this.#devices,
    };
    spec.cdiVersion = minimumVersion(spec).version;
    const capabilities = Object.fromEntries([...this.#capabilities].map(([name, paths]) => [name, [...paths]]));
    const seen = [...this.#facts.values()];
    const glance = glanceAt(this.look.files, seen);
    return { spec, origin: { facts: [...seen, ...this.#expected], glance, driver, options, capabilities } };
  }
}

/** A device with the nodes of all of a kind. */
export const ALL = "all";
